"""The train step and the evaluation step: pure functions that know nothing about devices.

Why the number of devices does not change a single bit of the result: the global batch is cut into chunks that depend on
the config alone. The gradient of each chunk is computed separately, and the gradients are added as one binary tree,
whose lower levels lie within a device and whose upper levels are `all_sum`. Every floating-point number is therefore
the same sum, in the same order, on one device and on eight. The sums of batch normalization, over the whole batch in
every layer, are taken over the same chunks in the same order; see `lockstep.py`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from mnist_jax.data.normalization import Normalization
from mnist_jax.kernels import ops
from mnist_jax.kernels.sums import PyTree, ordered_sum, tree_sum
from mnist_jax.learning import lockstep, losses, transfer
from mnist_jax.learning.augmentation import Augment
from mnist_jax.learning.averaging import Averaging, Progress
from mnist_jax.learning.losses import Loss, cross_entropy
from mnist_jax.learning.optimizers import Optimizer, accumulated_updates, global_norm
from mnist_jax.learning.state import AUGMENTATION_STREAM, DROPOUT_STREAM, TrainState, Variables, random_stream
from mnist_jax.models import linen
from mnist_jax.models.layers import SHARED_STREAM, Training

Batch = dict[str, jax.Array]
"""image: uint8 BxHxWxC; label: int32 B; mask: float32 B, 0 for padding; index: int32 B, the index in the split.

The padding consists of copies of the first example of the split, because a model may divide by the norm of an image.
With distillation also teacher: float32 BxK, the probabilities of the teachers.
"""
Data = dict[str, jax.Array]
"""The examples of a split on this device, from which a batch without image and label takes them by their index."""
Sums = dict[str, jax.Array]
"""Sums over examples: loss, correct, count."""
AllSum = Callable[[PyTree], PyTree]
"""Sums a pytree over all devices."""


@dataclasses.dataclass(frozen=True)
class StepParts:
    """What a step needs besides the state and the batch; constants of the compiled program.

    Attributes:
      model: Maps images and a `Training` (None for inference) to logits.
      loss: Maps logits BxK and labels B to one loss per example, without the weights of the classes.
      optimizer: Its `update` takes the learning rate as a keyword argument.
      schedule: Maps the number of updates so far to a factor of the learning rate of the next one.
      normalization: How pixels become inputs.
      dtype: The compute dtype of the model; parameters, losses and sums are float32.
      skip_nonfinite: If true, a non-finite update or loss only increments the step.
      chunk_size: Examples per chunk; divides the number of examples on a device.
      frozen: Patterns of parameters and batch statistics that do not change; see `transfer.py`.
      augment: Changes the images of a chunk of a training batch at random; None for no change.
      steps_per_epoch: The number of updates in an epoch.
      averaging: How the variables are averaged; None for no average.
      sam_radius: The radius of sharpness-aware minimization; 0 for none.
      distillation: The weight and the temperature of the loss whose targets are those of the teachers.
      class_weights: The factor of the loss of the examples of each class, K; None if all are 1.
      in_lockstep: Whether the model needs sums over the whole batch; see `lockstep.py`.
    """

    model: nn.Module
    loss: Loss
    optimizer: Optimizer
    schedule: Callable[[jax.Array], jax.Array]
    normalization: Normalization
    dtype: jnp.dtype
    skip_nonfinite: bool
    chunk_size: int
    frozen: Sequence[str] = ()
    augment: Augment | None = None
    steps_per_epoch: int = 1
    averaging: Averaging | None = None
    sam_radius: float = 0.0
    distillation: tuple[float, float] = (0.0, 1.0)
    class_weights: np.ndarray | None = None
    in_lockstep: bool = False


class RunNumbers(NamedTuple):
    """Arguments of the compiled program, so that runs that differ only in these numbers share it.

    Attributes:
      seed: The seed of the run, for dropout and augmentation.
      learning_rate: The learning rate, which the schedule multiplies.
    """

    seed: ArrayLike
    learning_rate: ArrayLike


def train_step(
    state: TrainState,
    batch: Batch,
    numbers: RunNumbers,
    data: Data | None = None,
    *,
    parts: StepParts,
    all_sum: AllSum,
) -> tuple[TrainState, Sums]:
    """Makes one update with the gradient of the mean loss over the unpadded examples of the global batch.

    Args:
      state: The state before the update.
      batch: This device's share of the global batch.
      numbers: The seed and the learning rate of the run.
      data: The training split, if the batch has no images and labels.
      parts: The parts of the experiment.
      all_sum: Sums a pytree over all devices.

    Returns:
      The new state, and the sums of the global batch before the update, with `nonfinite`: 1 if the loss, a new
      parameter or a new batch statistic is not finite, else 0. With `skip_nonfinite`, all sums are 0 if the loss is
      not finite.
    """
    dropout_key = jax.random.fold_in(random_stream(numbers.seed, DROPOUT_STREAM), state.step)

    def summed_loss(params: PyTree, chunk: Batch) -> tuple[jax.Array, tuple[Sums, PyTree]]:
        params = transfer.keep_frozen(parts.frozen, params, jax.lax.stop_gradient(params))  # saves their gradients
        variables = {'params': _cast(params, parts.dtype), 'batch_stats': state.batch_stats}
        image = _normalize(chunk['image'], parts.normalization, parts.dtype)
        logits_BxK, updated = apply_to_chunk(parts.model, variables, image, chunk, dropout_key, frozen=parts.frozen)
        sums = _sums(logits_BxK.astype(jnp.float32), chunk, parts)
        return sums['loss'], (sums, updated.get('batch_stats', {}))

    batch = _augment_chunks(_with_examples(batch, data), numbers.seed, state.step // parts.steps_per_epoch, parts)
    chunks = _split(batch, parts.chunk_size)
    in_lockstep = parts.in_lockstep or bool(state.batch_stats)
    mean_gradient = functools.partial(
        _mean_gradient, summed_loss, chunks=chunks, all_sum=all_sum, in_lockstep=in_lockstep
    )
    averaging, average = parts.averaging, state.average
    if averaging is not None and average is None:
        raise ValueError('the state must hold an average if the parts of the step have one')
    point = state.params
    if averaging is not None and average is not None:
        point = averaging.gradient_point(state.params, average.variables.params)
    grads, sums, batch_stats = mean_gradient(point)
    if parts.sam_radius:  # Foret et al. 2021: the gradient at the worst point nearby, to first order
        distance = parts.sam_radius / jnp.maximum(global_norm(grads), 1e-12)
        nearby = jax.tree.map(lambda param, grad: param + distance * grad, point, grads)
        grads, _, _ = mean_gradient(jax.lax.optimization_barrier(nearby))
    batch_stats = transfer.keep_frozen(parts.frozen, batch_stats, state.batch_stats)
    learning_rate = jnp.asarray(numbers.learning_rate) * parts.schedule(state.step) * state.learning_rate_scale
    with jax.named_scope('update'):
        updates, opt_state = parts.optimizer.update(grads, state.opt_state, point, learning_rate=learning_rate)
        params = optax.apply_updates(state.params, updates)
    new_state = dataclasses.replace(
        state, step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state
    )
    if averaging is not None and average is not None:
        progress = Progress(new_state.step, parts.steps_per_epoch, learning_rate, *accumulated_updates(opt_state))
        with jax.named_scope('average'):
            moved = averaging.update(average, Variables(params, batch_stats), progress)
        if averaging.interpolation:  # The statistics of this update are those of parameters close to the average.
            moved = dataclasses.replace(moved, variables=Variables(moved.variables.params, batch_stats))
        new_state = dataclasses.replace(new_state, average=moved)
    # Each optimizer turns non-finite gradients into non-finite parameters, so checking the latter suffices.
    with jax.named_scope('finite'):
        finite = ops.all_finite((sums, params, batch_stats))
    if parts.skip_nonfinite:
        unchanged = dataclasses.replace(state, step=state.step + 1)
        if averaging is not None and average is not None and averaging.of_epochs:
            same = averaging.update(average, Variables(state.params, state.batch_stats), progress)
            unchanged = dataclasses.replace(unchanged, average=same)
        new_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_state, unchanged)
        counted = jnp.isfinite(sums['loss'])
        sums = jax.tree.map(lambda total: jnp.where(counted, total, 0.0), sums)
    return new_state, {**sums, 'nonfinite': 1.0 - finite}


def augment(chunk: Batch, seed: ArrayLike, epoch: ArrayLike, parts: StepParts) -> Batch:
    """Returns a chunk of a training batch with its images, and the mixtures of labels, as they are in an epoch."""
    if parts.augment is None:
        return chunk
    return parts.augment(chunk, random_stream(seed, AUGMENTATION_STREAM), jnp.int32(epoch))


@jax.named_scope('augmentation')
def _augment_chunks(batch: Batch, seed: ArrayLike, epoch: jax.Array, parts: StepParts) -> Batch:
    """Augments each chunk of a batch, in a loop, so that the program holds all steps only once."""
    if parts.augment is None:
        return batch
    chunks = {name: rows.reshape(-1, parts.chunk_size, *rows.shape[1:]) for name, rows in batch.items()}
    augmented = jax.lax.map(lambda chunk: augment(chunk, seed, epoch, parts), jax.lax.optimization_barrier(chunks))
    augmented = jax.lax.optimization_barrier(augmented)
    return {name: rows.reshape(-1, *rows.shape[2:]) for name, rows in augmented.items()}


def apply_to_chunk(
    model: nn.Module,
    variables: PyTree,
    image_BxHxWxC: jax.Array,
    chunk: Batch,
    key: jax.Array,
    batch_sum: AllSum = lockstep.lockstep_sum,
    frozen: Sequence[str] = (),
) -> tuple[jax.Array, PyTree]:
    """Applies a model to a chunk of a training batch; returns the logits BxK and the updated variables."""
    is_frozen = functools.partial(transfer.matches, patterns=frozen)
    training = Training(chunk['mask'], chunk['index'], batch_sum, is_frozen)
    chunk_key = jax.random.fold_in(key, chunk['index'][0])
    # Flax draws from 'params' for every stream that has no key of its own.
    rngs = {SHARED_STREAM: key, 'dropout': chunk_key, 'params': jax.random.fold_in(chunk_key, 1)}
    with linen.in_chunks(training):
        return model.apply(variables, image_BxHxWxC, training, rngs=rngs, mutable=['batch_stats'])


def train_steps(
    state: TrainState,
    batches: Batch,
    numbers: RunNumbers,
    data: Data | None = None,
    *,
    parts: StepParts,
    all_sum: AllSum,
) -> tuple[TrainState, Sums]:
    """Makes one update per batch; `batches` and the returned sums have a leading axis of steps."""
    step = functools.partial(train_step, numbers=numbers, data=data, parts=parts, all_sum=all_sum)
    return jax.lax.scan(step, state, batches)


def _mean_gradient(
    summed_loss: Callable, params: PyTree, *, chunks: list[Batch], all_sum: AllSum, in_lockstep: bool
) -> tuple[PyTree, Sums, PyTree]:
    """Returns the gradient of the mean loss of the global batch, the sums, and the new batch_stats.

    Args:
      summed_loss: Maps parameters and a chunk to the loss, and to the sums and the new batch_stats.
      params: Where the gradient is taken.
      chunks: The chunks of this device.
      all_sum: Sums a pytree over all devices.
      in_lockstep: Whether the model has batch normalization, or other sums over the whole batch.
    """
    batch_stats: PyTree = {}
    if in_lockstep:
        chunk_results, batch_stats = _gradients_in_lockstep(summed_loss, params, chunks, all_sum)
    else:
        chunk_results = _gradients_in_turn(summed_loss, params, chunks)
    # Without the barriers, the compiler may fuse gradient, sum and update differently on different device counts.
    chunk_results = jax.lax.optimization_barrier(chunk_results)
    with jax.named_scope('sum over chunks'):
        grads, sums = jax.lax.optimization_barrier(all_sum(tree_sum(chunk_results)))
        mean = jax.tree.map(lambda grad: grad / sums['count'], grads)
    return mean, sums, batch_stats


def _gradients_in_turn(summed_loss: Callable, params: PyTree, chunks: list[Batch]) -> list[tuple[PyTree, Sums]]:
    """Returns the gradient and the sums of each chunk, computed one after the other."""
    gradient = jax.jit(jax.value_and_grad(summed_loss, has_aux=True))  # traced once for all chunks
    results: list[tuple[PyTree, Sums]] = []
    for chunk in chunks:
        image = ops.delay_until(results[-1:], chunk['image'])
        ready_params, ready_chunk = jax.lax.optimization_barrier((params, {**chunk, 'image': image}))
        (_, (sums, _)), grads = gradient(ready_params, ready_chunk)
        results.append((grads, sums))
    return results


def _gradients_in_lockstep(
    summed_loss: Callable, params: PyTree, chunks: list[Batch], all_sum: AllSum
) -> tuple[list[tuple[PyTree, Sums]], PyTree]:
    """Returns the gradient and the sums of each chunk, and the new batch_stats, of a model with sums over the batch."""

    def loss_of_all(copies: list[PyTree]) -> tuple[jax.Array, list]:
        results = lockstep.run_in_lockstep(summed_loss, list(zip(copies, chunks, strict=True)), all_sum)
        return sum(loss for loss, _ in results), [aux for _, aux in results]

    # One copy of the parameters per chunk keeps the gradients of the chunks separate.
    (_, aux), grads = jax.value_and_grad(loss_of_all, has_aux=True)([params] * len(chunks))
    return [(grad, sums) for grad, (sums, _) in zip(grads, aux, strict=True)], aux[0][1]


def eval_step(
    variables: Variables,
    batch: Batch,
    data: Data | None = None,
    *,
    parts: StepParts,
    all_sum: AllSum,
    all_rows: AllSum,
) -> tuple[Sums, jax.Array]:
    """Evaluates the global batch, of which `batch` is this device's share.

    Args:
      variables: What to evaluate.
      batch: This device's share of the global batch.
      data: The split, if the batch has no images and labels.
      parts: The parts of the experiment.
      all_sum: Sums a pytree over all devices.
      all_rows: Concatenates the rows of an array over all devices.

    Returns:
      The sums over the unpadded examples, with `cross_entropy`, whatever the loss of the run is, and
      `confusion_matrix` KxK, whose rows are the true classes; and the probabilities BxK of the classes for every row of
      the global batch, including padding.
    """

    def evaluate(variables: PyTree, chunk: Batch) -> tuple[Sums, jax.Array]:
        logits_BxK = infer(variables, chunk['image'], parts.model, parts.normalization, parts.dtype)
        classes = logits_BxK.shape[-1]
        label_BxK = jax.nn.one_hot(chunk['label'], classes) * chunk['mask'][:, None]
        prediction_BxK = jax.nn.one_hot(logits_BxK.argmax(-1), classes)
        sums = {
            **_sums(logits_BxK, chunk, parts),
            'cross_entropy': ordered_sum(cross_entropy()(logits_BxK, chunk['label']) * chunk['mask']),
            'confusion_matrix': label_BxK.T @ prediction_BxK,
        }
        return sums, jax.nn.softmax(logits_BxK)

    model_variables = inference_variables(variables, parts.dtype)
    evaluate = jax.jit(evaluate)  # traced once for all chunks
    chunk_sums: list[Sums] = []
    probabilities: list[jax.Array] = []
    for chunk in _split(_with_examples(batch, data), parts.chunk_size):
        image = ops.delay_until(chunk_sums[-1:], chunk['image'])
        ready_variables, ready_image = jax.lax.optimization_barrier((model_variables, image))
        sums, probabilities_BxK = evaluate(ready_variables, {**chunk, 'image': ready_image})
        chunk_sums.append(sums)
        probabilities.append(probabilities_BxK)
    return all_sum(tree_sum(chunk_sums)), all_rows(jnp.concatenate(probabilities))


def eval_steps(
    variables: Variables,
    batches: Batch,
    data: Data | None = None,
    *,
    parts: StepParts,
    all_sum: AllSum,
    all_rows: AllSum,
) -> tuple[Sums, jax.Array]:
    """Evaluates several batches; `batches` and the results have a leading axis of batches. See `eval_step`."""
    step = functools.partial(eval_step, variables, data=data, parts=parts, all_sum=all_sum, all_rows=all_rows)
    return jax.lax.map(step, batches)


def inference_variables(variables: Variables, dtype: jnp.dtype) -> PyTree:
    """Returns the variables as a model takes them for inference, with the parameters in its compute dtype."""
    return {'params': _cast(variables.params, dtype), 'batch_stats': variables.batch_stats}


def infer(
    variables: PyTree, image_BxHxWxC: jax.Array, model: nn.Module, normalization: Normalization, dtype: jnp.dtype
) -> jax.Array:
    """Returns the logits BxK, float32, of images with the pixels of the dataset, not normalized."""
    logits_BxK = model.apply(variables, _normalize(image_BxHxWxC, normalization, dtype))
    return jnp.asarray(logits_BxK, jnp.float32)


def _with_examples(batch: Batch, data: Data | None) -> Batch:
    """Returns the batch with the images and labels of its examples, and of its padding, from `data`."""
    if data is None:
        return batch
    return batch | {name: column.at[batch['index']].get(mode='promise_in_bounds') for name, column in data.items()}


def _split(batch: Batch, chunk_size: int) -> list[Batch]:
    starts = range(0, len(batch['label']), chunk_size)
    return [{name: rows[start : start + chunk_size] for name, rows in batch.items()} for start in starts]


def _normalize(image_BxHxWxC: jax.Array, normalization: Normalization, dtype: jnp.dtype) -> jax.Array:
    max_pixel, mean, deviation = normalization
    x_BxHxWxC = image_BxHxWxC.astype(jnp.float32)
    if max_pixel != 1:
        x_BxHxWxC = x_BxHxWxC / max_pixel
    if mean:
        mean_1x1x1xC, deviation_1x1x1xC = (
            np.array(values, np.float32).reshape(1, 1, 1, -1) for values in (mean, deviation)
        )
        x_BxHxWxC = (x_BxHxWxC - mean_1x1x1xC) / deviation_1x1x1xC
    return x_BxHxWxC.astype(dtype)


def _cast(params: PyTree, dtype: jnp.dtype) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def _sums(logits_BxK: jax.Array, batch: Batch, parts: StepParts) -> Sums:
    mask_B = batch['mask']
    correct_B = (logits_BxK.argmax(-1) == batch['label']).astype(jnp.float32)

    def over_labels(loss: Loss) -> jax.Array:
        weighted = losses.weighted(loss, parts.class_weights)
        if 'labels' in batch:
            return losses.of_mixture(weighted)(logits_BxK, batch['labels'], batch['label_weights'])
        return weighted(logits_BxK, batch['label'])

    loss_B = over_labels(parts.loss)
    if 'teacher' in batch:
        weight, temperature = parts.distillation
        soft_B = weight * losses.distillation(logits_BxK, batch['teacher'], temperature)
        if parts.class_weights is not None:
            soft_B = soft_B * over_labels(lambda _, label_B: jnp.ones(label_B.shape))
        loss_B = ops.separate((1 - weight) * loss_B) + ops.separate(soft_B)
    return {
        'loss': ordered_sum(loss_B * mask_B),
        'correct': jnp.sum(correct_B * mask_B),
        'count': jnp.sum(mask_B),
    }
