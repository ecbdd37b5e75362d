"""The config of a run: loading it from a file, JSON in and out, its digest, and whether a run may resume with it.

`configs/default.py` declares every field; `config_checks` checks the values.
"""

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ml_collections import ConfigDict

from mnist_jax.errors import UserError, comma_separated, did_you_mean

ROOT = Path(__file__).parent.parent
# In a checkout, configs/ is next to the package; an installed package has a bundled copy.
CHECKOUT = ROOT if (ROOT / 'configs' / 'default.py').exists() else None
CONFIGS = (CHECKOUT or Path(__file__).parent) / 'configs'
# Fields that runs of older versions lack, with the values that those runs were trained with.
ADDED_FIELDS = {
    'steps_per_call': 0,
    'dtype': 'float32',
    'checkpoint_every_steps': 0,
    'checkpoint_every_minutes': 0.0,
    'on_nonfinite': 'stop',
    'dataset.in_memory': True,
}
# Fields that a resumed run may change: they set where it runs, where its data is, when it saves and how long it trains,
# but not what a step computes.
CHANGEABLE_FIELDS = (
    'devices',
    'checkpoint_every_steps',
    'checkpoint_every_minutes',
    'dataset.data_dir',
    'dataset.raw_dir',
    'epochs',
)


def find_config(path: str) -> Path:
    """Returns the config file that `path` names.

    A path such as 'configs/cnn.py' that does not exist in the current directory names a config of this project.
    """
    file = Path(path)
    if not file.exists() and file.parent == Path('configs'):
        file = CONFIGS / file.name
    if not file.is_file():
        problem = 'is a directory' if file.is_dir() else 'does not exist'
        raise UserError(f'config file {path!r} {problem}; configs/cnn.py is an example')
    return file


def load_config(path: str) -> ConfigDict:
    """Returns the locked config that `get_config()` in the Python file `path` returns; see `find_config`."""
    file = find_config(path)
    try:
        spec = importlib.util.spec_from_file_location('experiment_config', file)
        if spec is None or spec.loader is None:
            raise ImportError('its name must end in .py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception as error:  # The file is the user's: whatever it raises is for them to fix.
        raise UserError(f'config file {path!r} cannot be loaded: {_describe(error)}') from None
    if not callable(getattr(module, 'get_config', None)):
        raise UserError(f'config file {path!r} must define a function get_config() that returns a ConfigDict')
    try:
        config = module.get_config()
    except Exception as error:
        raise UserError(f'get_config() in {path!r} failed: {_describe(error)}') from None
    if not isinstance(config, ConfigDict):
        raise UserError(f'get_config() in {path!r} must return a ConfigDict, got {type(config).__name__}')
    config.unlock()  # A dict put into a locked config is not locked; locking the config again locks it too.
    return config.lock()


def default_config() -> ConfigDict:
    """Returns the default config, which has every field. Every experiment's config starts from it."""
    return load_config(str(CONFIGS / 'default.py'))


def _describe(error: Exception) -> str:
    """Describes an exception raised by a config file in one line, with the line number in that file."""
    if isinstance(error, SyntaxError):
        return f'SyntaxError: {error.msg} (line {error.lineno})'
    line: int | None = None
    traceback: TracebackType | None = error.__traceback__
    while traceback:
        name = traceback.tb_frame.f_code.co_filename
        if 'site-packages' not in name and not name.startswith('<') and name != __file__:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    # ConfigDict raises AttributeError(KeyError(text)), with the whole config printed in the middle of the text.
    inner = error.args[0] if error.args and isinstance(error.args[0], KeyError) else error
    text = str(inner.args[0]) if isinstance(inner, KeyError) and inner.args else str(inner)
    text = re.sub(r'Other fields present:.*?(?=Did you mean|$)', '', text, flags=re.DOTALL)
    return f'{type(error).__name__}: {" ".join(text.split())}' + (f' (line {line})' if line else '')


def config_fields(config: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Yields the dotted name and the value of each field."""
    for name, value in config.items():
        if isinstance(value, ConfigDict | dict):
            yield from config_fields(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}', value


def check_fields(config: ConfigDict, names: Iterable[str]) -> dict[str, Any]:
    """Returns the values of all fields by dotted name; raises a UserError if one of `names` is not a field."""
    values = dict(config_fields(config))
    for name in names:
        if name not in values:
            section = name.rpartition('.')[0]
            siblings = [field for field in values if field.rpartition('.')[0] == section] or list(values)
            raise UserError(
                f'config.{name} is not a field{did_you_mean(name, values)}; the fields are: {comma_separated(siblings)}'
            )
    return values


def check_arguments(arguments: Iterable[str]) -> dict[str, Any]:
    """Checks the `--config...` arguments before they are parsed.

    Args:
      arguments: The command line.

    Returns:
      The fields that `--config.FIELD=VALUE` overrides, with their values in the config file.

    Raises:
      UserError: the config file is missing, cannot be loaded, or lacks an overridden field.
    """
    joined = '\n'.join(arguments)
    paths = re.findall(r'^--?config[=\n](.*)$', joined, re.MULTILINE)
    overrides = re.findall(r'^--?(?:no)?config\.([\w.]+)', joined, re.MULTILINE)
    if overrides and not paths:
        raise UserError(f'--config.{overrides[0]} overrides a config field and needs --config=FILE')
    values = check_fields(load_config(paths[-1]), overrides) if paths else {}
    return {name: values[name] for name in overrides}


def config_to_json(config: ConfigDict) -> str:
    """Returns the config as JSON; raises a TypeError for a value that JSON cannot represent."""
    return json.dumps(config.to_dict(), indent=2) + '\n'


def config_sha256(config: ConfigDict) -> str:
    """Returns the digest of all fields of the config except `CHANGEABLE_FIELDS`.

    A field of `ADDED_FIELDS` is left out while it has the value listed there, so the digests of older runs stay valid.
    """
    values = {name: value for name, value in config_fields(config) if name not in CHANGEABLE_FIELDS}
    counted = {name: value for name, value in values.items() if name not in ADDED_FIELDS or value != ADDED_FIELDS[name]}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()


def config_from_json(value: object) -> ConfigDict:
    """Returns the locked config that `config_to_json` wrote; raises a ValueError for any other JSON value."""
    if not isinstance(value, dict):
        raise ValueError('it must be a JSON object')
    return ConfigDict(_lists_to_tuples(value)).lock()


def _lists_to_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _lists_to_tuples(item) for name, item in value.items()}
    return tuple(map(_lists_to_tuples, value)) if isinstance(value, list) else value


def fill_added_fields(saved: ConfigDict) -> ConfigDict:
    """Returns `saved`, from any version of this program, with the `ADDED_FIELDS` that it lacks, locked."""
    config = saved.copy_and_resolve_references()
    config.unlock()
    for name, value in ADDED_FIELDS.items():
        section, _, field = name.rpartition('.')
        if section and section not in config:
            continue  # `check_config` reports it.
        parent = config[section] if section else config
        if isinstance(parent, ConfigDict) and field not in parent:
            parent[field] = value
    return config.lock()


def check_resumable(saved: ConfigDict, config: ConfigDict) -> None:
    """Raises a UserError that names the fields in which `config` differs from the run `saved`.

    `CHANGEABLE_FIELDS` may differ. The number of epochs is checked against the checkpoint, when it is restored.
    """
    old, new = dict(config_fields(saved)), dict(config_fields(config_from_json(json.loads(config_to_json(config)))))
    changed = [
        f'{name} (was {old.get(name)!r}, is {new.get(name)!r})'
        for name in {**old, **new}
        if old.get(name) != new.get(name) and name not in CHANGEABLE_FIELDS
    ]
    if changed:
        raise UserError(
            f'the workdir holds a run with a different config: {"; ".join(changed)}; use another --workdir, or the '
            'saved values (epochs may be raised)'
        )
