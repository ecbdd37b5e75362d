"""The parts that each section of a config can select by its field `name`."""

from collections.abc import Mapping

from mnist_jax.config import default_config
from mnist_jax.data.source import SOURCES
from mnist_jax.factory import Section
from mnist_jax.learning.averaging import AVERAGES
from mnist_jax.learning.losses import LOSSES
from mnist_jax.learning.optimizers import OPTIMIZERS
from mnist_jax.learning.schedules import SCHEDULES
from mnist_jax.models.architectures import MODELS

SECTIONS: Mapping[str, Section] = {
    'model': Section(MODELS, extra=('num_classes',)),
    'loss': Section(LOSSES),
    'schedule': Section(SCHEDULES),
    'optimizer': Section(OPTIMIZERS, shared=('learning_rate', 'clip_norm', 'clip_value', 'sam_radius', 'accumulate')),
    'average': Section(AVERAGES, shared=('evaluated',)),
    'dataset': Section(SOURCES, extra=('fold', 'description'), shared=tuple(default_config().dataset)),
}
