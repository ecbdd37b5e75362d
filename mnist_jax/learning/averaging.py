"""Averages of a run's variables over its updates, which often generalize better than the variables themselves.

After each update, the average moves toward the new variables by a fraction of the distance, its rate. Each constructor
returns an `Averaging`, which computes the rate.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from mnist_jax.factory import Count, Rate
from mnist_jax.kernels.sums import PyTree


@flax.struct.dataclass
class Average:
    """An average of variables.

    Attributes:
      variables: The average.
      weight: The total weight of the updates in it, float32; not used by `ema`.
      evaluated: Whether the run evaluates and exports the average, instead of the variables of the last update.
    """

    variables: PyTree
    weight: jax.Array
    evaluated: bool = flax.struct.field(pytree_node=False)


class Progress(NamedTuple):
    """What a rate may depend on.

    Attributes:
      steps: The number of calls of `train_step` so far, including this one, int32.
      steps_per_epoch: The number of steps in an epoch.
      learning_rate: The learning rate of this step.
      updates: The number of updates so far; None if every step makes one.
      updated: Whether this step makes an update; None if every step does.
    """

    steps: jax.Array
    steps_per_epoch: int
    learning_rate: jax.Array
    updates: jax.Array | None = None
    updated: jax.Array | None = None

    def if_updated(self, value: jax.Array) -> jax.Array:
        """Returns `value`, or 0 if this step only accumulates a gradient."""
        return value if self.updated is None else jnp.where(self.updated, value, 0.0)


class Averaging(NamedTuple):
    """How to average.

    Attributes:
      rate: Maps the weight of the average and the progress to the rate of this update and the new weight.
      interpolation: The gradient is taken at (1 - interpolation) params + interpolation average.
      of_epochs: Whether it is an average over epochs, which has a rate also at a step whose update is skipped.
    """

    rate: Callable[[jax.Array, Progress], tuple[jax.Array, jax.Array]]
    interpolation: float = 0.0
    of_epochs: bool = False

    def gradient_point(self, params: PyTree, averaged_params: PyTree) -> PyTree:
        """Returns the parameters at which the gradient is taken."""
        if not self.interpolation:
            return params
        return jax.tree.map(lambda last, mean: last + self.interpolation * (mean - last), params, averaged_params)

    def update(self, average: Average, variables: PyTree, progress: Progress) -> Average:
        """Returns the average after an update that led to `variables`."""
        rate, weight = self.rate(average.weight, progress)

        def move(mean: jax.Array, new: jax.Array) -> jax.Array:
            if not jnp.issubdtype(new.dtype, jnp.floating):
                return new  # a counter in the batch statistics
            return jnp.where(rate == 1, new, mean + rate * (new - mean))

        moved = jax.tree.map(move, average.variables, variables)
        return dataclasses.replace(average, variables=moved, weight=weight)


def none() -> None:
    """No average."""


def ema(decay: Rate = 0.999, warmup: bool = True) -> Averaging:
    """Exponential moving average, with the rate 1 - `decay`.

    Args:
      decay: The weight of the old average.
      warmup: Whether the decay of update t is at most (1 + t) / (10 + t), as in TensorFlow, so that the initial
        parameters are soon forgotten.
    """

    def rate(weight: jax.Array, progress: Progress) -> tuple[jax.Array, jax.Array]:
        updates = progress.steps if progress.updates is None else progress.updates
        most = (1 + updates) / (10 + updates) if warmup else 1.0
        return progress.if_updated(1 - jnp.minimum(jnp.float32(decay), most)), weight

    return Averaging(rate)


def swa(start: Count = 0) -> Averaging:
    """Stochastic weight averaging (Izmailov et al. 2018): the mean of the variables at the ends of epochs.

    This also averages the batch statistics, which the paper recomputes in another pass over the data.

    Args:
      start: The number of epochs before the first that counts. Until then, the average equals the variables.
    """

    def rate(weight: jax.Array, progress: Progress) -> tuple[jax.Array, jax.Array]:
        ends_epoch = progress.steps % progress.steps_per_epoch == 0
        counts = ends_epoch & (progress.steps > start * progress.steps_per_epoch)
        weight = weight + counts
        return jnp.where(counts | (weight == 0), 1 / jnp.maximum(weight, 1), 0), weight

    return Averaging(rate, of_epochs=True)


def schedule_free(interpolation: Rate = 0.9) -> Averaging:
    """Schedule-free learning (Defazio et al. 2024) with any optimizer: the mean weighted by the squared learning rate.

    It needs the constant schedule, and an optimizer without momentum. Batch statistics are not averaged: they belong
    to the point of the gradient, which is close to the average.

    Args:
      interpolation: The gradient is taken at this fraction of the way from the parameters to their average. It takes
        the place of momentum.
    """

    def rate(weight: jax.Array, progress: Progress) -> tuple[jax.Array, jax.Array]:
        own = progress.if_updated(_square(progress.learning_rate))
        weight = weight + own
        return jnp.where(weight > 0, own / weight, 1), weight

    return Averaging(rate, interpolation)


def _square(x: jax.Array) -> jax.Array:
    """Returns the square of a float32, with the same bits in every program.

    XLA may or may not round a product before it adds it to something. The products of the halves of x, with 12
    significant bits each (Dekker 1971), are exact, so rounding them changes nothing.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.int32) & ~0xFFF
    high = jax.lax.bitcast_convert_type(bits, jnp.float32)
    low = x - high
    return (high * high + 2 * high * low) + low * low


AVERAGES: dict[str, Callable[..., Averaging | None]] = {
    'none': none,
    'ema': ema,
    'swa': swa,
    'schedule_free': schedule_free,
}
