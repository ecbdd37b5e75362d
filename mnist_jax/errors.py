"""Exceptions that end the program in a defined way, and the phrases that error messages share."""

import contextlib
import difflib
import math
import os
import signal
import sys
from collections.abc import Iterable
from typing import NoReturn

MAX_INT = 2**31 - 1


class UserError(Exception):
    """The user's input is wrong; `main` prints the message as one line and exits with status 2."""


class PeerError(Exception):
    """Another process of the run has failed; `main` prints the message as one line and exits with status 1."""


class NonFiniteError(FloatingPointError):
    """Training or an evaluation met NaN or infinity; `main` prints the message as one line and exits with status 1."""


class WriteError(OSError):
    """A file of the run cannot be written; `main` prints the message as one line and exits with status 1."""


class Interrupted(Exception):  # noqa: N818
    """The run was asked to stop, and stopped; `main` exits with 128 plus the number of the signal."""

    def __init__(self, number: int, where: str):
        super().__init__(f'stopped by {signal.Signals(number).name} {where}; run the same command again to resume')
        self.status = 128 + number


def print_error(*lines: object) -> None:
    """Prints lines on standard error, unless nothing can be written there: how the process ends does not depend on it.

    For example, Ctrl-C also stops the `tee` that reads them.
    """
    with contextlib.suppress(OSError, ValueError):
        print(*lines, sep='\n', file=sys.stderr, flush=True)


def end_process(status: int, message: str) -> NoReturn:
    """Prints a line on standard error, and ends the process with an exit status, without waiting for its threads."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    print_error(message)
    os._exit(status)


def comma_separated(names: Iterable[str]) -> str:
    """Returns the names sorted and joined with commas."""
    return ', '.join(sorted(names)) or '(none)'


def first_line(error: BaseException) -> str:
    """Returns the first line of the error's message, or the name of its type if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Returns a hint that names the choice with the most similar spelling, or '' if none is close."""
    close = difflib.get_close_matches(str(name), list(choices), n=1)
    return f' (did you mean {close[0]!r}?)' if close else ''


def check_range(field: str, value: float, minimum: float, maximum: float) -> None:
    """Raises a UserError unless `minimum <= value <= maximum` and the value is finite."""
    is_number = isinstance(value, float | int) and not isinstance(value, bool)
    if not is_number or not minimum <= value <= maximum or not math.isfinite(value):
        limit = (
            f'a number from {minimum:g} to {maximum:g}' if maximum < math.inf else f'a finite number from {minimum:g}'
        )
        raise UserError(f'{field} must be {limit}, got {value if is_number else repr(value)}')


def check_integer(field: str, value: int, minimum: int = 0, maximum: int = MAX_INT) -> None:
    """Raises a UserError unless `value` is an integer and `minimum <= value <= maximum`."""
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
        raise UserError(f'{field} must be an integer from {minimum} to {maximum}, got {value!r}')


def check_fraction(field: str, value: float) -> None:
    """Raises a UserError unless `0 <= value < 1`."""
    if not 0 <= value < 1:
        raise UserError(f'{field} must be at least 0 and less than 1, got {value}')
