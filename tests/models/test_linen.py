"""Linen's own layers in models that are trained in chunks, against plain JAX on the whole batch."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_parts
from ml_collections import ConfigDict

from mnist_jax.distributed.devices import Replicas
from mnist_jax.errors import UserError
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.learning.model_checks import check_independence, check_model, has_products
from mnist_jax.learning.optimizers import sgd
from mnist_jax.learning.step import apply_to_chunk, create_state, train_step
from mnist_jax.models.architectures import MODELS
from mnist_jax.models.layers import Training
from mnist_jax.training.experiment import make_experiment, make_plan
from mnist_jax.workdir.snapshot import params_sha256

BATCH, PADDING = 14, 2
LEARNING_RATE = 0.1


class ResidualCNN(nn.Module):
    num_classes: int = 3
    dropout: type = nn.Dropout

    @nn.compact
    def __call__(self, image_BxHxWxC, training=None):
        x = nn.Conv(8, (3, 3), strides=2)(image_BxHxWxC)
        residual = nn.gelu(nn.BatchNorm(use_running_average=training is None, momentum=0.9)(x))
        residual = self.dropout(0.2, deterministic=training is None)(nn.Conv(8, (3, 3))(residual))
        x = nn.GroupNorm(num_groups=4)(x + residual)
        x = nn.BatchNorm(training is None, use_fast_variance=False, use_scale=False)(x)
        x_BxC = nn.BatchNorm(axis=-1, use_bias=False)(x.mean((1, 2)), use_running_average=training is None)
        return nn.Dense(self.num_classes)(self.dropout(0.3, broadcast_dims=(1,))(x_BxC, deterministic=training is None))


class Block(nn.Module):
    dropout: type

    @nn.compact
    def __call__(self, x_BxTxF, deterministic):
        attention = nn.MultiHeadDotProductAttention(num_heads=2, dropout_rate=0.25)
        y = attention(nn.LayerNorm()(x_BxTxF), deterministic=deterministic)
        x_BxTxF = x_BxTxF + self.dropout(0.1, deterministic=deterministic)(y)
        y = nn.Dense(16)(nn.gelu(nn.Dense(32)(nn.LayerNorm()(x_BxTxF))))
        return x_BxTxF + self.dropout(0.1, deterministic=deterministic)(y)


class VisionTransformer(nn.Module):
    num_classes: int = 3
    dropout: type = nn.Dropout

    @nn.compact
    def __call__(self, image_BxHxWxC, training=None):
        patches = nn.Conv(16, (7, 7), strides=7, padding='VALID')(image_BxHxWxC)
        positions = self.param('positions', nn.initializers.normal(0.02), (1, 16, 16))
        # All examples share the mask of the position embeddings.
        positions = nn.Dropout(0.2, deterministic=training is None)(positions)
        x_BxTxF = patches.reshape(len(patches), -1, 16) + positions
        x_BxTxF = Block(self.dropout)(x_BxTxF, training is None)
        return nn.Dense(self.num_classes)(nn.LayerNorm()(x_BxTxF).mean(1))


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
        words = np.array([jax.random.key_data(jax.random.fold_in(key, index)) for index in range(len(x))])
        shape = [1 if axis in self.broadcast_dims else size for axis, size in enumerate(x.shape)][1:]
        positions = np.arange(np.prod(shape), dtype=np.uint32)
        bits = np.stack([lowbias32(lowbias32(positions ^ first) ^ second) for first, second in words])
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


def first_state(model):
    return jax.jit(lambda: create_state(model, sgd(), (28, 28, 1), seed=0))()


def take_step(model, chunks):
    batch = make_batch()
    parts = make_parts(model, len(batch['label']) // chunks, LEARNING_RATE)
    state = first_state(model)
    return state, *jax.jit(lambda: train_step(state, batch, 0, parts, lambda tree: tree))()


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

    (value, updated), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
    return value, gradient, updated.get('batch_stats', {})


@pytest.mark.parametrize('model', [ResidualCNN, VisionTransformer])
def test_linen_layers_have_the_loss_gradient_and_statistics_of_plain_jax_on_the_whole_batch(model):
    loss, gradient, batch_stats = plain_gradient(model(dropout=Dropout), first_state(model()))
    for chunks in (1, 2, 8):
        state, new_state, sums = take_step(model(), chunks)
        np.testing.assert_allclose(sums['loss'] / sums['count'], loss, rtol=1e-5)
        ours = jax.tree.map(lambda old, new: (old - new) / LEARNING_RATE, state.params, new_state.params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, gradient)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), new_state.batch_stats, batch_stats)


@pytest.mark.parametrize('model', [ResidualCNN, VisionTransformer])
def test_models_of_linen_layers_have_the_same_bits_on_1_2_4_and_8_devices(model):
    parts = make_parts(model(), chunk_size=4, learning_rate=LEARNING_RATE)
    digests = []
    for devices in (1, 2, 4, 8):
        replicas = Replicas(jax.devices()[:devices])
        step = replicas.compile(functools.partial(train_step, seed=0, parts=parts, all_sum=replicas.all_sum))
        state = replicas.replicate(first_state(model()))
        for _ in range(3):
            state, _ = step(state, replicas.shard(make_batch(16 if devices == 8 else 0)))
        digests.append(params_sha256(state.variables))
    assert len(set(digests)) == 1


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


class Standardized(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, image_BxHxWxC, training=None):
        x_BxF = image_BxHxWxC.reshape(len(image_BxHxWxC), -1)
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros)(x_BxF - x_BxF.mean(0, keepdims=True))


class AttentionOverExamples(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, image_BxHxWxC, training=None):
        x_BxF = nn.Dense(8)(image_BxHxWxC.reshape(len(image_BxHxWxC), -1))
        return nn.Dense(self.num_classes)(nn.MultiHeadDotProductAttention(num_heads=2)(x_BxF))


@pytest.mark.parametrize('model', [Standardized, AttentionOverExamples])
def test_a_model_that_mixes_the_examples_of_a_batch_is_refused(small, monkeypatch, model):
    monkeypatch.setitem(MODELS, 'mixing', model)
    config = small()
    config.model = ConfigDict({'name': 'mixing'})
    with pytest.raises(UserError, match=r'the model must not mix the examples of a batch, except through nn.BatchNorm'):
        make_experiment(config)


@pytest.mark.parametrize('model', [ResidualCNN, VisionTransformer])
def test_batch_norm_attention_and_dropout_do_not_count_as_mixing(model):
    check_independence(model(), create_state(model(), sgd(), (28, 28, 1), seed=0), (28, 28, 1))


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
    ours = jax.tree.map(lambda old, new: (old - new) / LEARNING_RATE, state.params, new_state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new_state.batch_stats, batch_stats)
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
    ours = jax.tree.map(lambda old, new: (old - new) / LEARNING_RATE, state.params, new_state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), new_state.batch_stats, batch_stats)


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
    ours = jax.tree.map(lambda old, new: (old - new) / LEARNING_RATE, state.params, new_state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), new_state.batch_stats, batch_stats)


def test_feature_maps_leave_out_the_layers_inside_a_transformation(small, monkeypatch, tmp_path):
    monkeypatch.setitem(MODELS, 'linen', Vmapped)
    config = small()
    config.model = ConfigDict({'name': 'linen'})
    plan = make_plan(config)
    model = RestoredModel(tmp_path, plan, plan.first_snapshot())
    maps = model.feature_maps(np.full((28, 28, 1), 255, np.uint8))
    assert {name: array.shape for name, array in maps.items()} == {'Dense_0': (8,), 'Dense_1': (10,)}
    assert [layer.output_shape for layer in model.layers] == [(8,), (4,), (10,)]


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (lambda num_classes: len, 'config.model.name must select a Linen module, got a builtin_function'),
        (
            lambda num_classes: nn.Dense(num_classes),
            r'the model must define __call__\(self, image, training=None\), got Dense\(inputs: ',
        ),
    ],
)
def test_what_is_not_a_model_is_refused(small, monkeypatch, model, message):
    monkeypatch.setitem(MODELS, 'linen', model)
    config = small()
    config.model = ConfigDict({'name': 'linen'})
    with pytest.raises(UserError, match=message):
        make_plan(config)


@pytest.mark.parametrize('layer', [nn.BatchNorm(use_running_average=False), nn.Dropout(0.5, deterministic=False)])
def test_a_model_that_trains_during_inference_is_refused(layer):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, image_BxHxWxC, training=None):
            return nn.Dense(3)(layer.copy()(image_BxHxWxC).mean((1, 2)))

    state = jax.eval_shape(functools.partial(create_state, Model(), sgd(), (28, 28, 1)), 0)
    with pytest.raises(UserError, match='must not update its variables or draw random numbers if training is None'):
        has_products(Model(), state, (28, 28, 1))


def apply_attention(x_BxHxWxC, module):
    x_BxTxF = x_BxHxWxC.reshape(len(x_BxHxWxC), 28, 28)
    attention = nn.MultiHeadDotProductAttention(num_heads=2, dropout_rate=0.5, broadcast_dropout=False)
    return attention(x_BxTxF, deterministic=False).mean(1)[:, :3]


def own_batch_norm(x_BxHxWxC, module):
    mean = module.variable('batch_stats', 'mean', jnp.zeros, ())
    if not module.is_initializing():
        mean.value = 0.9 * mean.value + 0.1 * x_BxHxWxC.mean()
    return nn.Dense(3)(x_BxHxWxC.reshape(len(x_BxHxWxC), -1) - mean.value)


def cached(x_BxHxWxC, module):
    module.variable('memory', 'last', jnp.zeros, ())
    return nn.Dense(3)(x_BxHxWxC.reshape(len(x_BxHxWxC), -1))


def scanned(x_BxHxWxC, module):
    class Cell(nn.Module):
        @nn.compact
        def __call__(self, x_BxF, _):
            return nn.BatchNorm(use_running_average=False)(x_BxF), None

    scan = nn.scan(Cell, variable_axes={'params': 0, 'batch_stats': 0}, split_rngs={'params': True}, length=2)
    return nn.Dense(3)(scan()(x_BxHxWxC.reshape(len(x_BxHxWxC), -1), None)[0])


def time_major_dropout(x_BxHxWxC, module):
    rows = x_BxHxWxC.reshape(-1, 28)
    return nn.Dropout(0.5, deterministic=False)(rows).reshape(len(x_BxHxWxC), -1)[:, :3]


@pytest.mark.parametrize(
    ('function', 'message'),
    [
        (apply_attention, r'nn.MultiHeadDotProductAttention \(\w*\) must have broadcast_dropout=True .*, got False'),
        (own_batch_norm, 'batch_stats of the model must be computed from sums over the whole batch'),
        (cached, "collections 'params' and 'batch_stats', got 'memory'"),
        (scanned, 'must not be inside a transformation other than jit, remat and vmap, got scan'),
        (time_major_dropout, r'nn.Dropout .* must be applied to an array of examples .*, got \(196, 28\)'),
        (lambda x, module: nn.LayerNorm(reduction_axes=(0, 1))(x).mean((1, 2, 3)), 'nn.LayerNorm .* must not have'),
        (
            lambda x, module: nn.BatchNorm(False)(x.reshape(-1, 28)).reshape(len(x), -1)[:, :3],
            r'nn.BatchNorm .* must be applied to an array of examples .*, got \(196, 28\)',
        ),
        (lambda x, module: nn.BatchNorm(False, axis=0)(x).mean((1, 2, 3)), r'nn.BatchNorm .* got axis=0'),
        (lambda x, module: nn.Dense(4)(x.mean((1, 2))), r'must return logits of shape \(7, 3\) for 7 images, got'),
        (lambda x, module: (nn.Dense(3)(x.mean((1, 2))), x), r'must return logits of shape \(7, 3\) for 7 images, got'),
    ],
)  # fmt: skip
def test_a_model_that_would_be_wrong_in_chunks_is_refused_when_it_is_built(function, message):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, image_BxHxWxC, training=None):
            return function(image_BxHxWxC, self)

    with pytest.raises(UserError, match=message):
        state = jax.eval_shape(functools.partial(create_state, Model(), sgd(), (28, 28, 1)), 0)
        check_model(Model(), state, (28, 28, 1), 3)
