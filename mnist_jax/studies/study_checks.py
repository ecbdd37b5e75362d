"""What a study must fulfill before any of its trials starts."""

from mnist_jax.config import ConfigDict, config_fields
from mnist_jax.config_checks import check_config
from mnist_jax.errors import MAX_INT, UserError, check_integer, did_you_mean
from mnist_jax.learning.losses import WEIGHTING_FIELDS
from mnist_jax.studies.space import Choice, Condition, Interval, Space, choice
from mnist_jax.studies.study import Study

MAX_SEEDS = 1000
# The fields of a dataset that do not affect which examples validate a run; `train` only if they are not drawn from it.
COMPARABLE = (
    'train',
    'test',
    'normalize',
    'balance',
    'class_weights',
    'image_size',
    'fit',
    'channels',
    'data_dir',
    'in_memory',
    'on_device',
)


def check_study(study: Study, config: ConfigDict) -> None:
    """Raises a UserError unless a study is valid for the config that it starts from."""
    check_config(config)
    if not study.vary and study.seeds == 1:
        raise UserError('a study must vary at least one config field, with --vary or --sweep, or have several seeds')
    if not study.vary and study.search.get('name') != 'grid':
        raise UserError(f"--search must be 'grid' if no field is varied, got {study.search.get('name')!r}")
    check_integer('--seeds', study.seeds, 1, min(MAX_SEEDS, MAX_INT - config.seed + 1))
    _check_fields(study.vary, config)
    _check_epochs(study, config)


def _check_fields(vary: Space, config: ConfigDict) -> None:
    """Checks which fields are varied: points must be comparable, on the same examples by the same metric."""
    for field, entry in vary.items():
        if not isinstance(field, str):
            raise UserError(f'the fields that a study varies must be strings, got {field!r}')
        if field == 'seed':
            raise UserError('a study must not vary the seed as a field; set --seeds, the number of seeds')
        if field in ('early_stopping.monitor', 'early_stopping.mode'):
            raise UserError(f'a study must not vary config.{field}, by which it compares its points')
        domain = entry.domain if isinstance(entry, Condition) else entry
        if not isinstance(domain, Choice | Interval):
            raise UserError(
                f'the values of {field} must be a domain such as choice(0.1, 0.2) or uniform(0.1, 0.2), got {domain!r}'
            )
        if isinstance(entry, Condition):
            _check_condition(field, entry, vary, config)
        monitor = config.early_stopping.monitor
        if (field.startswith('loss.') or field in WEIGHTING_FIELDS) and monitor.endswith('_loss'):
            raise UserError(
                f'a study that varies config.{field} must compare its points by another metric than '
                f'config.early_stopping.monitor={monitor!r}, which has another meaning for each value'
            )
        section, _, name = field.partition('.')
        drawn = bool(config.dataset.validation_fraction) and name == 'train'
        if section == 'dataset' and (name not in COMPARABLE or drawn):
            raise UserError(f'a study must not vary config.{field}: its points would be compared on different examples')
    for field in ('folds', 'population'):
        if config[field] or field in vary:
            raise UserError(f'config.{field} must be 0 in a study, got {vary.get(field, config[field])}')


def _check_condition(field: str, condition: Condition, vary: Space, config: ConfigDict) -> None:
    """Checks that the condition of `field` can be met, and is on a field that is set before it."""
    names = list(vary)
    before = names[: names.index(field)]
    known = [*(name for name in dict(config_fields(config)) if name not in vary), *before]
    if condition.field not in known:
        raise UserError(
            f'the condition of {field} must be on a field of the config, or one that is varied before it, got '
            f'{condition.field!r}{did_you_mean(condition.field, known)}'
        )
    domain = vary.get(condition.field, choice(dict(config_fields(config)).get(condition.field)))
    if isinstance(domain, Choice) and not set(map(repr, domain.values)) & set(map(repr, condition.values)):
        raise UserError(
            f'the condition of {field} must name one of the values of {condition.field}, '
            f'{", ".join(map(repr, domain.values))}, got {", ".join(map(repr, condition.values))}'
        )


def _check_epochs(study: Study, config: ConfigDict) -> None:
    """Checks the number of epochs, and that successive halving divides it into several rounds."""
    check_integer('the first_epochs of a study', study.first_epochs, 1, MAX_INT)
    if study.reduction != 0:
        check_integer('--reduction', study.reduction, 2, 1000)
        if 'epochs' in study.vary:
            raise UserError('a study with --reduction must not vary config.epochs, which it divides into rounds')
        least = study.first_epochs * study.reduction
        if config.epochs < least:
            raise UserError(
                f'config.epochs must be at least {least} with --reduction={study.reduction}, got {config.epochs}: '
                'there would be only one round'
            )
    if config.epochs < 1 and 'epochs' not in study.vary:
        raise UserError(f'config.epochs must be at least 1 in a study, got {config.epochs}')
