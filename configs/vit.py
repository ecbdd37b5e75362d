"""A vision transformer (Dosovitskiy et al. 2021) on MNIST; 138,890 parameters.

    python -m mnist_jax.main --config=configs/vit.py

AdamW with a one-cycle learning rate over 10 epochs. The test accuracy has not been measured over several seeds.
"""

from ml_collections import ConfigDict

from mnist_jax.config import default_config


def get_config() -> ConfigDict:
    """Returns the default config with this model, AdamW and a one-cycle schedule."""
    config = default_config()
    config.chunks = 2
    config.model = ConfigDict({'name': 'vit'})
    config.schedule.name = 'one_cycle'
    optimizer = ConfigDict()
    optimizer.name = 'adamw'
    optimizer.learning_rate = 1e-3
    optimizer.weight_decay = 0.05
    config.optimizer = optimizer
    return config
