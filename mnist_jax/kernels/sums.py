"""Sums whose order, and so whose bits, do not depend on the processor or on the number of devices."""

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any
"""Nested containers of arrays, in the sense of `jax.tree`."""


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


def ordered_sum(x_N: jax.Array) -> jax.Array:
    """The sum of a vector, its second half added to its first again and again.

    XLA takes the order of its own reductions from the width of the processor's vectors, and from what else it computes
    beside them.
    """
    while len(x_N) > 1:
        half = (len(x_N) + 1) // 2
        x_N = x_N[:half] + jnp.pad(x_N[half:], (0, 2 * half - len(x_N)))
    return x_N[0]
