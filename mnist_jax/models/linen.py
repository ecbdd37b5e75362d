"""Makes Linen's own layers correct in a train step that computes a batch in chunks.

The train step applies a model to one chunk of the global batch at a time. There, Linen's `nn.BatchNorm` would normalize
over the chunk, including its padding, and `nn.Dropout` would draw the same mask for every chunk. In the context
`in_chunks`, calls of these layers are replaced. Layers that mix the examples of a batch in other ways are refused.
"""

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import canonicalize_dtype

from mnist_jax.errors import UserError
from mnist_jax.kernels.sums import PyTree
from mnist_jax.models.layers import SHARED_STREAM, Training, batch_statistics, example_mask

NORMALIZATIONS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm)
COLLECTIONS = ('params', 'batch_stats', 'perturbations')  # Perturbations need no update: they are only differentiated.


def in_chunks(training: Training) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which a model is applied to a chunk of a training batch."""

    def intercept(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        # A subclass has a `__call__` of its own, which usually calls that of the layer.
        method = inspect.unwrap(getattr(context.orig_method, 'func', context.orig_method))
        if method in REPLACEMENTS and not context.module.is_initializing():
            return REPLACEMENTS[method](context.module, call, training, *args, **kwargs)
        return call(*args, **kwargs)

    return nn.intercept_methods(intercept)


def check_collections(variables: PyTree) -> None:
    """Raises a UserError if a model has variables that no step updates, such as the 'cache' of attention."""
    unknown = sorted(set(variables) - set(COLLECTIONS))
    if unknown:
        raise UserError(
            f"the model must keep its variables in the collections 'params' and 'batch_stats', got {unknown[0]!r}, "
            'which the train step would not update'
        )


def _batch_norm(
    module: nn.BatchNorm,
    call: Callable,
    training: Training,
    x: jax.Array,
    use_running_average: bool | None = None,
    *,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Normalizes like `nn.BatchNorm`, with the statistics of the unpadded examples of the global batch.

    A layer with frozen statistics normalizes with these.
    """
    if nn.merge_param('use_running_average', module.use_running_average, use_running_average):
        return call(x, use_running_average)
    if x.shape[:1] != training.index.shape:
        raise _refusal(module, f'must be applied to an array of examples on the first axis, got {x.shape}')
    axes = [int(axis) % x.ndim for axis in np.atleast_1d(module.axis)]
    if mask is not None or 0 in axes:
        got = f'axis={module.axis}' if 0 in axes else 'a mask'
        raise _refusal(module, f'must have a feature axis after that of the examples, and no mask, got {got}')
    last_axes = range(x.ndim - len(axes), x.ndim)
    features_last = jnp.moveaxis(x, axes, last_axes)
    features = features_last.shape[last_axes.start :]
    x_BxNxF = features_last.reshape(x.shape[0], -1, int(np.prod(features)))
    averages: dict[str, jax.Array] = {name: module.get_variable('batch_stats', name) for name in ('mean', 'var')}
    is_frozen = training.freezes_statistics(module)
    if is_frozen:
        mean_F, variance_F = averages['mean'].reshape(-1), averages['var'].reshape(-1)
    else:
        mean_F, variance_F = batch_statistics(x_BxNxF, training)
    centered_BxNxF = x_BxNxF - mean_F.reshape(1, 1, -1)
    if not module.use_fast_variance and not is_frozen:
        _, variance_F = batch_statistics(centered_BxNxF, training)
    if not is_frozen:
        for name, value in (('mean', mean_F), ('var', variance_F)):
            average = module.momentum * averages[name] + (1 - module.momentum) * value.reshape(features)
            module.put_variable('batch_stats', name, average)
    scale: jax.Array | None = module.get_variable('params', 'scale')
    bias: jax.Array | None = module.get_variable('params', 'bias')
    factor_F = jax.lax.rsqrt(variance_F + module.epsilon)
    if scale is not None:
        factor_F = factor_F * scale.reshape(-1)
    normalized = centered_BxNxF * factor_F.reshape(1, 1, -1)
    if bias is not None:
        normalized = normalized + bias.reshape(1, 1, -1)
    normalized = jnp.moveaxis(normalized.reshape(features_last.shape), last_axes, axes)
    return normalized.astype(canonicalize_dtype(x, scale, bias, dtype=module.dtype))


def _dropout(
    module: nn.Dropout,
    call: Callable,
    training: Training,
    inputs: jax.Array,
    deterministic: bool | None = None,
    rng: jax.Array | None = None,
) -> jax.Array:
    """Drops like `nn.Dropout`, with a mask for each example."""
    if nn.merge_param('deterministic', module.deterministic, deterministic) or module.rate in (0.0, 1.0):
        return call(inputs, deterministic)
    if rng is None:  # A lifted transformation such as `nn.scan` passes on only the streams that it names.
        rng = module.make_rng(SHARED_STREAM if module.has_rng(SHARED_STREAM) else module.rng_collection)
    shared_axes = [axis % inputs.ndim for axis in module.broadcast_dims]
    if inputs.shape[:1] != training.index.shape:
        if inputs.shape[0] != 1:
            raise _refusal(module, f'must be applied to an array of examples on the first axis, got {inputs.shape}')
        shared_axes.append(0)  # an array that all examples share, such as position embeddings
    if 0 in shared_axes:
        return call(inputs, deterministic, rng)
    shape = [1 if axis in shared_axes else size for axis, size in enumerate(inputs.shape)]
    keep = example_mask(rng, training.index, tuple(shape[1:]), 1 - module.rate)
    return jnp.where(keep, inputs / (1 - module.rate), jnp.zeros_like(inputs))


def _attention(
    module: nn.MultiHeadDotProductAttention, call: Callable, training: Training, *args: Any, **kwargs: Any
) -> jax.Array:
    """Drops the same attention weights for all examples of the global batch, as `broadcast_dropout` says."""
    if module.dropout_rate and not nn.merge_param('deterministic', module.deterministic, kwargs.get('deterministic')):
        if not module.broadcast_dropout:
            raise _refusal(module, 'must have broadcast_dropout=True if it has dropout, got False')
        if kwargs.get('dropout_rng') is None:  # `nn.SelfAttention` passes it on even if it is None.
            kwargs = {**kwargs, 'dropout_rng': module.make_rng(SHARED_STREAM)}
    return call(*args, **kwargs)


def _normalization(module: nn.Module, call: Callable, training: Training, x: jax.Array, **kwargs: Any) -> jax.Array:
    axes = getattr(module, 'reduction_axes', None)
    # A vector has no axis of examples: it is a parameter, or `nn.vmap` has taken the axis away.
    if axes is not None and x.ndim > 1 and 0 in (int(axis) % x.ndim for axis in np.atleast_1d(axes)):
        raise _refusal(module, f'must not have the axis of the examples among its reduction axes, got {axes}')
    return call(x, **kwargs)


LAYERS: dict[type[nn.Module], Callable] = {
    nn.BatchNorm: _batch_norm,
    nn.Dropout: _dropout,
    nn.MultiHeadDotProductAttention: _attention,
    **dict.fromkeys(NORMALIZATIONS, _normalization),
}
REPLACEMENTS = {inspect.unwrap(layer.__call__): replacement for layer, replacement in LAYERS.items()}


def _refusal(module: nn.Module, problem: str) -> UserError:
    return UserError(f'nn.{type(module).__name__} ({"/".join(module.path)}) {problem}')
