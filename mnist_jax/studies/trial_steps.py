"""Short trials before a run: a check that a config can learn at all, and a search for its learning rate."""

import csv
import dataclasses
import io
import math
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from absl import logging

from mnist_jax import files
from mnist_jax.config import ConfigDict
from mnist_jax.distributed.devices import to_host
from mnist_jax.errors import UserError
from mnist_jax.inference.origin import initial_snapshot
from mnist_jax.learning import transfer
from mnist_jax.learning.state import TrainState
from mnist_jax.report import curves, figures
from mnist_jax.training.calls import HostBatch
from mnist_jax.training.experiment import Experiment, make_experiment
from mnist_jax.training.plan import rates

CHECK_STEPS = 200  # updates with the same batch
LEARNED = 0.99  # accuracy on that batch
LARGEST_FIRST_LOSS = 3.0  # as a multiple of the loss of a guess
SEARCH_STEPS = 300
LOWEST_RATE, HIGHEST_RATE = 1e-6, 10.0
SMOOTHING = 0.95  # weight of the old average of the loss
SETTLING = 40  # first updates of the search, whose averages are those of a few losses
SMALLEST_FALL = 0.05  # of the loss, as a fraction, that is more than noise
DIVERGED = 4.0  # the search ends if the loss is this many times its minimum


def check(config: ConfigDict) -> int:
    """Trains on one batch, again and again, and reports whether `config` can learn, and how fast.

    Checks that the loss starts not far above that of a guess, that all updates are finite, that every parameter
    changes, and that the model learns the batch by heart. Estimates the time of an epoch.

    Returns:
      The exit status: 0 if all checks pass, else 1.
    """
    experiment = _make_experiment(config, learning_rate=None)
    first = to_host(initial_snapshot(experiment)[0].state)
    batch = next(experiment.train_batches(0))
    state, losses, seconds, nonfinite = experiment.replicas.replicate(first), [], [], 0
    after_one: TrainState | None = None
    for _ in range(CHECK_STEPS):
        start = time.perf_counter()
        state, sums = experiment.train_step(state, batch)
        losses.append(float(sums['loss'] / sums['count']))
        seconds.append(time.perf_counter() - start)
        nonfinite += int(sums['nonfinite'])
        after_one = after_one or to_host(state)
    assert after_one is not None
    guess = math.log(len(experiment.source.class_names))
    is_cross_entropy = config.loss.name == 'cross_entropy' and experiment.source.class_weights is None
    unchanged = _unchanged_parameters(first, after_one, experiment)
    # With dropout, the accuracy is better without it; with batch normalization, its moving averages lag behind.
    accuracy = max(float(sums['correct'] / sums['count']), _accuracy_on(experiment, to_host(state), batch))
    step_seconds = statistics.median(seconds[len(seconds) // 2 :])
    passed = [
        _report(
            not is_cross_entropy or losses[0] < LARGEST_FIRST_LOSS * guess,
            f'the first loss is {losses[0]:.4f}' + (f'; that of a guess is {guess:.4f}' if is_cross_entropy else ''),
        ),
        _report(
            not nonfinite,
            f'{nonfinite} of {CHECK_STEPS} updates are not finite' if nonfinite else 'all updates are finite',
        ),
        _report(
            not unchanged,
            f'the first update does not change {", ".join(unchanged)}' if unchanged else 'every parameter changes',
        ),
        _report(
            accuracy >= LEARNED,
            f'after {CHECK_STEPS} updates with one batch of {config.batch_size} examples, the loss is {losses[-1]:.4f} '
            f'and the accuracy {accuracy:.4f}',
        ),
    ]
    # Linux counts in kilobytes, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
    lines = [
        '',
        f'step      {1e3 * step_seconds:.1f} ms, {config.batch_size / step_seconds:,.0f} images/s; '
        f'the first one, with compiling, {seconds[0]:.1f} s',
        f'epoch     {experiment.steps_per_epoch:,} steps, about {step_seconds * experiment.steps_per_epoch:,.0f} s '
        'without validation',
        f'memory    {peak / 1e6:,.0f} MB at most so far',
    ]
    print('\n'.join([*lines, '', experiment.layer_table()]), flush=True)
    return 0 if all(passed) else 1


def _report(passed: bool, text: str) -> bool:
    print(f'{"ok" if passed else "FAILED":<9} {text}', flush=True)
    return passed


def _make_experiment(config: ConfigDict, learning_rate: float | None) -> Experiment:
    """Returns the experiment of a config with a constant learning rate, and without what needs more than a trial.

    Args:
      config: The config.
      learning_rate: The learning rate; None for that of the config, and for batches that stay the same.
    """
    make_experiment(config)  # Checks the fields that are left out below, too.
    left_out = ['schedule'] * (config.schedule.name != 'constant')
    left_out += ['distillation'] * bool(config.distillation.workdirs)
    left_out += ['augmentation'] * bool(config.augmentation and learning_rate is None)
    left_out += ['optimizer.accumulate'] * (config.optimizer.get('accumulate', 1) > 1)
    left_out += ['profile_steps'] * bool(config.profile_steps)
    if left_out:
        logging.info('without   config.%s', ', config.'.join(left_out))
    config = config.copy_and_resolve_references().unlock()
    if config.folds:
        raise UserError(f'config.folds must be 0 for short trials, got {config.folds}')
    config.steps_per_call = 1
    config.schedule = ConfigDict({'name': 'constant'})
    config.distillation.workdirs = ()
    config.optimizer.accumulate = 1
    if learning_rate is None:
        config.augmentation = ()  # so that the batch stays the same
    else:
        config.optimizer.learning_rate = learning_rate
    return make_experiment(config.lock())


def _unchanged_parameters(before: TrainState, after: TrainState, experiment: Experiment) -> list[str]:
    """Returns the paths of the trained parameters that an update left as they were."""
    old, new = (transfer.leaves_by_path(state.params) for state in (before, after))
    factors = rates(experiment.config, experiment.model, experiment.source)
    trained = [path for path in old if transfer.rate_factor(path, experiment.config.init.freeze, factors)]
    return [path for path in trained if np.array_equal(old[path], new[path])]


def _accuracy_on(experiment: Experiment, state: TrainState, batch: HostBatch) -> float:
    """Returns the accuracy on a training batch, without dropout."""
    flat = {name: column.reshape(-1, *column.shape[2:]) for name, column in batch.items()}
    split = experiment.source.split('train').take(flat['index'][flat['mask'] > 0])
    variables = {'params': state.variables.params, 'batch_stats': state.variables.batch_stats}
    logits_BxK = np.asarray(jax.jit(experiment.infer)(variables, split.image))
    return float((logits_BxK.argmax(-1) == split.label).mean())


def find_learning_rate(config: ConfigDict, workdir: str | Path) -> float:
    """Raises the learning rate from update to update, and finds where the loss falls fastest (Smith 2017).

    Writes `find_lr.csv` and `find_lr.png` to `workdir`, and prints and returns the suggested learning rate.

    Raises:
      UserError: the loss never falls.
    """
    workdir = files.user_path(workdir, '--workdir')
    files.check_no_file(workdir, '--workdir')
    experiment = _make_experiment(config, learning_rate=1.0)
    rates = np.geomspace(LOWEST_RATE, HIGHEST_RATE, SEARCH_STEPS)
    losses = np.array(list(_losses(experiment, rates)))
    smoothed = smooth(losses)
    fastest = steepest(rates[SETTLING : len(smoothed)], smoothed[SETTLING:])
    # The loss may also fall fastest right before its minimum, where training is about to diverge.
    largest = float(rates[smoothed.argmin()]) / 3
    suggested = min(fastest, largest)
    files.make_directory(workdir, '--workdir')
    text = io.StringIO()
    rows = zip(rates[: len(losses)], losses, smoothed, strict=True)
    csv.writer(text, lineterminator='\n').writerows([('learning_rate', 'loss', 'smoothed_loss'), *rows])
    files.write_text(workdir / 'find_lr.csv', text.getvalue())
    figure = curves.learning_rate_search(rates[: len(losses)], losses, smoothed, suggested)
    files.write_bytes(workdir / 'find_lr.png', figures.to_png(figure))
    print(
        f'suggested: --config.optimizer.learning_rate={suggested:.2g}'
        f'{", where the loss falls fastest" if suggested == fastest else ""}\n'
        f'largest:   about {largest:.2g}, a third of the learning rate with the smallest loss\n'
        f'The curve is in {workdir / "find_lr.png"}',
        flush=True,
    )
    return suggested


def _losses(experiment: Experiment, rates: np.ndarray) -> Iterator[float]:
    """Yields the loss before each update, until it diverges."""
    state = experiment.replicas.replicate(initial_snapshot(experiment)[0].state)
    losses: list[float] = []
    best, epoch = math.inf, 0
    batches = experiment.train_batches(epoch)
    for rate in rates:
        scale = experiment.replicas.replicate(np.asarray(rate, np.float32))
        batch = next(batches, None)
        if batch is None:
            epoch += 1
            batches = experiment.train_batches(epoch)
            batch = next(batches)
        state, sums = experiment.train_step(dataclasses.replace(state, learning_rate_scale=scale), batch)
        loss = float(sums['loss'] / sums['count'])
        losses.append(loss)
        average = float(smooth(np.array(losses))[-1])
        best = min(best, average)
        if not math.isfinite(loss) or average > DIVERGED * best:
            logging.info('the loss diverges at a learning rate of %.3g', rate)
            return
        yield loss


def smooth(losses: np.ndarray) -> np.ndarray:
    """Returns the moving average of losses, with its bias corrected."""
    averages, average, weight = [], 0.0, 0.0
    for loss in losses:
        average, weight = SMOOTHING * average + (1 - SMOOTHING) * loss, SMOOTHING * weight + 1 - SMOOTHING
        averages.append(average / weight)
    return np.array(averages)


def steepest(rates: np.ndarray, losses: np.ndarray) -> float:
    """Returns the rate at which the loss falls fastest over the logarithm of the rate, on the way to its minimum.

    Raises:
      UserError: the loss hardly falls.
    """
    lowest = int(losses.argmin()) if len(losses) else 0
    if not lowest or losses[lowest] > (1 - SMALLEST_FALL) * losses[0]:
        raise UserError(
            f'the loss must fall at some learning rate from {LOWEST_RATE:g} to {HIGHEST_RATE:g}, but it hardly does; '
            '--mode=check may say why'
        )
    return float(rates[np.gradient(losses, np.log(rates))[: lowest + 1].argmin()])
