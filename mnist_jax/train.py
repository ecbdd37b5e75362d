"""The training loop: epochs, evaluation, logging and checkpoints."""

import math
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from mnist_jax import checkpoint, evaluate, files, metrics, parallel, processes, summary
from mnist_jax import config as configs
from mnist_jax.checkpoint import Snapshot
from mnist_jax.data.source import NAMES
from mnist_jax.errors import UserError
from mnist_jax.experiment import Experiment, make_experiment
from mnist_jax.metrics import Totals
from mnist_jax.monitor import Monitor
from mnist_jax.step import TrainState


def train(config: configs.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Train the run of `config` in `workdir`, or go on with what is there; returns its evaluation on the test split."""
    if any(workdir.glob('fold-*')):
        raise UserError(f'--workdir {str(workdir)!r} holds a cross-validation; give another --workdir')
    checkpoints = checkpoint.Checkpoints(workdir)
    steps = checkpoints.steps()
    if steps:
        saved = checkpoints.read_config()
        if saved is None:
            raise UserError(f'--workdir {str(workdir)!r} holds checkpoints but no config.json; give another --workdir')
        configs.check_resumable(saved, config)
    experiment = make_experiment(config)
    checkpoints.check_data(experiment.source.data.digests)
    for name in NAMES:
        experiment.source.split(name)  # What is wrong there shows now and not after hours of training.
    files.make_directory(workdir, '--workdir')
    digests = experiment.source.data.digests
    # Nobody writes before all have read.
    processes.check_same(
        {
            'config': configs.run_json(config),
            'config.devices': str(config.devices),
            'data set': str(digests),
            'checkpoints in --workdir': str(steps),
        }
    )
    processes.check_shared(workdir)
    if processes.is_main():
        checkpoints.write_config(config, digests)
    snapshot = _begin(experiment, checkpoints, steps)
    _tell_beginning(experiment, workdir)
    monitor = Monitor(workdir, config.epochs, int(snapshot.state.step), writes=processes.is_main())
    with checkpoints.open() as writer:
        if not steps:
            writer.save(snapshot)
        snapshot = _train_epochs(experiment, writer, snapshot, monitor)
    monitor.close()
    step = evaluate.result_step(experiment, snapshot)
    if step != snapshot.state.step:
        logging.info('The best epoch is the result: %s', _epoch_name(experiment, step))
        snapshot = checkpoints.restore(step, experiment.abstract_snapshot)
    result = evaluate.evaluate_test(experiment, snapshot.state, workdir)
    logging.info('Everything lies in %s; to evaluate again:', workdir)
    logging.info('  python -m mnist_jax.main --mode=eval --workdir=%s', shlex.quote(str(workdir)))
    return result


def _begin(experiment: Experiment, checkpoints: checkpoint.Checkpoints, steps: Sequence[int]) -> Snapshot:
    """What to go on from: the last of `steps`, or nothing."""
    if not steps:
        return experiment.first_snapshot()
    logging.info('Going on from the checkpoint %s', _epoch_name(experiment, steps[-1]))
    return checkpoints.restore(steps[-1], experiment.abstract_snapshot)


def _epoch_name(experiment: Experiment, step: int) -> str:
    return f'of epoch {step // experiment.steps_per_epoch} (step {step:,})'


def _train_epochs(experiment: Experiment, writer: checkpoint.Writer, snapshot: Snapshot, monitor: Monitor) -> Snapshot:
    """Train the epochs that are left, with a row of metrics and a checkpoint after each; returns the last snapshot."""
    epochs = experiment.config.epochs
    first_step = int(snapshot.state.step)
    first_epoch = first_step // experiment.steps_per_epoch
    if first_step and _stops(experiment, snapshot):
        logging.info('This run is finished: it stopped early after %d of %d epochs', first_epoch, epochs)
    elif first_step and first_epoch == epochs:
        logging.info('This run is finished: all %d epochs are trained. Raise --config.epochs to go on.', epochs)
    for epoch in range(first_epoch, epochs):
        if _stops(experiment, snapshot):
            break
        state, row = _train_epoch(experiment, snapshot.state, epoch, monitor)
        monitor.epoch(row)
        snapshot = _after_epoch(experiment, Snapshot(state, snapshot.callbacks), row)
        writer.save(snapshot)
    return snapshot


def _stops(experiment: Experiment, snapshot: Snapshot) -> bool:
    return experiment.callbacks.early_stopping.stops(snapshot.callbacks.early_stopping)


def _after_epoch(experiment: Experiment, snapshot: Snapshot, row: Mapping[str, Any]) -> Snapshot:
    """Decide what follows from an epoch's metrics: the best epoch, whether to stop, the learning rate."""
    learning_rate = row['learning_rate']
    states, reduced = experiment.callbacks.update(snapshot.callbacks, row, learning_rate)
    state = snapshot.state
    if reduced != learning_rate:
        scale = float(state.learning_rate_scale) * reduced / learning_rate
        state = state.replace(learning_rate_scale=np.float32(scale))
        logging.info('learning rate %g from here on', reduced)
    after = Snapshot(state, states)
    if _stops(experiment, after):
        best = states.early_stopping
        monitor = experiment.callbacks.early_stopping.monitor.name
        where = _epoch_name(experiment, best.best_step)
        logging.info('Stopping early: %s was not better than %.4f, that %s', monitor, best.best, where)
    return after


def _tell_beginning(experiment: Experiment, workdir: Path) -> None:
    source = experiment.source
    splits = ((name, source.split(name)) for name in NAMES)
    sizes = ', '.join(f'{name} {split.size:,}' for name, split in splits if split is not None)
    chunks, devices = experiment.config.chunks, len(experiment.replicas)
    logging.info('devices   %s', experiment.replicas)
    if not parallel.same_bits(chunks, devices):
        logging.info(
            'bits      not those of one device: %d chunks are not 1, 2, 4, 8, ... for each of %d devices',
            chunks,
            devices,
        )
    if experiment.steps_per_call > 1:
        logging.info('steps     %d in one call', experiment.steps_per_call)
    logging.info('data set  %s: %s', source.name, sizes)
    logging.info('workdir   %s', workdir)
    for line in summary.table(experiment.model, source.image_shape).splitlines():
        logging.info('%s', line)


def _train_epoch(
    experiment: Experiment, state: TrainState, epoch: int, monitor: Monitor
) -> tuple[TrainState, dict[str, Any]]:
    """Train the epoch counted from 0; returns the state after it and its row of metrics."""
    started = time.perf_counter()
    state = experiment.replicas.replicate(state)
    totals: Totals = {}
    steps = experiment.steps_per_epoch
    with monitor.progress(epoch + 1, steps) as progress:
        done, pending = epoch * steps, None
        for batch in experiment.train_batches(epoch):
            state, sums = experiment.train_step(state, batch)
            # The call before this one is waited for after this one is on its way: the device is never idle.
            if pending is not None:
                totals, done = _collect(totals, pending, done)
                progress.update(metrics.means(totals), float(totals['count']), done - epoch * steps)
            pending = sums
        totals, _ = _collect(totals, pending, done)
    seconds = time.perf_counter() - started
    trained = metrics.means(totals)
    learning_rate = experiment.learning_rate((epoch + 1) * steps - 1) * state.learning_rate_scale
    validated: dict[str, Any] = {'loss': None, 'accuracy': None}
    if experiment.source.validated:
        totals_validated, _ = evaluate.evaluate_split(experiment, state, experiment.source.split('validation'))
        validated = metrics.means(totals_validated)
    return state, {
        'epoch': epoch + 1,
        'step': (epoch + 1) * steps,
        'train_loss': trained['loss'],
        'train_accuracy': trained['accuracy'],
        'validation_loss': validated['loss'],
        'validation_accuracy': validated['accuracy'],
        # The decimal that a float32 is shown as: 0.001 and not 0.0010000000474974513.
        'learning_rate': float(str(np.float32(learning_rate))),
        'seconds': round(seconds, 3),
        'images_per_second': round(float(totals['count']) / seconds, 1),
    }


def _collect(totals: Totals, sums: dict[str, jax.Array], done: int) -> tuple[Totals, int]:
    """The totals with the sums of one call, of a step or several, and how many steps are done with them."""
    steps = {name: np.atleast_1d(column) for name, column in parallel.fetch(sums).items()}
    for number, loss in enumerate(steps['loss']):
        done += 1
        if not math.isfinite(loss):
            raise FloatingPointError(f'the loss of step {done} is {loss}; the last checkpoint is kept')
        totals = metrics.add(totals, {name: column[number] for name, column in steps.items()})
    return totals, done
