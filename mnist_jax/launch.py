"""Several processes of this program on this machine: started together, ended together, seen as one."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import IO, NoReturn

GRACE = 10.0  # seconds that a process has to end by itself
SETTLE = 0.5  # seconds: a process that fails because another was killed may end a little before that is known
LAST_LINES = 30  # of what a failed process said


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `python -m mnist_jax.main` with `arguments` in so many processes; returns the exit status.

    Process 0 has the terminal; what the others say is shown where one of them fails. Then the rest is ended, and the
    status is that of the failed one, or 1 where a signal killed it.
    """
    with _free_port() as port:
        coordinator = f'127.0.0.1:{port}'
    # Bound to the loopback address: nobody else shall take part.
    environment = {**os.environ, 'JAX_COORDINATOR_BIND_ADDRESS': coordinator}
    common = [sys.executable, '-m', 'mnist_jax.main', *arguments, f'--coordinator={coordinator}']
    with contextlib.ExitStack() as stack:
        said = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(processes)]
        children: list[subprocess.Popen] = []
        stack.callback(_end, children)
        stack.enter_context(_ended_by(signal.SIGTERM))
        for number in range(processes):
            command = [*common, f'--num_processes={processes}', f'--process_id={number}']
            output = None if number == 0 else said[number]
            children.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdout=output,
                    stderr=output,
                    preexec_fn=_on_cores(_share_of_cores(number, processes)),
                )
            )
        return _wait(children, said)


def _wait(children: Sequence[subprocess.Popen], said: Sequence[IO[bytes]]) -> int:
    """Wait for the first failure, and tell it, or for the end of all; returns the exit status."""
    while not any(statuses := [child.poll() for child in children]):
        if None not in statuses:
            return 0
        time.sleep(0.05)
    time.sleep(SETTLE)
    failed = [number for number, child in enumerate(children) if child.poll()]
    return _tell(min(failed, key=lambda number: children[number].returncode >= 0), children, said)


def _tell(failed: int, children: Sequence[subprocess.Popen], said: Sequence[IO[bytes]]) -> int:
    status = children[failed].returncode
    if status < 0:
        name = signal.Signals(-status).name
        print(
            f'error: process {failed} of {len(children)} was killed ({name}), so the run ends; the same command goes '
            'on from the last checkpoint',
            file=sys.stderr,
        )
        return 1
    if failed > 0 and not _fails_alike(children[0], status):
        said[failed].seek(0)
        lines = said[failed].read().decode(errors='replace').splitlines()[-LAST_LINES:]
        print(*lines, f'(process {failed} of {len(children)})', sep='\n', file=sys.stderr)
    return status


def _fails_alike(first: subprocess.Popen, status: int) -> bool:
    """Whether process 0 ends in the same way: then it has told the reason itself."""
    if status != 2:
        return False
    with contextlib.suppress(subprocess.TimeoutExpired):
        return first.wait(GRACE) == status
    return False


def _end(children: Sequence[subprocess.Popen]) -> None:
    """End what still runs: with SIGTERM, and where that does not help with SIGKILL."""
    for child in children:
        child.terminate()
    until = time.monotonic() + GRACE
    for child in children:
        try:
            child.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextlib.contextmanager
def _ended_by(number: signal.Signals) -> Iterator[None]:
    """Turn a signal, which would end this process at once, into SystemExit, so that it can end the others."""

    def end(received: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + received)

    before = signal.signal(number, end)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextlib.contextmanager
def _free_port() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        yield server.getsockname()[1]


def _share_of_cores(number: int, processes: int) -> list[int]:
    """The cores for one of the processes: an equal share, or one of them where there are fewer than processes."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
    if len(cores) < processes:
        return cores and [cores[number % len(cores)]]
    each = len(cores) // processes
    return cores[number * each : (number + 1) * each]


def _on_cores(cores: list[int]) -> Callable[[], None] | None:
    return (lambda: os.sched_setaffinity(0, cores)) if cores else None
