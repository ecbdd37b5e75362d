"""An MLP-Mixer (Tolstikhin et al. 2021) on MNIST; 82,062 parameters.

    python -m mnist_jax.main --config=configs/mixer.py

AdamW with a one-cycle learning rate over 10 epochs. The test accuracy has not been measured over several seeds.
"""

from ml_collections import ConfigDict

from mnist_jax.config import CONFIGS, load_config


def get_config() -> ConfigDict:
    """Returns the config of the ResNet with this model and a smaller learning rate."""
    config = load_config(CONFIGS / 'resnet.py')
    config.unlock()
    config.model = ConfigDict({'name': 'mixer'})
    config.optimizer.learning_rate = 2e-3
    return config.lock()
