"""Looks up names in tables, calls the constructors that a config selects, and identifies their code.

A constructor declares what it takes in its signature, and nowhere else: names, defaults, types and, through the
aliases below, ranges. Constructors therefore contain no checks of single arguments.
"""

import ast
import contextlib
import dataclasses
import dis
import functools
import hashlib
import inspect
import json
import math
import tokenize
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from absl import flags

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
PACKAGE = Path(__file__).parent


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
Degrees = Annotated[float, Range(0.0, 180.0)]
Pixels = Annotated[float, Range(0.0, 10_000.0)]
WholePixels = Annotated[int, Range(1, 10_000)]
AtLeastOne = Annotated[float, Range(1.0, 1e6)]


class Section(NamedTuple):
    """What a config section can select by its field `name`.

    Attributes:
      table: Constructors by name.
      extra: The arguments that the program passes to every constructor; they are not config fields.
      shared: The fields that every part of the section has. They keep their values when another part is selected.
    """

    table: Mapping[str, Callable]
    extra: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()


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


def package_name(part: object) -> str | None:
    """Returns the qualified name of a function or class of this package; None if it, or what it wraps, is another's.

    What `functools.wraps` has named after a function of this package is not taken for it.
    """
    name = f'{getattr(part, "__module__", "")}.{getattr(part, "__qualname__", "")}'
    while True:
        if not (getattr(part, '__module__', None) or '').startswith('mnist_jax.'):
            return None
        code = getattr(part, '__code__', None)
        if code is None and not inspect.isclass(part):
            return None
        if code is not None and PACKAGE not in Path(code.co_filename).parents:
            return None
        if not hasattr(part, '__wrapped__'):
            return name
        part = part.__wrapped__


def code_sha256(parts: Iterable[Callable]) -> str:
    """Returns the digest of the code of functions and classes; '' if it is unknown, as for what was typed in.

    It covers the functions and classes of the same module that they use, and the numbers and texts: constants of the
    module, variables of a function around them, and defaults.
    """
    lines: list[str] = []
    seen: set[int] = set()
    for part in parts:
        _add_code(part, lines, seen)
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest() if lines else ''


def _add_code(part: Any, lines: list[str], seen: set[int]) -> None:
    """Adds the code of a function or a class to `lines`, unless it is in `seen`."""
    if id(part) in seen:
        return
    seen.add(id(part))
    if isinstance(part, functools.partial):
        values = [*enumerate(part.args), *sorted(part.keywords.items())]
        lines += [f'{name} = {value!r}' for name, value in values if _is_constant(value)]
        _add_code(part.func, lines, seen)
        return
    try:
        lines.append(inspect.getsource(part))
        has_source = True
    except (OSError, TypeError, SyntaxError, tokenize.TokenError):
        # Notebooks keep the source of functions, but not of classes; a file may be edited at this moment.
        has_source = False
    if not inspect.isclass(part):
        if inspect.isfunction(part):
            _add_used(part, lines, seen)
        return
    for name, value in vars(part).items():
        function = inspect.unwrap(getattr(value, '__func__', value))  # Flax wraps methods.
        if name.isupper():
            with contextlib.suppress(TypeError, ValueError):  # What is no JSON may be written differently next time.
                lines.append(f'{name} = {json.dumps(value)}')
        elif name in vars(part).get('__annotations__', {}) and _is_constant(value):
            lines.append(f'{name} = {value!r}')
        elif inspect.isfunction(function) and function.__code__.co_filename != '<string>':  # not one of `dataclasses`
            (_add_used if has_source else _add_code)(function, lines, seen)


def _add_used(function: types.FunctionType, lines: list[str], seen: set[int]) -> None:
    """Adds what a function uses to `lines`."""
    found = sorted(_names(function.__code__) & function.__globals__.keys())
    used = {name: function.__globals__[name] for name in found}
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # It has no value yet.
            used[variable] = cell.cell_contents
    used |= {f'default {number}': default for number, default in enumerate(function.__defaults__ or ())}
    used |= function.__kwdefaults__ or {}
    for name, value in used.items():
        if _is_constant(value):
            lines.append(f'{function.__name__}: {name} = {value!r}')
        elif (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == function.__module__:
            _add_code(value, lines, seen)


def _names(code: types.CodeType) -> set[str]:
    """Returns the global names that a function, or one inside it, looks up."""
    steps = list(dis.get_instructions(code))
    names = {str(step.argval) for step in steps if step.opname in ('LOAD_GLOBAL', 'LOAD_NAME')}
    names -= {step.argval for step in steps if step.opname == 'STORE_GLOBAL'}  # A cache, for example, is no constant.
    return names.union(*(_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)))


def _is_constant(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_constant, value))
    return value is None or isinstance(value, bool | int | float | str | bytes)


def build(
    field: str, table: Mapping[str, Callable], config: Mapping[str, Any], reserved: Sequence[str] = (), **extra: Any
) -> Any:
    """Calls the constructor that `config['name']` selects in `table` with the other fields of `config`.

    Args:
      field: The config section, for error messages.
      table: Constructors by name.
      config: The section: `name` and the arguments of the constructor.
      reserved: The fields that the caller has taken out of the section, which no argument may be called.
      **extra: Further arguments, which come from the program and not from the config.

    Raises:
      UserError: a field is unknown, missing, of the wrong type or out of range, or an argument of the constructor is
        called like a reserved field; the message names it.
    """
    options = dict(config)
    name = options.pop('name', None)
    constructor = choose(f'{field}.name', name, table)
    if taken := [argument for argument in arguments(constructor, extra) if argument in reserved]:
        raise UserError(
            f'the arguments of {name!r} must not be called {comma_separated(reserved)}, which {field} uses for all of '
            f'its parts, got {taken[0]!r}'
        )
    return construct(field, constructor, options, extra, f' for {name!r}')


def construct(
    field: str,
    constructor: Callable,
    options: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
    target: str = '',
) -> Any:
    """Calls `constructor` with the checked `options` of the config section `field`, and with `extra`; see `build`."""
    extra = extra or {}
    accepted = arguments(constructor, extra)
    unknown = [] if takes_any(constructor) else [name for name in options if name not in accepted]
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


def arguments(constructor: Callable, extra: Iterable[str] = ()) -> dict[str, inspect.Parameter]:
    """Returns the named arguments of a constructor that are config fields: all except those in `extra`."""
    parameters = inspect.signature(constructor, eval_str=True).parameters
    # Linen adds `parent` and `name` to the constructor of every module; they are not config fields.
    excluded = {*extra, 'parent', 'name'}
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: p for name, p in parameters.items() if name not in excluded and p.kind not in variadic}


def takes_any(constructor: Callable) -> bool:
    """Returns whether a constructor takes arguments of any name, `**fields`."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(constructor).parameters.values())


def defaults(constructor: Callable) -> dict[str, Any]:
    """Returns the arguments of `constructor` that a config may leave out, with the values that they then have."""
    return {name: p.default for name, p in arguments(constructor).items() if p.default is not p.empty}


def check_value(field: str, value: Any, annotation: Any) -> None:
    """Raises a UserError unless `value` matches a type annotation.

    Covers bool, int, float (which takes an int too), str, `Literal`, `Sequence`, `tuple`, `list`, an optional type, and
    `Annotated` with a range; any other annotation, such as a user-defined class, is not checked.
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
        choices = get_args(annotation)
        if all(isinstance(choice, str) for choice in choices):
            choose(field, value, {choice: choice for choice in choices})
        elif not any(value == choice and type(value) is type(choice) for choice in choices):
            raise UserError(f'{field} must be one of {", ".join(map(repr, choices))}, got {value!r}')
    elif get_origin(annotation) in (Sequence, tuple, list):
        if not isinstance(value, tuple | list):
            raise UserError(f'{field} must be a tuple, got {value!r}')
        kinds = get_args(annotation)
        if get_origin(annotation) is not tuple or kinds[-1:] == (...,):
            kinds = kinds[:1] * len(value)
        elif len(value) != len(kinds):
            raise UserError(f'{field} must have {len(kinds)} items, got {value!r}')
        for index, (item, kind) in enumerate(zip(value, kinds, strict=True)):
            check_value(f'{field}[{index}]', item, kind)
    elif (kind := _optional_kind(annotation)) is not None:
        if value is not None:
            check_value(field, value, kind)
    elif annotation in (bool, int, float, str):
        allowed = (float, int) if annotation is float else (annotation,)
        if not isinstance(value, allowed) or (isinstance(value, bool) and annotation is not bool):
            raise UserError(f'{field} must be of type {annotation.__name__}, got {value!r}')


PARSERS: dict[Any, flags.ArgumentParser] = {
    bool: flags.BooleanParser(),
    int: flags.IntegerParser(),
    float: flags.FloatParser(),
}


def parse_value(field: str, text: str, annotation: Any) -> Any:
    """Returns the value of the type `annotation` that `text` stands for on the command line.

    Covers the types of `check_value`, optional ones, and tuples; the text for any other type is a Python literal, or
    the value itself.

    Raises:
      UserError: `text` does not stand for a value of this type. Ranges are not checked.
    """
    if get_origin(annotation) is Annotated:
        return parse_value(field, text, get_args(annotation)[0])
    if text != 'None' and (kind := _optional_kind(annotation)) is not None:
        return parse_value(field, text, kind)
    if annotation in PARSERS:
        try:
            return PARSERS[annotation].parse(text)
        except ValueError:
            raise UserError(f'{field} must be {describe(annotation)}, got {text!r}') from None
    if get_origin(annotation) is Literal:
        return text if all(isinstance(choice, str) for choice in get_args(annotation)) else _parse_literal(text)
    if annotation is str:
        if text == 'None':
            raise UserError(f"{field} must be {describe(str)}, got None; use '' for none")
        return text
    if annotation in (tuple, list, Sequence) or get_origin(annotation) in (tuple, list, Sequence):
        return _parse_tuple(field, text, annotation)
    return _parse_literal(text)


def _optional_kind(annotation: Any) -> Any:
    """Returns the type X of `X | None`; None for any other annotation."""
    is_union = get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    return kinds[0] if is_union and len(kinds) == 1 else None


def _parse_literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def _parse_tuple(field: str, text: str, annotation: Any) -> tuple:
    """Returns the tuple for `(64, 32)`, `[64, 32]`, `64,32` or `64`, or a dict, and for strings also `a,b`."""
    value = _parse_literal(text)
    if value is text and text and str in get_args(annotation):
        return tuple(part.strip() for part in text.split(','))
    if value is text or value is None or isinstance(value, set):
        raise UserError(f'{field} must be a tuple, such as (64, 32), (64,) or (), got {text!r}')
    return lists_to_tuples(value) if isinstance(value, list | tuple) else (value,)


def lists_to_tuples(value: Any) -> Any:
    """Returns `value` with each list in it, at any depth of lists, tuples and dicts, replaced by a tuple."""
    if isinstance(value, dict):
        return {name: lists_to_tuples(item) for name, item in value.items()}
    return tuple(map(lists_to_tuples, value)) if isinstance(value, list | tuple) else value


def describe(annotation: Any) -> str:
    """Returns the type of an annotation in words, for error messages."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if annotation is inspect.Parameter.empty:
        return 'of any type'
    return f'of type {getattr(annotation, "__name__", annotation)}'
