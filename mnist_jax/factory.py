"""Looks up names in tables, and calls the constructors that a config selects with checked arguments.

A constructor declares what it takes in its signature, and nowhere else: names, defaults, types and, through the
aliases below, ranges. Constructors therefore contain no checks of their arguments.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from mnist_jax.errors import (
    MAX_INT,
    UserError,
    check_fraction,
    check_integer,
    check_range,
    comma_separated,
    did_you_mean,
)

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Range:
    """An inclusive range of a number, as metadata of an `Annotated` type."""

    minimum: float
    maximum: float


@dataclasses.dataclass(frozen=True)
class LessThanOne:
    """The range [0, 1) of a number, as metadata of an `Annotated` type."""


Count = Annotated[int, Range(0, MAX_INT)]
PositiveInt = Annotated[int, Range(1, MAX_INT)]
Width = Annotated[int, Range(1, 1_000_000)]
NonNegative = Annotated[float, Range(0.0, math.inf)]
Positive = Annotated[float, Range(1e-9, math.inf)]
Finite = Annotated[float, Range(0.0, 1e30)]
Fraction = Annotated[float, Range(0.0, 1.0)]
Rate = Annotated[float, LessThanOne()]


def choose(field: str, name: object, table: Mapping[str, T]) -> T:
    """Returns `table[name]`.

    Raises:
      UserError: `table` has no such name; the message lists the choices.
    """
    if not isinstance(name, str) or name not in table:
        raise UserError(
            f'{field} must be one of {comma_separated(table)}, got {name!r}{did_you_mean(str(name), table)}'
        )
    return table[name]


def build(field: str, table: Mapping[str, Callable], config: Mapping[str, Any], **extra: Any) -> Any:
    """Calls the constructor that `config['name']` selects in `table` with the other fields of `config`.

    Args:
      field: The config section, for error messages.
      table: Constructors by name.
      config: The section: `name` and the arguments of the constructor.
      **extra: Further arguments, which come from the program and not from the config.

    Raises:
      UserError: a field is unknown, missing, of the wrong type or out of range; the message names it.
    """
    options = dict(config)
    name = options.pop('name', None)
    return construct(field, choose(f'{field}.name', name, table), options, extra, f' for {name!r}')


def construct(
    field: str,
    constructor: Callable,
    options: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
    target: str = '',
) -> Any:
    """Calls `constructor` with the checked `options` of the config section `field`, and with `extra`; see `build`."""
    extra = extra or {}
    parameters = inspect.signature(constructor, eval_str=True).parameters
    # Linen adds `parent` and `name` to the constructor of every module; they are not config fields.
    accepted = {name: p for name, p in parameters.items() if name not in extra and name not in ('parent', 'name')}
    unknown = [name for name in options if name not in accepted]
    if unknown:
        names = ', '.join(f'{field}.{name}' for name in unknown)
        raise UserError(
            f'{names} {"are not fields" if unknown[1:] else "is not a field"}{target}'
            f'{did_you_mean(unknown[0], accepted)}; the fields are: {comma_separated(accepted)}'
        )
    for name, parameter in accepted.items():
        if name in options:
            check_value(f'{field}.{name}', options[name], parameter.annotation)
        elif parameter.default is parameter.empty:
            raise UserError(f'{field}.{name} is missing; it must be {describe(parameter.annotation)}')
    return constructor(**options, **extra)


def check_value(field: str, value: Any, annotation: Any) -> None:
    """Raises a UserError unless `value` matches a type annotation.

    Covers bool, int, float (which takes an int too), str, `Literal`, `Sequence`, and `Annotated` with a range; any
    other annotation, such as a user-defined class, is not checked.
    """
    if get_origin(annotation) is Annotated:
        kind, *metadata = get_args(annotation)
        check_value(field, value, kind)
        for limit in metadata:
            if isinstance(limit, LessThanOne):
                check_fraction(field, value)
            elif isinstance(limit, Range) and kind is int:
                check_integer(field, value, int(limit.minimum), int(limit.maximum))
            elif isinstance(limit, Range):
                check_range(field, value, limit.minimum, limit.maximum)
    elif get_origin(annotation) is Literal:
        choose(field, value, {choice: choice for choice in get_args(annotation)})
    elif get_origin(annotation) is Sequence:
        if not isinstance(value, tuple | list):
            raise UserError(f'{field} must be a tuple, got {value!r}')
        for index, item in enumerate(value):
            check_value(f'{field}[{index}]', item, get_args(annotation)[0])
    elif annotation in (bool, int, float, str):
        allowed = (float, int) if annotation is float else (annotation,)
        if not isinstance(value, allowed) or (isinstance(value, bool) and annotation is not bool):
            raise UserError(f'{field} must be of type {annotation.__name__}, got {value!r}')


def describe(annotation: Any) -> str:
    """Returns the type of an annotation in words, for error messages."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return f'of type {getattr(annotation, "__name__", annotation)}'
