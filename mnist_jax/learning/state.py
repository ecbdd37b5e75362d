"""The state that a train step changes: what it holds, and how it starts."""

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from mnist_jax.kernels.sums import PyTree
from mnist_jax.learning.averaging import Average
from mnist_jax.learning.optimizers import Optimizer
from mnist_jax.models import linen

INIT_STREAM, DROPOUT_STREAM, AUGMENTATION_STREAM = 0, 1, 2


@flax.struct.dataclass
class Variables:
    """The part of a state that inference needs. `params_sha256` identifies it."""

    params: PyTree
    batch_stats: PyTree


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes; part of every checkpoint."""

    step: jax.Array  # int32: number of train steps so far
    params: PyTree
    batch_stats: PyTree  # moving averages of batch normalization; empty without it
    opt_state: optax.OptState
    learning_rate_scale: jax.Array | np.ndarray  # float32: multiplies the scheduled learning rate
    average: Average | None = None  # of the variables, if the run averages them

    @property
    def variables(self) -> Variables:
        """What is evaluated and used for inference."""
        return self.choices['average' if self.average is not None and self.average.evaluated else 'last']

    @property
    def choices(self) -> dict[str, Variables]:
        """The variables of the last update and, if the run averages them, their average, by name."""
        last = {'last': Variables(self.params, self.batch_stats)}
        return last if self.average is None else last | {'average': self.average.variables}


def create_state(
    model: nn.Module,
    optimizer: Optimizer,
    image_shape: tuple[int, ...],
    seed: int | jax.Array,
    average_evaluated: bool | None = None,
) -> TrainState:
    """Returns the state before the first step; `average_evaluated` is None if the run has no average."""
    variables = model.init(random_stream(seed, INIT_STREAM), jnp.zeros((1, *image_shape)))
    linen.check_collections(variables)
    params = variables.get('params', {})
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get('batch_stats', {}),
        opt_state=optimizer.init(params),
        learning_rate_scale=jnp.ones((), jnp.float32),
    )
    if average_evaluated is None:
        return state
    average = Average(state.variables, jnp.zeros((), jnp.float32), average_evaluated)
    return dataclasses.replace(state, average=average)


def start_from(state: TrainState, variables: Variables, optimizer: Optimizer) -> TrainState:
    """Returns the state before the first step with other variables."""
    average = state.average and dataclasses.replace(state.average, variables=variables)
    started = dataclasses.replace(
        state,
        params=variables.params,
        batch_stats=variables.batch_stats,
        opt_state=optimizer.init(variables.params),
        average=average,
    )
    # The train step takes over the memory of each array, so no two of them may share it.
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), started)


def random_stream(seed: ArrayLike, stream: int) -> jax.Array:
    """Returns the random key of one of the streams of a run, such as `INIT_STREAM`."""
    return jax.random.fold_in(jax.random.key(seed), stream)
