"""A CNN of 994 parameters on scikit-learn's digits, 8x8 pixels.

    python -m mnist_jax.main --config=configs/digits_cnn.py

Reproduces a published tutorial: Adam, mean squared error on the softmax output, batch 16, 128 epochs, the last 10% of
the training split as validation; test accuracy 0.9596, loss 0.00754 (one run).
Here, over 40 seeds, each on one core of an AMD EPYC (AVX-512): test accuracy 0.9354 ± 0.0133 (0.8822 to 0.9596), loss
0.0098 ± 0.0017; 2 s of training. Keras 3.15 with the same recipe: 0.9391 ± 0.0135 over 20 seeds.
"""

from ml_collections import ConfigDict

from mnist_jax.config import default_config


def get_config() -> ConfigDict:
    """Returns the default config with a different dataset, CNN, loss and optimizer."""
    config = default_config()
    config.chunks = 1  # its steps are too short to split
    config.epochs = 128
    config.batch_size = 16
    config.dataset.name = 'digits'
    config.dataset.train = 'train[:90%]'
    config.dataset.validation = 'train[90%:]'
    config.model.stages = ((8,), (8,))
    config.model.stage_dropout = (0.1, 0.1)
    config.model.hidden = ()
    loss = ConfigDict()
    loss.name = 'mean_squared_error'
    config.loss = loss
    optimizer = ConfigDict()
    optimizer.name = 'adam'
    optimizer.learning_rate = 1e-3
    config.optimizer = optimizer
    return config
