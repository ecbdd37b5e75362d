"""The loop over the epochs of a run.

In pseudocode, `Loop.run` is

    until all epochs are trained or early stopping stops the run:
        for each remaining group of batches of the epoch:
            state, sums = experiment.train_steps(state, group)     # learning/step.py, compiled for the devices
            add the sums of the previous group to the epoch's metrics
            save a checkpoint if one is due, or if the run was asked to stop; in that case, stop
        validate, and write a row of metrics
        let the callbacks update the best epoch, the learning rate and early stopping
        save a checkpoint, unless the last one is only a moment old
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import logging

from mnist_jax.distributed import processes
from mnist_jax.distributed.devices import to_host
from mnist_jax.distributed.signals import StopRequest
from mnist_jax.errors import Interrupted, NonFiniteError
from mnist_jax.learning import metrics
from mnist_jax.learning.callbacks import VALIDATION_METRICS, MetricsRow
from mnist_jax.learning.step import Sums
from mnist_jax.training.evaluation import evaluate_split
from mnist_jax.training.experiment import Experiment
from mnist_jax.training.profiling import Profiler
from mnist_jax.workdir.checkpoint_writer import CheckpointWriter
from mnist_jax.workdir.metrics_log import MetricsLog, ProgressBar
from mnist_jax.workdir.snapshot import EpochProgress, Snapshot

OnStep = Callable[[int, StopRequest], None]
"""Called after each step, with the number of steps so far and the stop request, which the callback may set."""


class Loop:
    """Trains the remaining epochs of an experiment."""

    def __init__(
        self,
        experiment: Experiment,
        writer: CheckpointWriter,
        metrics_log: MetricsLog,
        request: StopRequest,
        on_step: OnStep | None = None,
        profiler: Profiler | None = None,
    ):
        self._experiment = experiment
        self._config = experiment.config
        self._writer = writer
        self._metrics_log = metrics_log
        self._request = request
        self._on_step = on_step
        self._profiler = profiler or Profiler(Path(), 0)
        self._saved_at, self._saved_step = time.monotonic(), 0

    def run(self, snapshot: Snapshot, until: int | None = None) -> Snapshot:
        """Trains until all epochs are done or early stopping stops the run.

        Args:
          snapshot: Where to start: the first snapshot, or a restored one, possibly from the middle of an epoch.
          until: The number of epochs after which to stop; None for no limit.

        Returns:
          The last snapshot, which is also the last checkpoint.

        Raises:
          Interrupted: the run was asked to stop; all of its progress is saved.
          NonFiniteError: a loss or an update is not finite; the last checkpoint predates it.
        """
        experiment = self._experiment
        self._saved_step = int(snapshot.state.step)
        self._log_if_finished(snapshot)
        saved = True
        while not experiment.finished(snapshot) and (until is None or snapshot.epoch.number < until):
            state = experiment.replicas.replicate(snapshot.state)
            first = int(snapshot.state.step) - snapshot.epoch.number * experiment.steps_per_epoch
            last, due = (snapshot.epoch.number + 1) * experiment.steps_per_epoch, False
            with self._metrics_log.progress(snapshot.epoch.number + 1, experiment.steps_per_epoch) as progress:
                meter = _EpochMeter(experiment, snapshot, progress, self._request, self._on_step)
                calls = experiment.train_calls(snapshot.epoch.number, first)
                for group in self._profiler.watch(calls, meter.flush):
                    state, sums = experiment.train_steps(state, group)
                    self._request.unsaved = True
                    meter.push(sums, len(group))
                    signal_number, due = self._poll(meter.dispatched)
                    # After the last step of an epoch, one checkpoint serves: that of the epoch, after its validation.
                    if signal_number or (due and meter.dispatched < last):
                        meter.flush()
                        self._save(Snapshot(state, snapshot.callbacks, meter.epoch))
                    if signal_number:
                        raise Interrupted(signal_number, f'after step {meter.step:,}')
                meter.flush()
            snapshot = Snapshot(state, snapshot.callbacks, meter.epoch)
            self._request.unsaved = True  # Even if no step remained: the checkpoint of this step will be replaced.
            try:
                snapshot = self._finish_epoch(snapshot)
            except Interrupted:
                self._save(snapshot)  # All steps of the epoch are done; its validation is not.
                raise
            if saved := due or self._saves_epoch(snapshot):
                self._save(snapshot)
        if not saved:
            self._save(snapshot)
        return snapshot

    def _saves_epoch(self, snapshot: Snapshot) -> bool:
        """Returns whether to save the snapshot after an epoch: if it is the best, or the last checkpoint is old."""
        is_best = snapshot.callbacks.early_stopping.best_step == snapshot.state.step
        elapsed = time.monotonic() - self._saved_at
        # The clocks of several processes differ.
        return is_best or processes.is_distributed() or elapsed >= self._config.checkpoint_min_seconds

    def _log_if_finished(self, snapshot: Snapshot) -> None:
        epochs, done = self._config.epochs, snapshot.epoch.number
        if done and self._experiment.stopped_early(snapshot):
            logging.info('This run is finished: it stopped early after %d of %d epochs', done, epochs)
        elif done and done == epochs:
            logging.info('This run is finished: all %d epochs are trained; raise --config.epochs to continue', epochs)

    def _save(self, snapshot: Snapshot) -> None:
        self._writer.save(snapshot)
        self._saved_at, self._saved_step = time.monotonic(), int(snapshot.state.step)

    def _poll(self, step: int) -> tuple[int, bool]:
        """Returns the signal that asks to stop (or 0), and whether a checkpoint is due; the same in all processes."""
        every, minutes = self._config.checkpoint_every_steps, self._config.checkpoint_every_minutes
        overdue = bool(minutes) and time.monotonic() - self._saved_at >= 60 * minutes
        # A call of several updates takes long enough for an exchange between the processes.
        long_calls = self._experiment.steps_per_call > 1
        signal_number, overdue = processes.agree_on_stop(self._request, overdue, at_once=long_calls)
        return signal_number, overdue or bool(every and step - self._saved_step >= every)

    def _finish_epoch(self, snapshot: Snapshot) -> Snapshot:
        """Validates, records the metrics, and applies the callbacks; returns the snapshot after the epoch."""
        experiment, state = self._experiment, snapshot.state
        step = (snapshot.epoch.number + 1) * experiment.steps_per_epoch
        # The shortest decimal of the float32: 0.001, not 0.0010000000474974513.
        learning_rate = float(str(np.float32(experiment.learning_rate(step - 1) * state.learning_rate_scale)))
        row = self._epoch_row(snapshot, step, learning_rate)
        self._metrics_log.write_epoch(row)
        callbacks, new_learning_rate = experiment.callbacks.update(snapshot.callbacks, row, learning_rate)
        if new_learning_rate != learning_rate:
            scale = float(state.learning_rate_scale) * new_learning_rate / learning_rate
            state = dataclasses.replace(state, learning_rate_scale=np.asarray(scale, np.float32))
            logging.info('Reducing the learning rate to %g', new_learning_rate)
        epoch = EpochProgress(snapshot.epoch.number + 1, skipped=snapshot.epoch.skipped)
        snapshot = Snapshot(state, callbacks, epoch)
        if experiment.stopped_early(snapshot):
            best, monitor = callbacks.early_stopping, experiment.callbacks.early_stopping.monitor
            epoch_of_best = best.best_step // experiment.steps_per_epoch
            reason = f'has not improved on {best.best:.4f}, its value in epoch {epoch_of_best}'
            logging.info('Stopping early: %s %s', monitor, reason if best.best_step >= 0 else 'has never been finite')
        return snapshot

    def _epoch_row(self, snapshot: Snapshot, step: int, learning_rate: float) -> MetricsRow:
        """Returns the metrics of an epoch whose steps are all done."""
        experiment, state, epoch = self._experiment, snapshot.state, snapshot.epoch
        if not epoch.count:
            raise NonFiniteError(f'no loss of epoch {epoch.number + 1} is finite; the last checkpoint is kept')
        infinite = sum(int((~np.isfinite(leaf)).sum()) for leaf in jax.tree.leaves(to_host(state.opt_state)))
        if infinite:
            logging.warning(
                '%d numbers of the optimizer state are not finite after epoch %d: if the square of a gradient '
                'overflows, its parameter no longer changes',
                infinite,
                epoch.number + 1,
            )
        if epoch.skipped:
            logging.warning('%d non-finite updates of this run have been skipped so far', epoch.skipped)
        train = metrics.means(dataclasses.asdict(epoch))
        validation: dict[str, float | None] = dict.fromkeys(VALIDATION_METRICS)
        if experiment.source.validated:
            split = experiment.source.split('validation')
            totals, _ = evaluate_split(experiment, state.variables, split, self._request)
            means = metrics.evaluation_means(totals)
            validation = {name: means[name.removeprefix('validation_')] for name in VALIDATION_METRICS}
        return {
            'epoch': epoch.number + 1,
            'step': step,
            'train_loss': train['loss'],
            'train_accuracy': train['accuracy'],
            **validation,
            'learning_rate': learning_rate,
            'seconds': round(epoch.seconds, 3),
            'images_per_second': round(epoch.count / epoch.seconds, 1),
        }


class _EpochMeter:
    """Accumulates the metrics of the current epoch, one call behind the device.

    The sums of a call are fetched only after the next one has been dispatched, so that the device never waits.
    """

    def __init__(
        self,
        experiment: Experiment,
        snapshot: Snapshot,
        progress: ProgressBar,
        request: StopRequest,
        on_step: OnStep | None,
    ):
        self.epoch: EpochProgress = snapshot.epoch
        self.step = int(snapshot.state.step)  # updates whose sums are in `epoch`
        self.dispatched = self.step  # updates dispatched to the device
        self._experiment = experiment
        self._scale = float(snapshot.state.learning_rate_scale)
        self._progress = progress
        self._request = request
        self._on_step = on_step
        self._pending: Sums | None = None
        self._seconds_before, self._start = snapshot.epoch.seconds, time.perf_counter()

    def push(self, sums: Sums, steps: int) -> None:
        """Takes the sums of a call that made `steps` updates, and adds those of the previous call."""
        previous, self._pending = self._pending, sums
        self.dispatched += steps
        if previous is not None:
            self._add(previous)

    def flush(self) -> None:
        """Waits for the last call, and adds its sums."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._add(pending)
        seconds = self._seconds_before + time.perf_counter() - self._start
        self.epoch = dataclasses.replace(self.epoch, seconds=seconds)

    def _add(self, sums: Sums) -> None:
        config, steps_per_epoch = self._experiment.config, self._experiment.steps_per_epoch
        columns = {name: np.atleast_1d(column) for name, column in to_host(sums).items()}
        for index, nonfinite in enumerate(columns['nonfinite']):
            if nonfinite and config.on_nonfinite == 'stop':
                raise NonFiniteError(self._describe_nonfinite(float(columns['loss'][index])))
            self.epoch = dataclasses.replace(
                self.epoch,
                loss=self.epoch.loss + float(columns['loss'][index]),
                correct=self.epoch.correct + float(columns['correct'][index]),
                count=self.epoch.count + float(columns['count'][index]),
                skipped=self.epoch.skipped + int(nonfinite),
            )
            self.step += 1
            if self._on_step is not None:
                self._on_step(self.step, self._request)
        if self.epoch.count:
            in_epoch = self.step - self.epoch.number * steps_per_epoch
            self._progress.update(metrics.means(dataclasses.asdict(self.epoch)), self.epoch.count, in_epoch)

    def _describe_nonfinite(self, loss: float) -> str:
        epoch, steps_per_epoch = self.epoch.number, self._experiment.steps_per_epoch
        index = self._experiment.train_indices(epoch, self.step - epoch * steps_per_epoch)
        problem = f'update of step {self.step + 1} is not finite'
        if not np.isfinite(loss):
            problem = f'loss of step {self.step + 1} is {loss}'
        return (
            f'the {problem} (learning rate {self._experiment.learning_rate(self.step) * self._scale:g}, training '
            f'examples {", ".join(map(str, index.tolist()))}); the last checkpoint is kept'
        )
