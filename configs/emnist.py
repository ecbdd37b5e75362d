"""A CNN on EMNIST, handwritten letters and digits in six varieties (Cohen et al. 2017).

    python -m mnist_jax.main --config=configs/emnist.py
    python -m mnist_jax.main --config=configs/emnist.py --config.dataset.variety=letters

Published test accuracies: balanced 0.9106, letters 0.9596, digits 0.9984 (convolutional networks).
The accuracy of this config has not been measured. The dataset is downloaded from its
publisher, or read from `dataset.raw_dir`; docs/data.md describes its files.
"""

from ml_collections import ConfigDict

from mnist_jax.config import default_config


def get_config() -> ConfigDict:
    """Returns a CNN with batch normalization on the 47 balanced classes."""
    config = default_config()
    config.epochs = 10
    config.dataset.name = 'emnist'
    with config.dataset.unlocked():
        config.dataset.variety = 'balanced'  # byclass, bymerge, balanced, letters, digits or mnist
    config.dataset.validation_fraction = 0.1
    config.early_stopping.restore_best = True
    config.model.stages = ((32, 32), (64, 64))
    config.model.batch_norm = True
    config.model.stage_dropout = (0.25, 0.3)
    config.model.hidden = (128,)
    config.model.dropout = (0.4,)
    config.schedule.name = 'one_cycle'
    optimizer = ConfigDict()
    optimizer.name = 'adamw'
    optimizer.learning_rate = 2e-3
    optimizer.weight_decay = 0.01
    config.optimizer = optimizer
    return config
