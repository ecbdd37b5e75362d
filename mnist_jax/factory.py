"""Look names up in tables, and call the constructors that configs select with checked arguments."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from mnist_jax.errors import UserError, comma_separated, did_you_mean


def choose(field: str, name: Any, table: Mapping[str, Any]) -> Any:
    """`table[name]`; an unknown name is an error that lists the choices."""
    if not isinstance(name, str) or name not in table:
        raise UserError(
            f'{field}={name!r} is unknown{did_you_mean(name, table)}; the choices are: {comma_separated(table)}'
        )
    return table[name]


def build(field: str, table: Mapping[str, Callable], config: Mapping[str, Any], **given: Any) -> Any:
    """Call the constructor that `config['name']` selects in `table` with the other fields of `config`.

    `given` are the arguments that come from the program and not from the config. A field that the constructor
    does not take, one that it needs and does not get, or one of the wrong type is an error that names it.
    """
    fields = dict(config)
    name = fields.pop('name', None)
    return construct(field, choose(f'{field}.name', name, table), fields, given, f'for {name!r}')


def construct(
    field: str, constructor: Callable, fields: Mapping[str, Any], given: Mapping[str, Any] = {}, whose: str = 'known'
) -> Any:
    """Call `constructor` with `fields`, which the section `field` of the config has, and with `given`, checked."""
    parameters = inspect.signature(constructor).parameters
    # Linen modules add `parent` and `name` to every constructor; they are Flax's own.
    takes = {name: p for name, p in parameters.items() if name not in given and name not in ('parent', 'name')}
    wrong = [name for name in fields if name not in takes]
    if wrong:
        raise UserError(
            f'{", ".join(f"{field}.{name}" for name in wrong)} {"are" if len(wrong) > 1 else "is"} not '
            f'{whose}{did_you_mean(wrong[0], takes)}; its fields are: {comma_separated(takes)}'
        )
    for name, parameter in takes.items():
        if parameter.default is parameter.empty and name not in fields:
            raise UserError(f'{field}.{name} is missing; its type is {parameter.annotation.__name__}')
        if name in fields:
            _check_type(f'{field}.{name}', fields[name], parameter.annotation)
    return constructor(**fields, **given)


def _check_type(field: str, value: Any, wanted: Any) -> None:
    """Check a plain value against its annotation; a whole number will do for a float."""
    accepted = {bool: (bool,), int: (int,), float: (float, int), str: (str,)}.get(wanted)
    if accepted and (not isinstance(value, accepted) or (isinstance(value, bool) and wanted is not bool)):
        raise UserError(f'{field}={value!r} is wrong: its type is {wanted.__name__}')
