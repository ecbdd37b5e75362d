"""The train step and the evaluation step: pure functions that know nothing of devices.

Why the device count does not change a bit of the result: the global batch is cut into chunks that depend on the
config alone; the gradient of each chunk is computed by itself; the chunks' gradients are added as one binary tree,
whose lower levels lie within a device and whose upper levels are `all_sum`. So each floating-point number is the
same sum, in the same order, on one device and on eight. BatchNorm's sums, of the whole batch in every layer, are
taken over the same chunks in the same order: `lockstep.py` says how.
"""

from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from mnist_jax.kernels import ops
from mnist_jax.kernels.sums import ordered_sum, tree_sum
from mnist_jax.learning.lockstep import lockstep_sum, run_in_lockstep
from mnist_jax.models.architectures import Training

Batch = dict[str, jax.Array]
Sums = dict[str, jax.Array]
AllSum = Callable[[Any], Any]

INIT_STREAM, DROPOUT_STREAM = 0, 1


@flax.struct.dataclass
class TrainState:
    """All that a step changes, and all that a checkpoint holds."""

    step: jax.Array  # int32: how many updates were made
    params: Any
    batch_stats: Any  # moving averages of BatchNorm; empty without it
    opt_state: optax.OptState
    learning_rate_scale: jax.Array  # float32: what the schedule's learning rate is multiplied by


def create_state(
    model: nn.Module, optimizer: optax.GradientTransformation, image_shape: tuple[int, ...], seed: int | jax.Array
) -> TrainState:
    """The state before the first step."""
    variables = model.init(_stream(seed, INIT_STREAM), jnp.zeros((1, *image_shape)))
    params = variables['params']
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get('batch_stats', {}),
        opt_state=optimizer.init(params),
        learning_rate_scale=jnp.ones((), jnp.float32),
    )


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    optimizer: optax.GradientTransformationExtraArgs,
    learning_rate: Callable[[jax.Array], jax.Array],
    max_pixel: int,
    dtype: jnp.dtype,
    seed: int | jax.Array,
    skip_nonfinite: bool,
    chunk_size: int,
    all_sum: AllSum,
) -> tuple[TrainState, Sums]:
    """One update by the mean loss over the global batch, padding left out.

    Args:
      batch: this device's share {image, label, mask, index} of the global batch.
      model, loss, optimizer, seed: the parts of the experiment, and the seed of the dropout.
      learning_rate: of the update that follows a step.
      max_pixel, dtype: which pixel becomes 1.0; in what the model computes (parameters, losses and sums are float32).
      skip_nonfinite: whether an update that is not finite, or whose loss is not, changes nothing but the step's number;
        such a loss is then left out of the sums.
      chunk_size, all_sum: how many examples make a chunk, which divides the share; adds a pytree over all devices.

    Returns:
      The new state, and the global batch's sums {loss, correct, count} before the update, with nonfinite: 1 where the
      loss or a new parameter is not finite, else 0.
    """
    key = jax.random.fold_in(_stream(seed, DROPOUT_STREAM), state.step)

    def summed_loss(params: Any, chunk: Batch) -> tuple[jax.Array, tuple[Sums, Any]]:
        logits_BxK, updated = model.apply(
            {'params': _cast(params, dtype), 'batch_stats': state.batch_stats},
            _scaled(chunk['image'], max_pixel, dtype),
            Training(chunk['mask'], chunk['index'], lockstep_sum),
            rngs={'dropout': key},
            mutable=['batch_stats'],
        )
        sums = _sums(logits_BxK.astype(jnp.float32), chunk, loss)
        return sums['loss'], (sums, updated.get('batch_stats', {}))

    chunks = list(_chunks(batch, chunk_size))
    if state.batch_stats:
        parts, batch_stats = _gradients_in_lockstep(summed_loss, state.params, chunks, all_sum)
    else:
        parts, batch_stats = _gradients_in_turn(summed_loss, state.params, chunks), {}
    # The barrier keeps the compiler from computing the sum and the update in one way here and in another there.
    grads, sums = jax.lax.optimization_barrier(all_sum(tree_sum(parts)))
    grads = jax.tree.map(lambda grad: grad / sums['count'], grads)
    now = learning_rate(state.step) * state.learning_rate_scale
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params, learning_rate=now)
    params = optax.apply_updates(state.params, updates)
    after = state.replace(step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state)
    # A gradient that is not finite makes parameters that are not.
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((sums, params))]).all()
    if skip_nonfinite:
        after, sums = _where_finite(finite, after, sums, state)
    return after, {**sums, 'nonfinite': 1.0 - finite}


def _where_finite(finite: jax.Array, after: TrainState, sums: Sums, before: TrainState) -> tuple[TrainState, Sums]:
    """The state after an update, or that before it where this is not finite; the sums, or 0 where they are not."""
    left = before.replace(step=before.step + 1)
    after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, left)
    counted = jnp.isfinite(sums['loss'])
    return after, jax.tree.map(lambda total: jnp.where(counted, total, 0.0), sums)


def train_steps(state: TrainState, batches: Batch, **given: Any) -> tuple[TrainState, Sums]:
    """As many updates by `train_step` as `batches` is long: batches along a first axis, which the sums have too."""
    return jax.lax.scan(lambda state, batch: train_step(state, batch, **given), state, batches)


def _gradients_in_turn(summed_loss: Callable, params: Any, chunks: list[Batch]) -> list[tuple[Any, Sums]]:
    """The gradient and the sums of each chunk."""
    gradient = jax.jit(jax.value_and_grad(summed_loss, has_aux=True))  # traced once for all chunks
    parts = []
    for chunk in chunks:
        now, chunk = jax.lax.optimization_barrier(
            (params, {**chunk, 'image': ops.delay_until(parts[-1:], chunk['image'])})
        )
        (_, (sums, _)), grads = gradient(now, chunk)
        parts.append((grads, sums))
    return parts


def _gradients_in_lockstep(
    summed_loss: Callable, params: Any, chunks: list[Batch], all_sum: AllSum
) -> tuple[list[tuple[Any, Sums]], Any]:
    """The gradient and the sums of each chunk, and the new batch_stats, of a model that needs sums over the batch."""

    def loss_of_all(copies: list[Any]) -> tuple[jax.Array, Any]:
        results = run_in_lockstep(summed_loss, list(zip(copies, chunks, strict=True)), all_sum)
        return sum(loss for loss, _ in results), [aux for _, aux in results]

    # A copy of the parameters for each chunk keeps their gradients apart.
    (_, aux), grads = jax.value_and_grad(loss_of_all, has_aux=True)([params] * len(chunks))
    return [(grad, sums) for grad, (sums, _) in zip(grads, aux, strict=True)], aux[0][1]


def eval_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    max_pixel: int,
    dtype: jnp.dtype,
    chunk_size: int,
    all_sum: AllSum,
) -> tuple[Sums, jax.Array]:
    """Evaluate this device's share of the global batch.

    Returns:
      The global batch's sums {loss, correct, count, confusion_matrix KxK: rows are the truth}, padding left out; and
      for each example of the share, padding too, the probabilities BxK of its classes.
    """

    def of_chunk(variables: Any, chunk: Batch) -> tuple[Sums, jax.Array]:
        logits_BxK = infer(variables, chunk['image'], model=model, max_pixel=max_pixel, dtype=dtype)
        classes = logits_BxK.shape[-1]
        truth_BxK = jax.nn.one_hot(chunk['label'], classes) * chunk['mask'][:, None]
        prediction_BxK = jax.nn.one_hot(logits_BxK.argmax(-1), classes)
        sums = {**_sums(logits_BxK, chunk, loss), 'confusion_matrix': truth_BxK.T @ prediction_BxK}
        return sums, jax.nn.softmax(logits_BxK)

    variables = inference_variables(state, dtype)
    of_chunk = jax.jit(of_chunk)  # traced once for all chunks
    parts, probabilities = [], []
    for chunk in _chunks(batch, chunk_size):
        now, image = jax.lax.optimization_barrier((variables, ops.delay_until(parts[-1:], chunk['image'])))
        sums, probabilities_BxK = of_chunk(now, {**chunk, 'image': image})
        parts.append(sums)
        probabilities.append(probabilities_BxK)
    return all_sum(tree_sum(parts)), jnp.concatenate(probabilities)


def inference_variables(state: TrainState, dtype: jnp.dtype) -> Any:
    """What a model needs beside images to infer."""
    return {'params': _cast(state.params, dtype), 'batch_stats': state.batch_stats}


def infer(variables: Any, image_BxHxWxC: jax.Array, *, model: nn.Module, max_pixel: int, dtype: jnp.dtype) -> jax.Array:
    """The logits BxK, float32, of images of pixels from 0 to `max_pixel`."""
    return model.apply(variables, _scaled(image_BxHxWxC, max_pixel, dtype)).astype(jnp.float32)


def _stream(seed: int | jax.Array, stream: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(seed), stream)


def _chunks(batch: Batch, chunk_size: int) -> Iterator[Batch]:
    for start in range(0, len(batch['label']), chunk_size):
        yield {name: rows[start : start + chunk_size] for name, rows in batch.items()}


def _scaled(image_BxHxWxC: jax.Array, max_pixel: int, dtype: jnp.dtype) -> jax.Array:
    return (image_BxHxWxC.astype(jnp.float32) / max_pixel).astype(dtype)


def _cast(params: Any, dtype: jnp.dtype) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def _sums(logits_BxK: jax.Array, batch: Batch, loss: Callable) -> Sums:
    mask_B = batch['mask']
    correct_B = (logits_BxK.argmax(-1) == batch['label']).astype(jnp.float32)
    return {
        'loss': ordered_sum(loss(logits_BxK, batch['label']) * mask_B),
        'correct': jnp.sum(correct_B * mask_B),
        'count': jnp.sum(mask_B),
    }
