"""Linen's own layers in models that are trained in chunks, against plain JAX on the whole batch."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_numbers, make_parts
from linen_models import ResidualCNN, VisionTransformer
from ml_collections import ConfigDict

from mnist_jax.distributed.devices import Replicas
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.learning.optimizers import sgd
from mnist_jax.learning.state import create_state
from mnist_jax.learning.step import apply_to_chunk, train_step
from mnist_jax.models.architectures import MODELS
from mnist_jax.models.layers import Training
from mnist_jax.training.plan import make_plan
from mnist_jax.workdir.snapshot import params_sha256

BATCH, PADDING = 14, 2
LEARNING_RATE = 0.1


def lowbias32(x):
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


class Dropout(nn.Module):
    """Dropout of a whole batch whose examples are numbered from 0, with the masks of `ops.random_mask`."""

    rate: float
    broadcast_dims: tuple = ()
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x, deterministic=None):
        if nn.merge_param('deterministic', self.deterministic, deterministic):
            return x
        key = self.make_rng('dropout')
        words_Bx2 = jax.vmap(lambda index: jax.random.key_data(jax.random.fold_in(key, index)))(jnp.arange(len(x)))
        shape = [1 if axis in self.broadcast_dims else size for axis, size in enumerate(x.shape)][1:]
        positions_1xN = jnp.arange(np.prod(shape), dtype=jnp.uint32)[None]
        bits = lowbias32(lowbias32(positions_1xN ^ words_Bx2[:, :1]) ^ words_Bx2[:, 1:])
        keep = bits.reshape(-1, *shape) < np.uint32(round((1 - self.rate) * 2**32))
        return jnp.where(keep, x / (1 - self.rate), 0.0)


def make_batch(more_padding=0):
    rng = np.random.default_rng(0)
    rows = BATCH + PADDING + more_padding
    return {
        'label': rng.integers(0, 3, 32).astype(np.int32)[:rows],
        'image': rng.integers(0, 256, (rows, 28, 28, 1)).astype(np.uint8),
        'mask': np.array([1.0] * BATCH + [0.0] * (rows - BATCH), np.float32),
        'index': np.arange(rows, dtype=np.int32),
    }


@functools.cache
def first_state(model):
    return jax.jit(lambda: create_state(model, sgd(), (28, 28, 1), seed=0))()


def take_step(model, chunks):
    batch = make_batch()
    parts = make_parts(model, len(batch['label']) // chunks, LEARNING_RATE)
    state = first_state(model)
    return state, *jax.jit(lambda: train_step(state, batch, make_numbers(0), parts=parts, all_sum=lambda tree: tree))()


def plain_gradient(model, state):
    batch = {name: rows[:BATCH] for name, rows in make_batch().items()}
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), state.step)

    def loss(params):
        variables = {'params': params, 'batch_stats': state.batch_stats}
        training = Training(batch['mask'], batch['index'], lambda tree: tree)
        logits, updated = model.apply(
            variables, batch['image'] / np.float32(255), training, rngs={'dropout': key}, mutable=['batch_stats']
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch['label']).mean(), updated

    (value, updated), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(state.params)
    return value, gradient, updated.get('batch_stats', {})


def assert_step(state, new_state, gradient, batch_stats, statistics_atol=1e-5):
    """Asserts that a step used this gradient, and has these batch statistics."""
    ours = jax.tree.map(lambda old, new: (old - new) / LEARNING_RATE, state.params, new_state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, gradient)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=statistics_atol), new_state.batch_stats, batch_stats
    )


@pytest.mark.parametrize('model', [ResidualCNN, VisionTransformer])
def test_linen_layers_have_the_loss_gradient_and_statistics_of_plain_jax_on_the_whole_batch(model):
    loss, gradient, batch_stats = plain_gradient(model(dropout=Dropout), first_state(model()))
    for chunks in (1, 8):
        state, new_state, sums = take_step(model(), chunks)
        np.testing.assert_allclose(sums['loss'] / sums['count'], loss, rtol=1e-5)
        assert_step(state, new_state, gradient, batch_stats)


@pytest.mark.parametrize('model', [ResidualCNN, VisionTransformer])
def test_models_of_linen_layers_have_the_same_bits_on_1_2_and_8_devices(model):
    parts = make_parts(model(), chunk_size=4, learning_rate=LEARNING_RATE)
    digests = []
    for devices in (1, 2, 8):
        replicas = Replicas(jax.devices()[:devices])
        step = replicas.compile(
            functools.partial(train_step, numbers=make_numbers(0), parts=parts, all_sum=replicas.all_sum)
        )
        state = replicas.replicate(first_state(model()))
        for _ in range(3):
            state, _ = step(state, replicas.shard(make_batch(16 if devices == 8 else 0)))
        digests.append(params_sha256(state.variables))
    assert len(set(digests)) == 1


@pytest.mark.parametrize('base', [nn.BatchNorm, nn.remat(nn.BatchNorm)])
def test_a_subclass_of_a_layer_does_what_it_adds(base):
    class Scaled(base):
        def __call__(self, x):
            return 5 * super().__call__(x)

    class Model(nn.Module):
        layer: type
        factor: float

        @nn.compact
        def __call__(self, image_BxHxWxC, training=None):
            x = nn.Conv(3, (3, 3), strides=9)(image_BxHxWxC)
            return self.factor * self.layer(use_running_average=training is None, name='norm')(x).mean((1, 2))

    _, expected, sums = take_step(Model(nn.BatchNorm, 5.0), 8)
    _, new_state, own_sums = take_step(Model(Scaled, 1.0), 8)
    np.testing.assert_allclose(own_sums['loss'], sums['loss'], rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), new_state.variables, expected.variables)


def test_dropout_draws_a_different_mask_for_each_example_of_a_batch():
    class Mask(nn.Module):
        @nn.compact
        def __call__(self, image_BxHxWxC, training=None):
            self.param('unused', nn.initializers.zeros, ())
            ones = jnp.ones((len(image_BxHxWxC), 64))
            return nn.Dropout(0.5, deterministic=training is None)(ones)

    masks = [apply_in_chunks(Mask(), chunk_size) for chunk_size in (128, 16, 1)]
    assert len(np.unique(masks[0], axis=0)) == 128 and set(np.unique(masks[0])) == {0.0, 2.0}
    assert abs(masks[0].mean() - 1) < 0.05
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[0], masks[2])


@pytest.mark.parametrize('layer', [nn.MultiHeadDotProductAttention, nn.SelfAttention])
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_attention_drops_the_same_weights_in_all_chunks_of_a_batch(layer):
    class Attention(nn.Module):
        @nn.compact
        def __call__(self, image_BxHxWxC, training=None):
            tokens = jnp.broadcast_to(jnp.eye(4, 8), (len(image_BxHxWxC), 4, 8))
            return layer(2, dropout_rate=0.5)(tokens, deterministic=training is None).reshape(len(tokens), -1)

    outputs, image = apply_in_chunks(Attention(), 16), jnp.zeros((1, 28, 28, 1))
    whole = Attention().apply(Attention().init(jax.random.key(0), image), image)
    assert (outputs == outputs[0]).all() and (outputs[0] != whole[0]).any()


def test_a_vector_has_no_axis_of_examples():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, image_BxHxWxC, training=None):
            shift_K = nn.LayerNorm(name='shared')(self.param('shift', nn.initializers.normal(), (3,)))
            shared = {'variable_axes': {'params': None}, 'split_rngs': {'params': False}}
            rows_BxF = image_BxHxWxC.reshape(len(image_BxHxWxC), -1)[:, 300:303]
            return nn.vmap(nn.RMSNorm, **shared)(name='each')(rows_BxF) + shift_K[None]

    state, new_state, _ = take_step(Normed(), 4)
    _, gradient, batch_stats = plain_gradient(Normed(), state)
    assert_step(state, new_state, gradient, batch_stats)


def test_numbers_that_a_model_draws_itself_differ_between_the_chunks_of_a_batch():
    class Noise(nn.Module):
        @nn.compact
        def __call__(self, image_BxHxWxC, training=None):
            self.param('unused', nn.initializers.zeros, ())
            shape = (len(image_BxHxWxC), 8)
            if training is None:
                return jnp.zeros(shape)
            return jax.random.normal(self.make_rng('dropout'), shape) + jax.random.normal(self.make_rng('noise'), shape)

    assert len(np.unique(apply_in_chunks(Noise(), 16), axis=0)) == 128


def apply_in_chunks(model, chunk_size):
    image = jnp.zeros((128, 28, 28, 1))
    variables = model.init(jax.random.key(0), image[:1])
    outputs = []
    for start in range(0, 128, chunk_size):
        rows = slice(start, start + chunk_size)
        chunk = {'mask': jnp.ones(chunk_size), 'index': jnp.arange(128)[rows]}
        outputs.append(apply_to_chunk(model, variables, image[rows], chunk, jax.random.key(1))[0])
    return np.concatenate(outputs)


def test_spectral_and_weight_norm_have_the_gradient_and_state_of_plain_jax():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, image_BxHxWxC, training=None):
            x_BxF = image_BxHxWxC.reshape(len(image_BxHxWxC), -1)
            x_BxF = nn.relu(nn.SpectralNorm(nn.Dense(8))(x_BxF, update_stats=training is not None))
            self.sow('intermediates', 'hidden', x_BxF)
            return self.perturb('logits', nn.WeightNorm(nn.Dense(3))(x_BxF))

    state, new_state, _ = take_step(Normed(), 8)
    _, gradient, batch_stats = plain_gradient(Normed(), state)
    assert_step(state, new_state, gradient, batch_stats, statistics_atol=1e-6)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (state.batch_stats, batch_stats)), strict=True))


def test_batch_norm_inside_remat_and_jit_is_that_of_the_whole_batch():
    class Inner(nn.Module):
        @nn.compact
        def __call__(self, x_BxF):
            return nn.BatchNorm(use_running_average=False)(x_BxF)

    class Outer(nn.Module):
        wrap: bool = True

        @nn.compact
        def __call__(self, image_BxHxWxC, training=None):
            x_BxF = nn.Dense(4)(image_BxHxWxC.reshape(len(image_BxHxWxC), -1))
            if training is not None:
                inner = nn.jit(nn.remat(Inner)) if self.wrap else Inner
                x_BxF = inner(name='inner')(x_BxF)
            else:
                x_BxF = Inner(name='inner')(x_BxF)
            return nn.Dense(3)(x_BxF)

    state, new_state, _ = take_step(Outer(), 4)
    _, gradient, batch_stats = plain_gradient(Outer(wrap=False), state)
    assert_step(state, new_state, gradient, batch_stats)


class Vmapped(nn.Module):
    """Batch normalization, mapped over two groups of features."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, image_BxHxWxC, training=None):
        x_Bx2x4 = nn.Dense(8)(image_BxHxWxC.reshape(len(image_BxHxWxC), -1)).reshape(-1, 2, 4)
        axes = {'params': 0, 'batch_stats': 0}
        norm = nn.vmap(nn.BatchNorm, variable_axes=axes, split_rngs={'params': True}, in_axes=(1, None), out_axes=1)
        return nn.Dense(self.num_classes)(norm()(x_Bx2x4, training is None).reshape(len(x_Bx2x4), -1))


def test_batch_norm_inside_vmap_is_that_of_the_whole_batch():
    state, new_state, _ = take_step(Vmapped(), 4)
    _, gradient, batch_stats = plain_gradient(Vmapped(), state)
    assert_step(state, new_state, gradient, batch_stats)


def test_feature_maps_leave_out_the_layers_inside_a_transformation(small, monkeypatch, tmp_path):
    monkeypatch.setitem(MODELS, 'linen', Vmapped)
    config = small()
    config.model = ConfigDict({'name': 'linen'})
    plan = make_plan(config)
    model = RestoredModel(tmp_path, plan, plan.first_snapshot())
    maps = model.feature_maps(np.full((28, 28, 1), 255, np.uint8))
    assert {name: array.shape for name, array in maps.items()} == {'Dense_0': (8,), 'Dense_1': (10,)}
    assert [layer.output_shape for layer in model.layers] == [(8,), (4,), (10,)]
