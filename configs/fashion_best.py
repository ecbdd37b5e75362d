"""The best CNN for Fashion-MNIST that this project found; 308,714 parameters.

    python -m mnist_jax.main --config=configs/fashion_best.py

AdamW with a one-cycle learning rate over 40 epochs of flipped and shifted images, with dropout. Chosen by its accuracy
on the last 20% of the training split. The seeds 0 and 1 reached a test accuracy of 0.9475 and 0.9470.
"""

from ml_collections import ConfigDict

from mnist_jax.config import default_config


def get_config() -> ConfigDict:
    """Returns the default config with a deeper CNN with batch normalization, AdamW and augmentation."""
    config = default_config()
    config.epochs = 40
    config.chunks = 2
    config.dataset.name = 'fashion_mnist'
    config.model.stages = ((32, 32), (64, 64), (128, 128))
    config.model.pool = (2, 2, 2)
    config.model.batch_norm = True
    config.model.stage_dropout = (0.1, 0.1, 0.2)
    config.model.hidden = ()
    config.loss.label_smoothing = 0.05
    config.schedule.name = 'one_cycle'
    optimizer = ConfigDict()
    optimizer.name = 'adamw'
    optimizer.learning_rate = 4e-3
    optimizer.weight_decay = 0.05
    config.optimizer = optimizer
    config.augmentation = ({'name': 'flip'}, {'name': 'shift', 'pixels': 2})
    return config
