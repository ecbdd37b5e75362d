"""Array operations whose plain form is slow or whose order of sums matters."""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def max_pool(x_BxHxWxC: jax.Array, window: int, padding: str) -> jax.Array:
    """Max pooling with stride `window`, as `nn.max_pool`, of values and gradient, but for the gradient at ties.

    Strided slices and `jnp.maximum` instead of a reduce-window, whose gradient (select-and-scatter) takes half of a
    train step on the CPU. Where several values of a window tie, the gradient is shared between them.
    """
    height, width = x_BxHxWxC.shape[1:3]
    if padding == 'SAME':
        pads = [_same_padding(size, window) for size in (height, width)]
        x_BxHxWxC = jnp.pad(x_BxHxWxC, [(0, 0), *pads, (0, 0)], constant_values=-jnp.inf)
    rows, columns = (size // window * window for size in x_BxHxWxC.shape[1:3])
    parts = [x_BxHxWxC[:, i:rows:window, j:columns:window] for i in range(window) for j in range(window)]
    pooled = parts[0]
    for part in parts[1:]:
        pooled = jnp.maximum(pooled, part)
    return pooled


def _same_padding(size: int, window: int) -> tuple[int, int]:
    missing = -size % window
    return missing // 2, missing - missing // 2


def tree_sum(parts: Sequence[Any]) -> Any:
    """The sum of pytrees, neighbours first: ((a+b)+(c+d))+... .

    Floating-point sums depend on their order. In this one, where the parts are dealt out to devices in equal runs of
    2^k neighbours, each device's own sum is a node of the same tree, and so the total has the same bits on any number
    of devices.
    """
    parts = list(parts)
    while len(parts) > 1:
        pairs = [jax.tree.map(operator.add, *parts[i : i + 2]) for i in range(0, len(parts) - 1, 2)]
        parts = pairs + parts[len(parts) // 2 * 2 :]
    return parts[0]


WEIGHT_GRADIENT_BLOCK = 16  # examples


def _plain_conv(image_BxHxWxC: jax.Array, kernel_hxwxCxK: jax.Array, padding: str) -> jax.Array:
    return jax.lax.conv_general_dilated(
        image_BxHxWxC, kernel_hxwxCxK, (1, 1), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(image_BxHxWxC: jax.Array, kernel_hxwxCxK: jax.Array, padding: str) -> jax.Array:
    """The convolution with stride 1 and padding 'SAME' or 'VALID'.

    On the CPU, XLA takes the gradient of the kernel over 16 examples at 4 times the speed of one over 64 (32 features,
    28x28 pixels): it is taken block by block there.
    """
    return _plain_conv(image_BxHxWxC, kernel_hxwxCxK, padding)


def _conv_forward(image: jax.Array, kernel: jax.Array, padding: str) -> tuple[jax.Array, Any]:
    return conv(image, kernel, padding), (image, kernel)


def _conv_backward(padding: str, residuals: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    image, kernel = residuals

    def kernel_gradient(image: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda kernel: _plain_conv(image, kernel, padding), kernel)(gradient)[0]

    def in_blocks(image: jax.Array, gradient: jax.Array) -> jax.Array:
        starts = range(0, len(image), WEIGHT_GRADIENT_BLOCK)
        blocks = [slice(start, start + WEIGHT_GRADIENT_BLOCK) for start in starts]
        return functools.reduce(jnp.add, [kernel_gradient(image[block], gradient[block]) for block in blocks])

    (image_gradient,) = jax.linear_transpose(lambda image: _plain_conv(image, kernel, padding), image)(gradient)
    return image_gradient, jax.lax.platform_dependent(image, gradient, cpu=in_blocks, default=kernel_gradient)


conv.defvjp(_conv_forward, _conv_backward)
