"""A CNN on Kuzushiji-49, 48 hiragana and an iteration mark; imbalanced (Clanuwat et al. 2018).

    python -m mnist_jax.main --config=configs/kuzushiji49.py

Published test results, as balanced accuracy (macro-averaged recall): 4-nearest-neighbor 0.8601, a simple Keras CNN
0.8925, PreActResNet-18 with manifold mixup 0.9733. The loss weights the classes, and the best epoch is that with the
highest balanced accuracy. The accuracy of this config has not been measured. The dataset is downloaded from its
publisher, or read from `dataset.raw_dir`; docs/data.md describes its files.
"""

from ml_collections import ConfigDict

from mnist_jax.config import default_config


def get_config() -> ConfigDict:
    """Returns a CNN with batch normalization, for classes of unequal sizes."""
    config = default_config()
    config.epochs = 10
    config.dataset.name = 'kuzushiji49'
    config.dataset.balance = 'loss'
    config.dataset.validation_fraction = 0.1
    config.early_stopping.monitor = 'validation_balanced_accuracy'
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
