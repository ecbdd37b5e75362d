"""configs/convnet_valid.py with padded convolutions and pooling; 257,162 parameters.

    python -m mnist_jax.main --config=configs/convnet_same.py

The published tutorial builds this model but does not train it.
Here, over 3 seeds on 2 CPU cores: test accuracy 0.9915 ± 0.0009 (0.9905 to 0.9921), loss 0.0299 ± 0.0036; 143 s of
training.
"""

from ml_collections import ConfigDict

from mnist_jax.config import load_config


def get_config() -> ConfigDict:
    """Returns the config of convnet_valid with padding."""
    config = load_config('configs/convnet_valid.py')
    config.model.padding = 'same'
    return config
