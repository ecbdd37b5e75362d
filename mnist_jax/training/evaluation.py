"""Evaluate a state on a split: what the training loop and `--mode=eval` share."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from mnist_jax.data.records import Examples
from mnist_jax.distributed import processes
from mnist_jax.distributed.devices import to_host
from mnist_jax.distributed.signals import StopRequest
from mnist_jax.errors import Interrupted
from mnist_jax.learning import metrics
from mnist_jax.learning.metrics import Totals
from mnist_jax.learning.step import TrainState
from mnist_jax.training.experiment import Experiment


def evaluate_split(
    experiment: Experiment, state: TrainState, split: Examples, request: StopRequest | None = None
) -> tuple[Totals, np.ndarray]:
    """The sums of `step.eval_step` over every example of the split, and the probabilities NxK of their classes.

    Raises:
      Interrupted: `request` asks for it.
    """
    totals: Totals = {}
    probabilities = []
    for sums, probabilities_BxK in batch_results(experiment, state, split):
        if request is not None and (signal := processes.agree_on_stop(request)[0]):
            raise Interrupted(signal, 'in the validation')
        totals = metrics.add(totals, sums)
        probabilities.append(probabilities_BxK[: experiment.eval_batch_size])  # The rest is padding.
    counted = int(totals['count'])
    if counted != split.size:
        raise AssertionError(f'{counted} of the {split.size} examples of a split were evaluated')
    return totals, np.concatenate(probabilities)[:counted]


def batch_results(experiment: Experiment, state: TrainState, split: Examples) -> Iterator[Any]:
    """What `step.eval_step` returns for each batch, in host memory; fetched while the next one is computed."""
    computed = (experiment.eval_step(state, batch) for batch in experiment.eval_batches(split))
    waiting = next(computed)
    for now in computed:
        yield to_host(waiting)
        waiting = now
    yield to_host(waiting)
