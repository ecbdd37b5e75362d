"""A small MobileNet (Howard et al. 2017) on MNIST; 20,266 parameters.

    python -m mnist_jax.main --config=configs/depthwise.py

AdamW with a one-cycle learning rate over 10 epochs. The test accuracy has not been measured over several seeds.
"""

from ml_collections import ConfigDict

from mnist_jax.config import CONFIGS, load_config


def get_config() -> ConfigDict:
    """Returns the config of the ResNet with this model."""
    config = load_config(CONFIGS / 'resnet.py')
    config.unlock()
    config.model = ConfigDict({'name': 'depthwise'})
    return config.lock()
