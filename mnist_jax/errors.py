"""What ends the program: an error of the user, with the look-up of names in tables that raises it, or a signal."""

import difflib
import inspect
import signal
from collections.abc import Callable, Iterable, Mapping
from typing import Any


class UserError(Exception):
    """Something that the user gave is wrong; `main` prints it as one line and exits with status 2."""


class Interrupted(Exception):  # noqa: N818
    """The run was asked to stop and has done so; `main` exits with 128 and the number of the signal."""

    def __init__(self, number: int, where: str):
        super().__init__(f'stopped by {signal.Signals(number).name} {where}; the same command goes on from there')
        self.status = 128 + number


def listed(names: Iterable[str]) -> str:
    """The names as a sorted, comma-separated list."""
    return ', '.join(sorted(names)) or '(none)'


def first_line(error: Exception) -> str:
    """The first line of what an exception says, or its type where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def nearest(name: str, choices: Iterable[str]) -> str:
    """A hint at the most similarly spelled choice, or nothing."""
    close = difflib.get_close_matches(str(name), list(choices), n=1)
    return f' (did you mean {close[0]!r}?)' if close else ''


def choose(field: str, name: Any, table: Mapping[str, Any]) -> Any:
    """`table[name]`; an unknown name is an error that lists the choices."""
    if not isinstance(name, str) or name not in table:
        raise UserError(f'{field}={name!r} is unknown{nearest(name, table)}; the choices are: {listed(table)}')
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
            f'{whose}{nearest(wrong[0], takes)}; its fields are: {listed(takes)}'
        )
    for name, parameter in takes.items():
        if parameter.default is parameter.empty and name not in fields:
            raise UserError(f'{field}.{name} is missing; its type is {parameter.annotation.__name__}')
        if name in fields:
            _check_type(f'{field}.{name}', fields[name], parameter.annotation)
    return constructor(**fields, **given)


def check_range(field: str, value: float, least: float, greatest: float) -> None:
    """Raise a UserError unless `value` lies from `least` to `greatest`; a value that is not a number does not."""
    if not least <= value <= greatest:
        raise UserError(f'{field}={value} is wrong: a number from {least:g} to {greatest:g} is wanted')


def check_whole(field: str, value: int, least: int = 0) -> None:
    """Raise a UserError unless `value` is a whole number from `least` to what 31 bits hold."""
    if not least <= value < 2**31:
        raise UserError(f'{field}={value} is wrong: a whole number from {least} to {2**31 - 1} is wanted')


def check_below_one(field: str, value: float) -> None:
    """Raise a UserError unless `value` lies from 0 to below 1."""
    if not 0 <= value < 1:
        raise UserError(f'{field}={value} is wrong: a number from 0 to below 1 is wanted')


def _check_type(field: str, value: Any, wanted: Any) -> None:
    """Check a plain value against its annotation; a whole number will do for a float."""
    accepted = {bool: (bool,), int: (int,), float: (float, int), str: (str,)}.get(wanted)
    if accepted and (not isinstance(value, accepted) or (isinstance(value, bool) and wanted is not bool)):
        raise UserError(f'{field}={value!r} is wrong: its type is {wanted.__name__}')
