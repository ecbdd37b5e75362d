"""Sums in a fixed order, whose bits depend neither on the processor nor on the number of devices."""

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any
"""Nested containers of arrays, in the sense of `jax.tree`."""


def tree_sum(parts: Sequence[PyTree]) -> PyTree:
    """Returns the sum of pytrees, added pairwise as a binary tree: ((a + b) + (c + d)) + ... .

    Floating-point sums depend on the order of their terms. If the parts are split between devices in equal groups of
    2^k consecutive parts, the sum of each device is a node of this tree, so the total has the same bits on any number
    of devices.
    """
    parts = list(parts)
    while len(parts) > 1:
        pairs = [jax.tree.map(operator.add, *parts[i : i + 2]) for i in range(0, len(parts) - 1, 2)]
        parts = pairs + parts[len(parts) // 2 * 2 :]
    return parts[0]


def ordered_sum(x_N: jax.Array) -> jax.Array:
    """Returns the sum over the first axis of an array, repeatedly adding its second half to its first.

    The order of XLA's own reductions depends on the vector width of the processor and on the operations that XLA
    compiles together with them.
    """
    while len(x_N) > 1:
        half = (len(x_N) + 1) // 2
        padding = [(0, 2 * half - len(x_N))] + [(0, 0)] * (x_N.ndim - 1)
        x_N = x_N[:half] + jnp.pad(x_N[half:], padding)
    return x_N[0]
