"""Runs this program in child processes on this machine: starts them, forwards signals, and ends them together."""

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

from mnist_jax.distributed.signals import SIGNALS, Repeats, handle_signals
from mnist_jax.errors import print_error

GRACE_SECONDS = 30.0  # time for a process to end after SIGTERM, before SIGKILL
SETTLE_SECONDS = 0.5  # time after a failure for the others to end, because the first to end may not be the cause
TAIL_LINES = 30  # lines of a failed process's output to show
MAX_PROCESSES = 64
PR_SET_PDEATHSIG = 1  # from Linux's sys/prctl.h
CHILD_VARIABLE = 'MNIST_JAX_CHILD'  # environment variable of a child: its launcher's process id, and its cores
PROGRAM = (sys.executable, '-m', 'mnist_jax.main')


def launch_processes(arguments: Sequence[str], num_processes: int, program: Sequence[str]) -> int:
    """Runs `program` with `arguments` in several processes, as one distributed run.

    Process 0 uses the terminal; the output of another process is shown only if that process fails. After a failure,
    the remaining processes are ended. Signals to this process are forwarded to all of them.

    Returns:
      The exit status of the process that failed, 1 if a signal killed it; otherwise 128 plus the number of the signal
      if this process received one, or 0.
    """
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        coordinator = f'127.0.0.1:{server.getsockname()[1]}'
    # The coordinator listens on the loopback address only, so that nobody else can join.
    environment = {**os.environ, 'JAX_COORDINATOR_BIND_ADDRESS': coordinator}
    common = [*program, *arguments, f'--coordinator={coordinator}']
    children: list[subprocess.Popen] = []
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(num_processes)]
        stack.callback(_terminate, children)
        received = stack.enter_context(_forward_signals(children))
        for number in range(num_processes):
            command = [*common, f'--num_processes={num_processes}', f'--process_id={number}']
            output = None if number == 0 else outputs[number]
            cores = cores_for_process(number, num_processes)
            _start(children, received, command, environment, cores, stdout=output, stderr=output)
        return _wait(children, outputs, received)


def launch_workers(arguments: Sequence[str], count: int, program: Sequence[str]) -> int:
    """Runs `program` with `arguments` in several independent processes, each on cores of its own.

    They share the terminal. A failure of one ends the others, and signals to this process are forwarded to all.

    Returns:
      The exit status, as that of `launch_processes`.
    """
    children: list[subprocess.Popen] = []
    with contextlib.ExitStack() as stack:
        stack.callback(_terminate, children)
        received = stack.enter_context(_forward_signals(children))
        for number in range(count):
            cores = cores_for_process(number, count)
            _start(children, received, [*program, *arguments], os.environ, cores)
        return _wait(children, [], received)


def run_child(arguments: Sequence[str], environment: Mapping[str, str], output: int | None = None) -> int:
    """Runs this program in one child process, and forwards signals to it so that it can save its progress.

    Args:
      arguments: The command-line flags.
      environment: The environment variables of the child.
      output: Where its standard output goes, as `stdout` of `subprocess.Popen`.

    Returns:
      The exit status of the child if it failed; 128 plus the number of the signal if this process received one.
    """
    children: list[subprocess.Popen] = []
    with _forward_signals(children) as received:
        cores = cores_for_process(0, 1)
        _start(children, received, [*PROGRAM, *arguments], environment, cores, stdout=output)
        statuses = [child.wait() for child in children]
    failed = [status for status in statuses if not _has_stopped(status, received)]
    return failed[0] if failed else 128 + received[0] if received else 0


def cores_for_process(number: int, num_processes: int) -> list[int]:
    """Returns the cores for one of the processes: an equal share, or a single core if there are fewer than processes.

    Returns an empty list on systems without CPU affinity.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
    if len(cores) < num_processes:
        return cores and [cores[number % len(cores)]]
    share = len(cores) // num_processes
    return cores[number * share : (number + 1) * share]


def prepare_child() -> None:
    """Pins this process to its cores and makes it end with its launcher; does nothing if it has no launcher.

    The child does this itself, because hardly anything is safe between fork and exec in a process with threads, and
    JAX starts threads.
    """
    parent, _, cores = os.environ.pop(CHILD_VARIABLE, '').partition(':')
    if not parent or not sys.platform.startswith('linux'):
        return
    os.sched_setaffinity(0, map(int, cores.split(',')))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # The launcher ended before the call of prctl.
        os.kill(os.getpid(), signal.SIGTERM)


def _start(
    children: list[subprocess.Popen],
    received: Sequence[int],
    command: Sequence[str],
    environment: Mapping[str, str],
    cores: Sequence[int],
    stdout: IO[bytes] | int | None = None,
    stderr: IO[bytes] | int | None = None,
) -> None:
    """Starts a child process, which must call `prepare_child`; starts none if a signal was received."""
    if received:
        return
    variables = {**environment, CHILD_VARIABLE: f'{os.getpid()}:{",".join(map(str, cores))}'}
    # In a session of its own, the child gets each signal of the terminal once: forwarded by this process.
    child = subprocess.Popen(command, env=variables, stdout=stdout, stderr=stderr, start_new_session=True)
    children.append(child)
    if received:  # It arrived before the child was in the list of those to which it is forwarded.
        child.terminate()


@contextlib.contextmanager
def _forward_signals(children: Sequence[subprocess.Popen]) -> Iterator[list[int]]:
    """Forwards signals to the children, and kills them after a second one; yields the list of the signals received."""
    received: list[int] = []
    repeats = Repeats()

    def forward(number: int) -> None:
        if repeats.add(number):
            return
        received.append(number)
        for child in children:
            child.send_signal(number)
            if len(received) > 1:
                child.kill()

    with handle_signals(forward):
        yield received


def _wait(children: Sequence[subprocess.Popen], outputs: Sequence[IO[bytes]], received: Sequence[int]) -> int:
    """Waits until all children have ended, or one has failed, and reports the failure; returns the exit status."""
    while received or not any(child.poll() for child in children):
        if all(child.poll() is not None for child in children):
            break
        time.sleep(0.05)
    if not received:
        time.sleep(SETTLE_SECONDS)
    failed = [number for number, child in enumerate(children) if not _has_stopped(child.poll(), received)]
    if not failed:
        return 128 + received[0] if received else 0
    return _report_failure(min(failed, key=lambda number: _rank(children[number].returncode)), children, outputs)


def _has_stopped(status: int | None, received: Sequence[int]) -> bool:
    """Returns whether a process has not failed, but still runs, has finished, or was stopped by a signal."""
    if not status or len(received) > 1:
        return True
    # A supervisor may send another signal to the child than to this process.
    return bool(received) and (-status if status < 0 else status - 128) in SIGNALS


def _rank(status: int) -> int:
    """Returns the rank of an exit status as the cause of several failures: the peers of a failed process end with 1."""
    return {-signal.SIGKILL: 0, -signal.SIGABRT: 2, 1: 4}.get(status, 1 if status < 0 else 3)


def _report_failure(failed: int, children: Sequence[subprocess.Popen], outputs: Sequence[IO[bytes]]) -> int:
    """Prints why the process with the index `failed` failed; returns the exit status."""
    status = children[failed].returncode
    if status < 0:
        name = signal.Signals(-status).name
        print_error(
            f'error: process {failed} of {len(children)} was killed ({name}), so the run stops; run the same command '
            'again to resume from the last checkpoint'
        )
        return 1
    if outputs and failed > 0 and not _reported_by_first(children[0], status):
        outputs[failed].seek(0)
        lines = outputs[failed].read().decode(errors='replace').splitlines()[-TAIL_LINES:]
        print_error(*lines, f'(process {failed} of {len(children)})')
    return status


def _reported_by_first(first: subprocess.Popen, status: int) -> bool:
    """Returns whether process 0 fails with the same user error, and so prints it itself."""
    if status != 2:
        return False
    with contextlib.suppress(subprocess.TimeoutExpired):
        return first.wait(GRACE_SECONDS) == status
    return False


def _terminate(children: Sequence[subprocess.Popen]) -> None:
    """Ends the children that still run: with SIGTERM, and after `GRACE_SECONDS` with SIGKILL."""
    for child in children:
        child.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
