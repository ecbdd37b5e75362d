"""Array operations whose plain form is slow or whose order of sums matters."""

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
