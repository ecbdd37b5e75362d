"""Array operations whose plain form is slow on a CPU or whose order of sums matters.

On a CPU, layers, pools and what batch normalisation needs are computed by the kernels of kernels.c, where these can be
had; anywhere else by XLA. What they mean is what the `_plain_` functions say.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from mnist_jax.kernels.build import loaded

_portable = contextvars.ContextVar('portable', default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """What is traced herein is computed by XLA alone, so that it runs where the kernels are not known."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def delay_until(earlier: Any, values: Any) -> Any:
    """`values`, not to be used before `earlier` (a pytree of numbers) is computed.

    XLA computes at the same time what does not depend on each other, and several chunks of a batch would push each
    other out of the caches. A barrier of XLA's orders its program, and not the threads that run it; what holds them is
    a zero of which the compiler cannot know that it is one.
    """
    zeros = [leaf.ravel()[0] > jnp.inf for leaf in jax.tree.leaves(earlier)]
    if not zeros:
        return values
    zero = jnp.stack(jax.lax.optimization_barrier(zeros)).any()
    return jax.tree.map(lambda value: value + zero.astype(value.dtype), values)


def conv(image_BxHxWxC: jax.Array, kernel_hxwxCxK: jax.Array, bias_K: jax.Array, padding: str, relu: bool) -> jax.Array:
    """The convolution with stride 1 and padding 'SAME' or 'VALID', plus the bias; with `relu` its ReLU."""
    return _layer(padding, relu, *_alike(image_BxHxWxC, kernel_hxwxCxK, bias_K))


def dense(x_BxF: jax.Array, kernel_FxK: jax.Array, bias_K: jax.Array, relu: bool) -> jax.Array:
    """The product with the kernel plus the bias; with `relu` its ReLU. x may have more axes before the last."""
    rows = math.prod(x_BxF.shape[:-1])
    output_NxK = _layer(None, relu, *_alike(x_BxF.reshape(rows, x_BxF.shape[-1]), kernel_FxK, bias_K))
    return output_NxK.reshape(*x_BxF.shape[:-1], kernel_FxK.shape[-1])


def _alike(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """All of one type, and the bias of one number a feature."""
    dtype = jnp.result_type(x, kernel, bias)
    return x.astype(dtype), kernel.astype(dtype), jnp.broadcast_to(bias, kernel.shape[-1:]).astype(dtype)


def _product(x: jax.Array, kernel: jax.Array, padding: str | None) -> jax.Array:
    if padding is None:
        return x @ kernel
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def _plain_layer(padding: str | None, relu: bool, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    output = _product(x, kernel, padding)
    output = output + bias.reshape((1,) * (output.ndim - 1) + (-1,))
    return jax.nn.relu(output) if relu else output


def _computed(target: str, plain: Callable, *arrays: jax.Array) -> Any:
    """`plain(*arrays)`: on a CPU by a function of kernels.c, which takes and returns memory as it comes."""
    if _portable.get():
        return plain(*arrays)
    shapes = jax.eval_shape(plain, *arrays)
    everything = jax.tree.leaves((arrays, shapes))
    if any(0 in array.shape or array.dtype != jnp.float32 for array in everything) or not loaded():
        return plain(*arrays)
    return jax.lax.platform_dependent(*arrays, cpu=jax.ffi.ffi_call(f'mnist_jax_{target}', shapes), default=plain)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _layer(padding: str | None, relu: bool, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    plain = functools.partial(_plain_layer, padding, relu)
    return _computed('layer_relu' if relu else 'layer', plain, x, kernel, bias)


def _layer_forward(padding: str | None, relu: bool, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> Any:
    output = _layer(padding, relu, x, kernel, bias)
    return output, (x, kernel, output if relu else None)


def _layer_backward(padding: str | None, relu: bool, residuals: Any, gradient: jax.Array) -> tuple[jax.Array, ...]:
    x, kernel, output = residuals
    active = [output] if relu else []  # The gradient passes where it is above zero.

    def plain_to_x(gradient: jax.Array, kernel: jax.Array, *active: jax.Array) -> jax.Array:
        gradient = _passed(gradient, *active)
        return jax.linear_transpose(lambda x: _product(x, kernel, padding), x)(gradient)[0]

    def plain_to_kernel(x: jax.Array, gradient: jax.Array, *active: jax.Array) -> tuple[jax.Array, jax.Array]:
        gradient = _passed(gradient, *active)
        (to_kernel,) = jax.linear_transpose(lambda kernel: _product(x, kernel, padding), kernel)(gradient)
        return to_kernel, gradient.sum(range(gradient.ndim - 1))

    return (
        _computed('input_gradient', plain_to_x, gradient, kernel, *active),
        *_computed('kernel_gradient', plain_to_kernel, x, gradient, *active),
    )


def _passed(gradient: jax.Array, output: jax.Array | None = None) -> jax.Array:
    """The gradient before a ReLU from that behind it."""
    return gradient if output is None else jnp.where(output > 0, gradient, 0)


_layer.defvjp(_layer_forward, _layer_backward)


def max_pool(x_BxHxWxC: jax.Array, window: int, padding: str) -> jax.Array:
    """Max pooling with stride `window`, as `nn.max_pool`, of values and gradient, but for the gradient at ties.

    Where several values of a window tie, the gradient is shared between them.
    """
    padded = padding == 'SAME' and any(size % window for size in x_BxHxWxC.shape[1:3])
    if window != 2 or padded:
        return _plain_max_pool(x_BxHxWxC, window, padding)
    return _pool_by_two(x_BxHxWxC)


def _plain_max_pool(x_BxHxWxC: jax.Array, window: int, padding: str) -> jax.Array:
    # Strided slices and `jnp.maximum` instead of a reduce-window, whose gradient is slow on a CPU.
    height, width = x_BxHxWxC.shape[1:3]
    if padding == 'SAME':
        pads = [_same_padding(size, window) for size in (height, width)]
        x_BxHxWxC = jnp.pad(x_BxHxWxC, [(0, 0), *pads, (0, 0)], constant_values=-jnp.inf)
    rows, columns = (size // window * window for size in x_BxHxWxC.shape[1:3])
    lines = []
    for i in range(window):
        parts = [x_BxHxWxC[:, i:rows:window, j:columns:window] for j in range(window)]
        lines.append(functools.reduce(jnp.maximum, parts))
    return functools.reduce(jnp.maximum, lines)


def _same_padding(size: int, window: int) -> tuple[int, int]:
    missing = -size % window
    return missing // 2, missing - missing // 2


def _plain_pool_by_two(x_BxHxWxC: jax.Array) -> jax.Array:
    return _plain_max_pool(x_BxHxWxC, 2, 'VALID')


@jax.custom_vjp
def _pool_by_two(x_BxHxWxC: jax.Array) -> jax.Array:
    return _computed('pool', _plain_pool_by_two, x_BxHxWxC)


def _pool_backward(x_BxHxWxC: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    def plain(x: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(_plain_pool_by_two, x)[1](gradient)[0]

    return (_computed('pool_gradient', plain, x_BxHxWxC, gradient),)


_pool_by_two.defvjp(lambda x: (_pool_by_two(x), x), _pool_backward)


def moments(x_BxHxWxC: jax.Array, mask_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sums of each channel and of its squares, over the examples of which the mask (1 or 0) is 1."""
    return _moments(x_BxHxWxC, mask_B.astype(jnp.float32))


@jax.custom_vjp
def _moments(x_BxHxWxC: jax.Array, mask_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _computed('moments', _plain_moments, x_BxHxWxC, mask_B)


def _plain_moments(x_BxHxWxC: jax.Array, mask_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_BxHxWxC = x_BxHxWxC.astype(jnp.float32) * mask_B.reshape(-1, 1, 1, 1)
    return x_BxHxWxC.sum((0, 1, 2)), jnp.square(x_BxHxWxC).sum((0, 1, 2))


def _moments_backward(residuals: Any, gradients: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
    x_BxHxWxC, mask_B = residuals
    to_sum_C, to_square_C = (gradient.reshape(1, 1, 1, -1) for gradient in gradients)
    to_x = (to_sum_C + 2 * x_BxHxWxC * to_square_C) * mask_B.reshape(-1, 1, 1, 1)
    return to_x.astype(x_BxHxWxC.dtype), None


_moments.defvjp(lambda x, mask: (_moments(x, mask), (x, mask)), _moments_backward)


def scale_relu(x_BxHxWxC: jax.Array, factor_C: jax.Array, shift_C: jax.Array) -> jax.Array:
    """The ReLU of x * factor + shift, channel by channel."""
    each = (jnp.broadcast_to(array, x_BxHxWxC.shape[-1:]).astype(jnp.float32) for array in (factor_C, shift_C))
    return _scale_relu(x_BxHxWxC, *each)


@jax.custom_vjp
def _scale_relu(x_BxHxWxC: jax.Array, factor_C: jax.Array, shift_C: jax.Array) -> jax.Array:
    return _computed('scale_relu', _plain_scale_relu, x_BxHxWxC, factor_C, shift_C)


def _plain_scale_relu(x_BxHxWxC: jax.Array, factor_C: jax.Array, shift_C: jax.Array) -> jax.Array:
    scaled = x_BxHxWxC * factor_C.reshape(1, 1, 1, -1) + shift_C.reshape(1, 1, 1, -1)
    return jax.nn.relu(scaled).astype(x_BxHxWxC.dtype)


def _scale_relu_backward(residuals: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, ...]:
    def plain(x: jax.Array, factor: jax.Array, shift: jax.Array, gradient: jax.Array) -> tuple[jax.Array, ...]:
        return jax.vjp(_plain_scale_relu, x, factor, shift)[1](gradient)

    return _computed('scale_relu_gradient', plain, *residuals, gradient)


_scale_relu.defvjp(lambda *given: (_scale_relu(*given), given), _scale_relu_backward)


def random_mask(keys_Bx2: jax.Array, shape: tuple[int, ...], probability: float) -> jax.Array:
    """Bx`shape`, true with this probability, drawn for each of the B keys (uint32) by itself.

    The place of a value is mixed with the key as Wellons's hash "lowbias32" does it, twice: a few operations for each
    value, where JAX's generator makes about 80.
    """
    key_Bx2 = keys_Bx2.reshape(-1, 2, *(1,) * len(shape))
    place = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(1, *shape)
    bits = _mixed(_mixed(place ^ key_Bx2[:, 0]) ^ key_Bx2[:, 1])
    return bits < jnp.uint32(min(round(probability * 2**32), 2**32 - 1))


def _mixed(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
