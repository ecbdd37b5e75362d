"""The best CNN for MNIST with at most 5,000 parameters that this project found; it has 4,506.

    python -m mnist_jax.main --config=configs/mnist_5k.py

Chosen by its accuracy on the last 10% of the training split. Over 10 seeds, each on one core of an AMD EPYC (AVX-512):
test accuracy 0.9949 ± 0.0004 (0.9942 to 0.9956); 206 s of training.
"""

from ml_collections import ConfigDict

from mnist_jax.config import CONFIGS, load_config


def get_config() -> ConfigDict:
    """Returns the config of mnist_1k with more features, a smaller learning rate, and mild geometric augmentation."""
    config = load_config(CONFIGS / 'mnist_1k.py')
    config.epochs = 30
    config.model.stages = ((6, 8), (11, 12), (15,))
    config.optimizer.learning_rate = 0.01
    config.augmentation = ({'name': 'affine', 'rotation': 8.0, 'scale': 0.08, 'shear': 5.0, 'shift': 1.0},)
    return config
