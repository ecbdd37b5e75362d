"""Helpers for the fault tests: a short run of the CNN in a process into which faults are injected."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from conftest import ROOT, environment, results

EPOCHS = 5
STEPS_PER_EPOCH = 10
RUN = (
    f'--config={ROOT}/configs/cnn.py',
    '--config.dataset.train=train[:640]',
    '--config.dataset.validation=train[640:900]',
    '--config.dataset.test=test[:300]',
    '--config.batch_size=64',
    '--config.devices=1',
    f'--config.epochs={EPOCHS}',
    '--config.model.dropout=(0.3, 0.3)',
)
SMALL = ('--config.model.stages=((4,), (8,))', '--config.model.hidden=(16, 16)')
TIMEOUT_SECONDS = 120
# The program, modified to stop itself with SIGSTOP after some steps, and to hang forever after step `hang_after`.
PAUSING_PROGRAM = """
import functools, json, os, signal, sys, time
import mnist_jax.train
from mnist_jax import main

pause_after, hang_after = json.loads(sys.argv.pop(1))


def on_step(step, request):
    if step in pause_after:
        os.kill(os.getpid(), signal.SIGSTOP)
    while step == hang_after:
        time.sleep(1)


mnist_jax.train.train = functools.partial(mnist_jax.train.train, on_step=on_step)
main.main()
"""


class Program:
    """The program as a process: its command, its files and its output."""

    def __init__(
        self,
        directory: Path,
        data_dir: str,
        cache: Path | None = None,
        wrapper: Sequence[str] = (),
        model: Sequence[str] = SMALL,
    ):
        """Prepares the command; nothing is started.

        Args:
          directory: The directory for the workdir and the output.
          data_dir: The TFDS data directory.
          cache: The directory of compiled programs; by default, the user's.
          wrapper: A command that runs the program, for example in a mount namespace.
          model: The flags of the model; () for that of configs/cnn.py.
        """
        self.directory, self.workdir = directory, directory / 'run'
        self._wrapper, self._run = wrapper, (*RUN, *model)
        self._environment = environment(data_dir)
        if cache is not None:
            self._environment['XDG_CACHE_HOME'] = str(cache)

    @property
    def arguments(self) -> list[str]:
        """The flags of the training run."""
        return ['--noreport', *self._run, f'--workdir={self.workdir}']

    @contextlib.contextmanager
    def started(
        self,
        *arguments: str,
        workdir: Path | None = None,
        pause_after: Sequence[int] = (),
        hang_after: int | None = None,
    ) -> Iterator[subprocess.Popen]:
        """Starts training or, with '--mode=eval', evaluation; kills the process at the end.

        Args:
          *arguments: Additional flags.
          workdir: The workdir, by default that of this program.
          pause_after: Steps after which the process stops itself; see `wait_until_paused` and `resume`.
          hang_after: The step after which the process hangs.
        """
        config = () if '--mode=eval' in arguments else ('--noreport', *self._run)
        flags = [*config, *arguments, f'--workdir={workdir or self.workdir}']
        program = ['-m', 'mnist_jax.main']
        if pause_after or hang_after is not None:
            program = ['-c', PAUSING_PROGRAM, json.dumps([pause_after, hang_after])]
        command = [*self._wrapper, sys.executable, *program, *flags]
        with (
            open(self.directory / 'output', 'w') as output,
            subprocess.Popen(command, env=self._environment, cwd=ROOT, stdout=output, stderr=output) as process,
        ):
            try:
                yield process
            finally:
                process.kill()

    def run(self, *arguments: str, workdir: Path | None = None) -> int:
        """Returns the exit status of training, or of evaluation with '--mode=eval'."""
        with self.started(*arguments, workdir=workdir) as process:
            return process.wait(TIMEOUT_SECONDS)

    @property
    def output(self) -> str:
        """What the last process wrote to standard output and standard error."""
        return (self.directory / 'output').read_text(errors='replace')

    def error(self) -> str:
        """Returns the one error line of the last process; fails if there is a traceback."""
        assert 'Traceback' not in self.output, self.output
        (line,) = [line for line in self.output.splitlines() if line.startswith('error: ')]
        return line

    def results(self) -> tuple:
        """Returns everything that must be equal in identical runs; see `conftest.results`."""
        return results(self.workdir)


@functools.cache
def uninterrupted(data_dir: str, model: Sequence[str] = SMALL) -> tuple[tuple, float]:
    """Returns the results of a run without faults, and how many seconds it takes."""
    with tempfile.TemporaryDirectory() as directory:
        program = Program(Path(directory), data_dir, model=model)
        start = time.monotonic()
        assert program.run() == 0, program.output
        return program.results(), time.monotonic() - start


def wait_until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Waits for a condition while the process runs; fails if it ends first."""
    end = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)


def wait_until_paused(process: subprocess.Popen) -> None:
    """Waits until the process has stopped itself after one of the steps `pause_after`."""
    options = os.WSTOPPED | os.WNOHANG
    wait_until(lambda: process.poll() is None and os.waitid(os.P_PID, process.pid, options) is not None, process)


def resume(process: subprocess.Popen) -> None:
    """Lets a paused process continue."""
    process.send_signal(signal.SIGCONT)


def epochs_done(workdir: Path) -> int:
    """Returns the number of rows in metrics.csv."""
    path = workdir / 'metrics.csv'
    return path.read_text().count('\n') - 1 if path.exists() else 0
