"""configs/convnet_valid.py with padded convolutions and pools; 257,162 parameters.

    python -m mnist_jax.main --config=configs/convnet_same.py

Its source builds and shows this model and does not train it.
"""

from ml_collections import ConfigDict

from configs import convnet_valid


def get_config() -> ConfigDict:
    """`convnet_valid` with another padding."""
    config = convnet_valid.get_config()
    config.model.padding = 'same'
    return config
