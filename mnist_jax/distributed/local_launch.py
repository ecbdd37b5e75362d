"""Several processes of this program on this machine: started together, ended together, seen as one."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

from mnist_jax.distributed.signals import SIGNALS, handling

GRACE = 30.0  # seconds that a process has to end by itself
SETTLE = 0.5  # seconds: a process that fails because another was killed may end a little before that is known
LAST_LINES = 30  # of what a failed process said
MAX_PROCESSES = 64  # processes
SIGNALS = (*SIGNALS, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # of Linux's prctl
CHILD = 'MNIST_JAX_CHILD'  # in the environment of a child: the process id of its launcher, and its cores
PROGRAM = (sys.executable, '-m', 'mnist_jax.main')


def launch_processes(arguments: Sequence[str], processes: int, program: Sequence[str] = PROGRAM) -> int:
    """Run `program` with `arguments` in so many processes; returns the exit status.

    Process 0 has the terminal; what the others say is shown where one of them fails. Then the rest is ended, and the
    status is that of the failed one, or 1 where a signal killed it. A signal to this process is passed on to all.
    """
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        coordinator = f'127.0.0.1:{server.getsockname()[1]}'
    # Bound to the loopback address: nobody else shall take part.
    environment = {**os.environ, 'JAX_COORDINATOR_BIND_ADDRESS': coordinator}
    common = [*program, *arguments, f'--coordinator={coordinator}']
    children: list[subprocess.Popen] = []
    with contextlib.ExitStack() as stack:
        said = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(processes)]
        stack.callback(_end, children)
        received = stack.enter_context(_passed_on(children))
        for number in range(processes):
            command = [*common, f'--num_processes={processes}', f'--process_id={number}']
            output = None if number == 0 else said[number]
            cores = _share_of_cores(number, processes)
            children.append(_start(command, environment, cores, stdout=output, stderr=output))
        return _wait(children, said, received)


def run(arguments: Sequence[str], environment: Mapping[str, str], output: int | None = None) -> int:
    """Run this program once, and pass signals on to it, so that it can save; returns its exit status."""
    children: list[subprocess.Popen] = []
    with _passed_on(children) as received:
        child = _start([*PROGRAM, *arguments], environment, _share_of_cores(0, 1), stdout=output)
        children.append(child)
        if received:  # Before there was a child to tell.
            child.terminate()
        status = child.wait()
    return 128 + received[0] if received else status


def _wait(children: Sequence[subprocess.Popen], said: Sequence[IO[bytes]], received: Sequence[int]) -> int:
    """Wait for the end of all, or for the first failure, and tell it; returns the exit status."""
    while received or not any(child.poll() for child in children):
        if all(child.poll() is not None for child in children):
            return 128 + received[0] if received else 0
        time.sleep(0.05)
    time.sleep(SETTLE)
    failed = [number for number, child in enumerate(children) if child.poll()]
    return _tell(min(failed, key=lambda number: _rank(children[number].returncode)), children, said)


def _rank(status: int) -> int:
    """Which of several failures is told: that one was killed comes before that others broke off for it."""
    return {-signal.SIGKILL: 0, -signal.SIGABRT: 2}.get(status, 1 if status < 0 else 3)


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
def _passed_on(children: Sequence[subprocess.Popen]) -> Iterator[list[int]]:
    """Pass signals on to the children; those that came so far. After the second one, they are killed."""
    received: list[int] = []

    def pass_on(number: int) -> None:
        received.append(number)
        for child in children:
            child.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)
            if len(received) > 1:
                child.kill()

    with handling(pass_on, SIGNALS):
        yield received


def _share_of_cores(number: int, processes: int) -> list[int]:
    """The cores for one of the processes: an equal share, or one of them where there are fewer than processes."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
    if len(cores) < processes:
        return cores and [cores[number % len(cores)]]
    each = len(cores) // processes
    return cores[number * each : (number + 1) * each]


def _start(
    command: Sequence[str], environment: Mapping[str, str], cores: list[int], **output: IO[bytes] | int | None
) -> subprocess.Popen:
    """Start a child that does as `prepare` says."""
    told = {CHILD: f'{os.getpid()}:{",".join(map(str, cores))}'}
    # In a session of its own, so that each signal reaches it once: from here.
    return subprocess.Popen(command, env={**environment, **told}, start_new_session=True, **output)


def prepare() -> None:
    """What a process does first where another one launched it: it keeps to its cores, and is ended with that one.

    It does so itself: between fork and exec in a process with threads, as JAX has them, little may be done.
    """
    parent, _, cores = os.environ.pop(CHILD, '').partition(':')
    if not parent or not sys.platform.startswith('linux'):
        return
    os.sched_setaffinity(0, map(int, cores.split(',')))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # It ended before that.
        os.kill(os.getpid(), signal.SIGTERM)
