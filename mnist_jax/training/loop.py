"""The epochs of a run: its steps, validation, what is decided after each epoch, and when to save or to stop."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from mnist_jax.distributed import processes
from mnist_jax.distributed.devices import to_host
from mnist_jax.distributed.signals import StopRequest
from mnist_jax.errors import Interrupted
from mnist_jax.learning import metrics
from mnist_jax.learning.metrics import Totals
from mnist_jax.training.evaluation import evaluate_split
from mnist_jax.training.experiment import Experiment
from mnist_jax.workdir.checkpoint_writer import CheckpointWriter
from mnist_jax.workdir.metrics_log import MetricsLog, ProgressBar
from mnist_jax.workdir.snapshot import EpochProgress, Snapshot

SUMS = ('loss', 'correct', 'count')


class Loop:
    """Trains the epochs of an experiment, one snapshot after the other."""

    def __init__(self, experiment: Experiment, writer: CheckpointWriter, monitor: MetricsLog, request: StopRequest):
        self._experiment = experiment
        self._config = experiment.config
        self._writer = writer
        self._monitor = monitor
        self._request = request
        self._saved_at, self._saved_step = time.monotonic(), 0
        self._scale = 1.0  # of the learning rate in this epoch

    def train(self, snapshot: Snapshot) -> Snapshot:
        """Train the epochs that are left, with a row of metrics and a checkpoint after each; the last snapshot.

        Raises:
          Interrupted: the run was asked to stop; what was done is saved.
          FloatingPointError: a loss or an update is not finite; the last checkpoint is from before it.
        """
        epochs, done = self._config.epochs, snapshot.epoch.number
        self._saved_step = int(snapshot.state.step)
        if done and self._stops(snapshot):
            logging.info('This run is finished: it stopped early after %d of %d epochs', done, epochs)
        elif done and done == epochs:
            logging.info('This run is finished: all %d epochs are trained. Raise --config.epochs to go on.', epochs)
        while snapshot.epoch.number < epochs and not self._stops(snapshot):
            snapshot = self._train_epoch(snapshot)
            self._request.unsaved = True  # Even where no step was left: the checkpoint of this step is replaced.
            try:
                snapshot = self._close_epoch(snapshot)
            except Interrupted:
                self._save(snapshot)  # All steps of the epoch are made, and its validation is still to do.
                raise
            self._save(snapshot)
        return snapshot

    def _stops(self, snapshot: Snapshot) -> bool:
        return self._experiment.callbacks.early_stopping.stops(snapshot.callbacks.early_stopping)

    def _save(self, snapshot: Snapshot) -> None:
        self._writer.save(snapshot)
        self._saved_at, self._saved_step = time.monotonic(), int(snapshot.state.step)

    def _train_epoch(self, snapshot: Snapshot) -> Snapshot:
        """Make the steps that are left of the epoch under way."""
        experiment, so_far = self._experiment, snapshot.epoch
        self._scale = float(snapshot.state.learning_rate_scale)
        state = experiment.replicas.replicate(snapshot.state)
        first, steps = int(snapshot.state.step), experiment.steps_per_epoch
        before, began = so_far.seconds, time.perf_counter()
        with self._monitor.progress(so_far.number + 1, steps) as progress:
            pending, done = None, first
            for batch in experiment.train_batches(so_far.number, first - so_far.number * steps):
                state, sums = experiment.train_step(state, batch)
                self._request.unsaved = True
                # The call before this one is waited for after this one is on its way: the device is never idle.
                if pending is not None:
                    so_far, done = self._add(so_far, pending, done, progress)
                pending = sums
                signal, due = self._asked(done + experiment.steps_per_call)
                if signal or due:
                    so_far, done = self._add(so_far, pending, done, progress)
                    pending = None
                    so_far = so_far.replace(seconds=before + time.perf_counter() - began)
                    self._save(Snapshot(state, snapshot.callbacks, so_far))
                if signal:
                    raise Interrupted(signal, f'after step {done:,}')
            if pending is not None:
                so_far, done = self._add(so_far, pending, done, progress)
        so_far = so_far.replace(seconds=before + time.perf_counter() - began)
        return Snapshot(state, snapshot.callbacks, so_far)

    def _asked(self, made: int) -> tuple[int, bool]:
        """(the signal that asks to stop, or 0; whether a checkpoint is due): the same in all processes."""
        every, minutes = self._config.checkpoint_every_steps, self._config.checkpoint_every_minutes
        late = bool(minutes) and time.monotonic() - self._saved_at >= 60 * minutes
        signal, late = processes.agree_on_stop(self._request, late)
        return signal, late or bool(every and made - self._saved_step >= every)

    def _add(
        self, so_far: EpochProgress, sums: Mapping[str, jax.Array], done: int, progress: ProgressBar
    ) -> tuple[EpochProgress, int]:
        """The epoch so far with the sums of one call, of a step or several; and how many steps are done with them."""
        steps = {name: np.atleast_1d(column) for name, column in to_host(sums).items()}
        for number, nonfinite in enumerate(steps['nonfinite']):
            if nonfinite and self._config.on_nonfinite == 'stop':
                raise FloatingPointError(self._told_nonfinite(so_far.number, done, float(steps['loss'][number])))
            totals: Totals = metrics.add(
                {name: getattr(so_far, name) for name in SUMS}, {name: steps[name][number] for name in SUMS}
            )
            so_far = so_far.replace(
                **{name: float(total) for name, total in totals.items()}, skipped=so_far.skipped + int(nonfinite)
            )
            done += 1
        in_epoch = done - so_far.number * self._experiment.steps_per_epoch
        if so_far.count:
            progress.update(_means(so_far), so_far.count, in_epoch)
        return so_far, done

    def _told_nonfinite(self, epoch: int, before: int, loss: float) -> str:
        experiment = self._experiment
        index = experiment.train_indices(epoch, before - epoch * experiment.steps_per_epoch)
        which, what = ('update', 'not finite') if np.isfinite(loss) else ('loss', loss)
        return (
            f'the {which} of step {before + 1} is {what}, at the learning rate '
            f'{float(experiment.learning_rate(before)) * self._scale:g}, for the batch of the training '
            f'examples {", ".join(map(str, index.tolist()))}; the last checkpoint is kept'
        )

    def _close_epoch(self, snapshot: Snapshot) -> Snapshot:
        """Validate, record the epoch's metrics, and decide what follows: the best epoch, an end, the learning rate."""
        experiment, state = self._experiment, snapshot.state
        row = self._row(snapshot)
        self._monitor.write_epoch(row)
        states, reduced = experiment.callbacks.update(snapshot.callbacks, row, row['learning_rate'])
        if reduced != row['learning_rate']:
            scale = float(state.learning_rate_scale) * reduced / row['learning_rate']
            state = state.replace(learning_rate_scale=np.float32(scale))
            logging.info('learning rate %g from here on', reduced)
        so_far = EpochProgress(snapshot.epoch.number + 1, skipped=snapshot.epoch.skipped)
        after = Snapshot(state, states, so_far)
        if self._stops(after):
            best, monitor = states.early_stopping, experiment.callbacks.early_stopping.monitor.name
            where = f'epoch {best.best_step // experiment.steps_per_epoch}'
            logging.info('Stopping early: %s was not better than %.4f, that of %s', monitor, best.best, where)
        return after

    def _row(self, snapshot: Snapshot) -> dict[str, Any]:
        """The metrics of the epoch whose steps are all made."""
        experiment, state, so_far = self._experiment, snapshot.state, snapshot.epoch
        if not so_far.count:
            raise FloatingPointError(f'no loss of epoch {so_far.number + 1} is finite; the last checkpoint is kept')
        if so_far.skipped:
            logging.warning('%d updates of this run so far were not finite and were skipped', so_far.skipped)
        trained, validated = _means(so_far), {'loss': None, 'accuracy': None}
        if experiment.source.validated:
            validation = experiment.source.split('validation')
            validated = metrics.means(evaluate_split(experiment, state, validation, self._request)[0])
        step = (so_far.number + 1) * experiment.steps_per_epoch
        learning_rate = experiment.learning_rate(step - 1) * state.learning_rate_scale
        return {
            'epoch': so_far.number + 1,
            'step': step,
            'train_loss': trained['loss'],
            'train_accuracy': trained['accuracy'],
            'validation_loss': validated['loss'],
            'validation_accuracy': validated['accuracy'],
            # The decimal that a float32 is shown as: 0.001 and not 0.0010000000474974513.
            'learning_rate': float(str(np.float32(learning_rate))),
            'seconds': round(so_far.seconds, 3),
            'images_per_second': round(so_far.count / so_far.seconds, 1),
        }


def _means(so_far: EpochProgress) -> dict[str, float]:
    return metrics.means({name: np.float64(getattr(so_far, name)) for name in SUMS})
