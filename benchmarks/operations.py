"""Compares each operation of mnist_jax/kernels with XLA's own on a CPU, forward and with its gradients.

    .venv/bin/python benchmarks/operations.py
    .venv/bin/python benchmarks/operations.py --batch=128 --rounds=30

The shapes are those of the eight models; the last row is a product that is large enough to reach the peak speed of the
processor. Both versions run alternately, in one process, on the same arrays.

Prints a Markdown table: the median milliseconds of a call and, for convolutions and products, GFLOP/s.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import flags
import jax
import jax.numpy as jnp

from mnist_jax.distributed.devices import start_backend
from mnist_jax.kernels import norms, ops
from mnist_jax.kernels.sums import PyTree

CONVOLUTIONS = [  # height = width, channels, features; kernels of 3x3, padding 'SAME'
    (28, 1, 32),
    (28, 32, 32),
    (14, 32, 64),
    (14, 64, 64),
    (7, 64, 64),
]
PRODUCTS = [(784, 512), (512, 512), (3136, 128), (9216, 128)]  # inputs, units
PEAK_PRODUCT = (1024, 1024, 1024)  # rows, inputs, units
IMAGES = [(28, 32), (14, 64)]  # height = width, channels
WARM_UP_CALLS = 2
# Floating-point operations relative to a forward pass; the gradients of the input and the kernel each cost as much.
FORWARD, WITH_GRADIENTS = 1, 3


class Case(NamedTuple):
    """An operation and its arguments."""

    name: str
    flops: int  # floating-point operations of the forward pass; 0 for a memory-bound operation
    function: Callable[..., PyTree]
    arguments: tuple[jax.Array, ...]


def random_array(seed: int, *shape: int) -> jax.Array:
    """Returns normally distributed numbers."""
    return jax.random.normal(jax.random.key(seed), shape)


def convolution(size: int, channels: int, features: int, batch: int) -> Case:
    """Returns a convolution with a bias and a ReLU."""
    image, kernel = random_array(0, batch, size, size, channels), random_array(1, 3, 3, channels, features)
    return Case(
        name=f'convolution {size}x{size}, {channels} to {features}',
        flops=2 * batch * size * size * 9 * channels * features,
        function=lambda x, kernel, bias: ops.conv(x, kernel, bias, 'SAME', True),
        arguments=(image, kernel, jnp.zeros(features)),
    )


def product(rows: int, inputs: int, units: int) -> Case:
    """Returns a dense layer with a bias and a ReLU."""
    return Case(
        name=f'product {rows}x{inputs}, {inputs}x{units}',
        flops=2 * rows * inputs * units,
        function=lambda x, kernel, bias: ops.dense(x, kernel, bias, True),
        arguments=(random_array(0, rows, inputs), random_array(1, inputs, units), jnp.zeros(units)),
    )


def memory_bound(size: int, channels: int, batch: int) -> list[Case]:
    """Returns the memory-bound operations: pooling and the parts of batch normalization."""
    x, channel = random_array(0, batch, size, size, channels), random_array(1, channels)
    shape = f'{size}x{size}, {channels}'
    return [
        Case(f'max pool {shape}', 0, lambda x: ops.max_pool(x, 2, 'VALID'), (x,)),
        Case(f'scale and ReLU {shape}', 0, lambda *arrays: norms.scale(*arrays, 'relu'), (x, channel, channel)),
        Case(f'moments {shape}', 0, norms.moments, (x, jnp.ones(batch))),
    ]


def all_cases(batch: int) -> list[Case]:
    """Returns the cases in the order of the table."""
    return [
        *(convolution(*shape, batch) for shape in CONVOLUTIONS),
        *(product(batch, *shape) for shape in PRODUCTS),
        *(case for shape in IMAGES for case in memory_bound(*shape, batch)),
        product(*PEAK_PRODUCT),
    ]


def with_xla(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Returns `function` as XLA computes it, without the kernels."""

    @functools.wraps(function)
    def portable_function(*arguments: PyTree) -> PyTree:
        with ops.portable():
            return function(*arguments)

    return portable_function


def calls(case: Case, decorate: Callable) -> tuple[Callable[[], PyTree], Callable[[], PyTree]]:
    """Compiles a case; returns a call of the operation, and one of the operation and all its gradients.

    Args:
      case: The operation.
      decorate: Applied to the functions before they are compiled.
    """

    def gradients(cotangents: PyTree, *arguments: jax.Array) -> PyTree:
        return jax.vjp(case.function, *arguments)[1](cotangents)

    shapes = jax.eval_shape(case.function, *case.arguments)
    cotangents = jax.tree.map(lambda leaf: random_array(2, *leaf.shape), shapes)
    forward = jax.jit(decorate(lambda *arguments: case.function(*arguments)))
    compiled_gradients = jax.jit(decorate(gradients))
    return lambda: forward(*case.arguments), lambda: compiled_gradients(cotangents, *case.arguments)


def median_milliseconds(functions: list[Callable[[], PyTree]], rounds: int) -> list[float]:
    """Returns the median time of each function; calls the functions in turn."""
    times: list[list[float]] = [[] for _ in functions]
    for index in range(WARM_UP_CALLS + rounds):
        for function, samples in zip(functions, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function())
            if index >= WARM_UP_CALLS:
                samples.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(samples) for samples in times]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch', type=flags.at_least(1), default=128, help='examples per batch')
    parser.add_argument('--rounds', type=flags.at_least(1), default=20, help='calls of each operation')
    options = parser.parse_args()
    start_backend(1)
    columns = ('operation', 'forward: ms, GFLOP/s', 'XLA', 'forward and gradients: ms, GFLOP/s', 'XLA')
    print('| ' + ' | '.join(columns) + ' |\n' + '|---' * len(columns) + '|')
    for case in all_cases(options.batch):
        forward, gradients = zip(*(calls(case, decorate) for decorate in (lambda f: f, with_xla)), strict=True)
        cells = []
        for functions, factor in ((forward, FORWARD), (gradients, WITH_GRADIENTS)):
            for milliseconds in median_milliseconds(list(functions), options.rounds):
                speed = f', {factor * case.flops / milliseconds / 1e6:.0f}' if case.flops else ''
                cells.append(f'{milliseconds:.2f}{speed}')
        print(f'| {case.name} | ' + ' | '.join(cells) + ' |', flush=True)


if __name__ == '__main__':
    main()
