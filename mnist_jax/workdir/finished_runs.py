"""Reads the finished runs in workdirs, to compare them or to report on them."""

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mnist_jax import files
from mnist_jax.config import ConfigDict
from mnist_jax.errors import UserError
from mnist_jax.files import JsonObject
from mnist_jax.learning.callbacks import EarlyStopping, EarlyStoppingState
from mnist_jax.workdir.checkpoints import Checkpoints
from mnist_jax.workdir.metrics_log import read_metrics
from mnist_jax.workdir.results import caveats, read_result
from mnist_jax.workdir.snapshot import Snapshot, params_sha256

ENSEMBLE_FILE = 'ensemble.json'  # It describes an ensemble; see `inference/ensemble.py`.


class FinishedRun(NamedTuple):
    """What the workdir of a finished run holds."""

    name: str
    workdir: Path
    config: ConfigDict
    result: JsonObject
    epochs: list[dict[str, float]]  # the rows of metrics.csv

    @property
    def complete(self) -> bool:
        """Whether metrics.csv has the row of every epoch; one in which the run was stopped has none."""
        if not self.epochs:
            return not self.result['step']
        numbers = [int(row['epoch']) for row in self.epochs]
        next_step = self.epochs[0]['step'] / numbers[0] * (len(numbers) + 1)
        return numbers == list(range(1, len(numbers) + 1)) and self.result['step'] < next_step

    @property
    def early_stopping(self) -> tuple[EarlyStopping, EarlyStoppingState]:
        """Early stopping by the config of the run, and its state after the rows of metrics.csv."""
        callback = EarlyStopping(**self.config.early_stopping)
        state = callback.init()
        for row in self.epochs:
            state = callback.update(state, {callback.monitor: None, **row})
        return callback, state

    @property
    def stopped_early(self) -> bool:
        """Whether early stopping ended the run before its last epoch."""
        callback, state = self.early_stopping
        return len(self.epochs) < self.config.epochs and callback.stops(state)

    @property
    def progress(self) -> str:
        """Why the result is not that of the end of the run; '' if it is, or if metrics.csv does not say."""
        if not self.epochs and self.config.epochs and not self.result['step']:
            return f'has 0 of {self.config.epochs} epochs: the run is not finished'
        if not self.epochs or not self.complete:
            return ''
        callback, state = self.early_stopping
        if len(self.epochs) < self.config.epochs and not callback.stops(state):
            return f'has {len(self.epochs)} of {self.config.epochs} epochs: the run is not finished'
        steps = [int(row['step']) for row in self.epochs]
        end = state.best_step if callback.restore_best and state.best_step in steps else steps[-1]
        if self.result['step'] == end:
            return ''
        return f'is that of step {self.result["step"]:,}, but the run ends with step {end:,}; --mode=eval rewrites it'

    @property
    def seconds(self) -> float | None:
        """The total training time of all epochs, or None if metrics.csv is missing or incomplete."""
        return sum(row['seconds'] for row in self.epochs) if self.complete else None

    @property
    def validation_accuracy(self) -> float | None:
        """The validation accuracy at the step that was evaluated; None if the run was not validated."""
        rows = [row for row in self.epochs if row['step'] == self.result['step']]
        return rows[-1].get('validation_accuracy') if rows else None

    @property
    def caveats(self) -> dict[str, str]:
        """What a reader of the result and the metrics must know, by its short name; see `results.caveats`."""
        own = {}
        if progress := self.progress:
            own['result'] = progress
        if self.epochs and not self.complete:
            own['metrics.csv'] = 'lacks the rows of some epochs, so the training time is unknown'
        elif not self.epochs and self.result['step']:
            own['metrics.csv'] = 'has no epoch: it is missing, or the run was stopped in its first epoch'
        return {**caveats(self.result), **own}

    @property
    def cross_entropy(self) -> float | None:
        """The mean cross-entropy, or None if the run was evaluated by an older version and its loss is another one."""
        loss = self.config.loss
        is_cross_entropy = loss.name == 'cross_entropy' and not loss.get('label_smoothing')
        return self.result.get('cross_entropy', self.result['loss'] if is_cross_entropy else None)

    @property
    def epochs_text(self) -> str:
        """The number of epochs as text, or NA."""
        return 'NA' if self.seconds is None else str(len(self.epochs))

    @property
    def seconds_text(self) -> str:
        """The training time as text, or NA."""
        return 'NA' if self.seconds is None else f'{self.seconds:,.1f} s'


def read_runs(patterns: Sequence[str]) -> list[FinishedRun]:
    """Reads the runs in the workdirs `patterns`, paths or glob patterns, each run once."""
    workdirs = find_runs(patterns)
    return [read_run(workdir, name) for workdir, name in zip(workdirs, short_names(workdirs), strict=True)]


def find_runs(patterns: Sequence[str], ensembles: bool = False) -> list[Path]:
    """Returns the workdirs that match the patterns, each once, in order; also those of ensembles with `ensembles`."""
    names = ('config.json', ENSEMBLE_FILE) if ensembles else ('config.json',)
    workdirs: dict[Path, None] = {}
    for pattern in (str(files.user_path(text, '--run')) for text in patterns):
        if Path(pattern).is_dir():
            workdirs[Path(pattern).resolve()] = None
            continue
        paths = [Path(match).resolve() for match in sorted(glob.glob(pattern))]
        matches = [path for path in paths if any((path / name).is_file() for name in names)]
        if not matches:
            raise UserError(f"--run must be a workdir, or a pattern of workdirs such as 'runs/cnn-*', got {pattern!r}")
        workdirs.update(dict.fromkeys(matches))
    return list(workdirs)


def short_names(workdirs: Sequence[Path]) -> list[str]:
    """Returns the last parts of each path, as many as it takes to make all names different."""
    parts = [tuple(map(files.printable, workdir.parts)) for workdir in workdirs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ['/'.join(path[-length:]) for path in parts]
        if len(set(names)) == len(names):
            break
    return names


def read_run(workdir: Path, name: str) -> FinishedRun:
    """Reads the run in a workdir; raises a UserError if it is not finished."""
    config = Checkpoints(workdir).read_config()
    if config is None:
        raise UserError(f'{str(workdir)!r} has no config.json; choose the workdir of a run')
    return FinishedRun(name, workdir, config, read_result(workdir), read_metrics(workdir))


def read_run_of(snapshot: Snapshot, workdir: Path) -> FinishedRun:
    """Reads the run in a workdir; raises a UserError unless `snapshot` is what its `eval.json` is the result of."""
    run = read_run(workdir, files.printable(workdir.resolve().name))
    state = snapshot.state
    for name, expected in (('step', int(state.step)), ('params_sha256', params_sha256(state.variables))):
        if run.result[name] != expected:
            raise UserError(
                f'{str(workdir / "eval.json")!r} must be the result of the restored checkpoint, with the {name} '
                f'{expected}, got {run.result[name]}; --mode=eval writes that of the checkpoint with which the run ends'
            )
    return run
