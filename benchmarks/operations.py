"""Each operation of mnist_jax/kernels by itself beside XLA's own: milliseconds and GFLOP/s, forward and gradient.

    .venv/bin/python benchmarks/operations.py
    .venv/bin/python benchmarks/operations.py --batch=128 --rounds=30

Both are called in turn, in one process, with the same arrays; what is printed are medians. The shapes are those of the
eight models; the last row is a product large enough to show what the processor can do.
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import jax.numpy as jnp

from mnist_jax.distributed.devices import start_backend
from mnist_jax.kernels import ops

CONVOLUTIONS = [  # height = width, channels, features; kernels of 3x3 and padding
    (28, 1, 32),
    (28, 32, 32),
    (14, 32, 64),
    (14, 64, 64),
    (7, 64, 64),
]
PRODUCTS = [(784, 512), (512, 512), (3136, 128), (9216, 128)]  # inputs, units
IMAGES = [(28, 32), (14, 64)]  # height = width, channels


def array(seed: int, *shape: int) -> jax.Array:
    """Random numbers."""
    return jax.random.normal(jax.random.key(seed), shape)


def cases(batch: int) -> list[tuple[str, int, Callable, Callable, tuple]]:
    """Name, operations of a forward pass, this project's function, the plain one, and their arguments."""
    found = []
    for size, channels, features in CONVOLUTIONS:
        given = (array(0, batch, size, size, channels), array(1, 3, 3, channels, features), jnp.zeros(features))
        operations = 2 * batch * size * size * 9 * channels * features
        name = f'convolution {size}x{size}, {channels} to {features}'
        found.append((name, operations, lambda *a: ops.conv(*a, 'SAME', True), plain_layer('SAME'), given))
    for rows, inputs, units in [*((batch, *each) for each in PRODUCTS), (1024, 1024, 1024)]:
        given = (array(0, rows, inputs), array(1, inputs, units), jnp.zeros(units))
        name = f'product {rows}x{inputs}, {inputs}x{units}'
        found.append((name, 2 * rows * inputs * units, lambda *a: ops.dense(*a, True), plain_layer(None), given))
    large = found.pop()
    for size, channels in IMAGES:
        x, channel = array(0, batch, size, size, channels), array(1, channels)
        plain_pool = functools.partial(ops._plain_max_pool, window=2, padding='VALID')
        found.append((f'pool {size}x{size}, {channels}', 0, lambda x: ops.max_pool(x, 2, 'VALID'), plain_pool, (x,)))
        given = (x, channel, channel)
        found.append((f'scale and ReLU {size}x{size}, {channels}', 0, ops.scale_relu, ops._plain_scale_relu, given))
        given = (x, jnp.ones(batch))
        found.append((f'moments {size}x{size}, {channels}', 0, ops.moments, ops._plain_moments, given))
    return [*found, large]


def plain_layer(padding: str | None) -> Callable:
    """The layer with a ReLU as XLA computes it."""
    return functools.partial(ops._plain_layer, padding, True)


def forward_and_gradient(function: Callable, given: tuple) -> tuple[Callable, Callable]:
    """The compiled function, and that of the gradients of all its arguments, each without arguments."""
    shape = jax.eval_shape(function, *given)
    ones = jax.tree.map(lambda leaf: array(2, *leaf.shape), shape)
    forward = jax.jit(function)
    gradient = jax.jit(lambda ones, *given: jax.vjp(function, *given)[1](ones))
    return lambda: forward(*given), lambda: gradient(ones, *given)


def milliseconds(functions: list[Callable], rounds: int) -> list[float]:
    """The median of each, called in turn."""
    times: list[list[float]] = [[] for _ in functions]
    for number in range(rounds + 2):
        for function, taken in zip(functions, times, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(function())
            if number >= 2:
                taken.append(1e3 * (time.perf_counter() - began))
    return [statistics.median(taken) for taken in times]


def main() -> None:
    """Print the table, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch', type=int, default=128)
    parser.add_argument('--rounds', type=int, default=20)
    arguments = parser.parse_args()
    start_backend(1)
    columns = ('operation', 'forward: ms, GFLOP/s', 'XLA', 'forward and gradients: ms, GFLOP/s', 'XLA')
    print('| ' + ' | '.join(columns) + ' |\n' + '|---' * len(columns) + '|')
    for name, operations, ours, plain, given in cases(arguments.batch):
        pairs = [forward_and_gradient(function, given) for function in (ours, plain)]
        cells = []
        for which, factor in ((0, 1), (1, 3)):
            for taken in milliseconds([pair[which] for pair in pairs], arguments.rounds):
                speed = f', {factor * operations / taken / 1e6:.0f}' if operations else ''
                cells.append(f'{taken:.2f}{speed}')
        print(f'| {name} | ' + ' | '.join(cells) + ' |', flush=True)


if __name__ == '__main__':
    main()
