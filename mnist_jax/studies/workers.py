"""Processes that share the runs of a study or a population: whoever locks a run first trains it."""

import contextlib
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import jax
from absl import logging

from mnist_jax.distributed.local_launch import MAX_PROCESSES, cores_for_process, launch_workers
from mnist_jax.errors import UserError, check_integer
from mnist_jax.workdir.directory_lock import DirectoryLock, InUseError
from mnist_jax.workdir.provenance import program

POLL_SECONDS = 0.2
MAX_MAPPINGS = 30_000  # memory mappings of this process, of which Linux permits 65,530; compiled programs need many
Task = TypeVar('Task')


def choose_count(workers: int | None, on_cpu: bool, arguments: Sequence[str] | None) -> int:
    """Returns the number of processes that share work.

    Args:
      workers: The number that the user asks for; None for one per core on a CPU, and one on an accelerator.
      on_cpu: Whether the work runs on a CPU.
      arguments: See `share_work`; if None, the default is one process.
    """
    if workers is not None:
        return workers
    return (len(cores_for_process(0, 1)) or os.cpu_count() or 1) if on_cpu and arguments is not None else 1


def share_work(
    work: Callable[[], None], workers: int, arguments: Sequence[str] | None, own_program: Sequence[str] | None = None
) -> int:
    """Does the work in this process, or starts this command again in several worker processes.

    Args:
      work: Does all tasks that no other process does.
      workers: The number of processes. 1, and 0 in a process that this function has started, work in this process.
      arguments: The command line of this process; None if it cannot be started again, so that `workers` must be 0 or 1.
      own_program: What comes before the arguments; None for what this process was started with.

    Returns:
      The exit status; 128 plus the number of a signal that stopped the workers.
    """
    if workers > 1:
        if arguments is None:
            raise UserError(f'the number of workers must be 1 without a command line that starts them, got {workers}')
        return launch_workers([*arguments, '--workers=0'], workers, own_program or [sys.executable, *program()[1:]])
    work()
    return 0


def check_workers(workers: int | None) -> None:
    """Raises a UserError unless `workers` is a number of processes, None, or 0 in a process of `share_work`."""
    if workers not in (None, 0):
        check_integer('--workers', workers, 1, MAX_PROCESSES)


def do_one(tasks: Sequence[Task], claim: Callable[[Task], Path], run: Callable[[Task], None]) -> None:
    """Runs one of the tasks that no other process runs; waits a moment if there is none.

    Args:
      tasks: The tasks that are not done, at least one.
      claim: Maps a task to the directory that a process locks while it runs the task.
      run: Runs a task, which another process may have done in the meantime.
    """
    first = os.getpid() % len(tasks)  # so that processes rarely try to lock the same one
    for task in [*tasks[first:], *tasks[:first]]:
        directory = claim(task)
        directory.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(DirectoryLock(directory, 'the claim'))
            except InUseError:
                continue
            run(task)
        _forget_programs()
        return
    time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppresses what a run logs, except for warnings, and what it prints."""
    handler = logging.get_absl_handler()
    before = handler.level
    handler.setLevel('WARNING')
    try:
        with open(os.devnull, 'w') as null, contextlib.redirect_stdout(null):
            yield
    finally:
        handler.setLevel(before)


def _forget_programs() -> None:
    """Forgets compiled programs before their memory mappings reach the limit of Linux."""
    mappings = Path('/proc/self/maps')
    if mappings.exists() and mappings.read_text().count('\n') > MAX_MAPPINGS:
        gc.collect()
        jax.clear_caches()
        gc.collect()
