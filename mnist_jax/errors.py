"""What ends the program: an error of the user, with the look-up of names in tables that raises it, or a signal."""

import difflib
import signal
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user gave is wrong; `main` prints it as one line and exits with status 2."""


class Interrupted(Exception):  # noqa: N818
    """The run was asked to stop and has done so; `main` exits with 128 and the number of the signal."""

    def __init__(self, number: int, where: str):
        super().__init__(f'stopped by {signal.Signals(number).name} {where}; the same command goes on from there')
        self.status = 128 + number


def comma_separated(names: Iterable[str]) -> str:
    """The names as a sorted, comma-separated list."""
    return ', '.join(sorted(names)) or '(none)'


def first_line(error: Exception) -> str:
    """The first line of what an exception says, or its type where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """A hint at the most similarly spelled choice, or nothing."""
    close = difflib.get_close_matches(str(name), list(choices), n=1)
    return f' (did you mean {close[0]!r}?)' if close else ''


def check_range(field: str, value: float, least: float, greatest: float) -> None:
    """Raise a UserError unless `value` lies from `least` to `greatest`; a value that is not a number does not."""
    if not least <= value <= greatest:
        raise UserError(f'{field}={value} is wrong: a number from {least:g} to {greatest:g} is wanted')


def check_integer(field: str, value: int, least: int = 0) -> None:
    """Raise a UserError unless `value` is a whole number from `least` to what 31 bits hold."""
    if not least <= value < 2**31:
        raise UserError(f'{field}={value} is wrong: a whole number from {least} to {2**31 - 1} is wanted')


def check_fraction(field: str, value: float) -> None:
    """Raise a UserError unless `value` lies from 0 to below 1."""
    if not 0 <= value < 1:
        raise UserError(f'{field}={value} is wrong: a number from 0 to below 1 is wanted')
