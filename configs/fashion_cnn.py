"""A CNN with BatchNorm and dropout on Fashion-MNIST; 468,586 parameters, of which 384 are not trainable.

    python -m mnist_jax.main --config=configs/fashion_cnn.py

Reproduces a published tutorial: Adam, batch 128, at most 50 epochs on a random 90% of the training split. Training
stops when the validation accuracy has not risen for 5 epochs, and the best weights are restored; the learning rate is
halved when the validation loss has not fallen for 2 epochs. Test accuracy 0.9379, loss 0.1879 (one run).
Here, over 6 seeds, each on one core of an AMD EPYC (AVX-512): test accuracy 0.9367 ± 0.0011 (0.9353 to 0.9387), loss
0.1881 ± 0.0026, after 26 to 40 epochs; 23 to 32 min of training.
"""

from ml_collections import ConfigDict

from mnist_jax.config import default_config


def get_config() -> ConfigDict:
    """Returns the default config with a different dataset, CNN and optimizer, and callbacks."""
    config = default_config()
    config.chunks = 2  # fewer, larger chunks are faster on one CPU; more chunks let more devices share the work
    config.epochs = 50
    config.dataset.name = 'fashion_mnist'
    config.dataset.validation_fraction = 0.1
    config.early_stopping.patience = 5
    config.early_stopping.restore_best = True
    config.reduce_lr.patience = 2
    config.reduce_lr.factor = 0.5
    config.reduce_lr.min_lr = 1e-5
    config.model.stages = ((32, 32), (64, 64))
    config.model.batch_norm = True
    config.model.stage_dropout = (0.25, 0.30)
    config.model.hidden = (128,)
    config.model.dropout = (0.40,)
    optimizer = ConfigDict()
    optimizer.name = 'adam'
    optimizer.learning_rate = 1e-3
    optimizer.beta_1 = 0.9  # decay of the moving average of the gradients
    optimizer.beta_2 = 0.999  # decay of the moving average of their squares
    optimizer.epsilon = 1e-7  # added to the square root of the latter
    config.optimizer = optimizer
    return config
