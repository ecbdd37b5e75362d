"""A CNN on SVHN, digits cropped from photographs of house numbers (Netzer et al. 2011).

    python -m mnist_jax.main --config=configs/svhn_cropped.py

Published test accuracies: k-means features 0.906 (Netzer et al. 2011); Network in Network 0.9765 (Lin et al. 2014),
also trained on the 531,131 additional images that are not read here. The accuracy of this config has not been
measured. The dataset is downloaded from its publisher, or read from `dataset.raw_dir`; docs/data.md describes its
files.
"""

from ml_collections import ConfigDict

from mnist_jax.config import default_config


def get_config() -> ConfigDict:
    """Returns a CNN with three stages and batch normalization, on standardized pixels."""
    config = default_config()
    config.epochs = 20
    config.dataset.name = 'svhn_cropped'
    config.dataset.validation_fraction = 0.1
    config.dataset.normalize = 'standard'
    config.early_stopping.restore_best = True
    config.model.stages = ((32, 32), (64, 64), (128, 128))
    config.model.pool = (2, 2, 2)
    config.model.batch_norm = True
    config.model.stage_dropout = (0.2, 0.3, 0.4)
    config.model.hidden = (128,)
    config.model.dropout = (0.5,)
    config.schedule.name = 'one_cycle'
    optimizer = ConfigDict()
    optimizer.name = 'adamw'
    optimizer.learning_rate = 2e-3
    optimizer.weight_decay = 0.02
    config.optimizer = optimizer
    return config
