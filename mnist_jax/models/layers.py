"""Layers: Linen modules with the initializers and epsilons of Keras, except where noted.

A layer is a module even if it has no parameters, so that the layer table shows everything that the network does.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from mnist_jax.errors import UserError
from mnist_jax.kernels import attention, depthwise, norms, ops
from mnist_jax.kernels.sums import PyTree, ordered_sum, tree_sum

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
      is_frozen: Returns whether a parameter or a batch statistic, given by its path, does not change.
    """

    mask: jax.Array
    index: jax.Array
    batch_sum: Callable[[PyTree], PyTree]
    is_frozen: Callable[[str], bool] = lambda path: False

    def freezes_statistics(self, module: nn.Module) -> bool:
        """Returns whether the batch statistics of a module are frozen, so that it normalizes as for inference."""
        return self.is_frozen('/'.join((*module.path, 'mean')))


class BatchNorm(nn.Module):
    """Batch normalization over the unpadded examples of the global batch, and an activation.

    As with Keras's `trainable=False`, a layer with frozen statistics normalizes with them in training too.
    """

    momentum: float = 0.99
    epsilon: float = 1e-3
    activation: str = dataclasses.field(kw_only=True)

    @nn.compact
    def __call__(
        self, x: jax.Array, training: Training | None, convolution: 'Conv | DepthwiseConv | None' = None
    ) -> jax.Array:
        """Normalizes x, or the convolution of x, which for inference are one operation if it has no ReLU."""
        if convolution is not None and (training is not None or convolution.relu):
            x, convolution = convolution(x), None
        channels = x.shape[-1] if convolution is None else convolution.outputs(x.shape[-1])
        scale = self.param('scale', nn.initializers.ones, (channels,))
        bias = self.param('bias', nn.initializers.zeros, (channels,))
        moving_mean = self.variable('batch_stats', 'mean', jnp.zeros, (channels,))
        moving_variance = self.variable('batch_stats', 'variance', jnp.ones, (channels,))
        averages = moving_mean.value, moving_variance.value
        if training is None or training.freezes_statistics(self):
            factor, shift = norms.normalize_for_inference(scale, bias, *averages, self.epsilon)
            if convolution is not None:
                return convolution(x, factor, shift, self.activation)
        else:
            sums = _batch_sums(norms.four_axes(x), training)
            factor, shift, mean, variance = norms.normalize(*sums, scale, bias, *averages, self.momentum, self.epsilon)
            if not self.is_initializing():
                moving_mean.value, moving_variance.value = mean, variance
        return norms.scale(x, factor, shift, self.activation)


def batch_statistics(x: jax.Array, training: Training) -> tuple[jax.Array, jax.Array]:
    """Returns mean and variance per channel, the last axis of x, over the unpadded examples of the global batch."""
    total, squares, count = _batch_sums(norms.four_axes(x), training)
    mean = total / count
    return mean, jnp.maximum(squares / count - jnp.square(mean), 0.0)


def _batch_sums(x_BxHxWxC: jax.Array, training: Training) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the sums of x and of its squares over the global batch, per channel, and the number of pixels."""
    pixels = training.mask.sum() * x_BxHxWxC.shape[1] * x_BxHxWxC.shape[2]
    return training.batch_sum((*norms.moments(x_BxHxWxC, training.mask), pixels))


class LayerNorm(nn.Module):
    """Layer normalization (Ba et al. 2016) over the channels, the last axis, and an activation."""

    epsilon: float = 1e-3
    activation: str = dataclasses.field(kw_only=True)

    @nn.compact
    def __call__(self, x: jax.Array, training: Training | None = None) -> jax.Array:
        standardized = norms.standardize(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), self.epsilon).reshape(x.shape)
        return _scale_channels(self, standardized, self.activation)


class GroupNorm(nn.Module):
    """Group normalization (Wu and He 2018) and an activation.

    Attributes:
      groups: The number of groups of channels; if it does not divide the number of channels, their greatest common
        divisor.
      epsilon: Is added to the variance.
      activation: The name of the activation.
    """

    groups: int = 8
    epsilon: float = 1e-3
    activation: str = dataclasses.field(kw_only=True)

    @nn.compact
    def __call__(self, x: jax.Array, training: Training | None = None) -> jax.Array:
        groups = math.gcd(self.groups, x.shape[-1])
        grouped = x.reshape(x.shape[0], math.prod(x.shape[1:-1]), groups, x.shape[-1] // groups).swapaxes(1, 2)
        rows = grouped.reshape(x.shape[0] * groups, math.prod(grouped.shape[2:]))
        standardized = norms.standardize(rows, self.epsilon).reshape(grouped.shape).swapaxes(1, 2).reshape(x.shape)
        return _scale_channels(self, standardized, self.activation)


def _scale_channels(module: nn.Module, x: jax.Array, activation: str) -> jax.Array:
    scale = module.param('scale', nn.initializers.ones, x.shape[-1:])
    bias = module.param('bias', nn.initializers.zeros, x.shape[-1:])
    return norms.scale(x, scale, bias, activation)


class Activation(nn.Module):
    """An activation function."""

    activation: str

    @nn.compact
    def __call__(self, x: jax.Array, training: Training | None = None) -> jax.Array:
        return jax.nn.relu(x) if self.activation == 'relu' else norms.activate(x, self.activation)


ActivationName: TypeAlias = Literal['relu', 'leaky_relu', 'gelu', 'silu', 'tanh']
NormalizationName: TypeAlias = Literal['none', 'batch', 'layer', 'group']
NORMALIZATIONS: dict[str, type[nn.Module]] = {
    'none': Activation,
    'batch': BatchNorm,
    'layer': LayerNorm,
    'group': GroupNorm,
}
"""Normalizations by name, each with an activation."""


def normalized(
    convolution: 'Conv | DepthwiseConv', normalization: nn.Module, x_BxHxWxC: jax.Array, training: Training | None
) -> jax.Array:
    """Returns the normalization of the convolution of x.

    For inference, batch normalization is folded into a convolution without a ReLU, which saves a pass over the output.
    """
    if training is None and isinstance(normalization, BatchNorm):
        return normalization(x_BxHxWxC, training, convolution)
    return normalization(convolution(x_BxHxWxC), training)


class Conv(nn.Module):
    """A convolution with `size` x `size` kernels, plus a bias and, with `relu`, a ReLU."""

    features: int
    size: int
    padding: str
    relu: bool
    stride: int = 1

    @nn.nowrap
    def outputs(self, channels: int) -> int:
        """Returns the number of channels of the output for an input with `channels`."""
        return self.features

    @nn.compact
    def __call__(
        self,
        x_BxHxWxC: jax.Array,
        factor_K: jax.Array | None = None,
        shift_K: jax.Array | None = None,
        activation: str = 'identity',
    ) -> jax.Array:
        """Returns the convolution, or, without `relu`, the activation of its product with `factor_K` plus `shift_K`."""
        if self.relu and factor_K is not None:
            raise UserError('relu must be False if a convolution is called with factor_K, got True')
        shape = (self.size, self.size, x_BxHxWxC.shape[-1], self.features)
        kernel = self.param('kernel', nn.initializers.glorot_uniform(), shape)
        bias = self.param('bias', nn.initializers.zeros, (self.features,))
        if factor_K is not None and shift_K is not None:
            kernel, bias = _scaled(kernel, bias, factor_K, shift_K)
        relu = self.relu or activation == 'relu'
        output = ops.conv(x_BxHxWxC, kernel, bias, self.padding.upper(), relu, self.stride)
        return output if activation in ('identity', 'relu') else norms.activate(output, activation)


def _scaled(
    kernel: jax.Array, bias_K: jax.Array, factor_K: jax.Array, shift_K: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the kernel and the bias of a convolution times `factor_K` plus `shift_K`."""
    scaled_kernel = kernel * factor_K.reshape(*(1,) * (kernel.ndim - 1), -1)
    scaled_bias_K = ops.separate(bias_K * factor_K) + shift_K
    return scaled_kernel.astype(kernel.dtype), scaled_bias_K.astype(bias_K.dtype)


class DepthwiseConv(nn.Module):
    """A convolution of each channel with a `size` x `size` kernel of its own, plus a bias."""

    size: int
    padding: str
    stride: int = 1
    relu: ClassVar[bool] = False

    @nn.nowrap
    def outputs(self, channels: int) -> int:
        """Returns the number of channels of the output for an input with `channels`."""
        return channels

    @nn.compact
    def __call__(
        self,
        x_BxHxWxC: jax.Array,
        factor_C: jax.Array | None = None,
        shift_C: jax.Array | None = None,
        activation: str = 'identity',
    ) -> jax.Array:
        """Returns the convolution, or the activation of its product with `factor_C` plus `shift_C`."""
        channels = x_BxHxWxC.shape[-1]
        # Every output has size x size inputs. Keras's initializer would count those of all channels.
        initializer = nn.initializers.variance_scaling(
            1.0, 'fan_avg', 'uniform', in_axis=(), out_axis=(), batch_axis=(2,)
        )
        kernel = self.param('kernel', initializer, (self.size, self.size, channels))
        bias = self.param('bias', nn.initializers.zeros, (channels,))
        if factor_C is not None and shift_C is not None:
            kernel, bias = _scaled(kernel, bias, factor_C, shift_C)
        relu = activation == 'relu'
        output = depthwise.depthwise_conv(x_BxHxWxC, kernel, bias, self.padding.upper(), self.stride, relu)
        return output if activation in ('identity', 'relu') else norms.activate(output, activation)


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


class MeanPool(nn.Module):
    """Average pooling with stride `window`, without padding."""

    window: int

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        window = self.window
        rows, columns = (size // window * window for size in x_BxHxWxC.shape[1:3])
        offsets = [(i, j) for i in range(window) for j in range(window)]
        total = tree_sum([x_BxHxWxC[:, i:rows:window, j:columns:window] for i, j in offsets])
        return ops.separate(total) / window**2


class GlobalMeanPool(nn.Module):
    """The mean of each channel over all pixels."""

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        pixels = math.prod(x_BxHxWxC.shape[1:-1])
        if not pixels:
            raise ValueError(f'no pixels are left before {"/".join(self.path)}')
        x_BxNxC = x_BxHxWxC.reshape(x_BxHxWxC.shape[0], pixels, x_BxHxWxC.shape[-1])
        total_BxC = ordered_sum(ops.separate(x_BxNxC).swapaxes(0, 1))
        return ops.separate(total_BxC) / pixels


class SqueezeExcitation(nn.Module):
    """Multiplies each channel by a factor from 0 to 1 that follows from the means of all channels (Hu et al. 2018).

    Attributes:
      reduction: The number of channels per unit of its hidden layer.
    """

    reduction: int = 4

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        channels = x_BxHxWxC.shape[-1]
        hidden_BxF = Dense(max(1, channels // self.reduction), relu=True)(GlobalMeanPool()(x_BxHxWxC))
        # The sigmoid of z is (tanh(z / 2) + 1) / 2.
        tanh_BxC = norms.scale(Dense(channels)(hidden_BxF), jnp.full(channels, 0.5), jnp.zeros(channels), 'tanh')
        factor_BxC = 0.5 * (tanh_BxC + 1)
        return ops.separate(ops.separate(x_BxHxWxC) * ops.separate(factor_BxC)[:, None, None, :])


class StochasticDepth(nn.Module):
    """Sets the output of a residual branch to 0 for a random fraction `rate` of the examples (Huang et al. 2016)."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, training: Training | None) -> jax.Array:
        if training is None or self.rate == 0.0 or self.is_initializing():
            return x
        keep_B = example_mask(self.make_rng(SHARED_STREAM), training.index, (1,) * (x.ndim - 1), 1 - self.rate)
        return ops.separate(jnp.where(keep_B, x / (1 - self.rate), 0.0))


class SelfAttention(nn.Module):
    """Multi-head self-attention over the tokens of each example (Vaswani et al. 2017)."""

    heads: int

    @nn.compact
    def __call__(self, x_BxTxF: jax.Array) -> jax.Array:
        features = x_BxTxF.shape[-1]
        queries, keys, values = jnp.split(Dense(3 * features)(x_BxTxF), 3, axis=-1)
        return Dense(features)(AttentionProducts(self.heads)(queries, keys, values))


class AttentionProducts(nn.Module):
    """softmax(queries @ keys^T / sqrt(size)) @ values, for each head, which has `size` of the features."""

    heads: int

    @nn.compact
    def __call__(self, queries_BxTxF: jax.Array, keys_BxTxF: jax.Array, values_BxTxF: jax.Array) -> jax.Array:
        examples, tokens, features = queries_BxTxF.shape
        size = features // self.heads

        def by_head(x_BxTxF: jax.Array) -> jax.Array:
            heads = x_BxTxF.reshape(examples, tokens, self.heads, size).swapaxes(1, 2)
            return heads.reshape(examples * self.heads, tokens, size)

        queries, keys, values = map(by_head, (queries_BxTxF, keys_BxTxF, values_BxTxF))
        scores = attention.matrix_products(queries * size**-0.5, keys.swapaxes(1, 2))
        mixed = attention.matrix_products(attention.softmax(scores), values)
        return mixed.reshape(examples, self.heads, tokens, size).swapaxes(1, 2).reshape(queries_BxTxF.shape)


class Flatten(nn.Module):
    """Reshapes each example to a vector."""

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        return x_BxHxWxC.reshape(x_BxHxWxC.shape[0], math.prod(x_BxHxWxC.shape[1:]))


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
