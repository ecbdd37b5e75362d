"""The training loop: epochs, evaluation, logging and checkpoints."""

import math
import shlex
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from mnist_jax import checkpoint, evaluate, files, metrics, parallel, summary
from mnist_jax import config as configs
from mnist_jax.errors import UserError
from mnist_jax.experiment import Experiment, make_experiment
from mnist_jax.metrics import Totals
from mnist_jax.monitor import Monitor
from mnist_jax.step import TrainState


def train(config: configs.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Train the run of `config` in `workdir`, or go on with what is there; returns its evaluation on the test split."""
    checkpoints = checkpoint.Checkpoints(workdir)
    begun = checkpoints.latest_step() is not None
    if begun:
        saved = checkpoints.read_config()
        if saved is None:
            raise UserError(f'--workdir {str(workdir)!r} holds checkpoints but no config.json; give another --workdir')
        configs.check_resumable(saved, config)
    experiment = make_experiment(config)
    steps_per_epoch = experiment.steps_per_epoch
    for name in ('train', 'validation', 'test'):
        experiment.source.split(name)  # What is wrong there shows now and not after hours of training.
    files.make_directory(workdir, '--workdir')
    checkpoints.write_config(config)
    state, first_epoch = _begin(experiment, checkpoints)
    _tell_beginning(experiment, workdir)
    if begun and first_epoch == config.epochs:
        logging.info('This run is finished: all %d epochs are trained. Raise --config.epochs to go on.', config.epochs)
    monitor = Monitor(workdir, config.epochs, first_epoch * steps_per_epoch)
    with checkpoints.open() as checkpointer:
        if checkpoints.latest_step() is None:
            checkpoint.save(checkpointer, state)
        for epoch in range(first_epoch, config.epochs):
            state, row = _train_epoch(experiment, state, epoch, monitor)
            monitor.epoch(row)
            checkpoint.save(checkpointer, state)
    monitor.close()
    result = evaluate.evaluate_test(experiment, state, workdir)
    logging.info('Everything lies in %s; to evaluate again:', workdir)
    logging.info('  python -m mnist_jax.main --mode=eval --workdir=%s', shlex.quote(str(workdir)))
    return result


def _begin(experiment: Experiment, checkpoints: checkpoint.Checkpoints) -> tuple[TrainState, int]:
    """The state to go on from, and the epoch that comes next, counted from 0."""
    latest = checkpoints.latest_step()
    if latest is None:
        return experiment.create_state(), 0
    epoch = latest // experiment.steps_per_epoch
    logging.info('Going on from the checkpoint at step %s (epoch %d)', f'{latest:,}', epoch)
    return checkpoints.restore(latest, experiment.abstract_state), epoch


def _tell_beginning(experiment: Experiment, workdir: Path) -> None:
    source = experiment.source
    splits = ((name, source.split(name)) for name in ('train', 'validation', 'test'))
    sizes = ', '.join(f'{name} {len(split.label):,}' for name, split in splits if split is not None)
    logging.info('devices   %s', experiment.replicas)
    logging.info('data set  %s: %s', source.name, sizes)
    logging.info('workdir   %s', workdir)
    for line in summary.table(experiment.model, source.image_shape).splitlines():
        logging.info('%s', line)


def _train_epoch(
    experiment: Experiment, state: TrainState, epoch: int, monitor: Monitor
) -> tuple[TrainState, dict[str, Any]]:
    """Train the epoch counted from 0; returns the state after it and its row of metrics."""
    started = time.perf_counter()
    totals: Totals = {}
    steps = experiment.steps_per_epoch
    with monitor.progress(epoch + 1, steps) as progress:
        pending = None
        for step, batch in enumerate(experiment.train_batches(epoch), start=epoch * steps + 1):
            state, sums = experiment.train_step(state, batch)
            # The step before this one is waited for after this one is on its way: the device is never idle.
            if pending is not None:
                totals = _collect(totals, pending, step - 1)
                progress.update(metrics.means(totals), float(totals['count']))
            pending = sums
        totals = _collect(totals, pending, (epoch + 1) * steps)
    seconds = time.perf_counter() - started
    trained = metrics.means(totals)
    validated: dict[str, Any] = {'loss': None, 'accuracy': None}
    if experiment.source.specs['validation']:
        validated = metrics.means(evaluate.evaluate_split(experiment, state, 'validation'))
    return state, {
        'epoch': epoch + 1,
        'step': (epoch + 1) * steps,
        'train_loss': trained['loss'],
        'train_accuracy': trained['accuracy'],
        'validation_loss': validated['loss'],
        'validation_accuracy': validated['accuracy'],
        # The decimal that a float32 is shown as: 0.001 and not 0.0010000000474974513.
        'learning_rate': float(str(np.float32(experiment.learning_rate((epoch + 1) * steps - 1)))),
        'seconds': round(seconds, 3),
        'images_per_second': round(float(totals['count']) / seconds, 1),
    }


def _collect(totals: Totals, sums: dict[str, jax.Array], step: int) -> Totals:
    now = parallel.fetch(sums)
    if not math.isfinite(now['loss']):
        raise FloatingPointError(f'the loss of step {step} is {now["loss"]}; the last checkpoint is kept')
    return metrics.add(totals, now)
