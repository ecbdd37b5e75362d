"""The best CNN for MNIST with at most 10,000 parameters that this project found; it has 8,170.

    python -m mnist_jax.main --config=configs/mnist_10k.py

Chosen by its accuracy on the last 10% of the training split.
"""

from ml_collections import ConfigDict

from mnist_jax.config import CONFIGS, load_config


def get_config() -> ConfigDict:
    """Returns the config of mnist_1k with more features, a smaller learning rate, and small motions of the images."""
    config = load_config(CONFIGS / 'mnist_1k.py')
    config.epochs = 30
    config.model.stages = ((8, 8), (16, 16), (24,))
    config.optimizer.learning_rate = 0.01
    config.augmentation = ({'name': 'affine', 'rotation': 8.0, 'scale': 0.08, 'shear': 5.0, 'shift': 1.0},)
    return config
