"""Stopping on request: SIGTERM (a cluster's preemption notice), SIGINT (Ctrl-C) and SIGHUP (a closed terminal)."""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from mnist_jax.errors import end_process, print_error

HANGUP = getattr(signal, 'SIGHUP', 0)  # 0: on systems without it
SIGNALS = (signal.SIGTERM, signal.SIGINT, *((HANGUP,) if HANGUP else ()))
REPEAT_SECONDS = 1.0
"""A signal that arrives again within this time is the same request: a supervisor such as systemd or Slurm sends it to
every process, and a launcher forwards it as well."""


class Repeats:
    """Tells a second request from one that has only arrived twice."""

    def __init__(self) -> None:
        self._times: dict[int, float] = {}

    def add(self, number: int) -> bool:
        """Returns whether the signal `number` only repeats one of the last `REPEAT_SECONDS`.

        At the end of a session, a process gets SIGHUP in addition to SIGTERM, before or after it, so these are one
        request, and SIGHUP is never a second one.
        """
        request = signal.SIGTERM if number == HANGUP else number
        now = time.monotonic()
        repeated = now - self._times.get(request, -REPEAT_SECONDS) < REPEAT_SECONDS
        if number == HANGUP and self._times:
            repeated = True
        self._times.setdefault(request, now)
        return repeated


class StopRequest:
    """Records the signal that asks this process to stop.

    Shutdown is deferred only while there is unsaved work: without any, the first signal ends the process immediately,
    and a second signal always does. A process that this program does not own, such as a notebook kernel, is never
    ended; it gets a KeyboardInterrupt instead.
    """

    def __init__(self, owns_process: bool):
        self.owns_process = owns_process
        self.signal = 0  # number of the signal that asks to stop; 0 if none does
        self.unsaved = False  # whether there is unsaved work
        self.polls = 0  # number of polls; see `processes.agree_on_stop`
        self._handled = 0  # number of signals in the main thread
        self._repeats, self._handled_repeats = Repeats(), Repeats()

    def receive(self, number: int) -> None:
        """Handles the signal `number`; runs in the thread that watches for signals."""
        name = signal.Signals(number).name
        if self._repeats.add(number):
            return
        if self.unsaved and not self.signal:
            self.signal = number
            print_error(f'{name}: saving and stopping; send again to stop immediately')
        elif self.owns_process:
            end_process(128 + number, f'stopped by {name}')

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal in the main thread: interrupts a process that this program must not end."""
        if self._handled_repeats.add(number):
            return
        self._handled += 1
        if not self.owns_process and (not self.unsaved or self._handled > 1):
            raise KeyboardInterrupt


@contextlib.contextmanager
def stop_on_signals(owns_process: bool = False) -> Iterator[StopRequest]:
    """Context manager: yields a request that receives `SIGNALS`, and restores the previous handlers afterwards.

    Args:
      owns_process: Whether this process runs only this program, so that a signal may end it. Nested calls inherit it.
    """
    outer = signal.getsignal(SIGNALS[0])
    request = StopRequest(owns_process or (isinstance(outer, StopRequest) and outer.owns_process))
    with handle_signals(request.receive, main_thread_handler=request):
        yield request


def _ignore(number: int, frame: FrameType | None) -> None:
    pass


@contextlib.contextmanager
def handle_signals(
    callback: Callable[[int], None],
    signals: Sequence[int] = SIGNALS,
    main_thread_handler: Callable[[int, FrameType | None], None] = _ignore,
) -> Iterator[None]:
    """Context manager: calls `callback` with the number of each of `signals` that arrives.

    The callback runs in its own thread, because Python runs signal handlers only between bytecodes of the main thread,
    and compiling a step can block that thread for half a minute. Outside the main thread, where Python does not allow
    handlers to be set, this does nothing.

    Args:
      callback: Called in its own thread, as soon as the signal arrives.
      signals: The numbers of the signals to handle.
      main_thread_handler: Called in the main thread, as the handlers of `signal.signal` are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    thread = threading.Thread(target=_watch, args=(reading, callback, signals), daemon=True)
    thread.start()
    # In this order: a signal that arrives between the two calls must not be lost.
    previous_wakeup = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    # `nohup` makes a process ignore SIGHUP. Shells without job control make `command &` ignore SIGINT too, but such a
    # process can still be stopped.
    handled = [number for number in signals if number != HANGUP or signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, main_thread_handler) for number in handled}
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous_wakeup)
        for number, handler in previous.items():
            signal.signal(number, handler)
        writing.close()
        thread.join()


def _watch(reading: socket.socket, callback: Callable[[int], None], signals: Sequence[int]) -> None:
    """Reads the signal numbers that Python writes to the wakeup socket, until its other end is closed."""
    with reading:
        while received := reading.recv(1):
            if received[0] in signals:
                callback(received[0])
