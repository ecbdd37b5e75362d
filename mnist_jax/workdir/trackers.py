"""Writes the progress of a run to experiment trackers: TensorBoard, Weights & Biases, MLflow and trackio.

Every tracker works in a thread of its own, through its own client: one that is slow, or fails, never stops the run.
"""

import contextlib
import fcntl
import importlib.util
import json
import logging as python_logging
import os
import queue
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from absl import logging
from PIL import Image

from mnist_jax import files
from mnist_jax.config import ConfigDict, config_fields
from mnist_jax.errors import Interrupted, UserError
from mnist_jax.factory import choose
from mnist_jax.learning.callbacks import VALIDATION_METRICS
from mnist_jax.workdir.metrics_log import COLUMNS, read_metrics

PROJECT = 'mnist_jax'
FILE = 'tracking.json'
FINISH_SECONDS = 60.0  # A tracker has this long to write what is left when the run ends.
ARTIFACTS = ('config.json', 'metrics.csv', 'eval.json', 'provenance.json', 'report/index.html')
INTERNAL = ('trials',)  # directories of a study that say nothing about the run in them
Metrics = Mapping[str, float]


class TrackedRun(NamedTuple):
    """A run as trackers see it.

    Attributes:
      id: Identifies the run, also when it is resumed.
      name: The name of its workdir.
      group: The name of the directory that holds the workdir, such as that of a study.
      workdir: Its directory.
      config: The values of its config by dotted name.
      step: The number of updates of its last epoch before this start.
    """

    id: str
    name: str
    group: str
    workdir: Path
    config: Mapping[str, Any]
    step: int

    @property
    def plain_config(self) -> dict[str, bool | int | float | str]:
        """The config with everything but numbers and strings as text."""
        return {
            name: value if isinstance(value, bool | int | float | str) else repr(value)
            for name, value in self.config.items()
        }


class Ending(NamedTuple):
    """How a run ended.

    Attributes:
      status: 'finished', 'interrupted' or 'failed'.
      step: The number of updates of its last epoch.
      results: Results on the test split by name; empty if it was not evaluated.
      artifacts: Files of the workdir: its config, metrics, result and report.
      figures: The PNG files of the report by name.
    """

    status: str
    step: int
    results: Metrics
    artifacts: Sequence[Path]
    figures: Mapping[str, Path]


class Tracker(Protocol):
    """Writes one run through the client of a tracker.

    A constructor in `TRACKERS` takes a `TrackedRun`. Whatever it and the methods raise is logged in one line.

    Attributes:
      destination: Where the run is written, such as the address of a server: another place does not know the run.
    """

    destination: str

    def log(self, metrics: Metrics, step: int) -> None:
        """Writes the metrics of an epoch, after this number of updates."""

    def finish(self, ending: Ending) -> None:
        """Writes how the run ended."""


class TensorBoard:
    """Writes event files in the workdir: scalars, figures, and the config for the tab HParams."""

    def __init__(self, run: TrackedRun):
        from tensorboardX import SummaryWriter  # Importing it takes 0.2 s, and no step needs it.

        self.destination = ''
        purge_step = run.step + 1 if run.step else None
        # tensorboardX names files by the second: without a suffix, a start in the same second would overwrite the last.
        suffix = f'.{run.step:012d}.{uuid.uuid4().hex[:8]}'
        self._writer = SummaryWriter(str(run.workdir / 'tensorboard'), purge_step=purge_step, filename_suffix=suffix)
        self._config = run.plain_config
        self._write_hparams(end=False)

    def log(self, metrics: Metrics, step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self, ending: Ending) -> None:
        for name, value in ending.results.items():
            self._writer.add_scalar(name, value, ending.step)
        for name, path in ending.figures.items():
            with Image.open(path) as image:
                pixels = np.asarray(image.convert('RGB'))
            self._writer.add_image(name, pixels, ending.step, dataformats='HWC')
        if ending.status == 'finished':
            self._write_hparams(end=True)
        self._writer.close()

    def _write_hparams(self, end: bool) -> None:
        """Writes the config, or that the run has ended."""
        from tensorboardX.summary import hparams

        monitored = {
            name: None for name in ('train_loss', 'train_accuracy', *VALIDATION_METRICS, 'test_accuracy', 'test_loss')
        }
        experiment, start, session_end = hparams(self._config, monitored)
        for summary in [session_end] if end else [experiment, start]:
            self._writer.file_writer.add_summary(summary)
        self._writer.flush()


class WeightsAndBiases:
    """Writes to Weights & Biases; without credentials, offline, to `wandb/` in the workdir, for `wandb sync`."""

    def __init__(self, run: TrackedRun):
        import wandb

        self._wandb, self._run = wandb, run
        settings = wandb.Settings(silent=True, console='off')
        mode: Any = os.environ.get('WANDB_MODE', '')
        if mode in ('', 'online'):
            has_credentials = self._has_credentials()
            if mode and not has_credentials:  # A login would block, waiting for input.
                raise ValueError('WANDB_MODE=online needs a login: wandb login')
            mode = 'online' if has_credentials else 'offline'
        self.destination = os.environ.get('WANDB_PROJECT', PROJECT)
        self._client = wandb.init(
            project=self.destination,
            id=run.id,
            name=run.name,
            group=run.group,
            dir=str(run.workdir),
            config=run.plain_config,
            resume='allow',
            mode=mode,
            settings=settings,
        )
        logging.info('wandb     %s', self._client.url if mode == 'online' else Path(self._client.dir).parent)

    def _has_credentials(self) -> bool:
        with contextlib.suppress(Exception):
            return bool(self._wandb.login(prompt=False))
        return False

    def log(self, metrics: Metrics, step: int) -> None:
        self._client.log(dict(metrics), step=step)

    def finish(self, ending: Ending) -> None:
        self._client.summary.update(dict(ending.results))
        if ending.figures:
            images = {f'figures/{name}': self._wandb.Image(str(path)) for name, path in ending.figures.items()}
            self._client.log(images, step=ending.step)
        if ending.artifacts:
            artifact = self._wandb.Artifact(f'{self._run.name}-{self._run.id}', type='run')
            for path in ending.artifacts:
                artifact.add_file(str(path), str(path.relative_to(self._run.workdir)))
            self._client.log_artifact(artifact)
        self._client.finish(exit_code=int(ending.status != 'finished'))


class MLflow:
    """Writes to MLflow: to `MLFLOW_TRACKING_URI`, by default `mlflow.db` in the current directory."""

    STATUS = {'finished': 'FINISHED', 'interrupted': 'KILLED', 'failed': 'FAILED'}

    def __init__(self, run: TrackedRun):
        # By default, the client tries for minutes to reach a server.
        os.environ.setdefault('MLFLOW_HTTP_REQUEST_MAX_RETRIES', '2')
        os.environ.setdefault('MLFLOW_HTTP_REQUEST_TIMEOUT', '20')
        import mlflow
        from mlflow.entities import Metric, Param

        python_logging.getLogger('mlflow').setLevel('WARNING')  # It reports every table of a new database,
        python_logging.getLogger('urllib3').setLevel('ERROR')  # and the other one every attempt to reach a server.
        self._metric, self._workdir = Metric, run.workdir
        lock = Path(tempfile.gettempdir(), f'{PROJECT}-mlflow-{os.getuid()}.lock')
        with open(lock, 'w') as file:  # Two workers of a study cannot create the same database and experiment at once.
            fcntl.flock(file, fcntl.LOCK_EX)
            self._client = mlflow.MlflowClient()
            name = os.environ.get('MLFLOW_EXPERIMENT_NAME', PROJECT)
            experiment = self._experiment(name)
        self.destination = f'{mlflow.get_tracking_uri()} {name}'
        found = self._client.search_runs([experiment], f"tags.{PROJECT}_id = '{run.id}'")
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, 'RUNNING')
            return
        tags = {f'{PROJECT}_id': run.id, 'group': run.group, 'workdir': str(run.workdir)}
        self._id = self._client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
        self._client.log_batch(self._id, params=[Param(name, str(value)) for name, value in run.config.items()])

    def _experiment(self, name: str) -> str:
        """Returns the identifier of an experiment, which is created if it does not exist."""
        found = self._client.get_experiment_by_name(name)
        return self._client.create_experiment(name) if found is None else found.experiment_id

    def log(self, metrics: Metrics, step: int) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [self._metric(name, value, now, step) for name, value in metrics.items()])

    def finish(self, ending: Ending) -> None:
        if ending.results:
            self.log(ending.results, ending.step)
        for path in ending.artifacts:
            folder = str(path.relative_to(self._workdir).parent)
            self._client.log_artifact(self._id, str(path), None if folder == '.' else folder)
        for path in ending.figures.values():
            self._client.log_artifact(self._id, str(path), 'figures')
        self._client.set_terminated(self._id, self.STATUS[ending.status])


class Trackio:
    """Writes to trackio: to `TRACKIO_DIR`, or to the space or the server that its environment variables name."""

    def __init__(self, run: TrackedRun):
        import trackio

        for module in (trackio, trackio.run, trackio.utils):
            # Its messages would go to standard output, where the result of the program is.
            setattr(module, 'print', lambda *arguments, **options: None)  # noqa: B010
        project = os.environ.get('TRACKIO_PROJECT', PROJECT)
        name = f'{run.name}-{run.id}'  # trackio resumes the run of this name.
        self.destination = f'{trackio.TRACKIO_DIR} {os.environ.get("TRACKIO_SPACE_ID", "")} {project}'
        self._trackio, self._workdir, self._artifact_name = trackio, run.workdir, name
        self._client = trackio.init(
            project=project,
            name=name,
            group=run.group,
            config=run.plain_config,
            resume='allow',
            embed=False,
            auto_log_cpu=False,
        )

    def log(self, metrics: Metrics, step: int) -> None:
        self._client.log(dict(metrics), step=step)

    def finish(self, ending: Ending) -> None:
        images = {f'figures/{name}': self._trackio.Image(str(path)) for name, path in ending.figures.items()}
        if ending.results or images:
            self._client.log({**ending.results, **images}, step=ending.step)
        if ending.artifacts:
            artifact = self._trackio.Artifact(self._artifact_name, type='run')
            for path in ending.artifacts:
                artifact.add_file(str(path), str(path.relative_to(self._workdir)))
            self._client.log_artifact(artifact)
        self._client.finish()


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
                    '%s did not finish within %g s: what it has not written yet is lost, and it is not used again',
                    thread.name,
                    FINISH_SECONDS,
                )


class _TrackerThread(threading.Thread):
    """Makes the calls of one tracker, in order; `calls` ends with None."""

    def __init__(self, name: str, run: TrackedRun, known: '_Known'):
        super().__init__(name=name, daemon=True)
        self.calls: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._run, self._known = run, known
        self._place = ''  # of the run among those that `_Known` lists

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
        self._known.write(self._place, step)

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
        self._place = f'{self.name} {tracker.destination}'.strip()
        written = self._known.written(self._place)
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
            self._written = {str(place): int(value) for place, value in saved['written'].items()}
            self._ended = {str(name): int(value) for name, value in saved['ended'].items()}
            if not self.id.isalnum():
                raise ValueError('it must consist of letters and digits')
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            # Before there was this file, there were only the files of TensorBoard.
            self.id = uuid.uuid4().hex[:12]
            self._written = {'tensorboard': step} if any((workdir / 'tensorboard').glob('events.*')) else {}
            self._ended = {}
            self._save()

    def written(self, place: str) -> int:
        """Returns the step of the last epoch that was written to a place; 0 if the place does not know the run."""
        return self._written.get(place, 0)

    def write(self, place: str, step: int) -> None:
        """Records that an epoch was written to a place."""
        with self._lock:
            self._written[place] = max(step, self._written.get(place, 0))
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
