"""The parts of batch, layer and group normalization, and activations; see `ops.py` for kernels and plain forms.

Shapes: B examples, H x W pixels, C channels.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mnist_jax.kernels.primitive import Operation

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'identity': lambda x: x,
    'relu': jax.nn.relu,
    'leaky_relu': lambda x: jnp.where(x > 0, x, 0.01 * x),  # jax.nn.leaky_relu has another slope at 0.
    'gelu': jax.nn.gelu,
    'silu': jax.nn.silu,
    'tanh': jnp.tanh,
}
"""Activation functions by name. `gelu` is the approximation by tanh, and `leaky_relu` has the slope 0.01 below 0."""


def moments(x_BxHxWxC: jax.Array, mask_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the sums of x and of its squares per channel, over the examples whose mask is 1, not 0."""
    return _moments(x_BxHxWxC, jnp.broadcast_to(mask_B, x_BxHxWxC.shape[:1]).astype(jnp.float32))


def plain_moments(x_BxHxWxC: jax.Array, mask_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Specifies `moments`."""
    x_BxHxWxC = x_BxHxWxC.astype(jnp.promote_types(x_BxHxWxC.dtype, jnp.float32)) * mask_B.reshape(-1, 1, 1, 1)
    return x_BxHxWxC.sum((0, 1, 2)), jnp.square(x_BxHxWxC).sum((0, 1, 2))


def _plain_moments_gradient(
    x_BxHxWxC: jax.Array, mask_B: jax.Array, sum_gradient_C: jax.Array, squares_gradient_C: jax.Array
) -> jax.Array:
    sum_gradient, squares_gradient = (array.reshape(1, 1, 1, -1) for array in (sum_gradient_C, squares_gradient_C))
    return (sum_gradient + 2 * squares_gradient * x_BxHxWxC) * mask_B.reshape(-1, 1, 1, 1)


_moments_gradient = Operation('moments_gradient', _plain_moments_gradient, by_example=(0, 1))


def _moments_gradients(x: jax.Array, mask: jax.Array, *outputs_and_gradients: jax.Array) -> tuple[jax.Array, ...]:
    gradients = outputs_and_gradients[2:]
    mask_gradient = jax.vjp(functools.partial(plain_moments, x), mask)[1](gradients)[0]
    return _moments_gradient(x, mask, *gradients).astype(x.dtype), mask_gradient


_moments = Operation('moments', plain_moments, _moments_gradients)


def normalize(
    sum_C: jax.Array,
    squares_C: jax.Array,
    count: jax.Array,
    scale_C: jax.Array,
    bias_C: jax.Array,
    moving_mean_C: jax.Array,
    moving_variance_C: jax.Array,
    momentum: jax.typing.ArrayLike,
    epsilon: jax.typing.ArrayLike,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns what batch normalization computes per channel from the moments of a batch.

    This is an operation of its own because XLA may round a * b + c once or twice, depending on the rest of the program.

    Args:
      sum_C: The sum over the pixels of the batch, and so on per channel.
      squares_C: The sum of the squares.
      count: The number of pixels.
      scale_C: A parameter: the standard deviation after the normalization.
      bias_C: A parameter: the mean after the normalization.
      moving_mean_C: The moving average of the mean.
      moving_variance_C: The moving average of the variance.
      momentum: The weight of the old value in the new moving averages.
      epsilon: Is added to the variance.

    Returns:
      factor and shift, such that x * factor + shift is normalized; and the new moving averages.
    """
    scalars = (jnp.asarray(value, jnp.float32) for value in (momentum, epsilon))
    return _normalize(sum_C, squares_C, count, scale_C, bias_C, moving_mean_C, moving_variance_C, *scalars)


def plain_normalize(
    sum_C: jax.Array,
    squares_C: jax.Array,
    count: jax.Array,
    scale_C: jax.Array,
    bias_C: jax.Array,
    moving_mean_C: jax.Array,
    moving_variance_C: jax.Array,
    momentum: jax.Array,
    epsilon: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Specifies `normalize`."""
    mean_C = sum_C / count
    variance_C = jnp.maximum(squares_C / count - jnp.square(mean_C), 0.0)
    new_mean_C, new_variance_C = (
        momentum * moving_C + (1 - momentum) * current_C
        for moving_C, current_C in ((moving_mean_C, mean_C), (moving_variance_C, variance_C))
    )
    return *plain_normalize_for_inference(scale_C, bias_C, mean_C, variance_C, epsilon), new_mean_C, new_variance_C


def _plain_normalize_gradient(*arguments_and_gradients: jax.Array) -> tuple[jax.Array, ...]:
    arguments, gradients = arguments_and_gradients[:9], arguments_and_gradients[9:]
    sum_C, squares_C, _, scale_C, bias_C, *_ = jax.vjp(plain_normalize, *arguments)[1](gradients)
    return sum_C, squares_C, scale_C, bias_C


_normalize_gradient = Operation('normalize_gradient', _plain_normalize_gradient)


def _normalize_gradients(*values: jax.Array) -> tuple[jax.Array, ...]:
    arguments, gradients = values[:9], values[13:]
    _, _, count, _, _, *others = jax.vjp(plain_normalize, *arguments)[1](gradients)
    sum_C, squares_C, scale_C, bias_C = _normalize_gradient(*arguments, *gradients)
    return sum_C, squares_C, count, scale_C, bias_C, *others


_normalize = Operation('normalize', plain_normalize, _normalize_gradients)


def normalize_for_inference(
    scale_C: jax.Array,
    bias_C: jax.Array,
    moving_mean_C: jax.Array,
    moving_variance_C: jax.Array,
    epsilon: jax.typing.ArrayLike,
) -> tuple[jax.Array, jax.Array]:
    """Returns factor and shift as `normalize` does, from the moving averages."""
    return _normalize_for_inference(
        scale_C, bias_C, moving_mean_C, moving_variance_C, jnp.asarray(epsilon, jnp.float32)
    )


def plain_normalize_for_inference(
    scale_C: jax.Array, bias_C: jax.Array, mean_C: jax.Array, variance_C: jax.Array, epsilon: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Specifies `normalize_for_inference`."""
    factor_C = scale_C * jax.lax.rsqrt(variance_C + epsilon)
    return factor_C, bias_C - mean_C * factor_C


_normalize_for_inference = Operation('normalize_for_inference', plain_normalize_for_inference)


def four_axes(x: jax.Array) -> jax.Array:
    """Returns x as BxHxWxC; all axes between the first and the last one become the height."""
    return x if x.ndim == 4 else x.reshape(x.shape[0], math.prod(x.shape[1:-1]), 1, x.shape[-1])


def scale(x: jax.Array, factor_C: jax.Array, shift_C: jax.Array, activation: str) -> jax.Array:
    """Returns the activation of x * factor + shift, with one factor and one shift per channel, the last axis of x."""
    x_BxHxWxC = four_axes(x)
    factor_C, shift_C = (jnp.broadcast_to(array, x.shape[-1:]).astype(jnp.float32) for array in (factor_C, shift_C))
    return _scale(activation)(x_BxHxWxC, factor_C, shift_C).reshape(x.shape)


def activate(x: jax.Array, activation: str) -> jax.Array:
    """Returns the activation of x."""
    return scale(x, jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1]), activation)


def plain_scale(activation: str, x_BxHxWxC: jax.Array, factor_C: jax.Array, shift_C: jax.Array) -> jax.Array:
    """Specifies `scale`."""
    scaled = x_BxHxWxC * factor_C.reshape(1, 1, 1, -1) + shift_C.reshape(1, 1, 1, -1)
    return ACTIVATIONS[activation](scaled).astype(x_BxHxWxC.dtype)


@functools.cache
def _scale(activation: str) -> Operation:
    plain = functools.partial(plain_scale, activation)

    def plain_gradients(x: jax.Array, factor: jax.Array, shift: jax.Array, gradient: jax.Array) -> tuple:
        return jax.vjp(plain, x, factor, shift)[1](gradient)

    gradients = Operation(f'scale_{activation}_gradient', plain_gradients)
    return Operation(
        f'scale_{activation}',
        plain,
        lambda x, factor, shift, output, gradient: gradients(x, factor, shift, gradient),
        by_example=(0,),
    )


def standardize(x_RxN: jax.Array, epsilon: float) -> jax.Array:
    """Returns (x - mean) / sqrt(variance + epsilon), with the mean and the variance of each row."""
    return _standardize(x_RxN, jnp.float32(epsilon))


def plain_standardize(x_RxN: jax.Array, epsilon: jax.Array) -> jax.Array:
    """Specifies `standardize`."""
    wide_RxN = x_RxN.astype(jnp.promote_types(x_RxN.dtype, jnp.float32))
    centered_RxN = wide_RxN - wide_RxN.mean(-1, keepdims=True)
    variance_Rx1 = jnp.square(centered_RxN).mean(-1, keepdims=True)
    return (centered_RxN / jnp.sqrt(variance_Rx1 + epsilon)).astype(x_RxN.dtype)


def _plain_standardize_gradient(x_RxN: jax.Array, epsilon: jax.Array, gradient_RxN: jax.Array) -> jax.Array:
    return jax.vjp(lambda x: plain_standardize(x, epsilon), x_RxN)[1](gradient_RxN)[0]


_standardize_gradient = Operation('standardize_gradient', _plain_standardize_gradient)
_standardize = Operation(
    'standardize',
    plain_standardize,
    lambda x, epsilon, output, gradient: (_standardize_gradient(x, epsilon, gradient), jnp.zeros_like(epsilon)),
    by_example=(0,),
)
