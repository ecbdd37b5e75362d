"""Optimizers against Keras 3.15, and RMSprop against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax.contrib
import pytest

from mnist_jax.errors import UserError
from mnist_jax.factory import build
from mnist_jax.learning.optimizers import OPTIMIZERS, from_optax, muon, rmsprop, with_accumulation, with_clipping

# The weights after each of four updates of (1, -0.5) with these gradients and learning rates, printed by Keras 3.15.
GRADIENTS = ((0.5, -2.0), (0.1, 1.0), (-0.3, 0.0), (1e-4, 0.7))
LEARNING_RATES = (0.1, 0.1, 0.05, 0.2)
KERAS = [
    ('sgd', {}, [[0.95, -0.3], [0.94, -0.4], [0.955, -0.4], [0.95498, -0.54]]),
    ('sgd', {'momentum': 0.9}, [[0.95, -0.3], [0.895, -0.22], [0.8605, -0.148], [0.82943, -0.2232001]]),
    (
        'sgd',
        {'momentum': 0.9, 'nesterov': True},
        [[0.905, -0.12], [0.8455, -0.148], [0.82945, -0.08320003], [0.801467, -0.2908801]],
    ),
    (
        'rmsprop',
        {},
        [[0.6837729, -0.1837723], [0.6185402, -0.3312142], [0.7049268, -0.3312142], [0.7048054, -0.5468286]],
    ),
    (
        'rmsprop',
        {'rho': 0.8, 'epsilon': 0.001},
        [[0.7785963, -0.2765328], [0.730372, -0.3855769], [0.7957751, -0.3855769], [0.7956778, -0.5610436]],
    ),
    (
        'adam',
        {},
        [[0.9000013, -0.4000008], [0.8196985, -0.3733674], [0.809163, -0.3630735], [0.7746232, -0.3656562]],
    ),
    (
        'adam',
        {'beta_1': 0.8, 'epsilon': 0.01},
        [[0.938743, -0.4136533], [0.8911897, -0.3951817], [0.8872802, -0.3885048], [0.8753241, -0.4046121]],
    ),
    (
        'adamw',
        {},
        [[0.8996013, -0.3998008], [0.8189387, -0.3730075], [0.8082393, -0.362639], [0.7730529, -0.3649316]],
    ),
    (
        'adadelta',
        {},
        [[0.9998586, -0.4998586], [0.9998184, -0.4999499], [0.9998714, -0.4999499], [0.9998713, -0.5000865]],
    ),
    (
        'adagrad',
        {},
        [[0.9154846, -0.401227], [0.898818, -0.4455078], [0.9211786, -0.4455078], [0.9211488, -0.5047215]],
    ),
    (
        'lamb',
        {},
        [[0.9209431, -0.4209431], [0.8248327, -0.389067], [0.7922171, -0.3571996], [0.6188965, -0.3701594]],
    ),
    ('lion', {}, [[0.9, -0.4], [0.8, -0.5], [0.85, -0.45], [0.65, -0.65]]),
    (
        'nadam',
        {},
        [[0.8937212, -0.3937212], [0.8666039, -0.4329806], [0.8897284, -0.4314455], [0.8831559, -0.4932047]],
    ),
    (
        'nadam',
        {'beta_1': 0.8, 'epsilon': 0.01},
        [[0.8916531, -0.390036], [0.859858, -0.429938], [0.8841934, -0.4281742], [0.8791015, -0.4997705]],
    ),
    (
        'sgd',
        {'momentum': 0.9, 'weight_decay': 0.05, 'decayed': 'all'},
        [[0.945, -0.2975], [0.885275, -0.2160125], [0.8485618, -0.1434725], [0.8090062, -0.2172378]],
    ),
    (
        'rmsprop',
        {'weight_decay': 0.05, 'decayed': 'all'},
        [[0.6787729, -0.1812723], [0.6101463, -0.3278078], [0.6950076, -0.3269883], [0.6879361, -0.5393328]],
    ),
    (
        'lion',
        {'weight_decay': 0.05, 'decayed': 'all'},
        [[0.895, -0.3975], [0.790525, -0.4955125], [0.8385487, -0.4442737], [0.6301632, -0.6398309]],
    ),
]
# The same for SGD with clipped gradients: arguments of `with_clipping`.
CLIPPED = [
    ((0.5, 0.0), [[0.9878732, -0.4514929], [0.982898, -0.5012447], [0.997898, -0.5012447], [0.9978837, -0.6012447]]),
    ((0.0, 0.3), [[0.97, -0.47], [0.96, -0.5], [0.975, -0.5], [0.97498, -0.56]]),
]


def weights_after_each_update(optimizer, gradients, rates, weight):
    state, weights = optimizer.init(weight), []
    for gradient, rate in zip(gradients, rates, strict=True):
        updates, state = optimizer.update(jnp.array(gradient), state, weight, learning_rate=jnp.float32(rate))
        weight = weight + updates
        weights.append(np.asarray(weight))
    return weights


@pytest.mark.parametrize(('name', 'fields', 'expected'), KERAS, ids=lambda value: str(value)[:40])
def test_updates_equal_those_of_keras(name, fields, expected):
    weights = weights_after_each_update(OPTIMIZERS[name](**fields), GRADIENTS, LEARNING_RATES, jnp.array([1.0, -0.5]))
    np.testing.assert_allclose(weights, expected, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize(('limits', 'expected'), CLIPPED)
def test_clipped_gradients_equal_those_of_keras(limits, expected):
    optimizer = with_clipping(OPTIMIZERS['sgd'](), *limits)
    weights = weights_after_each_update(optimizer, GRADIENTS, LEARNING_RATES, jnp.array([1.0, -0.5]))
    np.testing.assert_allclose(weights, expected, rtol=2e-6, atol=2e-7)


def test_the_norm_is_that_of_all_parameters_and_small_gradients_are_not_scaled():
    optimizer = with_clipping(OPTIMIZERS['sgd'](), 1.0, 0.0)
    grads = {'a': jnp.array([3.0, 0.0]), 'b': jnp.array([[4.0]])}  # a norm of 5
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads, learning_rate=jnp.float32(1))
    np.testing.assert_allclose(updates['a'], [-0.6, 0])
    np.testing.assert_allclose(updates['b'], [[-0.8]])
    small = {'a': jnp.array([0.3, 0.0]), 'b': jnp.array([[0.4]])}
    updates, _ = optimizer.update(small, optimizer.init(small), small, learning_rate=jnp.float32(1))
    np.testing.assert_array_equal(updates['a'], -small['a'])
    # The square of this gradient overflows: the update is not finite, and not 0 either.
    huge = {'a': jnp.array([1e30, 0.0]), 'b': jnp.array([[1.0]])}
    updates, _ = optimizer.update(huge, optimizer.init(huge), huge, learning_rate=jnp.float32(1))
    assert np.isnan(updates['b']).all()


@pytest.mark.parametrize('name', sorted(OPTIMIZERS))
@pytest.mark.parametrize('clip_value', [0.0, 1.0])
def test_an_infinite_gradient_does_not_become_a_finite_update(name, clip_value):
    optimizer = with_clipping(OPTIMIZERS[name](), 0.0, clip_value)
    params = {'a': jnp.zeros((2, 2))}
    grads = {'a': jnp.array([[jnp.inf, 1.0], [1.0, 1.0]])}
    updates, _ = optimizer.update(grads, optimizer.init(params), params, learning_rate=jnp.float32(0.1))
    assert not np.isfinite(updates['a'][0, 0])


@pytest.mark.parametrize(
    ('name', 'decayed', 'bias'), [('sgd', 'kernels', 1), ('adam', 'all', 0.9), ('adamw', 'kernels', 1)]
)
def test_weight_decay_spares_biases_unless_all_is_set(name, decayed, bias):
    optimizer = OPTIMIZERS[name](weight_decay=0.5, decayed=decayed)
    params = {'bias': jnp.ones(2), 'kernel': jnp.ones((2, 2))}
    zeros = {'bias': jnp.zeros(2), 'kernel': jnp.zeros((2, 2))}
    updates, _ = optimizer.update(zeros, optimizer.init(params), params, learning_rate=jnp.float32(0.2))
    np.testing.assert_allclose(params['kernel'] + updates['kernel'], 0.9)
    np.testing.assert_allclose(params['bias'] + updates['bias'], bias)


def test_any_optax_transformation_can_be_adapted():
    # Adam of optax adds epsilon after the bias correction, so it differs from Keras only by that.
    optimizer = from_optax(optax.scale_by_adam(eps=1e-9))
    weights = weights_after_each_update(optimizer, GRADIENTS, LEARNING_RATES, jnp.array([1.0, -0.5]))
    ours = weights_after_each_update(
        OPTIMIZERS['adam'](epsilon=1e-9), GRADIENTS, LEARNING_RATES, jnp.array([1.0, -0.5])
    )
    np.testing.assert_allclose(weights, ours, rtol=1e-5)


def test_every_optimizer_is_compared_with_keras():
    assert {name for name, *_ in KERAS} == set(OPTIMIZERS) - {'muon'}  # which is compared with optax's


def test_rmsprop_by_hand():
    # w = 1, g = 0.5 and then -2; v = 0.1 * 0.25 = 0.025, then 0.9 * 0.025 + 0.1 * 4 = 0.4225, whose root is 0.65.
    first = 1 - 0.01 * 0.5 / 0.025**0.5
    weights = weights_after_each_update(rmsprop(), (0.5, -2.0), (0.01, 0.01), jnp.array(1.0))
    np.testing.assert_allclose(weights, [first, first + 0.02 / 0.65], rtol=1e-5)
    # Epsilon is inside the root: a gradient of 1e-4 moves by 0.01 * 1e-4 / sqrt(1e-9 + 1e-7).
    weights = weights_after_each_update(rmsprop(), (1e-4,), (0.01,), jnp.array(0.0))
    np.testing.assert_allclose(weights, [-0.01 * 1e-4 / (1.01e-7) ** 0.5], rtol=1e-5)


@pytest.mark.parametrize(
    ('name', 'fields', 'message'),
    [
        ('sgd', {'momentum': -0.1}, 'optimizer.momentum must be a number from 0 to 1, got -0.1'),
        ('adam', {'beta_2': 1.5}, 'optimizer.beta_2 must be a number from 0 to 1, got 1.5'),
        ('adamw', {'weight_decay': -1.0}, 'optimizer.weight_decay must be a finite number from 0, got -1.0'),
        ('sgd', {'weight_decay': -1.0}, 'optimizer.weight_decay must be a finite number from 0, got -1.0'),
        ('sgd', {'decayed': 'some'}, "optimizer.decayed must be one of all, kernels, got 'some'"),
        ('lamb', {'epsilon': float('nan')}, 'optimizer.epsilon must be a finite number from 0, got nan'),
    ],
)
def test_values_out_of_range_are_errors(name, fields, message):
    with pytest.raises(UserError) as error:
        build('optimizer', OPTIMIZERS, {'name': name, **fields})
    assert str(error.value) == message


@pytest.mark.parametrize('shape', [(5, 3), (3, 5), (2, 2, 3, 4), (1, 2, 2, 9)])
def test_muon_equals_that_of_optax(shape):
    """Their Adam adds epsilon after the bias correction, so it is 0 here; a convolution kernel is a matrix."""
    rng = np.random.default_rng(0)
    rows = int(np.prod(shape[:-1]))
    params = {'kernel': rng.normal(size=shape).astype(np.float32), 'bias': rng.normal(size=4).astype(np.float32)}
    optimizer = muon(nesterov=False, epsilon=0.0, adam_rate=0.5)
    theirs = {
        'kernel': optax.contrib.muon(0.1, nesterov=False, ns_steps=5),
        'bias': optax.adam(0.05, eps=0.0),
    }
    state = optimizer.init(params)
    matrices = {'kernel': params['kernel'].reshape(rows, -1), 'bias': params['bias']}
    their_states = {name: theirs[name].init(matrices[name]) for name in params}
    for _ in range(3):
        grads = {name: rng.normal(size=value.shape).astype(np.float32) for name, value in params.items()}
        updates, state = optimizer.update(grads, state, params, learning_rate=jnp.float32(0.1))
        for name, grad in grads.items():
            grad = grad.reshape(matrices[name].shape)
            expected, their_states[name] = theirs[name].update(grad, their_states[name], matrices[name])
            np.testing.assert_allclose(updates[name], expected.reshape(params[name].shape), rtol=2e-3, atol=2e-5)


def test_a_huge_gradient_does_not_freeze_the_kernels_of_muon():
    optimizer = muon()
    kernel = jnp.ones((4, 3))
    update, _ = optimizer.update(kernel * 1e20, optimizer.init(kernel), kernel, learning_rate=jnp.float32(0.1))
    assert np.isnan(update).all()  # so that the run stops


def test_the_momentum_of_muon_is_orthogonalized():
    grads = np.random.default_rng(0).normal(size=(2, 10, 30)).astype(np.float32)
    optimizer = muon(momentum=0.5)
    state = optimizer.init(grads[0])
    updates = None
    for grad in grads:
        updates, state = optimizer.update(grad, state, grad, learning_rate=jnp.float32(1))
    momentum = grads[1] + 0.5 * (grads[1] + 0.5 * grads[0])  # as in Nesterov's method
    left, _, right = np.linalg.svd(momentum, full_matrices=False)
    values = np.diag(left.T @ -np.asarray(updates) @ right.T) / 3**0.5
    assert values.min() > 0.6 and values.max() < 1.3  # five iterations reach 1 only roughly


def test_accumulated_gradients_make_one_update_with_their_mean():
    optimizer = with_accumulation(OPTIMIZERS['sgd'](momentum=0.5), 2)
    gradients, rates = ((1.0, 2.0), (3.0, 4.0), (0.0, 0.0), (2.0, 8.0)), (0.1, 0.1, 0.1, 0.2)
    weights = weights_after_each_update(optimizer, gradients, rates, jnp.array([1.0, 1.0]))
    # m = -0.1 (2, 3), then 0.5 m - 0.2 (1, 4)
    np.testing.assert_allclose(weights, [[1, 1], [0.8, 0.7], [0.8, 0.7], [0.5, -0.25]], rtol=1e-6)
    state = optimizer.init(jnp.zeros(2))
    updates, _ = optimizer.update(jnp.array([jnp.nan, 1.0]), state, jnp.zeros(2), learning_rate=jnp.float32(1))
    assert np.isnan(updates[0]), 'a gradient of NaN must be noticed in its own step'


@pytest.mark.parametrize('name', ['bias', 'scale'])
def test_a_bias_with_two_dimensions_is_not_a_kernel(name):
    """As those of `nn.MultiHeadDotProductAttention`, with the axes heads and features."""
    params = {'query': {name: jnp.ones((2, 3))}}
    grads = {'query': {name: jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), jnp.float32)}}
    vector = jax.tree.map(jnp.ravel, (grads, params))
    for optimizer in (OPTIMIZERS['sgd'](weight_decay=0.5), muon()):
        own, as_vector = (
            optimizer.update(grads, optimizer.init(params), params, learning_rate=jnp.float32(0.1))[0]
            for grads, params in ((grads, params), vector)
        )
        np.testing.assert_array_equal(own['query'][name].ravel(), as_vector['query'][name])
