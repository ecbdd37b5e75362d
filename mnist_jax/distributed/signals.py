"""Being asked to stop: by SIGTERM (a cluster's preemption) or SIGINT (Ctrl-C)."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether this process was asked to stop, and by which signal; 0 where it was not.

    Only while it has something unsaved is it waited for: else the first signal ends it at once, and so does a second.
    In a process that is not this program's own, such as a notebook's, KeyboardInterrupt is raised instead.
    """

    def __init__(self, own: bool) -> None:
        self.own = own
        self.signal = 0
        self.unsaved = False
        self.asked = 0  # times that it was looked at; see processes.agreed

    def ask(self, number: int) -> None:
        """The signal with this number came."""
        told = f'stopped by {signal.Signals(number).name}'
        if self.unsaved and not self.signal:
            self.signal = number
            print(f'to be {told} at the next step; once more stops at once', file=sys.stderr, flush=True)
        elif self.own:
            print(told, file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(128 + number)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """As a handler in the main thread: raise KeyboardInterrupt where this process is not to be ended."""
        if not self.own and not self.unsaved:
            raise KeyboardInterrupt


@contextlib.contextmanager
def stop_on_signals(own: bool = False) -> Iterator[StopRequest]:
    """While this lasts, the signals go to a request; before and after, to that of the caller.

    `own` says that the process is this program's own, here and within.
    """
    request = StopRequest(own or getattr(signal.getsignal(SIGNALS[0]), 'own', False))
    with handling(request.ask, in_main_thread=request):
        yield request


def _ignore(number: int, frame: FrameType | None) -> None:
    pass


@contextlib.contextmanager
def handling(
    act: Callable[[int], None], signals: Sequence[int] = SIGNALS, in_main_thread: Callable = _ignore
) -> Iterator[None]:
    """While this lasts, call `act` with the number of each of `signals` that comes.

    In a thread of its own: Python's handlers wait for the main thread, which may compile for half a minute.
    `in_main_thread` is such a handler.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Signals are for the main thread, and for whoever runs this in another one.
        return
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    thread = threading.Thread(target=_watch, args=(reading, act, signals), daemon=True)
    thread.start()
    before = {number: signal.signal(number, in_main_thread) for number in signals}
    outer = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(outer)
        for number, handler in before.items():
            signal.signal(number, handler)
        writing.close()
        thread.join()


def _watch(reading: socket.socket, act: Callable[[int], None], signals: Sequence[int]) -> None:
    with reading:
        while received := reading.recv(1):
            if received[0] in signals:
                act(received[0])
