"""A small CNN that reaches the accuracy of a published one on MNIST as quickly as possible; 44,066 parameters.

    python -m mnist_jax.main --config=configs/fast.py

AdamW with a one-cycle learning rate over 2 epochs, and a little label smoothing. The recipe was chosen by its accuracy
on the last 10% of the training split. Here, over 5 seeds on 2 CPU cores: mean test accuracy 0.9928 (0.9915 to
0.9936), 16 to 19 s from the command to eval.json.
"""

from ml_collections import ConfigDict

from mnist_jax.config import default_config


def get_config() -> ConfigDict:
    """Returns the default config with a smaller CNN, AdamW and a one-cycle schedule."""
    config = default_config()
    config.epochs = 2
    config.batch_size = 64
    config.chunks = 1
    config.model.stages = ((16,), (24, 32))
    config.model.padding = 'valid'
    config.model.hidden = (64,)
    config.loss.label_smoothing = 0.03
    config.schedule.name = 'one_cycle'
    optimizer = ConfigDict()
    optimizer.name = 'adamw'
    optimizer.learning_rate = 6e-3
    optimizer.weight_decay = 0.01
    config.optimizer = optimizer
    return config
