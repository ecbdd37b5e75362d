"""Evaluates variables on a split; shared by the training loop and `--mode=eval`."""

import itertools
import operator
from collections.abc import Iterator

import jax
import numpy as np

from mnist_jax.data.records import Examples
from mnist_jax.distributed import processes
from mnist_jax.distributed.devices import to_host
from mnist_jax.distributed.signals import StopRequest
from mnist_jax.errors import Interrupted
from mnist_jax.learning import metrics
from mnist_jax.learning.metrics import Totals
from mnist_jax.learning.state import Variables
from mnist_jax.training.experiment import Experiment


def evaluate_split(
    experiment: Experiment, variables: Variables, split: Examples, request: StopRequest | None = None
) -> tuple[Totals, np.ndarray]:
    """Returns the sums of `step.eval_step` over every example of the split, and the probabilities NxK of the classes.

    Raises:
      Interrupted: `request` asked to stop.
    """
    totals: Totals = {}
    probabilities = []
    for sums, probabilities_BxK in batch_results(experiment, variables, split):
        if request is not None and (signal_number := processes.agree_on_stop(request)[0]):
            raise Interrupted(signal_number, 'during validation')
        totals = metrics.add(totals, sums)
        probabilities.append(probabilities_BxK[: experiment.eval_batch_size])  # The rest is padding.
    count = int(totals['count'])
    if count != split.size:
        raise AssertionError(f'evaluation must cover all {split.size} examples of the split, got {count}')
    return totals, np.concatenate(probabilities)[:count]


def batch_results(
    experiment: Experiment, variables: Variables, split: Examples
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Yields the host copy of what `step.eval_step` returns for each batch, fetched while the next one is computed."""
    data = experiment.on_devices(split)
    calls = ((experiment.eval_steps(variables, group, data), len(group)) for group in experiment.eval_calls(split))
    previous = None
    for call in itertools.chain(calls, [None]):
        if previous is not None:
            results, count = previous
            fetched = to_host(results)
            if experiment.eval_steps_per_call == 1:
                yield fetched
            else:
                yield from (jax.tree.map(operator.itemgetter(index), fetched) for index in range(count))
        previous = call
