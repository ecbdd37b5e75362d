"""Writes the progress of a run to the experiment trackers in `config.trackers`.

Every tracker works in a thread of its own: one that is slow, or fails, never stops the run.
"""

import contextlib
import importlib.util
import json
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from mnist_jax import files
from mnist_jax.config import ConfigDict, config_fields
from mnist_jax.errors import Interrupted, UserError
from mnist_jax.factory import choose
from mnist_jax.workdir.metrics_log import COLUMNS, read_metrics
from mnist_jax.workdir.tracker_clients import (
    Ending,
    Metrics,
    MLflow,
    TensorBoard,
    TrackedRun,
    Tracker,
    Trackio,
    WeightsAndBiases,
)

FILE = 'tracking.json'
FINISH_SECONDS = 60.0  # A tracker has this long to write what is left when the run ends.
ARTIFACTS = ('config.json', 'metrics.csv', 'eval.json', 'provenance.json', 'report/index.html')
INTERNAL = ('trials',)  # directories of a study that say nothing about the run in them

TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    'tensorboard': TensorBoard,
    'wandb': WeightsAndBiases,
    'mlflow': MLflow,
    'trackio': Trackio,
}
_UNRESPONSIVE: set[str] = set()  # trackers that this process no longer uses
PACKAGES = {'wandb': 'wandb', 'mlflow': 'mlflow', 'trackio': 'trackio'}


def check_trackers(names: Sequence[str]) -> None:
    """Raises a UserError unless `config.trackers` names trackers whose clients are installed."""
    for name in names:
        choose('each of config.trackers', name, TRACKERS)
        if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(
                f'config.trackers={name!r} needs the package {PACKAGES[name]}: pip install {PACKAGES[name]}'
            )


class Trackers:
    """The trackers of a run; as a context manager, it tells them how the run ended."""

    def __init__(self, config: ConfigDict, workdir: Path, step: int, writes: bool = True):
        """Opens the trackers in `config.trackers`.

        Args:
          config: The config of the run.
          workdir: Its directory.
          step: The number of updates of its last epoch before this start.
          writes: If false, nothing is written.
        """
        self._workdir = workdir
        self._logged = False
        self._ending = Ending('finished', step, {}, (), {})
        self._threads: list[_TrackerThread] = []
        if writes and config.trackers:
            path = workdir.resolve()
            parents = [parent.name for parent in path.parents if parent.name not in INTERNAL]
            self._known = _Known(workdir, step)
            run = TrackedRun(self._known.id, path.name, parents[0], path, dict(config_fields(config)), step)
            names = [name for name in dict.fromkeys(config.trackers) if name not in _UNRESPONSIVE]
            self._threads = [_TrackerThread(name, run, self._known) for name in names]

    def log(self, row: Mapping[str, float | None]) -> None:
        """Passes a row of `metrics.csv` to the trackers."""
        metrics, step = _metrics(row)
        self._ending, self._logged = self._ending._replace(step=step), True
        for thread in self._threads:
            thread.log(metrics, step)

    def add_result(self, result: Mapping[str, Any], report: Path | None) -> None:
        """Takes the evaluation on the test split and the page of the report, to be written when the run ends."""
        figures = {path.stem: path for path in sorted(report.parent.glob('*.png'))} if report else {}
        results = {'test_accuracy': float(result['accuracy']), 'test_loss': float(result['loss'])}
        self._ending = self._ending._replace(results=results, figures=figures)

    def __enter__(self) -> 'Trackers':
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        status = 'finished' if kind is None else 'interrupted' if issubclass(kind, Interrupted) else 'failed'
        artifacts = [path for name in ARTIFACTS if (path := self._workdir.resolve() / name).is_file()]
        ending = self._ending._replace(status=status, artifacts=artifacts)
        for thread in self._threads:
            if self._logged or not self._known.has_ended(thread.name, ending.step):
                thread.finish(ending)
            thread.calls.put(None)
        deadline = time.monotonic() + FINISH_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                _UNRESPONSIVE.add(thread.name)
                logging.warning(
                    '%s did not finish within %g s: what it had not written by then is lost, and this process no '
                    'longer uses it',
                    thread.name,
                    FINISH_SECONDS,
                )


class _TrackerThread(threading.Thread):
    """Makes the calls of one tracker, in order; `calls` ends with None."""

    def __init__(self, name: str, run: TrackedRun, known: '_Known'):
        super().__init__(name=name, daemon=True)
        self.calls: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._run, self._known = run, known
        self._destination = ''  # among those that `_Known` lists

    def finish(self, ending: Ending) -> None:
        """Writes how the run ended."""

        def call(tracker: Tracker) -> None:
            tracker.finish(ending)
            if ending.status == 'finished':
                self._known.end(self.name, ending.step)

        self.calls.put(call)

    def log(self, metrics: Metrics, step: int) -> None:
        """Writes the metrics of an epoch."""
        self.calls.put(lambda tracker: self._log(tracker, metrics, step))

    def _log(self, tracker: Tracker, metrics: Metrics, step: int) -> None:
        tracker.log(metrics, step)
        self._known.write(self._destination, step)

    def run(self) -> None:
        tracker: Tracker | None = None
        for call in iter(self.calls.get, None):
            try:
                tracker = tracker or self._open()  # now, not before: the first steps need all cores
            except BaseException as error:  # Some clients end the process, or wait for input.
                logging.warning(
                    '%s cannot be used; nothing of this run is recorded there: %s', self.name, _describe(error)
                )
                return
            try:
                call(tracker)
            except BaseException as error:
                logging.warning('%s cannot be written to: %s', self.name, _describe(error))

    def _open(self) -> Tracker:
        tracker = TRACKERS[self.name](self._run)
        self._destination = f'{self.name} {tracker.destination}'.strip()
        written = self._known.written(self._destination)
        if written < self._run.step:  # It does not know the run yet, or it was killed before it wrote everything.
            for row in read_metrics(self._run.workdir):
                if written < row['step'] <= self._run.step:
                    self._log(tracker, *_metrics(row))
        return tracker


def _metrics(row: Mapping[str, float | None]) -> tuple[Metrics, int]:
    """Returns the metrics of a row of `metrics.csv`, and its number of updates."""
    names = [name for name in COLUMNS if name not in ('epoch', 'step')]
    return {name: value for name in names if (value := row.get(name)) is not None}, int(row['step'] or 0)


def _describe(error: BaseException) -> str:
    """Returns the message of an error in one line, of at most 300 characters."""
    return ' '.join(str(error).split())[:300] or type(error).__name__


class _Known:
    """The file with the identifier of a run, which is drawn when it starts, and what trackers know of the run."""

    def __init__(self, workdir: Path, step: int):
        self._path, self._lock = workdir / FILE, threading.Lock()
        try:
            saved: Any = files.read_json(self._path)
            self.id = str(saved['id'])
            self._written = {str(destination): int(value) for destination, value in saved['written'].items()}
            self._ended = {str(name): int(value) for name, value in saved['ended'].items()}
            if not self.id.isalnum():
                raise ValueError('it must consist of letters and digits')
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            # Before there was this file, there were only the files of TensorBoard.
            self.id = uuid.uuid4().hex[:12]
            self._written = {'tensorboard': step} if any((workdir / 'tensorboard').glob('events.*')) else {}
            self._ended = {}
            self._save()

    def written(self, destination: str) -> int:
        """Returns the step of the last epoch that was written to a destination; 0 if it does not know the run."""
        return self._written.get(destination, 0)

    def write(self, destination: str, step: int) -> None:
        """Records that an epoch was written to a destination."""
        with self._lock:
            self._written[destination] = max(step, self._written.get(destination, 0))
            self._save()

    def has_ended(self, name: str, step: int) -> bool:
        """Returns whether a tracker has the end of the run at this step."""
        return self._ended.get(name) == step

    def end(self, name: str, step: int) -> None:
        """Records that a tracker has the end of the run at this step."""
        with self._lock:
            self._ended[name] = step
            self._save()

    def _save(self) -> None:
        with contextlib.suppress(OSError):  # Like the trackers, it must not stop the run.
            contents = {'id': self.id, 'written': self._written, 'ended': self._ended}
            files.write_text(self._path, json.dumps(contents, indent=2) + '\n')
