"""Layers: Linen modules with the initializers and defaults of Keras.

A layer is a module even if it has no parameters, so that the layer table shows everything that the network does.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mnist_jax.kernels import ops
from mnist_jax.kernels.sums import PyTree

SHARED_STREAM = 'shared'
"""The random stream whose keys are the same for all chunks of a batch; those of other streams differ by chunk."""


@dataclasses.dataclass(frozen=True)
class Training:
    """What a model knows about a training batch besides its images; a model is called with None for inference.

    Attributes:
      mask: float32 B; 0 for padding, else 1.
      index: int32 B; the index of each example in the training split. Dropout depends on it instead of on
        the device that computes the example.
      batch_sum: Sums a pytree over the whole global batch.
    """

    mask: jax.Array
    index: jax.Array
    batch_sum: Callable[[PyTree], PyTree]


class BatchNorm(nn.Module):
    """Batch normalization over the unpadded examples of the global batch and, with `relu`, a ReLU."""

    momentum: float = 0.99
    epsilon: float = 1e-3
    relu: bool = dataclasses.field(kw_only=True)

    @nn.compact
    def __call__(self, x: jax.Array, training: Training | None) -> jax.Array:
        x_BxHxWxC = _four_axes(x)
        channels = x.shape[-1]
        scale = self.param('scale', nn.initializers.ones, (channels,))
        bias = self.param('bias', nn.initializers.zeros, (channels,))
        moving_mean = self.variable('batch_stats', 'mean', jnp.zeros, (channels,))
        moving_variance = self.variable('batch_stats', 'variance', jnp.ones, (channels,))
        averages = moving_mean.value, moving_variance.value
        if training is None:
            factor, shift = ops.normalize_for_inference(scale, bias, *averages, self.epsilon)
        else:
            sums = _batch_sums(x_BxHxWxC, training)
            factor, shift, mean, variance = ops.normalize(*sums, scale, bias, *averages, self.momentum, self.epsilon)
            if not self.is_initializing():
                moving_mean.value, moving_variance.value = mean, variance
        return (ops.scale_relu if self.relu else ops.scale)(x_BxHxWxC, factor, shift).reshape(x.shape)


def batch_statistics(x: jax.Array, training: Training) -> tuple[jax.Array, jax.Array]:
    """Returns mean and variance per channel, the last axis of x, over the unpadded examples of the global batch."""
    total, squares, count = _batch_sums(_four_axes(x), training)
    mean = total / count
    return mean, jnp.maximum(squares / count - jnp.square(mean), 0.0)


def _batch_sums(x_BxHxWxC: jax.Array, training: Training) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the sums of x and of its squares over the global batch, per channel, and the number of pixels."""
    pixels = training.mask.sum() * x_BxHxWxC.shape[1] * x_BxHxWxC.shape[2]
    return training.batch_sum((*ops.moments(x_BxHxWxC, training.mask), pixels))


def _four_axes(x: jax.Array) -> jax.Array:
    return x if x.ndim == 4 else x.reshape(len(x), -1, 1, x.shape[-1])


class Conv(nn.Module):
    """A convolution with stride 1 and `size` x `size` kernels, plus a bias and, with `relu`, a ReLU."""

    features: int
    size: int
    padding: str
    relu: bool

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x_BxHxWxC.shape[-1], self.features)
        kernel = self.param('kernel', nn.initializers.glorot_uniform(), shape)
        bias = self.param('bias', nn.initializers.zeros, (self.features,))
        return ops.conv(x_BxHxWxC, kernel, bias, self.padding.upper(), self.relu)


class Dense(nn.Module):
    """A dense layer with a bias and, with `relu`, a ReLU."""

    features: int
    relu: bool = False

    @nn.compact
    def __call__(self, x_BxF: jax.Array) -> jax.Array:
        kernel = self.param('kernel', nn.initializers.glorot_uniform(), (x_BxF.shape[-1], self.features))
        bias = self.param('bias', nn.initializers.zeros, (self.features,))
        return ops.dense(x_BxF, kernel, bias, self.relu)


class MaxPool(nn.Module):
    """Max pooling with stride `window`."""

    window: int
    padding: str

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        return ops.max_pool(x_BxHxWxC, self.window, self.padding.upper())


class Flatten(nn.Module):
    """Reshapes each example to a vector."""

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        return x_BxHxWxC.reshape(x_BxHxWxC.shape[0], -1)


class Dropout(nn.Module):
    """Dropout whose mask for an example depends only on the seed, the step, the layer and the example's index."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, training: Training | None) -> jax.Array:
        if training is None or self.rate == 0.0 or self.is_initializing():
            return x
        keep = example_mask(self.make_rng(SHARED_STREAM), training.index, x.shape[1:], 1 - self.rate)
        return jnp.where(keep, x / (1 - self.rate), 0.0)


def example_mask(key: jax.Array, index_B: jax.Array, shape: tuple[int, ...], probability: float) -> jax.Array:
    """Returns a Bx`shape` mask that is True with this probability and depends on the key and the example's index."""
    keys_Bx2 = jax.vmap(lambda index: jax.random.key_data(jax.random.fold_in(key, index)))(index_B)
    return ops.random_mask(keys_Bx2, shape, probability)
