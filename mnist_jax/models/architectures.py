"""The models: Flax Linen modules from images to logits, with Keras's initialisers.

A layer is a module even where it has no parameters, so that the layer table shows what the network does.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mnist_jax.errors import UserError
from mnist_jax.factory import build
from mnist_jax.kernels import ops

PADDINGS = ('same', 'valid')
MAX_WIDTH = 1_000_000


class Training(NamedTuple):
    """What a model must know of a training batch beside its pixels; None in its place means inference."""

    mask: jax.Array  # float32 B: 0 for padding
    index: jax.Array  # int32 B: which example; dropout depends on it and not on where the example is computed
    batch_sum: Callable[[Any], Any]  # adds a pytree over the whole global batch


class BatchNorm(nn.Module):
    """Batch normalisation over the examples of the global batch, padding left out, and a ReLU.

    Momentum and epsilon are Keras's.
    """

    momentum: float = 0.99
    epsilon: float = 1e-3

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, training: Training | None) -> jax.Array:
        channels = x_BxHxWxC.shape[-1]
        scale = self.param('scale', nn.initializers.ones, (channels,))
        bias = self.param('bias', nn.initializers.zeros, (channels,))
        moving_mean = self.variable('batch_stats', 'mean', jnp.zeros, (channels,))
        moving_variance = self.variable('batch_stats', 'variance', jnp.ones, (channels,))
        if training is None:
            mean, variance = moving_mean.value, moving_variance.value
        else:
            mean, variance = _batch_statistics(x_BxHxWxC, training)
            if not self.is_initializing():
                for moving, now in ((moving_mean, mean), (moving_variance, variance)):
                    moving.value = self.momentum * moving.value + (1 - self.momentum) * now
        factor_C = scale * jax.lax.rsqrt(variance + self.epsilon)
        return ops.scale_relu(x_BxHxWxC, factor_C, bias - mean * factor_C)


def _batch_statistics(x_BxHxWxC: jax.Array, training: Training) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of each channel over the unmasked examples of the global batch, in one sum."""
    pixels = training.mask.sum() * x_BxHxWxC.shape[1] * x_BxHxWxC.shape[2]
    total, squares, count = training.batch_sum((*ops.moments(x_BxHxWxC, training.mask), pixels))
    mean = total / count
    return mean, jnp.maximum(squares / count - jnp.square(mean), 0.0)


class Conv(nn.Module):
    """A convolution over windows of `size` x `size` pixels, its bias and, with `relu`, a ReLU."""

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
    """A dense layer with its bias and, with `relu`, a ReLU."""

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
    """All features of an example in one row."""

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        return x_BxHxWxC.reshape(x_BxHxWxC.shape[0], -1)


class Dropout(nn.Module):
    """Dropout in training: the mask of an example depends on the step, the layer and the example alone."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, training: Training | None) -> jax.Array:
        if training is None or self.rate == 0.0 or self.is_initializing():
            return x
        fold = jax.vmap(lambda index, key: jax.random.key_data(jax.random.fold_in(key, index)), (0, None))
        keep = ops.random_mask(fold(training.index, self.make_rng('dropout')), x.shape[1:], 1 - self.rate)
        return jnp.where(keep, x / (1 - self.rate), 0.0)


class MLP(nn.Module):
    """A multi-layer perceptron with ReLUs.

    Attributes:
      num_classes: the number of logits.
      hidden: the width of each hidden layer.
      dropout: the rate after each hidden layer; () for none.
    """

    num_classes: int
    hidden: Sequence[int] = (512, 512)
    dropout: Sequence[float] = ()

    @nn.compact
    def __call__(self, image_BxHxWxC: jax.Array, training: Training | None = None) -> jax.Array:
        return _dense_layers(self, image_BxHxWxC, training)


class CNN(nn.Module):
    """Stages of convolutions with ReLUs, each ended by a pool and dropout, then dense layers as in `MLP`.

    Attributes:
      num_classes: the number of logits.
      stages: for each stage, the number of features of each of its convolutions.
      kernel: height and width of the kernels, in pixels.
      padding: of convolutions and pools, 'same' or 'valid'.
      pool: window and stride of the pool after each stage, in pixels; 1 for none.
      batch_norm: whether each convolution is batch-normalised before its ReLU.
      stage_dropout: the rate after each stage; () for none.
      hidden: the width of each hidden dense layer.
      dropout: the rate after each hidden dense layer; () for none.
    """

    num_classes: int
    stages: Sequence[Sequence[int]] = ((32,), (64,))
    kernel: int = 3
    padding: str = 'same'
    pool: Sequence[int] = (2, 2)
    batch_norm: bool = False
    stage_dropout: Sequence[float] = ()
    hidden: Sequence[int] = (64, 64)
    dropout: Sequence[float] = ()

    @nn.compact
    def __call__(self, image_BxHxWxC: jax.Array, training: Training | None = None) -> jax.Array:
        x_BxHxWxC = image_BxHxWxC
        for stage, window, rate in zip(self.stages, self.pool, _rates(self.stage_dropout, self.stages), strict=True):
            for features in stage:
                x_BxHxWxC = Conv(features, self.kernel, self.padding, relu=not self.batch_norm)(x_BxHxWxC)
                if self.batch_norm:
                    x_BxHxWxC = BatchNorm()(x_BxHxWxC, training)
            if window > 1:
                x_BxHxWxC = MaxPool(window, self.padding)(x_BxHxWxC)
            if rate:
                x_BxHxWxC = Dropout(rate)(x_BxHxWxC, training)
        return _dense_layers(self, x_BxHxWxC, training)


def _dense_layers(model: MLP | CNN, x_BxHxWxC: jax.Array, training: Training | None) -> jax.Array:
    """Flatten, the hidden layers of `model` with ReLU and dropout, and the layer of its logits."""
    x_BxF = Flatten()(x_BxHxWxC)
    for width, rate in zip(model.hidden, _rates(model.dropout, model.hidden), strict=True):
        x_BxF = Dense(width, relu=True)(x_BxF)
        if rate:
            x_BxF = Dropout(rate)(x_BxF, training)
    return Dense(model.num_classes)(x_BxF)


def _rates(rates: Sequence[float], layers: Sequence) -> Sequence[float]:
    return rates or (0.0,) * len(layers)


MODELS = {'mlp': MLP, 'cnn': CNN}


def make_model(config: Mapping[str, Any], num_classes: int) -> nn.Module:
    """The model that `config` describes: its name in `MODELS`, and the attributes of that class.

    Raises:
      UserError: a name, an attribute or a value that does not make a model.
    """
    model = build('model', MODELS, config, num_classes=num_classes)
    if isinstance(model, MLP | CNN):
        _check_widths('hidden', model.hidden)
        _check_rates('dropout', model.dropout, 'hidden', model.hidden)
    if isinstance(model, CNN):
        for stage in _sequence('stages', model.stages):
            _check_widths('stages', stage)
        _check_rates('stage_dropout', model.stage_dropout, 'stages', model.stages)
        _check_widths('pool', model.pool)
        _check_widths('kernel', (model.kernel,))
        if len(model.pool) != len(model.stages):
            raise UserError(f'model.pool={model.pool} must have one window for each of the {len(model.stages)} stages')
        if model.padding not in PADDINGS:
            raise UserError(f'model.padding={model.padding!r} is unknown; the choices are: {", ".join(PADDINGS)}')
    return model


def _sequence(field: str, values: Any) -> Sequence:
    if not isinstance(values, (tuple, list)):
        raise UserError(f'model.{field} must be a tuple; {values!r} is in its place')
    return values


def _check_widths(field: str, values: Any) -> None:
    for value in _sequence(field, values):
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_WIDTH:
            raise UserError(f'model.{field} must hold whole numbers from 1 to {MAX_WIDTH}; {value!r} is among them')


def _check_rates(field: str, rates: Any, of_field: str, of_layers: Sequence) -> None:
    for rate in _sequence(field, rates):
        if not isinstance(rate, (int, float)) or not 0 <= rate < 1:
            raise UserError(f'model.{field} must hold rates from 0 to below 1; {rate!r} is among them')
    if rates and len(rates) != len(of_layers):
        raise UserError(
            f'model.{field} has {len(rates)} rates for the {len(of_layers)} layers of model.{of_field}; '
            'give one for each, or () for none'
        )
