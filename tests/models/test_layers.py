"""The layers: initializers, dropout, batch normalization."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax.errors import UserError
from mnist_jax.learning.transfer import matches
from mnist_jax.models.architectures import MLP
from mnist_jax.models.layers import (
    SHARED_STREAM,
    BatchNorm,
    Conv,
    DepthwiseConv,
    Dropout,
    GlobalMeanPool,
    GroupNorm,
    LayerNorm,
    MeanPool,
    SelfAttention,
    SqueezeExcitation,
    StochasticDepth,
    Training,
    normalized,
)
from mnist_jax.models.linen import in_chunks


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


@pytest.mark.parametrize(
    'normalize',
    [
        lambda x, training: BatchNorm(activation='relu', name='norm')(x, training),
        lambda x, training: nn.BatchNorm(name='norm')(x, use_running_average=training is None),
        lambda x, training: nn.BatchNorm(training is None, use_fast_variance=False, name='norm')(x),
    ],
)
def test_batch_norm_with_frozen_statistics_normalizes_as_for_inference(normalize):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, training=None):
            return normalize(x, training)

    x = jax.random.normal(jax.random.key(1), (4, 5, 5, 3)) * 3 + 2
    variables = Model().init(jax.random.key(0), x)
    for pattern, is_frozen in (('norm', True), ('*/mean', True), ('*/scale', False)):
        training = dataclasses.replace(make_training(4), is_frozen=lambda path, p=pattern: matches(path, [p]))
        with in_chunks(training):
            trained, updated = Model().apply(variables, x, training, mutable=['batch_stats'])
        assert np.allclose(trained, Model().apply(variables, x), atol=1e-6) is is_frozen
        assert bool(np.all(updated['batch_stats']['norm']['mean'] == 0)) is is_frozen


def test_batch_norm_equals_that_of_linen_on_the_rows_without_padding():
    x = jax.random.normal(jax.random.key(1), (12, 5, 5, 3)) * 3 + 2
    mask = np.array([1] * 9 + [0] * 3, np.float32)
    ours, theirs = BatchNorm(activation='relu'), nn.BatchNorm(use_running_average=False, momentum=0.99, epsilon=1e-3)
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


def assert_equals_linen(ours, theirs, x, rename=lambda params: params):
    """Compares outputs and gradients, with random parameters."""
    rng = np.random.default_rng(0)
    params = ours.init(jax.random.key(0), x)['params']
    params = jax.tree.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32), params)
    weights = rng.normal(size=ours.apply({'params': params}, x).shape).astype(np.float32)

    def output(module, params, x):
        return (module.apply({'params': params}, x) * weights).sum()

    own = jax.value_and_grad(output, argnums=(1, 2))(ours, params, x)
    other = jax.value_and_grad(output, argnums=(1, 2))(theirs, rename(params), x)
    np.testing.assert_allclose(own[0], other[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(own[1][1], other[1][1], rtol=2e-3, atol=2e-4)
    for mine, his in zip(jax.tree.leaves(rename(own[1][0])), jax.tree.leaves(other[1][0]), strict=True):
        np.testing.assert_allclose(mine, his, rtol=2e-3, atol=2e-4)


IMAGES = np.random.default_rng(1).normal(size=(3, 6, 5, 12)).astype(np.float32) * 2 + 1


def test_layer_and_group_normalization_equal_those_of_linen():
    assert_equals_linen(LayerNorm(activation='identity'), nn.LayerNorm(1e-3), IMAGES)
    assert_equals_linen(GroupNorm(8, activation='identity'), nn.GroupNorm(4, epsilon=1e-3), IMAGES)  # gcd(8, 12)


def test_attention_equals_that_of_linen():
    tokens = np.random.default_rng(1).normal(size=(2, 7, 12)).astype(np.float32)

    def rename(params):
        names = ('query', 'key', 'value')
        kernels = np.split(np.asarray(params['Dense_0']['kernel']), 3, axis=1)
        biases = np.split(np.asarray(params['Dense_0']['bias']), 3)
        out = params['Dense_1']
        return {
            **{
                name: {'kernel': kernel.reshape(12, 3, 4), 'bias': bias.reshape(3, 4)}
                for name, kernel, bias in zip(names, kernels, biases, strict=True)
            },
            'out': {'kernel': out['kernel'].reshape(3, 4, 12), 'bias': out['bias']},
        }

    assert_equals_linen(SelfAttention(3), nn.MultiHeadDotProductAttention(3), tokens, rename)


def test_depthwise_convolutions_equal_those_of_linen():
    theirs = nn.Conv(12, (3, 3), strides=2, feature_group_count=12)
    assert_equals_linen(
        DepthwiseConv(3, 'same', 2),
        theirs,
        IMAGES,
        lambda params: {'kernel': params['kernel'].reshape(3, 3, 1, 12), 'bias': params['bias']},
    )


def test_squeeze_and_excitation_multiplies_by_a_sigmoid_of_the_means():
    layer = SqueezeExcitation(4)
    params = layer.init(jax.random.key(0), IMAGES)['params']
    first, second = (jax.tree.map(np.asarray, params[name]) for name in ('Dense_0', 'Dense_1'))
    assert first['kernel'].shape == (12, 3)
    hidden = np.maximum(IMAGES.mean((1, 2)) @ first['kernel'] + first['bias'], 0)
    factors = 1 / (1 + np.exp(-(hidden @ second['kernel'] + second['bias'])))
    expected = IMAGES * factors[:, None, None]
    np.testing.assert_allclose(layer.apply({'params': params}, IMAGES), expected, rtol=1e-5, atol=1e-5)


def test_mean_pools():
    np.testing.assert_allclose(GlobalMeanPool().apply({}, IMAGES), IMAGES.mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(MeanPool(2).apply({}, IMAGES), nn.avg_pool(IMAGES, (2, 2), (2, 2)), rtol=1e-5)


def test_stochastic_depth_drops_whole_examples():
    x = jnp.ones((4000, 2, 2, 1))
    layer = StochasticDepth(0.3)
    dropped = np.asarray(layer.apply({}, x, make_training(4000), rngs={SHARED_STREAM: jax.random.key(0)}))
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1) / np.float32(0.7)}
    assert (dropped == dropped[:, :1, :1]).all()
    assert abs((dropped[:, 0, 0] == 0).mean() - 0.3) < 0.03
    assert layer.apply({}, x, None) is x


@pytest.mark.parametrize('activation', ['relu', 'silu', 'identity'])
@pytest.mark.parametrize(
    'convolve', [lambda: Conv(5, 3, 'same', relu=False, stride=2), lambda: DepthwiseConv(3, 'valid')]
)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_batch_normalization_is_folded_into_a_convolution_for_inference(convolve, activation, dtype):
    class Layer(nn.Module):
        folded: bool

        @nn.compact
        def __call__(self, x):
            convolution, normalization = convolve(), BatchNorm(activation=activation)
            return (
                normalized(convolution, normalization, x, None) if self.folded else normalization(convolution(x), None)
            )

    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 9, 8, 3))
    variables = Layer(False).init(jax.random.key(0), jnp.asarray(x, 'float32'))
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(np.abs(leaf + rng.normal(size=leaf.shape)) + 0.1, dtype), variables
    )
    x = jnp.asarray(x, dtype)
    folded, separate = (np.asarray(Layer(way).apply(variables, x), 'float64') for way in (True, False))
    assert folded.std() > 0.1
    tolerance = 1e-5 if dtype == 'float32' else 0.1
    np.testing.assert_allclose(folded, separate, rtol=tolerance, atol=2 * tolerance)
    assert Layer(True).apply(variables, x).dtype == dtype
    same = jax.tree.map(np.array_equal, Layer(True).init(jax.random.key(1), x), Layer(False).init(jax.random.key(1), x))
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize('combine', [normalized, lambda convolution, norm, x, training: norm(x, training, convolution)])
def test_batch_normalization_follows_the_relu_of_a_convolution_in_training_and_in_inference(combine):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, training=None):
            convolution = Conv(5, 3, 'same', relu=True)
            return combine(convolution, BatchNorm(0.0, activation='identity'), x, training)

    variables = Layer().init(jax.random.key(0), IMAGES)
    trained, updated = Layer().apply(variables, IMAGES, make_training(len(IMAGES)), mutable=['batch_stats'])
    # With a momentum of 0, the statistics are those of this batch.
    np.testing.assert_allclose(Layer().apply({**variables, **updated}, IMAGES), trained, atol=1e-5)


def test_a_convolution_with_a_relu_is_not_scaled():
    layer, ones = Conv(5, 3, 'same', relu=True), jnp.ones(5)
    with pytest.raises(UserError, match=r'^relu must be False if a convolution is called with factor_K, got True'):
        layer.init(jax.random.key(0), IMAGES, ones, ones)
