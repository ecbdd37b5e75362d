"""configs/convnet_valid.py with padded convolutions and pools; 257,162 parameters.

    python -m mnist_jax.main --config=configs/convnet_same.py

Its source builds and shows this model and does not train it.
Here, over 3 seeds on 2 CPU cores: test accuracy 0.9917 ± 0.0008 (0.9909 to 0.9925), loss 0.0286 ± 0.0046; 369 s of
training.
"""

from ml_collections import ConfigDict

from configs import convnet_valid


def get_config() -> ConfigDict:
    """`convnet_valid` with another padding."""
    config = convnet_valid.get_config()
    config.model.padding = 'same'
    return config
