"""Checks of the values in a config, so that the code that reads the config can rely on them.

The fields of the sections that select a constructor by name are checked against its signature, by `factory.build`.
"""

import json
from collections.abc import Mapping
from typing import Any

from mnist_jax.config import ConfigDict, check_values, config_fields, default_config
from mnist_jax.errors import MAX_INT, UserError, check_integer, check_range, comma_separated, did_you_mean

MINUTES_PER_YEAR = 525_600
SECONDS_PER_DAY = 86_400
INTEGER_RANGES = {
    'seed': (0, MAX_INT),
    'epochs': (0, MAX_INT),
    'batch_size': (1, MAX_INT),
    'eval_batch_size': (1, MAX_INT),
    'devices': (0, MAX_INT),
    'steps_per_call': (0, MAX_INT),
    'checkpoint_every_steps': (0, MAX_INT),
    'profile_steps': (0, 1000),  # A trace of more steps would need gigabytes.
    'chunks': (1, 64),  # each one is unrolled in the compiled program
    'population': (0, 1000),
    'folds': (0, 100),
    'fold': (0, 100),
}


def check_config(config: ConfigDict) -> None:
    """Raises a UserError unless `config` has the fields of the default config, of their types and in their ranges."""
    default = default_config()
    check_values(config)
    _check_fields('', config)
    for name, value in default.items():
        if not isinstance(config[name], type(value)):
            raise UserError(f'config.{name} must be of type {type(value).__name__}, got {config[name]!r}')
        if isinstance(value, ConfigDict) and 'name' in value and 'name' not in config[name]:
            raise UserError(f'config.{name}.name is missing; configs/default.py describes it')
    for name, value in config_fields(config):
        if isinstance(value, str) and '\0' in value:
            raise UserError(f'config.{name} must not contain a NUL character, got {value!r}')
        try:
            json.dumps(value)
        except TypeError as error:
            raise UserError(f'config.{name} must be a value that JSON can hold, got {value!r} ({error})') from None
    for name, (minimum, maximum) in INTEGER_RANGES.items():
        check_integer(f'config.{name}', config[name], minimum, maximum)
    check_range('config.checkpoint_every_minutes', config.checkpoint_every_minutes, 0, MINUTES_PER_YEAR)
    check_range('config.checkpoint_min_seconds', config.checkpoint_min_seconds, 0, SECONDS_PER_DAY)
    check_init(config.init)
    check_distillation(config.distillation)
    if config.folds == 1:
        raise UserError('config.folds must be 0 or at least 2, got 1')
    if config.fold > config.folds:
        raise UserError(f'config.fold must be at most config.folds={config.folds}, got {config.fold}')


def _check_fields(section: str, fields: Mapping[str, Any]) -> None:
    """Raises a UserError unless `fields` are those of a section of the default config; '' is the whole config."""
    default, prefix = default_config(), 'config.'
    if section:
        default, prefix = default[section], f'config.{section}.'
    for name in default:
        if name not in fields:
            raise UserError(f'{prefix}{name} is missing; configs/default.py describes it')
    for name in fields:
        if name not in default:
            hint = did_you_mean(name, default)
            raise UserError(f'{prefix}{name} is not a field{hint}; the fields are: {comma_separated(default)}')


def check_init(init: Mapping[str, Any]) -> None:
    """Raises a UserError unless the fields of `config.init` have the form that configs/default.py describes."""
    _check_fields('init', init)
    for field in ('workdir', 'step'):
        if not isinstance(init[field], str):
            raise UserError(f'config.init.{field} must be of type str, got {init[field]!r}')
    if init['step'] and not init['workdir']:
        raise UserError(f"config.init.workdir must be set if config.init.step={init['step']!r} is, got ''")
    for field in ('skip', 'freeze'):
        if not isinstance(init[field], tuple) or not all(isinstance(pattern, str) for pattern in init[field]):
            raise UserError(
                f"config.init.{field} must be a tuple of patterns, such as ('Conv_*',), got {init[field]!r}"
            )
    check_range('config.init.layer_decay', init['layer_decay'], 0.0, 1.0)
    for pair in init['rates'] if isinstance(init['rates'], tuple) else [init['rates']]:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise UserError(
                "config.init.rates must be a tuple of pairs of a pattern and a factor, such as (('Conv_*', 0.1),), got "
                f'{init["rates"]!r}'
            )
        check_range('each factor of config.init.rates', pair[1], 0.0, 1e6)


def check_distillation(distillation: Mapping[str, Any]) -> None:
    """Raises a UserError unless the fields of `config.distillation` have their types and ranges."""
    _check_fields('distillation', distillation)
    workdirs = distillation['workdirs']
    if not isinstance(workdirs, tuple) or not all(isinstance(workdir, str) for workdir in workdirs):
        raise UserError(
            f"config.distillation.workdirs must be a tuple of paths, such as ('runs/cnn',), got {workdirs!r}"
        )
    check_range('config.distillation.weight', distillation['weight'], 0.0, 1.0)
    check_range('config.distillation.temperature', distillation['temperature'], 0.01, 1000.0)


def check_attributes(attributes: Mapping[str, Any]) -> None:
    """Raises a UserError unless the attributes of a model fit each other, such as those with one value per layer."""
    for field, layers, optional in (
        ('dropout', 'hidden', True),
        ('stage_dropout', 'stages', True),
        ('pool', 'stages', False),
        ('strides', 'widths', False),
    ):
        values = attributes.get(field)
        if layers not in attributes or not isinstance(values, tuple | list) or (optional and not values):
            continue
        if len(values) != len(attributes[layers]):
            raise UserError(
                f'config.model.{field} must have one value for each of the {len(attributes[layers])} entries of '
                f'config.model.{layers}{", or be ()" if optional else ""}, got {tuple(values)}'
            )
    if attributes.get('widths', (1,)) in ((), []):
        raise UserError('config.model.widths must not be empty, got ()')
    if attributes.get('batch_norm') and attributes.get('normalization', 'none') not in ('none', 'batch'):
        raise UserError(
            "config.model.batch_norm must be False if config.model.normalization is neither 'none' nor 'batch', got "
            f'True with {attributes["normalization"]!r}'
        )
    if attributes.get('width', 0) % attributes.get('heads', 1):
        raise UserError(
            f'config.model.width must be a multiple of config.model.heads={attributes["heads"]}, got '
            f'{attributes["width"]}'
        )
