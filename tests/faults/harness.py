"""What the fault tests share: a short run of the CNN as a process, that can be hurt."""

import contextlib
import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from conftest import ROOT, environment, results

STEPS_PER_EPOCH = 10
RUN = (
    f'--config={ROOT}/configs/cnn.py',
    '--config.dataset.train=train[:640]',
    '--config.dataset.validation=train[640:900]',
    '--config.dataset.test=test[:300]',
    '--config.batch_size=64',
    '--config.devices=1',
    '--config.epochs=5',
    '--config.model.dropout=(0.3, 0.3)',
)
SMALL = ('--config.model.stages=((4,), (8,))', '--config.model.hidden=(16, 16)')
PATIENCE = 120  # seconds


class Program:
    """The program as it is started in a directory, its files there, and what it said."""

    def __init__(
        self,
        directory: Path,
        data_dir: str,
        cache: Path | None = None,
        enter: Sequence[str] = (),
        model: Sequence[str] = SMALL,
    ):
        """`cache` is the place of compiled programs; `enter` is a command that runs the program somewhere else."""
        self.directory, self.workdir = directory, directory / 'run'
        self._enter, self._run = enter, (*RUN, *model)
        self._environment = environment(data_dir)
        if cache is not None:
            self._environment['XDG_CACHE_HOME'] = str(cache)

    @contextlib.contextmanager
    def started(self, *arguments: str, workdir: Path | None = None) -> Iterator[subprocess.Popen]:
        """Training with these further arguments, as it runs; what it says goes to `said`."""
        config = () if '--mode=eval' in arguments else ('--noreport', *self._run)
        flags = [*config, *arguments, f'--workdir={workdir or self.workdir}']
        command = [*self._enter, sys.executable, '-m', 'mnist_jax.main', *flags]
        with (
            open(self.directory / 'said', 'w') as said,
            subprocess.Popen(command, env=self._environment, stdout=said, stderr=said) as process,
        ):
            try:
                yield process
            finally:
                process.kill()

    def run(self, *arguments: str, workdir: Path | None = None) -> int:
        """The exit status of training, or of evaluation with '--mode=eval'."""
        with self.started(*arguments, workdir=workdir) as process:
            return process.wait(PATIENCE)

    @property
    def said(self) -> str:
        """What the last process said, on either stream."""
        return (self.directory / 'said').read_text(errors='replace')

    def error(self) -> str:
        """The one line that the last process ended with; it has no traceback."""
        assert 'Traceback' not in self.said, self.said
        (line,) = [line for line in self.said.splitlines() if line.startswith('error: ')]
        return line

    def results(self) -> tuple:
        """What this run and another one have in common where they are equal."""
        return results(self.workdir)


@functools.cache
def undisturbed(data_dir: str, model: Sequence[str] = SMALL) -> tuple[tuple, float]:
    """The results of the run that nothing happens to, and the seconds that it takes."""
    with tempfile.TemporaryDirectory() as directory:
        program = Program(Path(directory), data_dir, model=model)
        began = time.monotonic()
        assert program.run() == 0, program.said
        return program.results(), time.monotonic() - began


def until(condition: Callable[[], bool], process: subprocess.Popen | None = None) -> None:
    """Wait for this, while the process runs."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end and (process is None or process.poll() is None)
        time.sleep(0.01)


def epochs_done(workdir: Path) -> int:
    """How many rows metrics.csv has."""
    path = workdir / 'metrics.csv'
    return path.read_text().count('\n') - 1 if path.exists() else 0
