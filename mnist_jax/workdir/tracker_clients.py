"""The clients of experiment trackers: TensorBoard, Weights & Biases, MLflow and trackio, each behind one interface."""

import contextlib
import fcntl
import logging as python_logging
import os
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from absl import logging
from PIL import Image

from mnist_jax.learning.callbacks import VALIDATION_METRICS

PROJECT = 'mnist_jax'
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

    A constructor in `workdir.trackers.TRACKERS` takes a `TrackedRun`. Whatever it and the methods raise is logged in a
    single line.

    Attributes:
      destination: Where the run is written, such as the address of a server: another destination does not know the run.
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
