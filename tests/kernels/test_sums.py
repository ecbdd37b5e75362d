"""The order of sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax.kernels.sums import ordered_sum, tree_sum


@pytest.mark.parametrize(
    # 1e8 + 1 is rounded to 1e8. Added from left to right, the second and the third sum would both be 1.
    ('values', 'expected'),
    [([7.0], 7), ([1e8, 1, -1e8, 1], 2), ([1e8, 1, 1, -1e8, 1], 3), ([1.0] * 37, 37)],
)
def test_ordered_sum_adds_the_second_half_to_the_first(values, expected):
    total, gradient = jax.jit(jax.value_and_grad(ordered_sum))(jnp.array(values))
    assert float(total) == expected
    np.testing.assert_array_equal(gradient, np.ones(len(values)))


@pytest.mark.parametrize('count', [1, 2, 3, 5, 8])
def test_tree_sum_adds_neighbors_first(count):
    parts = [{'x': Symbol(chr(97 + i))} for i in range(count)]
    expected = {1: 'a', 2: '(a+b)', 3: '((a+b)+c)', 5: '(((a+b)+(c+d))+e)', 8: '(((a+b)+(c+d))+((e+f)+(g+h)))'}
    assert tree_sum(parts)['x'].name == expected[count]


def test_the_tree_sum_of_partial_tree_sums_is_the_tree_sum_of_all_parts():
    parts = list(np.random.default_rng(0).normal(size=(8, 50)).astype(np.float32) * 1e3)
    total = tree_sum(parts)
    for devices in (2, 4, 8):
        size = 8 // devices
        np.testing.assert_array_equal(tree_sum([tree_sum(parts[i : i + size]) for i in range(0, 8, size)]), total)


class Symbol:
    """A stand-in for a number that records the order of the additions."""

    def __init__(self, name):
        self.name = name

    def __add__(self, other):
        return Symbol(f'({self.name}+{other.name})')
