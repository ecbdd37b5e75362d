"""The config of a run: loading it from a file, overriding its fields, JSON in and out, its digest.

`check_resumable` decides whether a run may resume with a config. `configs/default.py` declares every field, and
`config_checks` checks the values.
"""

import functools
import hashlib
import importlib.util
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import RequiredValueError

from mnist_jax.errors import UserError, comma_separated, did_you_mean
from mnist_jax.factory import Section, arguments, choose, describe, lists_to_tuples, parse_value
from mnist_jax.files import user_path

ROOT = Path(__file__).parent.parent
# In a checkout, configs/ is next to the package; an installed package has a bundled copy.
CHECKOUT = ROOT if (ROOT / 'configs' / 'default.py').exists() else None
CONFIGS = (CHECKOUT or Path(__file__).parent) / 'configs'
# Fields that runs of older versions lack, with the values that those runs were trained with. List every new field here:
# the digest of a config leaves out the fields that have these values, so that older runs and studies can be resumed.
ADDED_FIELDS = {
    'steps_per_call': 0,
    'dtype': 'float32',
    'checkpoint_every_steps': 0,
    'checkpoint_every_minutes': 0.0,
    'on_nonfinite': 'stop',
    'profile_steps': 0,
    'population': 0,
    'dataset.in_memory': True,
    'dataset.on_device': 'auto',
    'dataset.normalize': 'unit',
    'dataset.balance': 'none',
    'dataset.class_weights': (),
    'deterministic': True,
    'augmentation': (),
    'optimizer.clip_norm': 0.0,
    'optimizer.clip_value': 0.0,
    'optimizer.sam_radius': 0.0,
    'optimizer.accumulate': 1,
    'average.name': 'none',
    'average.evaluated': 'average',
    'distillation.workdirs': (),
    'distillation.weight': 0.7,
    'distillation.temperature': 2.0,
    'init.workdir': '',
    'init.step': '',
    'init.skip': (),
    'init.freeze': (),
    'init.layer_decay': 1.0,
    'init.rates': (),
}
NEVER_ADDED = ('dataset', 'model')  # Sections that runs of every version have: a config without them is not a run's.
# Fields that a resumed run may change: they set where it runs, where its data is, when it saves and how long it trains,
# but not what a step computes. The digest of a config leaves them out, so never add a field of an earlier version.
CHANGEABLE_FIELDS = (
    'devices',
    'checkpoint_every_steps',
    'checkpoint_every_minutes',
    'checkpoint_min_seconds',
    'profile_steps',
    'trackers',
    'dataset.data_dir',
    'dataset.raw_dir',
    'dataset.on_device',
    'epochs',
)
# On the command line, they can be written without quotes, as in `Conv_0,Conv_1`.
TUPLES_OF_TEXTS = ('init.skip', 'init.freeze', 'distillation.workdirs', 'trackers')


def find_config(path: str | Path) -> Path:
    """Returns the config file that `path` names.

    A path such as 'configs/cnn.py' that does not exist in the current directory names a config of this project.
    """
    file = user_path(path, 'the config file')
    if not file.exists() and file.parent == Path('configs'):
        file = CONFIGS / file.name
    if not file.is_file():
        problem = 'is a directory' if file.is_dir() else 'does not exist'
        raise UserError(f'config file {str(path)!r} {problem}; configs/cnn.py is an example')
    return file


def load_module(file: Path, name: str) -> ModuleType:
    """Runs a Python file, and returns it as a module; raises whatever the file raises."""
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError('its name must end in .py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_config(path: str | Path) -> ConfigDict:
    """Returns the locked config that `get_config()` in the Python file `path` returns; see `find_config`."""
    file = find_config(path)
    try:
        module = load_module(file, 'experiment_config')
    except (Exception, SystemExit) as error:  # The file is the user's: whatever it raises is for them to fix.
        raise UserError(f'config file {str(path)!r} cannot be loaded: {_describe(error)}') from None
    if not callable(getattr(module, 'get_config', None)):
        raise UserError(f'config file {str(path)!r} must define a function get_config() that returns a ConfigDict')
    try:
        config = module.get_config()
    except (Exception, SystemExit) as error:
        raise UserError(f'get_config() in {str(path)!r} failed: {_describe(error)}') from None
    if not isinstance(config, ConfigDict):
        raise UserError(f'get_config() in {str(path)!r} must return a ConfigDict, got {type(config).__name__}')
    check_values(config)
    try:
        config.unlock()  # A dict put into a locked config is not locked; locking the config again locks it too.
        return config.lock()
    except AttributeError:
        raise UserError(f'get_config() in {str(path)!r} must return a ConfigDict without frozen sections') from None


def default_config() -> ConfigDict:
    """Returns the default config, which has every field. Every experiment's config starts from it."""
    return load_config(str(CONFIGS / 'default.py'))


def _describe(error: BaseException) -> str:
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


def override_fields(
    config: ConfigDict, texts: Mapping[str, str | bool], find_sections: Callable[[], Mapping[str, Section]]
) -> list[str]:
    """Sets fields of `config` to values from the command line, in place; their order does not matter.

    A section whose `name` changes takes the defaults of the new part, except for the fields that all parts share and
    those in `texts`. A section does not list the defaults, so neither does config.json.

    Args:
      config: The config, as its file returns it.
      texts: The values as text by dotted field name; True or False for a flag without a value.
      find_sections: Returns the sections that select a part. Called only if `texts` sets a field of one of them,
        because importing their parts takes seconds.

    Returns:
      A line for each section whose name changed, which says what it contains now.

    Raises:
      UserError: there is no such field or part, or a value is not of the type of its field.
    """
    default = default_config()
    selecting = [name for name, value in default.items() if isinstance(value, ConfigDict) and 'name' in value]
    touched = {
        section
        for section in selecting
        if isinstance(config.get(section), ConfigDict) and any(name.startswith(f'{section}.') for name in texts)
    }
    sections = {name: parts for name, parts in find_sections().items() if name in touched} if touched else {}
    changed = {}
    config.unlock()
    for section, parts in sections.items():
        name, fields = texts.get(f'{section}.name', ''), config[section]
        if f'{section}.name' in texts and name != fields.get('name'):
            choose(f'config.{section}.name', name, parts.table)
            for field in [field for field in fields if field not in ('name', *parts.shared)]:
                del fields[field]
            fields.name = name
            changed[section] = dict(fields)
    for name, text in texts.items():
        section, _, field = name.partition('.')
        if section in sections:
            _override_argument(config, default, section, field, text, sections[section])
        else:
            _check_field(name, dict(config_fields(config)))
            _set_field(config, name, text, _type_of(default if name in dict(config_fields(default)) else config, name))
    config.lock()
    return [_describe_part(section, config[section], kept, sections[section]) for section, kept in changed.items()]


def _override_argument(
    config: ConfigDict, default: ConfigDict, section: str, field: str, text: str | bool, parts: Section
) -> None:
    """Sets the field `field` of a section that selects a part; it may be an argument that the section leaves out."""
    name = config[section].get('name')
    accepted = arguments(choose(f'config.{section}.name', name, parts.table), parts.extra)
    fields = dict(config_fields(config[section]))
    if field in accepted:
        annotation, value = accepted[field].annotation, accepted[field].default
        if annotation is inspect.Parameter.empty:
            annotation = object if value is None or value is inspect.Parameter.empty else type(value)
    elif field in fields or field in parts.shared:
        annotation = _type_of(default if field in default[section] else config, f'{section}.{field}')
    else:
        names = {*accepted, *parts.shared}
        raise UserError(
            f'config.{section}.{field} is not a field for {name!r}{did_you_mean(field, names)}; the fields are: '
            f'{comma_separated(names)}'
        )
    _set_field(config, f'{section}.{field}', text, annotation)


def _type_of(config: ConfigDict, name: str) -> Any:
    """Returns the type of the field with this dotted name; object for one that is None."""
    if name in TUPLES_OF_TEXTS:
        return Sequence[str]
    parent, field = _locate(config, name)
    kind = parent.get_type(field)
    return object if kind is type(None) else kind


def _locate(config: ConfigDict, name: str) -> tuple[ConfigDict, str]:
    """Returns the section that holds the field with this dotted name, and the name of the field in it."""
    *sections, field = name.split('.')
    return functools.reduce(lambda parent, section: parent[section], sections, config), field


def _set_field(config: ConfigDict, name: str, text: str | bool, annotation: Any) -> None:
    parent, field = _locate(config, name)
    if isinstance(text, bool) and annotation is not bool:
        flag = f'--config.{name}' if text else f'--noconfig.{name}'
        raise UserError(f'{flag} needs a value: --config.{name}=VALUE, {describe(annotation)}')
    value = text if isinstance(text, bool) else parse_value(f'--config.{name}', text, annotation)
    with parent.ignore_type():  # The file may have set a float to an integer, or an optional field to None.
        parent[field] = value


def field_references(config: ConfigDict, prefix: str = '') -> Iterator[tuple[str, FieldReference]]:
    """Yields the dotted name and the reference of each field that refers to another one, or is a placeholder."""
    for name, value in config.items(preserve_field_references=True):
        if isinstance(value, ConfigDict):
            yield from field_references(value, f'{prefix}{name}.')
        elif isinstance(value, FieldReference):
            yield f'{prefix}{name}', value


def check_values(config: ConfigDict) -> None:
    """Raises a UserError if a field has no value, but a `required_placeholder`, which ConfigDict cannot even unlock."""
    for name, reference in field_references(config):
        try:
            reference.get()
        except RequiredValueError:
            raise UserError(f'config.{name} must have a value, got a required placeholder') from None


def _check_field(name: str, values: Mapping[str, Any]) -> None:
    """Raises a UserError unless `name` is one of the dotted names of `values`."""
    if name in values:
        return
    inside = [field for field in values if field.startswith(f'{name}.')]
    if inside:
        example = f'{name}.name' if f'{name}.name' in inside else inside[0]
        raise UserError(f'config.{name} is a section: set its fields, for example --config.{example}=VALUE')
    section = name.rpartition('.')[0]
    siblings = [field for field in values if field.rpartition('.')[0] == section] or list(values)
    raise UserError(
        f'config.{name} is not a field{did_you_mean(name, values)}; the fields are: {comma_separated(siblings)}'
    )


def _describe_part(section: str, fields: ConfigDict, kept: Mapping[str, Any], parts: Section) -> str:
    """Returns a line with the new part of a section, its defaults, and the values that the section keeps."""
    accepted = arguments(parts.table[fields.name], parts.extra)
    defaults = [
        f'{name}={parameter.default!r}'
        for name, parameter in accepted.items()
        if name not in fields and parameter.default is not parameter.empty
    ]
    kept_fields = [f'{name}={value!r}' for name, value in kept.items() if name != 'name' and fields[name] == value]
    line = f'{section:<9} {fields.name}'
    line += f'; defaults: {", ".join(defaults)}' if defaults else ''
    return line + (f'; from the config file: {", ".join(kept_fields)}' if kept_fields else '')


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
    return ConfigDict(lists_to_tuples(value)).lock()


def unknown_fields(saved: ConfigDict) -> list[str]:
    """Returns the fields and sections of `saved` that the default config lacks, by dotted name.

    The fields of a section that selects a constructor by name are checked against its signature instead.
    """
    unknown, default = [], default_config()
    for name, value in saved.items():
        if name not in default:
            unknown.append(f'config.{name}')
        elif isinstance(value, ConfigDict) and isinstance(default[name], ConfigDict) and 'name' not in default[name]:
            unknown += [f'config.{name}.{field}' for field in value if field not in default[name]]
    return unknown


def fill_missing_fields(saved: ConfigDict) -> ConfigDict:
    """Returns `saved`, from any version of this program, locked, with the fields that it lacks.

    They have the values of `ADDED_FIELDS` or of the default config. In the sections whose other arguments depend on the
    constructor that they select by name, a missing field means the constructor's default, so nothing is added to them.
    """
    config, default = saved.copy_and_resolve_references(), default_config()
    config.unlock()
    missing: dict[str, Any] = {name: value for name, value in default.items() if name not in NEVER_ADDED}
    for section, fields in default.items():
        if isinstance(fields, ConfigDict) and ('name' not in fields or section == 'dataset'):
            missing |= {f'{section}.{field}': value for field, value in fields.items() if field != 'name'}
    for name, value in {**missing, **ADDED_FIELDS}.items():
        section, _, field = name.rpartition('.')
        parent = config.get(section) if section else config
        # If a section is missing, `check_config` reports it.
        if isinstance(parent, ConfigDict) and field not in parent:
            parent[field] = value
    return config.lock()


def check_resumable(saved: ConfigDict, config: ConfigDict, defaults: Mapping[str, Any]) -> None:
    """Raises a UserError that names the fields in which `config` differs from the run `saved`.

    `CHANGEABLE_FIELDS` may differ. The number of epochs is checked against the checkpoint, when it is restored.

    Args:
      saved: The config of the run.
      config: The config to resume it with.
      defaults: The values of fields that both may leave out, by dotted name.
    """
    defaults = {**ADDED_FIELDS, **defaults}
    old, new = dict(config_fields(saved)), dict(config_fields(config_from_json(json.loads(config_to_json(config)))))
    changed = [
        f'{name} (was {old.get(name)!r}, is {new.get(name)!r})'
        for name in {**old, **new}
        if old.get(name, defaults.get(name)) != new.get(name, defaults.get(name)) and name not in CHANGEABLE_FIELDS
    ]
    if changed:
        raise UserError(
            f'the workdir holds a run with a different config: {"; ".join(changed)}; use another --workdir, or the '
            'saved values (epochs may be raised)'
        )
