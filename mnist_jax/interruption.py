"""Being asked to stop: by SIGTERM (a cluster's preemption) or SIGINT (Ctrl-C)."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from absl import logging

from mnist_jax import processes

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Request:
    """Whether this process was asked to stop, and by which signal; 0 where it was not."""

    def __init__(self) -> None:
        self.signal = 0
        self._asked = 0

    def agreed(self, due: bool = False) -> tuple[int, bool]:
        """(the signal, or 0; `due`), the same in all processes; each of them must ask equally often.

        Several processes talk to each other about it now and then only.
        """
        self._asked += 1
        if self._asked % processes.EXCHANGE_EVERY and processes.several():
            return 0, False
        signal, due = processes.greatest([self.signal, due])
        return signal, bool(due)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(128 + number)
        self.signal = number
        logging.warning('%s: stopping at the next step; once more stops at once', signal.Signals(number).name)


@contextlib.contextmanager
def listening() -> Iterator[Request]:
    """While this lasts, the first of the signals is a request, and a second one ends the process at once."""
    request = Request()
    before = {number: signal.signal(number, request._ask) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
