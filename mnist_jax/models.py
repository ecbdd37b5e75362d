"""The models: Flax Linen modules from images to logits, with Keras's initialisers.

A layer is a module even where it has no parameters, so that the layer table shows what the network does.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mnist_jax import ops
from mnist_jax.errors import UserError, build

PADDINGS = ('same', 'valid')
MOST_WIDTH = 1_000_000


class Training(NamedTuple):
    """What a model must know of a training batch beside its pixels; None in its place means inference."""

    mask: jax.Array  # float32 B: 0 for padding
    index: jax.Array  # int32 B: which example; dropout depends on it and not on where the example is computed
    batch_sum: Callable[[Any], Any]  # adds a pytree over the whole global batch


class BatchNorm(nn.Module):
    """Batch normalisation over the examples of the global batch, padding left out; Keras's momentum and epsilon."""

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
        normalised = x_BxHxWxC * factor_C.reshape(1, 1, 1, -1) + (bias - mean * factor_C).reshape(1, 1, 1, -1)
        return normalised.astype(x_BxHxWxC.dtype)


def _batch_statistics(x_BxHxWxC: jax.Array, training: Training) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of each channel over the unmasked examples of the global batch, in one sum."""
    x_BxHxWxC = x_BxHxWxC.astype(jnp.float32) * training.mask.reshape(-1, 1, 1, 1)
    pixels = training.mask.sum() * x_BxHxWxC.shape[1] * x_BxHxWxC.shape[2]
    sums = (x_BxHxWxC.sum((0, 1, 2)), jnp.square(x_BxHxWxC).sum((0, 1, 2)), pixels)
    total, squares, count = training.batch_sum(sums)
    mean = total / count
    return mean, jnp.maximum(squares / count - jnp.square(mean), 0.0)


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
        return x_BxHxWxC.reshape(len(x_BxHxWxC), -1)


class Dropout(nn.Module):
    """Dropout in training: the mask of an example depends on the step, the layer and the example alone."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, training: Training | None) -> jax.Array:
        if training is None or self.rate == 0.0 or self.is_initializing():
            return x
        keys_B = jax.vmap(lambda index, key: jax.random.fold_in(key, index), (0, None))(
            training.index, self.make_rng('dropout')
        )
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[1:]))(keys_B)
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
                x_BxHxWxC = nn.Conv(
                    features,
                    (self.kernel, self.kernel),
                    padding=self.padding.upper(),
                    kernel_init=nn.initializers.glorot_uniform(),
                    conv_general_dilated=_convolve,
                )(x_BxHxWxC)
                if self.batch_norm:
                    x_BxHxWxC = BatchNorm()(x_BxHxWxC, training)
                x_BxHxWxC = nn.relu(x_BxHxWxC)
            if window > 1:
                x_BxHxWxC = MaxPool(window, self.padding)(x_BxHxWxC)
            if rate:
                x_BxHxWxC = Dropout(rate)(x_BxHxWxC, training)
        return _dense_layers(self, x_BxHxWxC, training)


def _convolve(
    image_BxHxWxC: jax.Array, kernel_hxwxCxK: jax.Array, strides: Sequence[int], padding: str, **_: Any
) -> jax.Array:
    return ops.conv(image_BxHxWxC, kernel_hxwxCxK, padding)


def _dense_layers(model: MLP | CNN, x_BxHxWxC: jax.Array, training: Training | None) -> jax.Array:
    """Flatten, the hidden layers of `model` with ReLU and dropout, and the layer of its logits."""
    glorot_uniform = nn.initializers.glorot_uniform()
    x_BxF = Flatten()(x_BxHxWxC)
    for width, rate in zip(model.hidden, _rates(model.dropout, model.hidden), strict=True):
        x_BxF = nn.relu(nn.Dense(width, kernel_init=glorot_uniform)(x_BxF))
        if rate:
            x_BxF = Dropout(rate)(x_BxF, training)
    return nn.Dense(model.num_classes, kernel_init=glorot_uniform)(x_BxF)


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
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST_WIDTH:
            raise UserError(f'model.{field} must hold whole numbers from 1 to {MOST_WIDTH}; {value!r} is among them')


def _check_rates(field: str, rates: Any, of_field: str, of_layers: Sequence) -> None:
    for rate in _sequence(field, rates):
        if not isinstance(rate, (int, float)) or not 0 <= rate < 1:
            raise UserError(f'model.{field} must hold rates from 0 to below 1; {rate!r} is among them')
    if rates and len(rates) != len(of_layers):
        raise UserError(
            f'model.{field} has {len(rates)} rates for the {len(of_layers)} layers of model.{of_field}; '
            'give one for each, or () for none'
        )
