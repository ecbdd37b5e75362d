"""The best CNN for MNIST with at most 10,000 parameters that this project found; it has 8,170.

    python -m mnist_jax.main --config=configs/mnist_10k.py

Chosen by its accuracy on the last 10% of the training split. Over 10 seeds, each on one core of an AMD EPYC (AVX-512):
test accuracy 0.9956 ± 0.0004 (0.9952 to 0.9963); 213 s of training.
"""

from ml_collections import ConfigDict

from mnist_jax.config import CONFIGS, load_config


def get_config() -> ConfigDict:
    """Returns the config of mnist_5k with more features."""
    config = load_config(CONFIGS / 'mnist_5k.py')
    config.model.stages = ((8, 8), (16, 16), (24,))
    return config
