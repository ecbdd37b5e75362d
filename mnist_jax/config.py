"""The config of a run: read from a file, checked, written to JSON and back, compared."""

import hashlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from mnist_jax.errors import UserError, check_range, comma_separated, did_you_mean

ConfigDict = ml_collections.ConfigDict
ROOT = Path(__file__).parent.parent
# The least and the greatest value of each whole number in the config.
MAX_INT = 2**31 - 1
MINUTES_PER_YEAR = 525_600  # minutes
INTEGER_RANGES = {
    'seed': (0, MAX_INT),
    'epochs': (0, MAX_INT),
    'batch_size': (1, MAX_INT),
    'eval_batch_size': (1, MAX_INT),
    'devices': (0, MAX_INT),
    'steps_per_call': (0, 10_000),
    'checkpoint_every_steps': (0, MAX_INT),
    'chunks': (1, 64),  # each is a part of the compiled program
    'folds': (0, 100),
    'fold': (0, 100),
}
# Fields that runs of older versions have not, and the values that they were trained with.
ADDED_FIELDS = {
    'steps_per_call': 0,
    'dtype': 'float32',
    'checkpoint_every_steps': 0,
    'checkpoint_every_minutes': 0.0,
    'on_nonfinite': 'stop',
    'dataset.in_memory': True,
}
# What says where a run is computed, when it is saved, and how far it goes, and not what it is: a resumed run may have
# others.
CHANGEABLE_FIELDS = (
    'devices',
    'checkpoint_every_steps',
    'checkpoint_every_minutes',
    'dataset.data_dir',
    'dataset.raw_dir',
    'epochs',
)


def load_config(path: str) -> ConfigDict:
    """The config that `get_config()` in the Python file `path` returns, locked."""
    file = Path(path)
    if not file.is_file():
        problem = 'is a directory' if file.is_dir() else 'does not exist'
        raise UserError(f'config file {path!r} {problem}; configs/cnn.py is an example')
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))  # Where 'from configs import default' finds the default config.
    try:
        spec = importlib.util.spec_from_file_location('experiment_config', path)
        if spec is None or spec.loader is None:
            raise ImportError('its name does not end in .py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception as error:  # The file is the user's: whatever it raises is for them to mend.
        raise UserError(f'config file {path!r} cannot be read: {_told(error)}') from None
    if not callable(getattr(module, 'get_config', None)):
        raise UserError(f'config file {path!r} has no function get_config(); it must return the ConfigDict of the run')
    try:
        config = module.get_config()
    except Exception as error:
        raise UserError(f'get_config() in {path!r} failed: {_told(error)}') from None
    if not isinstance(config, ConfigDict):
        raise UserError(f'get_config() in {path!r} returned a {type(config).__name__}; a ConfigDict is wanted')
    config.unlock()  # A dict put into a locked config is not locked; locking anew locks it too.
    return config.lock()


def default_config() -> ConfigDict:
    """The config that has every field."""
    return load_config(str(ROOT / 'configs' / 'default.py'))


def _told(error: Exception) -> str:
    """What an exception out of a config file says, in a line, with the number of that file's line."""
    if isinstance(error, SyntaxError):
        return f'SyntaxError: {error.msg} (line {error.lineno})'
    line = None
    traceback = error.__traceback__
    while traceback:
        name = traceback.tb_frame.f_code.co_filename
        if 'site-packages' not in name and not name.startswith('<') and name != __file__:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    # ConfigDict raises AttributeError(KeyError(text)), and prints the whole config in the middle of that text.
    inner = error.args[0] if error.args and isinstance(error.args[0], KeyError) else error
    text = str(inner.args[0]) if isinstance(inner, KeyError) and inner.args else str(inner)
    text = re.sub(r'Other fields present:.*?(?=Did you mean|$)', '', text, flags=re.DOTALL)
    return f'{type(error).__name__}: {" ".join(text.split())}' + (f' (line {line})' if line else '')


def config_fields(config: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    """The dotted name and the value of each field."""
    for name, value in config.items():
        if isinstance(value, ConfigDict | dict):
            yield from config_fields(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}', value


def check_fields(config: ConfigDict, names: Iterable[str]) -> dict[str, Any]:
    """The values of all fields by dotted name; a name among `names` that is no field is an error."""
    values = dict(config_fields(config))
    for name in names:
        if name not in values:
            section = name.rpartition('.')[0]
            beside = [field for field in values if field.rpartition('.')[0] == section] or list(values)
            raise UserError(
                f'config.{name} is no field{did_you_mean(name, values)}; the fields are: {comma_separated(beside)}'
            )
    return values


def check_arguments(arguments: Iterable[str]) -> dict[str, Any]:
    """The fields that `--config.FIELD=VALUE` among the arguments of the program overrides, with the file's values.

    Raises:
      UserError: a config file that cannot be read, a field that it has not, or fields without a file.
    """
    joined = '\n'.join(arguments)
    paths = re.findall(r'^--?config[=\n](.*)$', joined, re.MULTILINE)
    overrides = re.findall(r'^--?(?:no)?config\.([\w.]+)', joined, re.MULTILINE)
    if overrides and not paths:
        raise UserError(f'--config.{overrides[0]} overrides a field of a config; give --config=FILE too')
    values = check_fields(load_config(paths[-1]), overrides) if paths else {}
    return {name: values[name] for name in overrides}


def check_config(config: ConfigDict) -> None:
    """Raise a UserError unless `config` has the fields of the default, of their types, and numbers in their range.

    Which fields `model`, `optimizer` and `dataset` have beside `name` is checked where these are built.
    """
    every = default_config()
    for name, value in every.items():
        if name not in config:
            raise UserError(f'config.{name} is missing; configs/default.py says what it is')
        if not isinstance(config[name], type(value)):
            raise UserError(f'config.{name}={config[name]!r} is wrong: its type is {type(value).__name__}')
        if isinstance(value, ConfigDict) and 'name' in value and 'name' not in config[name]:
            raise UserError(f'config.{name}.name is missing; configs/default.py says what it is')
    for name in config:
        if name not in every:
            raise UserError(
                f'config.{name} is no field{did_you_mean(name, every)}; the fields are: {comma_separated(every)}'
            )
    _check_values(config)


def _check_values(config: ConfigDict) -> None:
    for name, value in config_fields(config):
        if isinstance(value, str) and '\0' in value:
            raise UserError(f'config.{name}={value!r} is wrong: it has a NUL character')
    for name, (least, greatest) in INTEGER_RANGES.items():
        if not least <= config[name] <= greatest or isinstance(config[name], bool):
            raise UserError(
                f'config.{name}={config[name]} is wrong: a whole number from {least} to {greatest} is wanted'
            )
    check_range('config.checkpoint_every_minutes', config.checkpoint_every_minutes, 0, MINUTES_PER_YEAR)
    if config.folds == 1 or config.fold > config.folds:
        raise UserError(
            f'config.folds={config.folds} and config.fold={config.fold} are wrong: folds is 0, or from 2 on; '
            'fold is at most that'
        )


def config_to_json(config: ConfigDict) -> str:
    """The config as JSON; a value that JSON does not know is an error."""
    return json.dumps(config.to_dict(), indent=2) + '\n'


def config_sha256(config: ConfigDict) -> str:
    """The digest of what makes a run what it is: every field but those of `CHANGEABLE`.

    Nor fields that were added later and have the value of the runs before: these keep their digest.
    """
    values = {name: value for name, value in config_fields(config) if name not in CHANGEABLE_FIELDS}
    counted = {name: value for name, value in values.items() if name not in ADDED_FIELDS or value != ADDED_FIELDS[name]}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()


def config_from_json(value: Any) -> ConfigDict:
    """The config that `to_json` wrote, locked; ValueError where it is another JSON value."""
    if not isinstance(value, dict):
        raise ValueError('it is no JSON object')
    return ConfigDict(_tuples(value)).lock()


def fill_added_fields(saved: ConfigDict) -> ConfigDict:
    """`saved`, of any version of this program, with those of `ADDED` that it has not, locked."""
    config = saved.copy_and_resolve_references()
    config.unlock()
    for name, value in ADDED_FIELDS.items():
        section, _, field = name.rpartition('.')
        if section and section not in config:
            continue  # `check` tells of it.
        place = config[section] if section else config
        if isinstance(place, ConfigDict) and field not in place:
            place[field] = value
    return config.lock()


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def check_resumable(saved: ConfigDict, config: ConfigDict) -> None:
    """Raise a UserError that names the fields in which `config` asks for another run than the one `saved`.

    Those of `CHANGEABLE` may be others; fewer epochs than it has is for the checkpoint to tell.
    """
    old, new = dict(config_fields(saved)), dict(config_fields(config_from_json(json.loads(config_to_json(config)))))
    changed = [
        f'{name} (was {old.get(name)!r}, is {new.get(name)!r})'
        for name in {**old, **new}
        if old.get(name) != new.get(name) and name not in CHANGEABLE_FIELDS
    ]
    if changed:
        raise UserError(
            f'the workdir holds a run with another config: {"; ".join(changed)}; give another --workdir, or the saved '
            'values (epochs may be raised)'
        )
