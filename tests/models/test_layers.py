"""The layers: initializers, dropout, batch normalization."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax.models.architectures import MLP
from mnist_jax.models.layers import SHARED_STREAM, BatchNorm, Dropout, Training


def make_training(size, index=None, mask=None):
    index = np.arange(size) if index is None else index
    mask = np.ones(size, np.float32) if mask is None else mask
    return Training(jnp.asarray(mask), jnp.asarray(index), lambda tree: tree)


def test_initializers_are_those_of_keras():
    variables = MLP(10, hidden=(512,)).init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    kernel, bias = variables['params']['Dense_0']['kernel'], variables['params']['Dense_0']['bias']
    limit = np.sqrt(6 / (784 + 512))  # Glorot and Bengio 2010, equation 16
    assert not bias.any()
    assert np.abs(kernel).max() <= limit
    assert np.isclose(kernel.std(), limit / np.sqrt(3), rtol=0.01)


def test_dropout_depends_only_on_the_example_and_the_step():
    x = jnp.ones((8, 100))
    order = np.array([5, 2, 7, 0, 1, 6, 3, 4])

    def dropped(key, index):
        return Dropout(0.3).apply({}, x, make_training(8, index), rngs={SHARED_STREAM: jax.random.key(key)})

    ordered, permuted = dropped(0, np.arange(8)), dropped(0, order)
    np.testing.assert_array_equal(np.asarray(ordered)[order], permuted)
    assert (ordered != dropped(1, np.arange(8))).any()
    assert set(np.unique(ordered)) == {np.float32(0), np.float32(1) / np.float32(0.7)}
    assert abs((np.asarray(ordered) == 0).mean() - 0.3) < 0.06
    np.testing.assert_array_equal(Dropout(0.3).apply({}, x, None), x)


def test_batch_norm_equals_that_of_linen_on_the_rows_without_padding():
    x = jax.random.normal(jax.random.key(1), (12, 5, 5, 3)) * 3 + 2
    mask = np.array([1] * 9 + [0] * 3, np.float32)
    ours, theirs = BatchNorm(relu=True), nn.BatchNorm(use_running_average=False, momentum=0.99, epsilon=1e-3)
    ours_variables = ours.init(jax.random.key(0), x, None)
    theirs_variables = theirs.init(jax.random.key(0), x)
    y, updated = ours.apply(ours_variables, x, make_training(12, mask=mask), mutable=['batch_stats'])
    expected, theirs_updated = theirs.apply(theirs_variables, x[:9], mutable=['batch_stats'])
    np.testing.assert_allclose(y[:9], nn.relu(expected), atol=1e-5)
    stats, theirs_stats = updated['batch_stats'], theirs_updated['batch_stats']
    np.testing.assert_allclose(stats['mean'], theirs_stats['mean'], atol=1e-6)
    np.testing.assert_allclose(stats['variance'], theirs_stats['var'], atol=1e-6)
    inference = ours.apply({**ours_variables, **updated}, x, None)
    by_hand = (x - stats['mean'].reshape(1, 1, 1, 3)) / np.sqrt(stats['variance'].reshape(1, 1, 1, 3) + 1e-3)
    np.testing.assert_allclose(inference, np.maximum(by_hand, 0), atol=1e-5)
