"""The operations against their plain forms and against Flax."""

import contextlib
import functools
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax.kernels import attention, depthwise, norms, ops, warping
from mnist_jax.kernels.build import kernels_available
from mnist_jax.kernels.warping import Motion


def normal(seed, shape):
    """Returns float32 numbers from the standard normal distribution; XLA would need a second to compile that."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_max_pool_with_a_window_larger_than_the_image_is_the_maximum_of_each_channel():
    x = normal(0, (2, 5, 7, 3))
    np.testing.assert_array_equal(ops.max_pool(x, 100_000, 'SAME'), x.max((1, 2), keepdims=True))
    assert ops.max_pool(x, 100_000, 'VALID').shape == (2, 0, 0, 3)


def test_a_large_pooling_window_takes_few_slices():
    x = normal(0, (1, 28, 28, 2))
    operations = jax.make_jaxpr(lambda x: ops.max_pool(x, 14, 'VALID'))(x).pretty_print()
    assert operations.count('slice[') <= 2 * 14
    np.testing.assert_array_equal(ops.max_pool(x, 14, 'VALID'), x.reshape(1, 2, 14, 2, 14, 2).max((2, 4)))


@pytest.mark.parametrize('padding', ['VALID', 'SAME'])
@pytest.mark.parametrize('window', [2, 3])
@pytest.mark.parametrize('shape', [(2, 8, 8, 3), (1, 7, 9, 1), (3, 5, 6, 2)])
def test_max_pool_equals_flax_in_value_and_gradient(shape, window, padding):
    # A permutation, so that there are no ties.
    x = np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape).astype(np.float32) - 40

    def flax_pool(x):
        return nn.max_pool(x, (window, window), (window, window), padding)

    def our_pool(x):
        return ops.max_pool(x, window, padding)

    np.testing.assert_array_equal(our_pool(x), flax_pool(x))
    weights = np.random.default_rng(1).normal(size=flax_pool(x).shape).astype(np.float32)
    np.testing.assert_array_equal(
        jax.grad(lambda x: (our_pool(x) * weights).sum())(x), jax.grad(lambda x: (flax_pool(x) * weights).sum())(x)
    )


def test_tied_values_share_the_gradient():
    gradient = jax.grad(lambda x: ops.max_pool(x, 2, 'VALID').sum())(jnp.ones((1, 2, 2, 1)))
    assert float(gradient.sum()) == 1 and (gradient > 0).all()


def assert_equals_plain_layer(padding, relu, x, kernel, bias):
    """Compares a layer with its plain form."""

    def layer(x, kernel, bias):
        if padding is None:
            return ops.dense(x, kernel, bias, relu)
        return ops.conv(x, kernel, bias, padding, relu)

    def plain_layer(x, kernel, bias):
        return ops.plain_layer(padding, relu, x, kernel, bias)

    assert_equal_with_gradients(layer, plain_layer, x, kernel, bias)


def assert_equal_with_gradients(function, plain, *arrays, differentiable=None):
    """Compares the values, and the gradients of the first `differentiable` arguments."""

    @jax.jit
    def evaluate(gradient, *arrays):
        vjps = [jax.vjp(form, *arrays) for form in (function, plain)]
        return [(outputs, vjp(gradient)[:differentiable]) for outputs, vjp in vjps]

    gradient = jax.tree.map(lambda leaf: normal(3, leaf.shape), jax.eval_shape(plain, *arrays))
    actual, expected = evaluate(gradient, *arrays)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
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
        (1, 13, 9, 48, 33, 3),
        (3, 4, 5, 32, 80, 3),
        (2, 3, 3, 64, 32, 3),
        (50, 28, 28, 32, 32, 3),
        (17, 9, 6, 2, 3, 2),
        (3, 6, 8, 5, 20, 4),
        (3, 7, 7, 40, 33, 1),
        (40, 7, 7, 4, 1, 5),
    ],
)
def test_conv_equals_the_plain_convolution(padding, relu, batch, height, width, channels, features, kernel):
    image = normal(0, (batch, height, width, channels))
    weights = normal(1, (kernel, kernel, channels, features)) / (kernel * channels**0.5)
    assert_equals_plain_layer(padding, relu, image, weights, normal(2, (features,)))


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(('channels', 'features'), [(1, 5), (32, 40)])
def test_a_value_that_is_not_finite_reaches_the_outputs_that_depend_on_it_and_no_others(channels, features, value):
    image = normal(0, (2, 7, 9, channels))
    kernel, bias = normal(1, (3, 3, channels, features)), normal(2, (features,))
    for y, x in ((0, 0), (3, 4), (6, 8), (2, 7)):
        broken = image.copy()
        broken[1, y, x, 0] = value
        output = np.asarray(ops.conv(broken, kernel, bias, 'SAME', False))
        rows, columns = np.arange(7)[:, None], np.arange(9)
        depends = (abs(rows - y) <= 1) & (abs(columns - x) <= 1)
        np.testing.assert_array_equal(np.isfinite(output[1]), ~np.repeat(depends[..., None], features, -1))
        np.testing.assert_array_equal(output[0], ops.conv(image[:1], kernel, bias, 'SAME', False)[0])


@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize(
    ('batch', 'features', 'units'), [(1, 1, 1), (2, 700, 33), (7, 5, 10), (16, 784, 512), (33, 100, 17)]
)
def test_dense_equals_the_plain_product(relu, batch, features, units):
    x, kernel = normal(0, (batch, features)), normal(1, (features, units))
    assert_equals_plain_layer(None, relu, x, kernel / features**0.5, normal(2, (units,)))


def test_the_kernels_are_compiled_and_used():
    x, kernel, bias = jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.ones(4)
    assert kernels_available()
    assert 'mnist_jax_layer_relu' in jax.jit(lambda *arrays: ops.dense(*arrays, True)).lower(x, kernel, bias).as_text()


@pytest.mark.parametrize('shape', [(1, 2, 2, 1), (3, 8, 6, 5), (2, 28, 28, 32), (2, 7, 5, 9)])
def test_max_pool_of_2x2_equals_the_plain_pool_even_at_ties(shape):
    x = np.random.default_rng(0).integers(0, 3, shape).astype(np.float32)
    expected, expected_vjp = jax.vjp(lambda x: ops.plain_max_pool(x, 2, 'VALID'), x)
    output, vjp = jax.vjp(lambda x: ops.max_pool(x, 2, 'VALID'), x)
    np.testing.assert_array_equal(output, expected)
    gradient = normal(1, expected.shape)
    np.testing.assert_allclose(vjp(gradient)[0], expected_vjp(gradient)[0], rtol=1e-6)


@pytest.mark.parametrize('shape', [(1, 1, 1, 1), (3, 5, 7, 9), (2, 28, 28, 32), (16, 14, 14, 64)])
def test_moments_equal_their_plain_form(shape):
    x = normal(0, shape)
    mask = (jnp.arange(shape[0]) != 1).astype(jnp.float32)
    assert_equal_with_gradients(norms.moments, norms.plain_moments, x, mask, differentiable=1)


@pytest.mark.parametrize('channels', [1, 5, 32, 33])
def test_normalize_equals_its_plain_form(channels):
    x, mask = normal(0, (4, 3, 5, channels)) + 2, np.array([1, 1, 0, 1], np.float32)
    x[..., 0] = 1.5  # a channel whose variance is 0
    scale, bias, mean, variance = (normal(seed, (channels,)) for seed in range(1, 5))
    sums = *norms.plain_moments(x, mask), jnp.float32(3 * 3 * 5)
    arrays = (*sums, scale, bias, mean, variance**2)
    constants = jnp.float32(0.9), jnp.float32(1e-3)
    assert_equal_with_gradients(norms.normalize, norms.plain_normalize, *arrays, *constants, differentiable=7)
    inference = scale, bias, mean, variance**2, constants[1]
    assert_equal_with_gradients(norms.normalize_for_inference, norms.plain_normalize_for_inference, *inference)


def test_normalize_by_hand():
    # Four pixels of one channel, 1, 1, 3, 3: the mean is 2, the variance 1.
    sums = jnp.array([8.0]), jnp.array([20.0]), jnp.float32(4)
    scale, bias, zero, one = (jnp.array([value]) for value in (6.0, 1.0, 0.0, 1.0))
    factor, shift, mean, variance = norms.normalize(*sums, scale, bias, zero, one, momentum=0.75, epsilon=3.0)
    assert (factor, shift, mean, variance) == (6 / 2, 1 - 2 * 6 / 2, 0.25 * 2, 1)
    assert norms.normalize_for_inference(scale, bias, zero, one, 3.0) == (3, 1)
    assert np.isnan(norms.normalize(sums[0] * jnp.nan, *sums[1:], scale, bias, zero, one, 0.75, 3.0)).all()


def test_dtypes_and_shapes_are_promoted_and_broadcast_like_numpys():
    x = normal(0, (2, 3, 5))
    kernel = normal(1, (5, 40))
    expected = x @ kernel + 0.5
    np.testing.assert_allclose(ops.dense(x, kernel, jnp.array([0.5]), False), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ops.dense(x, kernel, jnp.bfloat16(0.5), False), expected, rtol=1e-5, atol=1e-5)
    image, mask = normal(2, (3, 4, 4, 2)), jnp.array([True, False, True])
    np.testing.assert_allclose(norms.moments(image, mask)[0], image[::2].sum((0, 1, 2)), rtol=1e-5, atol=1e-5)
    output = norms.scale(image, jnp.array([2]), jnp.float32(1), 'relu')
    np.testing.assert_allclose(output, np.maximum(2 * image + 1, 0), rtol=1e-5)
    # A kernel that is larger than the image gives an empty output and a zero gradient.
    empty, vjp = jax.vjp(lambda kernel: ops.conv(image, kernel, jnp.zeros(7), 'VALID', True), jnp.ones((5, 5, 2, 7)))
    assert empty.shape == (3, 0, 0, 7)
    assert not vjp(empty)[0].any()


def test_the_gradient_over_many_examples_is_as_accurate_as_xlas():
    image, gradient = (np.random.default_rng(i).random((512, 28, 28, 1), np.float32) for i in range(2))
    taps = np.asarray(image, np.float64)[:, :28, :28, 0], np.asarray(gradient, np.float64)[..., 0]
    _, vjp = jax.vjp(lambda kernel: ops.conv(image, kernel, jnp.zeros(1), 'SAME', False), jnp.ones((1, 1, 1, 1)))
    assert abs(vjp(gradient)[0].item() / np.vdot(*taps) - 1) < 3e-6


def test_nan_stays_nan():
    x = jnp.zeros((1, 2, 2, 1)).at[0, 1, 0, 0].set(jnp.nan)
    ones = jnp.ones(1)
    assert np.isnan(ops.max_pool(x, 2, 'VALID')).all()
    for activation in norms.ACTIVATIONS:
        assert np.isnan(norms.scale(x, ones, ones, activation)).sum() == 1
    assert np.isnan(norms.standardize(x.reshape(2, 2), 1e-3)).sum() == 2
    assert np.isnan(attention.softmax(x.reshape(2, 2))).sum() == 2
    for relu in (False, True):
        assert np.isnan(depthwise.depthwise_conv(x, jnp.ones((1, 1, 1)), ones, 'SAME', relu=relu)).sum() == 1
    assert np.isnan(ops.conv(x, jnp.ones((1, 1, 1, 1)), ones, 'SAME', True)).sum() == 1
    assert np.isnan(ops.dense(x.reshape(1, 4), jnp.ones((4, 1)), ones, True)).all()


ROUNDED_TWICE = """
import jax, numpy
from mnist_jax.kernels import ops
a, b, c = numpy.random.default_rng(0).normal(size=(3, 1000)).astype(numpy.float32)
separated, joined = jax.jit(lambda a, b, c: ops.separate(a * b) + c), jax.jit(lambda a, b, c: a * b + c)
print(*((function(a, b, c) == a * b + c).all() for function in (separated, joined)))
gradient = jax.jit(jax.grad(lambda b: (ops.separate(b) * c * a + b * b).sum()))
print((gradient(b) == c * a + 2 * b).all())
"""


def test_a_separated_product_is_rounded_before_the_sum():
    # In a process of its own: tests are compiled without the pass of XLA that removes its barriers. Products that
    # are not separated are fused with the sums on every processor with AVX2.
    variables = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
    process = subprocess.run([sys.executable, '-c', ROUNDED_TWICE], env=variables, capture_output=True, text=True)
    assert process.stdout == 'True False\nTrue\n', process.stderr


def test_what_is_separated_can_be_transformed():
    x, y = normal(0, (5, 3)), normal(1, (5, 3))
    for dtype in (jnp.float32, jnp.bfloat16):
        value, gradients = jax.vmap(jax.value_and_grad(lambda x, y: ops.separate(x * y).sum(), (0, 1)))(
            x.astype(dtype), y.astype(dtype)
        )
        expected = (x.astype(dtype) * y.astype(dtype)).sum(-1)
        np.testing.assert_allclose(value.astype(np.float32), expected.astype(np.float32), rtol=1e-2)
        np.testing.assert_array_equal(gradients, (y.astype(dtype), x.astype(dtype)))
    assert ops.separate(jnp.float32(3)) == 3 and ops.separate(jnp.zeros((2, 0))).shape == (2, 0)
    assert jax.vmap(ops.separate)(jnp.arange(3.0)).tolist() == [0, 1, 2]
    assert jax.jvp(ops.separate, (x,), (y,))[1].tolist() == y.tolist()
    # The kernel writes over its argument, which is needed afterwards.
    doubled, increased = jax.jit(lambda x: (2 * ops.separate(x + 1), x + 1))(x)
    np.testing.assert_array_equal(doubled, 2 * increased)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('shape', [(), (1,), (3, 5), (70_001,), (2, 65_536)])
def test_one_value_that_is_not_finite_is_found_in_any_array(bad, shape):
    arrays = {'largest': np.full((7,), np.finfo(np.float32).max), 'denormal': np.full(shape, 1e-45, np.float32)}
    check = jax.jit(ops.all_finite)
    assert check(arrays)
    for index in {0, arrays['denormal'].size - 1}:
        values = arrays['denormal'].copy()
        values.reshape(-1)[index] = bad
        assert not check({**arrays, 'denormal': values})
        assert not check({'denormal': values, 'last': np.zeros(2, np.float32)})


def test_other_types_are_checked_too():
    assert ops.all_finite({'count': jnp.arange(3), 'low': jnp.ones(3, jnp.bfloat16), 'empty': jnp.zeros(0)})
    assert not ops.all_finite({'count': jnp.arange(3), 'low': jnp.full(3, jnp.inf, jnp.bfloat16)})


@pytest.mark.parametrize('shape', [(1, 1, 1, 1), (3, 5, 7, 9), (2, 14, 14, 64)])
@pytest.mark.parametrize('activation', norms.ACTIVATIONS)
def test_scale_equals_its_plain_form(activation, shape):
    x, factor, shift = 3 * normal(0, shape), normal(1, shape[-1:]), normal(2, shape[-1:])
    plain = functools.partial(norms.plain_scale, activation)
    assert_equal_with_gradients(functools.partial(norms.scale, activation=activation), plain, x, factor, shift)


@pytest.mark.parametrize('activation', norms.ACTIVATIONS)
def test_activations_are_accurate_for_numbers_of_any_size(activation):
    x = np.concatenate([np.linspace(-100, 100, 4001), [0.0, -0.0, 1e-30, -1e30, 1e30]]).astype(np.float32)[:, None]
    wide = x.astype(np.float64)
    with np.errstate(over='ignore'):
        expected = {
            'identity': lambda: wide,
            'relu': lambda: np.maximum(wide, 0),
            'leaky_relu': lambda: np.where(wide > 0, wide, 0.01 * wide),
            'gelu': lambda: 0.5 * wide * (1 + np.tanh((2 / np.pi) ** 0.5 * (wide + 0.044715 * wide**3))),
            'silu': lambda: wide / (1 + np.exp(-wide)),
            'tanh': lambda: np.tanh(wide),
        }[activation]()
    np.testing.assert_allclose(norms.activate(x, activation), expected, rtol=2e-6, atol=2e-7)


def test_the_slope_of_leaky_relu_at_0_is_that_of_negative_numbers_in_both_forms():
    zeros, ones = jnp.zeros((2, 3, 1, 1)), jnp.ones(1)
    for scale in (
        functools.partial(norms.plain_scale, 'leaky_relu'),
        functools.partial(norms.scale, activation='leaky_relu'),
    ):
        gradient = jax.grad(lambda x, scale=scale: scale(x, ones, jnp.zeros(1)).sum())(zeros)
        np.testing.assert_array_equal(gradient, np.full(zeros.shape, 0.01, np.float32))


def test_the_gradient_of_a_depthwise_relu_at_0_is_0_in_both_forms():
    image, kernel, bias = jnp.zeros((1, 3, 3, 2)), jnp.ones((3, 3, 2)), jnp.zeros(2)
    for used in (contextlib.nullcontext(), ops.portable()):
        with used:
            gradient = jax.grad(lambda image: depthwise.depthwise_conv(image, kernel, bias, 'SAME', relu=True).sum())(
                image
            )
        np.testing.assert_array_equal(gradient, np.zeros(image.shape))


def test_arrays_with_one_example_or_channel_are_broadcast_as_in_the_plain_form():
    image = normal(0, (4, 5, 5, 3))
    one = Motion(*(jnp.array([number]) for number in (0.8, 0.6, 1.1, 0.1, 1, -1, 0.5, 2, 1.2)))
    noise, taps = normal(1, (1, 2, 5, 5)), jnp.array([0.25, 0.5, 0.25])
    kernel, bias = normal(2, (3, 3, 3)), normal(3, (1,))
    a, b, mask = normal(4, (3, 2, 4)), normal(5, (1, 4, 5)), jnp.ones(1)
    pairs = [
        (warping.warp(image, one), warping.plain_warp(image, jnp.stack([jnp.repeat(number, 4) for number in one], -1))),
        (warping.distort(image, noise, taps), warping.plain_distort(image, jnp.repeat(noise, 4, 0), taps)),
        (
            depthwise.depthwise_conv(image, kernel, bias, 'SAME'),
            depthwise.plain_depthwise_conv('SAME', 1, False, image, kernel, jnp.repeat(bias, 3), jnp.float32(1)),
        ),
        (attention.matrix_products(a, b), np.asarray(a) @ np.asarray(b)),
        (attention.matrix_products(a[:1], jnp.repeat(b, 3, 0)), np.asarray(a[:1]) @ np.asarray(b)[[0, 0, 0]]),
        (norms.moments(image, mask)[0], np.asarray(image).sum((0, 1, 2))),
    ]
    for found, expected in pairs:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('shape', [(1, 1), (3, 2), (65, 16), (130, 49), (7, 100)])
def test_rows_equal_their_plain_forms(shape):
    x = 2 * normal(0, shape) + 3
    if shape[1] > 1:  # The gradient of one column is that of a constant, rounding errors over a small deviation.
        assert_equal_with_gradients(lambda x: norms.standardize(x, 0.1), lambda x: norms.plain_standardize(x, 0.1), x)
    assert_equal_with_gradients(attention.softmax, attention.plain_softmax, x)


def test_rows_by_hand():
    x = jnp.array([[1.0, 1, 3, 3], [0, 0, 0, 0]])
    np.testing.assert_allclose(norms.standardize(x, 3.0), [[-0.5, -0.5, 0.5, 0.5], [0, 0, 0, 0]])
    np.testing.assert_allclose(attention.softmax(jnp.log(jnp.array([[1.0, 3.0]]))), [[0.25, 0.75]], rtol=1e-6)
    np.testing.assert_allclose(attention.softmax(jnp.array([[1000.0, 0, -1e30]])), [[1, 0, 0]], atol=1e-30)


@pytest.mark.parametrize('sizes', [(1, 1, 1, 1), (5, 16, 8, 16), (3, 49, 33, 17), (2, 7, 100, 130)])
def test_matrix_products_equal_their_plain_form(sizes):
    count, rows, terms, columns = sizes
    a, b = normal(0, (count, rows, terms)) / terms**0.5, normal(1, (count, terms, columns))
    assert_equal_with_gradients(attention.matrix_products, attention.plain_matrix_products, a, b)


@pytest.mark.parametrize('padding', ['SAME', 'VALID'])
@pytest.mark.parametrize('stride', [1, 2, 3])
@pytest.mark.parametrize(
    ('shape', 'kernel'),
    [((2, 7, 8, 5), (3, 3)), ((3, 6, 5, 16), (2, 4)), ((2, 2, 7, 17), (2, 7)), ((1, 9, 19, 35), (5, 5))],
)
def test_depthwise_convolutions_equal_their_plain_form(shape, kernel, stride, padding):
    relu = stride != 2
    arrays = normal(0, shape), normal(1, (*kernel, shape[-1])), normal(2, shape[-1:])

    def plain(image, kernel, bias):
        return depthwise.plain_depthwise_conv(padding, stride, relu, image, kernel, bias, jnp.float32(stride))

    assert_equal_with_gradients(
        lambda *arrays: depthwise.depthwise_conv(*arrays, padding, stride, relu), plain, *arrays
    )


@pytest.mark.parametrize('padding', ['SAME', 'VALID'])
@pytest.mark.parametrize('stride', [2, 3])
@pytest.mark.parametrize(('size', 'window'), [((7, 8), 3), ((6, 5), 1), ((9, 12), 5), ((4, 4), 4), ((5, 5), 2)])
def test_convolutions_with_a_stride_equal_those_of_xla(size, window, stride, padding):
    arrays = normal(0, (2, *size, 3)), normal(1, (window, window, 3, 4)), normal(2, (4,))

    def plain(image, kernel, bias):
        dimensions = ('NHWC', 'HWIO', 'NHWC')
        product = jax.lax.conv_general_dilated(image, kernel, (stride, stride), padding, dimension_numbers=dimensions)
        return jax.nn.relu(product + bias.reshape(1, 1, 1, -1))

    assert_equal_with_gradients(lambda *arrays: ops.conv(*arrays, padding, True, stride), plain, *arrays)


@pytest.mark.parametrize('stride', [1, 2, 3])
def test_a_depthwise_kernel_larger_than_the_image(stride):
    arrays = normal(0, (2, 2, 3, 17)), normal(1, (7, 5, 17)), normal(2, (17,))

    def plain(image, kernel, bias):
        return depthwise.plain_depthwise_conv('SAME', stride, False, image, kernel, bias, jnp.float32(stride))

    assert_equal_with_gradients(lambda *arrays: depthwise.depthwise_conv(*arrays, 'SAME', stride), plain, *arrays)
