"""configs/convnet_valid.py with padded convolutions and pools; 257,162 parameters.

    python -m mnist_jax.main --config=configs/convnet_same.py

Its source builds and shows this model and does not train it.
Here, over 3 seeds on 2 CPU cores: test accuracy 0.9915 ± 0.0009 (0.9905 to 0.9921), loss 0.0299 ± 0.0036; 143 s of
training.
"""

from ml_collections import ConfigDict

from configs import convnet_valid


def get_config() -> ConfigDict:
    """`convnet_valid` with another padding."""
    config = convnet_valid.get_config()
    config.model.padding = 'same'
    return config
