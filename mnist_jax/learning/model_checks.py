"""What the train step must know about a model and an optimizer: refuses those that it would train wrongly."""

import functools
import inspect
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import InvalidRngError, ModifyScopeVariableError
from jax.extend.core import Jaxpr, jaxprs_in_params

from mnist_jax.errors import UserError, first_line
from mnist_jax.kernels.sums import PyTree
from mnist_jax.learning import lockstep
from mnist_jax.learning.augmentation import Augment, Batch
from mnist_jax.learning.losses import Loss
from mnist_jax.learning.optimizers import Optimizer
from mnist_jax.learning.state import TrainState
from mnist_jax.learning.step import apply_to_chunk

PROBED_EPOCHS = 8
PROBES = 7  # images of the batches that check a model; unlikely to be another size in it
TOLERANCE, SMALLEST = 1e-3, 1e-6  # relative differences between logits that are equal except for rounding
ROUNDING_FACTOR = 100.0  # by which a difference may exceed that of another rounding
PRODUCTS = ('dot_general', 'conv_general_dilated')  # JAX's primitives of matrix products and convolutions


def check_interface(model: object) -> None:
    """Raises a UserError unless `model` is a Linen module that takes images and a `Training`."""
    if not isinstance(model, nn.Module):
        raise UserError(f'config.model.name must select a Linen module, got a {type(model).__name__}')
    signature = inspect.signature(model.__call__)
    named = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_POSITIONAL]
    try:
        signature.bind('image', 'training')
        # In training, the second argument is a `Training`, which is true; in inference, it has its default. So an
        # argument `deterministic=True` would never be false.
        is_valid = len(named) < 2 or not (named[1].default is named[1].empty or named[1].default)
    except TypeError:
        is_valid = False
    if not is_valid:
        raise UserError(
            f'the model must define __call__(self, image, training=None), got {type(model).__name__}{signature}'
        )


def check_model(model: nn.Module, state: TrainState, image_shape: tuple[int, ...], num_classes: int) -> bool:
    """Traces the model on a chunk of a few images, without computing anything; of `state`, only the shapes are used.

    Returns:
      Whether the model needs sums over the whole batch, such as those of batch normalization.

    Raises:
      UserError: the model does not return logits Bx`num_classes`, or would be wrong on a chunk of a batch.
    """
    image_BxHxWxC = jax.ShapeDtypeStruct((PROBES, *image_shape), jnp.float32)
    mask_B, index_B = jax.ShapeDtypeStruct((PROBES,), jnp.float32), jax.ShapeDtypeStruct((PROBES,), jnp.int32)
    key = jax.eval_shape(jax.random.key, 0)
    variables = {'params': state.params, 'batch_stats': state.batch_stats}
    arguments = (variables, image_BxHxWxC, {'mask': mask_B, 'index': index_B}, key)
    apply = functools.partial(apply_to_chunk, model)
    jaxpr, (logits, _) = jax.make_jaxpr(apply, return_shape=True)(*arguments)
    if getattr(logits, 'shape', None) != (shape := (PROBES, num_classes)):
        raise UserError(f'the model must return logits of shape {shape} for {PROBES} images, got {logits}')
    of_chunk = zip(arguments, (False, True, True, False), strict=True)
    from_chunk = [own for tree, own in of_chunk for _ in jax.tree.leaves(tree)]
    if any(lockstep.depends_on(jaxpr, from_chunk)[1:]):
        raise UserError(
            'the batch_stats of the model must be computed from sums over the whole batch, by nn.BatchNorm or '
            'training.batch_sum, got values computed from a chunk of it'
        )
    return lockstep.contains_sum(jaxpr)


def has_products(model: nn.Module, state: TrainState, image_shape: tuple[int, ...]) -> bool:
    """Traces the model for inference; returns whether it has matrix products or convolutions not from `kernels.ops`.

    Raises:
      UserError: the model is not a function of the image alone.
    """
    variables = {'params': state.params, 'batch_stats': state.batch_stats}
    image_BxHxWxC = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    try:
        jaxpr = jax.make_jaxpr(model.apply)(variables, image_BxHxWxC)
    except (ModifyScopeVariableError, InvalidRngError) as error:
        raise UserError(
            'the model must not update its variables or draw random numbers if training is None (pass '
            f'use_running_average=training is None and deterministic=training is None), got: {first_line(error)}'
        ) from None
    return _contains_products(jaxpr.jaxpr)


def _contains_products(jaxpr: Jaxpr) -> bool:
    return any(
        equation.primitive.name in PRODUCTS or any(map(_contains_products, jaxprs_in_params(equation.params)))
        for equation in jaxpr.eqns
    )


def check_optimizer(optimizer: Optimizer, state: TrainState, accumulate: int = 1) -> None:
    """Checks that the updates of an optimizer depend on the learning rate, and go against the gradient.

    Args:
      optimizer: The optimizer.
      state: A state; only the shapes are used.
      accumulate: The number of gradients after which it makes an update. The updates of frozen parameters are 0.

    Raises:
      UserError: they do not.
    """
    arguments = (state.params, state.opt_state, state.params, jax.ShapeDtypeStruct((), jnp.float32))

    def update(grads: PyTree, opt_state: PyTree, params: PyTree, learning_rate: jax.Array) -> PyTree:
        return optimizer.update(grads, opt_state, params, learning_rate=learning_rate)

    jaxpr = jax.make_jaxpr(lambda *arguments: update(*arguments)[0])(*arguments)
    inputs = [False] * (len(jaxpr.in_avals) - 1) + [True]
    if not any(lockstep.depends_on(jaxpr, inputs)):
        raise UserError(
            'the updates of the optimizer must depend on the keyword argument learning_rate of its update, which is '
            'what config.optimizer.learning_rate and the schedule set; mnist_jax.learning.optimizers.from_optax adds '
            'it to a transformation of optax without a learning rate, such as optax.scale_by_adam()'
        )
    zeros, ones = (
        jax.tree.map(lambda leaf, value=value: jnp.full(leaf.shape, value), state.params) for value in (0.0, 1.0)
    )
    compiled, opt_state = jax.jit(update), optimizer.init(zeros)
    for _ in range(accumulate):
        first, opt_state = compiled(ones, opt_state, zeros, jnp.float32(1))
    signs = np.concatenate([np.sign(leaf).ravel() for leaf in jax.tree.leaves(first)])
    if signs.max(initial=0) > 0 <= signs.min(initial=0):
        raise UserError(
            'the updates of the optimizer must go against the gradient, got updates along it; a transformation of '
            'optax with a learning rate, such as optax.adam(1e-3), has the opposite sign already'
        )


def check_independence(model: nn.Module, state: TrainState, image_shape: tuple[int, ...]) -> None:
    """Computes the logits of an image, in the middle of its chunk, with different other images in it.

    Raises:
      UserError: the logits of the image differ, so they would depend on how a batch is divided into chunks; or they
        depend on padding, or are probabilities.
    """
    rng = np.random.default_rng(0)
    # Without this noise, a last layer whose parameters are zero at first would hide the difference.
    params = jax.tree.map(lambda leaf: leaf + 0.05 * rng.normal(size=leaf.shape).astype(leaf.dtype), state.params)
    variables = {'params': params, 'batch_stats': state.batch_stats}
    images = rng.random((2 * PROBES + 1, *image_shape), np.float32)

    def logits_of_chunk(image_BxHxWxC: jax.Array, index_B: jax.Array, mask_B: jax.Array) -> jax.Array:
        chunk = {'mask': mask_B, 'index': index_B}
        return apply_to_chunk(model, variables, image_BxHxWxC, chunk, jax.random.key(0))[0]

    @jax.jit
    def logits_of_first_chunk(
        index_2xB: jax.Array, mask_2xB: jax.Array, first: jax.Array | int = 0
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the logits BxK in training and, with the image `first` at the start of the chunk, in inference."""
        chunks = [
            (jnp.asarray(images)[index_B], index_B, mask_B) for index_B, mask_B in zip(index_2xB, mask_2xB, strict=True)
        ]
        trained = lockstep.run_in_lockstep(logits_of_chunk, chunks, lambda tree: tree)[0]
        return trained, jnp.asarray(model.apply(variables, chunks[0][0].at[0].set(jnp.asarray(images)[first])))

    # Each order has the same sums over the batch except for rounding, so that batch normalization does not count. In
    # training, the first image of a chunk stays: the random numbers of the chunk depend on its index.
    own = PROBES // 2
    index_2xB = np.arange(2 * PROBES).reshape(2, PROBES)
    exchanged_2xB = index_2xB[::-1].copy()
    exchanged_2xB[:, [0, own]] = index_2xB[:, [0, own]]
    reordered_2xB = index_2xB.copy()  # This order changes only the rounding, which a deep model amplifies.
    reordered_2xB[1, 1:] = index_2xB[1, :0:-1]
    repadded_2xB = index_2xB.copy()
    repadded_2xB[1, -1] = 2 * PROBES
    full_2xB, padded_2xB = np.ones((2, 2, PROBES), np.float32)
    padded_2xB[1, -1] = 0
    batches = (
        (index_2xB, full_2xB),
        (reordered_2xB, full_2xB),
        (exchanged_2xB, full_2xB, PROBES),
        (index_2xB, padded_2xB),
        (repadded_2xB, padded_2xB),
    )
    results = (logits_of_first_chunk(*batch) for batch in batches)
    for logits in zip(*results, strict=True):
        own_BxK, reordered_BxK, exchanged_BxK, padded_BxK, repadded_BxK = map(np.asarray, logits)
        if own_BxK.shape[1] > 1 and (own_BxK >= 0).all() and np.allclose(own_BxK.sum(1), 1, atol=1e-4):
            raise UserError('the model must return logits, of which the loss takes the softmax, got probabilities')
        tolerance = max(
            TOLERANCE * _largest(own_BxK - own_BxK[:1]),  # relative to the differences between the images
            SMALLEST * _largest(own_BxK[own]),
            ROUNDING_FACTOR * _largest(own_BxK[own] - reordered_BxK[own]),
        )
        mixed = _largest_change(own_BxK[own], exchanged_BxK[own])
        if not mixed <= tolerance:
            raise UserError(
                'the model must not mix the examples of a batch, except through nn.BatchNorm or training.batch_sum, '
                f'but the logits of an image change by {mixed:.2g} if the other images of its chunk change'
            )
        padded = _largest_change(padded_BxK[own], repadded_BxK[own])
        if not padded <= tolerance:
            raise UserError(
                'the model must not count padding rows, whose training.mask is 0, but the logits of an image change by '
                f'{padded:.2g} if the images of these rows change'
            )


def check_loss(loss: Loss, num_classes: int) -> None:
    """Computes the loss of an example in two batches, at different positions, and alone.

    Raises:
      UserError: it differs, so the loss would depend on how a batch is divided into chunks.
    """
    rng = np.random.default_rng(0)
    logits_BxK, others_BxK = rng.normal(size=(2, PROBES, num_classes)).astype(np.float32)
    others_BxK[-1] = logits_BxK[0]
    label_B = (np.arange(PROBES) % num_classes).astype(np.int32)
    batches = ((logits_BxK, label_B), (others_BxK, np.zeros_like(label_B)))
    loss_B, others_B = (np.asarray(jax.jit(loss)(*batch)) for batch in batches)
    alone_1 = np.asarray(jax.jit(loss)(logits_BxK[:1], label_B[:1]))
    difference = _largest_change(loss_B[0], np.array([others_B[-1], alone_1[0]]))
    if not difference <= max(TOLERANCE * _largest(loss_B - loss_B[0]), 10 * SMALLEST * _largest(loss_B)):
        raise UserError(
            'the loss of an example must not depend on the other examples of a batch, got one that changes by '
            f'{difference:.2g} with them'
        )


def check_augmentation(augment: Augment, image_shape: tuple[int, ...]) -> bool:
    """Computes what augmentation makes of an image in two chunks whose other images differ.

    Args:
      augment: A step that is applied to every image.
      image_shape: The shape of an image.

    Returns:
      Whether it mixes the images of a chunk, as mixup does; then the partner of the image is the same in both chunks.
      Otherwise, the image has different positions in them.

    Raises:
      UserError: the images differ, or have another shape.
    """
    images = np.random.default_rng(0).integers(0, 256, (2 * PROBES, *image_shape)).astype(np.float32)

    @jax.jit
    def augmented(order_B: jax.Array, epoch: int) -> Batch:
        chunk = {'image': jnp.asarray(images)[order_B], 'label': jnp.zeros(PROBES, jnp.int32)}
        chunk |= {'mask': jnp.ones(PROBES), 'index': order_B}
        return augment(chunk, jax.random.key(0), jnp.int32(epoch))

    order_B = np.arange(PROBES)
    shapes = jax.eval_shape(augmented, order_B, 0)
    if shapes['image'].shape != (PROBES, *image_shape):
        raise UserError(
            f'an augmentation must keep the shape of its images, {(PROBES, *image_shape)}, got {shapes["image"].shape}'
        )
    mixes = 'labels' in shapes
    compared = {'image': _largest(images)} | ({'label_weights': 1.0} if mixes else {})
    difference = 0.0
    # A step may change only some images at random, differently in each epoch.
    for epoch, own in itertools.product(range(PROBED_EPOCHS), (0, PROBES // 2, PROBES - 1)):
        others_B = order_B + PROBES
        position = own if mixes else -1 - own
        others_B[position] = own
        if mixes:
            others_B[-1 - own] = order_B[-1 - own]
        first, second = (augmented(order, epoch) for order in (order_B, others_B))
        for name, largest in compared.items():
            change = _largest_change(np.asarray(first[name])[own], np.asarray(second[name])[position])
            difference = np.fmax(difference, change / largest)
    if not difference <= TOLERANCE and mixes:
        raise UserError(
            'an augmentation that returns Mixed must mix each image only with the one at the mirrored position, '
            f'image[::-1], got one that changes by {difference:.2g} of its largest value with the other images'
        )
    if not difference <= TOLERANCE:
        raise UserError(
            'an augmentation must not mix the images of a chunk, except by returning Mixed, got one in which an image '
            f'changes by {difference:.2g} of its largest value with the others'
        )
    return mixes


def _largest_change(values: np.ndarray, others: np.ndarray) -> float:
    """Returns the largest absolute difference; infinity or NaN if only one of two values is finite."""
    return float(np.abs(np.where(np.isfinite(values) | np.isfinite(others), others - values, 0)).max())


def _largest(values: np.ndarray) -> float:
    """Returns the largest absolute value of those that are finite."""
    return float(np.abs(np.nan_to_num(values, posinf=0.0, neginf=0.0)).max())
