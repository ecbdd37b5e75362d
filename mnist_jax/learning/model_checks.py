"""What the train step must know about a model: refuses one that it would train wrongly."""

import functools
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import InvalidRngError, ModifyScopeVariableError
from jax.extend.core import Jaxpr, jaxprs_in_params

from mnist_jax.errors import UserError, first_line
from mnist_jax.learning import lockstep
from mnist_jax.learning.state import TrainState
from mnist_jax.learning.step import apply_to_chunk

PROBES = 7  # images of the batches that check a model; unlikely to be another size in it
PRODUCTS = ('dot_general', 'conv_general_dilated')  # JAX's primitives of matrix products and convolutions


def check_interface(model: object) -> None:
    """Raises a UserError unless `model` is a Linen module that takes images and a `Training`."""
    if not isinstance(model, nn.Module):
        raise UserError(f'config.model.name must select a Linen module, got a {type(model).__name__}')
    signature = inspect.signature(model.__call__)
    try:
        signature.bind('image', 'training')
    except TypeError:
        raise UserError(
            f'the model must define __call__(self, image, training=None), got {type(model).__name__}{signature}'
        ) from None


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
    if any(lockstep.depends_on_chunk(jaxpr, from_chunk)[1:]):
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


def check_independence(model: nn.Module, state: TrainState, image_shape: tuple[int, ...]) -> None:
    """Computes the logits of two batches that share only their first image.

    Raises:
      UserError: the logits of the first image differ, so a chunk of a batch would have other logits than the batch.
    """
    rng = np.random.default_rng(0)
    # Without this noise, a last layer whose parameters are zero at first would hide the difference.
    params = jax.tree.map(lambda leaf: leaf + 0.05 * rng.normal(size=leaf.shape).astype(leaf.dtype), state.params)
    variables = {'params': params, 'batch_stats': state.batch_stats}
    chunk = {'mask': jnp.ones(PROBES), 'index': jnp.arange(PROBES)}

    @jax.jit
    def first_logits(image_BxHxWxC: jax.Array) -> jax.Array:
        # The sums over the batch are constants here, so that batch normalization does not count.
        trained, _ = apply_to_chunk(
            model, variables, image_BxHxWxC, chunk, jax.random.key(0), lambda tree: jax.tree.map(jnp.ones_like, tree)
        )
        return jnp.stack([trained[0], model.apply(variables, image_BxHxWxC)[0]])

    image_BxHxWxC = rng.random((PROBES, *image_shape), np.float32)
    others_BxHxWxC = np.concatenate([image_BxHxWxC[:1], rng.random((PROBES - 1, *image_shape), np.float32)])
    logits, other_logits = np.asarray(first_logits(image_BxHxWxC)), np.asarray(first_logits(others_BxHxWxC))
    difference = np.abs(logits - other_logits).max()
    if difference > 1e-3 * np.abs(logits).max():
        raise UserError(
            'the model must not mix the examples of a batch, except through nn.BatchNorm or training.batch_sum, but '
            f'the logits of an image change by {difference:.2g} if the other images of its batch change'
        )
