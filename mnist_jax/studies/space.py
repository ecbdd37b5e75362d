"""What the trials of a study vary: config fields, and the values that each may take."""

import ast
import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mnist_jax.errors import UserError, comma_separated

DIGITS = 4  # significant digits of a number that is drawn, readable in tables; more in a narrow interval

Point = dict[str, Any]
"""The values of the varied config fields of a trial, by dotted name."""


class Domain(Protocol):
    """The values that a field may take."""

    def at(self, fraction: float) -> Any:
        """Returns the value at a fraction in [0, 1) of the domain; uniform fractions give its distribution."""

    def spread(self, count: int) -> list:
        """Returns up to `count` evenly spread values, both ends included; for a choice, all of its values."""

    def __str__(self) -> str:
        """Returns the expression that `parse_domain` reads."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """Any of some values, each with the same probability."""

    values: tuple

    def at(self, fraction: float) -> Any:
        """See `Domain`."""
        return self.values[int(fraction * len(self.values))]

    def spread(self, count: int) -> list:
        """See `Domain`."""
        return list(self.values)

    def __str__(self) -> str:
        return f'choice({", ".join(map(repr, self.values))})'


@dataclasses.dataclass(frozen=True)
class Interval:
    """The numbers from `low` to `high`, uniform in themselves or in their logarithm; whole ones, or all."""

    low: float
    high: float
    logarithmic: bool = False
    whole: bool = False

    def at(self, fraction: float) -> float:
        """See `Domain`."""
        return self.rounded(self._exact(fraction, self.high + 1 if self.whole else self.high))

    def _exact(self, fraction: float, high: float) -> float:
        if self.logarithmic:
            return self.low * (high / self.low) ** fraction
        return self.low + (high - self.low) * fraction

    def rounded(self, value: float) -> float:
        """Returns a number of the interval with few digits, or the next smaller whole one."""
        if self.whole:
            return min(math.floor(value), int(self.high))
        width = (self.high - self.low) / max(abs(self.low), abs(self.high))
        digits = DIGITS + max(0, math.floor(1e-9 - math.log10(width)) - 1)
        return min(max(float(f'{value:.{digits}g}'), self.low), self.high)

    def spread(self, count: int) -> list:
        """See `Domain`."""
        fractions = [index / (count - 1) for index in range(count)] if count > 1 else [0.5]
        values = [self._exact(fraction, self.high) for fraction in fractions]
        return list(dict.fromkeys(map(round if self.whole else self.rounded, values)))

    def __str__(self) -> str:
        name = ('log_' if self.logarithmic else '') + ('integers' if self.whole else 'uniform')
        return f'{name}({self.low!r}, {self.high!r})'


def choice(*values: Any) -> Choice:
    """Returns the domain of these values, such as `choice('adam', 'sgd')` or `choice((64,), (128, 128))`."""
    if not values:
        raise UserError('choice must have at least one value, got none')
    values = tuple(map(plain, values))
    try:
        json.dumps(values)
    except (TypeError, ValueError):
        raise UserError(f'the values of a choice must be ones that JSON can hold, got {values!r}') from None
    return Choice(values)


def uniform(low: float, high: float) -> Interval:
    """Returns the domain of all numbers from `low` to `high`."""
    return _interval('uniform', low, high)


def log_uniform(low: float, high: float) -> Interval:
    """Returns the domain of all numbers from `low` to `high`, uniform in their logarithm; for learning rates."""
    return _interval('log_uniform', low, high, logarithmic=True)


def integers(low: int, high: int) -> Interval:
    """Returns the domain of the whole numbers from `low` to `high`, both included."""
    return _interval('integers', low, high, whole=True)


def log_integers(low: int, high: int) -> Interval:
    """Returns the domain of the whole numbers from `low` to `high`, uniform in their logarithm; for widths."""
    return _interval('log_integers', low, high, logarithmic=True, whole=True)


def _interval(name: str, low: float, high: float, logarithmic: bool = False, whole: bool = False) -> Interval:
    low, high = plain(low), plain(high)
    kind, article = (int, 'whole numbers') if whole else (float | int, 'finite numbers')
    valid = all(isinstance(end, kind) and not isinstance(end, bool) and math.isfinite(end) for end in (low, high))
    if not valid or not low < high or (logarithmic and low <= 0):
        limit = ', both greater than 0' if logarithmic else ''
        raise UserError(f'{name}(low, high) must have {article} with low < high{limit}, got {name}({low!r}, {high!r})')
    return Interval(low, high, logarithmic, whole)


def plain(value: Any) -> Any:
    """Returns a value with Python's numbers, as in a config, for those of NumPy, which np.logspace returns."""
    if isinstance(value, tuple | list):
        return type(value)(map(plain, value))
    return value.item() if isinstance(value, np.generic) else value


DOMAINS = {function.__name__: function for function in (choice, uniform, log_uniform, integers, log_integers)}


@dataclasses.dataclass(frozen=True)
class Condition:
    """A domain of a field that exists only if another field has one of some values."""

    domain: Domain
    field: str
    values: tuple

    def __str__(self) -> str:
        return f'when({self.domain}, {", ".join(map(repr, (self.field, *self.values)))})'


def when(domain: Domain | Sequence, field: str, *values: Any) -> Condition:
    """Returns a domain that is varied only if the config field `field` has one of `values`.

    For example, only SGD has a momentum: `when(uniform(0.0, 0.95), 'optimizer.name', 'sgd')`. If `field` is varied too,
    list it first.
    """
    if not values:
        raise UserError(f'when must have at least one value of {field!r}, got none')
    parsed = choice(*domain) if isinstance(domain, Sequence | np.ndarray) else domain
    return Condition(parsed, field, tuple(map(plain, values)))


Space = Mapping[str, Domain | Condition]
"""The domains of the varied config fields, by dotted name."""


def grid(space: Space, base: Mapping[str, Any], points: int) -> list[Point]:
    """Returns all combinations of the values of the fields.

    Args:
      space: The fields.
      base: The values of all fields of the config, for conditions on fields that are not varied.
      points: The number of values of an interval.
    """
    spreads = [_domain(entry).spread(points) for entry in space.values()]
    combined = [_resolve(space, base, values) for values in itertools.product(*spreads)]
    return list({repr(point): point for point in combined}.values())  # Conditions leave equal ones.


def point_at(space: Space, base: Mapping[str, Any], fractions: Sequence[float]) -> Point:
    """Returns the point at one fraction of each domain."""
    domains = map(_domain, space.values())
    return _resolve(space, base, [domain.at(value) for domain, value in zip(domains, fractions, strict=True)])


def is_active(entry: Domain | Condition, values: Mapping[str, Any]) -> bool:
    """Returns whether a field is varied if the fields before it, and those of the config, have these values."""
    return not isinstance(entry, Condition) or values.get(entry.field) in entry.values


def _domain(entry: Domain | Condition) -> Domain:
    return entry.domain if isinstance(entry, Condition) else entry


def _resolve(space: Space, base: Mapping[str, Any], values: Sequence) -> Point:
    """Returns the point with these values, without the fields whose condition is not met."""
    point: Point = {}
    for (field, entry), value in zip(space.items(), values, strict=True):
        if is_active(entry, {**base, **point}):
            point[field] = value
    return point


def parse_domain(field: str, text: str) -> Domain | Condition:
    """Returns the domain that `text` stands for on the command line.

    It is a call such as `log_uniform(1e-4, 1e-2)` or `when(uniform(0.0, 0.9), 'optimizer.name', 'sgd')`, or values with
    commas between them: `0.1, 0.2`, `adam, sgd` or `(64,), (128, 128)`.

    Raises:
      UserError: it is neither.
    """
    try:
        expression = ast.parse(f'({text},)', mode='eval').body
        assert isinstance(expression, ast.Tuple)
        items = expression.elts
        if len(items) != 1 or not isinstance(items[0], ast.Call):
            return choice(*map(_value, items))
        if isinstance(items[0].func, ast.Name) and items[0].func.id == when.__name__:
            domain, *values = items[0].args
            return when(_call(domain), *map(_value, values))
        return _call(items[0])
    except (SyntaxError, ValueError, TypeError, AssertionError):
        raise UserError(
            f'--vary={field}=VALUES must be values with commas between them, texts with brackets in quotes of their '
            f'own, or one of {comma_separated(DOMAINS)} such as log_uniform(1e-4, 1e-2), got {text!r}'
        ) from None


def _call(node: ast.expr) -> Domain:
    """Returns the domain that a call of one of `DOMAINS` stands for."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.keywords:
        raise ValueError('it must be a call')
    if node.func.id not in DOMAINS:
        raise ValueError('there is no such domain')
    return DOMAINS[node.func.id](*map(_value, node.args))


def _value(node: ast.expr) -> Any:
    """Returns the literal that a node stands for; a bare name is a text."""
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)
