"""Layers and pools against their plain form and Flax's, and the order of sums."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax.kernels import ops
from mnist_jax.kernels.build import loaded
from mnist_jax.kernels.sums import ordered_sum, tree_sum


@pytest.mark.parametrize('padding', ['VALID', 'SAME'])
@pytest.mark.parametrize('window', [2, 3])
@pytest.mark.parametrize('shape', [(2, 8, 8, 3), (1, 7, 9, 1), (3, 5, 6, 2)])
def test_pool_equals_flax_in_value_and_gradient(shape, window, padding):
    # A permutation: no two values tie.
    x = np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape).astype(np.float32) - 40

    def plain(x):
        return nn.max_pool(x, (window, window), (window, window), padding)

    def ours(x):
        return ops.max_pool(x, window, padding)

    np.testing.assert_array_equal(ours(x), plain(x))
    weights = np.random.default_rng(1).normal(size=plain(x).shape).astype(np.float32)
    np.testing.assert_array_equal(
        jax.grad(lambda x: (ours(x) * weights).sum())(x), jax.grad(lambda x: (plain(x) * weights).sum())(x)
    )


def test_tied_values_share_the_gradient():
    gradient = jax.grad(lambda x: ops.max_pool(x, 2, 'VALID').sum())(jnp.ones((1, 2, 2, 1)))
    assert float(gradient.sum()) == 1 and (gradient > 0).all()


@pytest.mark.parametrize(
    # Where 1 is added to 1e8, it is lost: from left to right, the second would be 1 and the third 1.
    ('values', 'expected'),
    [([7.0], 7), ([1e8, 1, -1e8, 1], 2), ([1e8, 1, 1, -1e8, 1], 3), ([1.0] * 37, 37)],
)
def test_ordered_sum_adds_the_second_half_to_the_first(values, expected):
    total, gradient = jax.jit(jax.value_and_grad(ordered_sum))(jnp.array(values))
    assert float(total) == expected
    np.testing.assert_array_equal(gradient, np.ones(len(values)))


@pytest.mark.parametrize('count', [1, 2, 3, 5, 8])
def test_tree_sum_adds_neighbours_first(count):
    names = [{'x': Symbol(chr(97 + i))} for i in range(count)]
    expected = {1: 'a', 2: '(a+b)', 3: '((a+b)+c)', 5: '(((a+b)+(c+d))+e)', 8: '(((a+b)+(c+d))+((e+f)+(g+h)))'}
    assert tree_sum(names)['x'].name == expected[count]


def test_tree_sum_of_parts_is_the_tree_sum_of_all():
    parts = list(np.random.default_rng(0).normal(size=(8, 50)).astype(np.float32) * 1e3)
    whole = tree_sum(parts)
    for devices in (2, 4, 8):
        each = 8 // devices
        np.testing.assert_array_equal(tree_sum([tree_sum(parts[i : i + each]) for i in range(0, 8, each)]), whole)


class Symbol:
    """A number that remembers how it was added up."""

    def __init__(self, name):
        self.name = name

    def __add__(self, other):
        return Symbol(f'({self.name}+{other.name})')


def assert_layer_is_plain(padding, relu, x, kernel, bias):
    """In value and gradient; the second one of values that are no larger than a few."""

    def ours(x, kernel, bias):
        if padding is None:
            return ops.dense(x, kernel, bias, relu)
        return ops.conv(x, kernel, bias, padding, relu)

    expected, expected_vjp = jax.vjp(lambda *given: ops._plain_layer(padding, relu, *given), x, kernel, bias)
    found, found_vjp = jax.vjp(ours, x, kernel, bias)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    gradient = jax.random.normal(jax.random.key(3), expected.shape)
    for one, other in zip(jax.jit(found_vjp)(gradient), expected_vjp(gradient), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * max(1, np.abs(other).max()))


@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('padding', ['SAME', 'VALID'])
@pytest.mark.parametrize(
    ('batch', 'height', 'width', 'channels', 'features', 'kernel'),
    [
        (1, 5, 7, 1, 2, 3),
        (16, 8, 8, 3, 4, 3),
        (5, 28, 28, 1, 32, 3),
        (2, 14, 14, 32, 64, 3),
        (17, 9, 6, 2, 3, 2),
        (3, 6, 8, 5, 20, 4),
        (3, 7, 7, 40, 33, 1),
        (40, 7, 7, 4, 1, 5),
    ],
)
def test_conv_is_the_plain_convolution(padding, relu, batch, height, width, channels, features, kernel):
    keys = jax.random.split(jax.random.key(0), 3)
    image = jax.random.normal(keys[0], (batch, height, width, channels))
    weights = jax.random.normal(keys[1], (kernel, kernel, channels, features)) / (kernel * channels**0.5)
    assert_layer_is_plain(padding, relu, image, weights, jax.random.normal(keys[2], (features,)))


@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize(('batch', 'features', 'units'), [(1, 1, 1), (7, 5, 10), (16, 784, 512), (33, 100, 17)])
def test_dense_is_the_plain_product(relu, batch, features, units):
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], (batch, features)), jax.random.normal(keys[1], (features, units))
    assert_layer_is_plain(None, relu, x, kernel / features**0.5, jax.random.normal(keys[2], (units,)))


def test_the_kernels_are_compiled_and_used():
    x, kernel, bias = jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.ones(4)
    assert loaded()
    assert 'mnist_jax_layer_relu' in jax.jit(lambda *given: ops.dense(*given, True)).lower(x, kernel, bias).as_text()


@pytest.mark.parametrize('shape', [(1, 2, 2, 1), (3, 8, 6, 5), (2, 28, 28, 32), (2, 7, 5, 9)])
def test_pool_by_two_is_the_plain_pool_where_values_tie_too(shape):
    x = jax.random.randint(jax.random.key(0), shape, 0, 3).astype(jnp.float32)
    expected, expected_vjp = jax.vjp(lambda x: ops._plain_max_pool(x, 2, 'VALID'), x)
    found, found_vjp = jax.vjp(lambda x: ops.max_pool(x, 2, 'VALID'), x)
    np.testing.assert_array_equal(found, expected)
    gradient = jax.random.normal(jax.random.key(1), expected.shape)
    np.testing.assert_allclose(found_vjp(gradient)[0], expected_vjp(gradient)[0], rtol=1e-6)


@pytest.mark.parametrize('shape', [(1, 1, 1, 1), (3, 5, 7, 9), (2, 28, 28, 32), (16, 14, 14, 64)])
def test_moments_and_scale_relu_are_the_plain_ones(shape):
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], shape)
    mask = (jnp.arange(shape[0]) != 1).astype(jnp.float32)
    factor, shift = jax.random.normal(keys[1], shape[-1:]), jax.random.normal(keys[2], shape[-1:])
    pairs = [
        (ops.moments, ops._plain_moments, (x, mask), 1),
        (ops.scale_relu, ops._plain_scale_relu, (x, factor, shift), 3),
    ]
    for ours, plain, given, differentiable in pairs:
        expected, expected_vjp = jax.vjp(plain, *given)
        found, found_vjp = jax.vjp(ours, *given)
        gradient = jax.tree.map(lambda leaf: jax.random.normal(keys[3], leaf.shape), expected)
        found = (found, found_vjp(gradient)[:differentiable])
        expected = (expected, expected_vjp(gradient)[:differentiable])
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * max(1, np.abs(other).max()))


def test_other_types_and_shapes_mean_what_they_mean_to_numpy():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5))
    kernel = jax.random.normal(jax.random.key(1), (5, 40))
    expected = x @ kernel + 0.5
    np.testing.assert_allclose(ops.dense(x, kernel, jnp.array([0.5]), False), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ops.dense(x, kernel, jnp.bfloat16(0.5), False), expected, rtol=1e-5, atol=1e-5)
    image, mask = jax.random.normal(jax.random.key(2), (3, 4, 4, 2)), jnp.array([True, False, True])
    np.testing.assert_allclose(ops.moments(image, mask)[0], image[::2].sum((0, 1, 2)), rtol=1e-5, atol=1e-5)
    found = ops.scale_relu(image, jnp.array([2]), jnp.float32(1))
    np.testing.assert_allclose(found, np.maximum(2 * image + 1, 0), rtol=1e-5)
    # A kernel that is larger than the image: nothing comes out, and nothing changes it.
    empty, vjp = jax.vjp(lambda kernel: ops.conv(image, kernel, jnp.zeros(7), 'VALID', True), jnp.ones((5, 5, 2, 7)))
    assert empty.shape == (3, 0, 0, 7)
    assert not vjp(empty)[0].any()


def test_the_gradient_of_many_examples_is_as_exact_as_xlas():
    image, gradient = (jax.random.uniform(jax.random.key(i), (512, 28, 28, 1)) for i in range(2))
    taps = np.asarray(image, np.float64)[:, :28, :28, 0], np.asarray(gradient, np.float64)[..., 0]
    _, vjp = jax.vjp(lambda kernel: ops.conv(image, kernel, jnp.zeros(1), 'SAME', False), jnp.ones((1, 1, 1, 1)))
    assert abs(vjp(gradient)[0].item() / np.vdot(*taps) - 1) < 3e-6


def test_what_is_no_number_stays_none():
    x = jnp.zeros((1, 2, 2, 1)).at[0, 1, 0, 0].set(jnp.nan)
    ones = jnp.ones(1)
    assert np.isnan(ops.max_pool(x, 2, 'VALID')).all()
    assert np.isnan(ops.scale_relu(x, ones, ones)).sum() == 1
    assert np.isnan(ops.conv(x, jnp.ones((1, 1, 1, 1)), ones, 'SAME', True)).sum() == 1
    assert np.isnan(ops.dense(x.reshape(1, 4), jnp.ones((4, 1)), ones, True)).all()
