"""Linen's own layers in models that are trained in chunks, against plain JAX on the whole batch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnist_jax.errors import UserError
from mnist_jax.learning import losses
from mnist_jax.learning.optimizers import sgd
from mnist_jax.learning.step import StepParts, check_model, create_state, train_step
from mnist_jax.models.layers import Training

BATCH, PADDING = 14, 2
LEARNING_RATE = 0.1


class ResidualCNN(nn.Module):
    dropout: type = nn.Dropout

    @nn.compact
    def __call__(self, image_BxHxWxC, training=None):
        x = nn.Conv(8, (3, 3), strides=2)(image_BxHxWxC)
        residual = nn.gelu(nn.BatchNorm(use_running_average=training is None, momentum=0.9)(x))
        residual = self.dropout(0.2, deterministic=training is None)(nn.Conv(8, (3, 3))(residual))
        x = nn.GroupNorm(num_groups=4)(x + residual)
        x = nn.BatchNorm(training is None, use_fast_variance=False, use_scale=False)(x)
        x_BxC = nn.BatchNorm(axis=-1, use_bias=False)(x.mean((1, 2)), use_running_average=training is None)
        return nn.Dense(3)(self.dropout(0.3, broadcast_dims=(1,))(x_BxC, deterministic=training is None))


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
    dropout: type = nn.Dropout

    @nn.compact
    def __call__(self, image_BxHxWxC, training=None):
        patches = nn.Conv(16, (7, 7), strides=7, padding='VALID')(image_BxHxWxC)
        positions = self.param('positions', nn.initializers.normal(0.02), (1, 16, 16))
        # All examples share the mask of the position embeddings.
        positions = nn.Dropout(0.2, deterministic=training is None)(positions)
        x_BxTxF = patches.reshape(len(patches), -1, 16) + positions
        x_BxTxF = Block(self.dropout)(x_BxTxF, training is None)
        return nn.Dense(3)(nn.LayerNorm()(x_BxTxF).mean(1))


def lowbias32(x):
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


class Dropout(nn.Module):
    """The definition of the mask in docs/determinism.md, for a whole batch whose examples are numbered from 0."""

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


def make_batch():
    rng = np.random.default_rng(0)
    rows = BATCH + PADDING
    return {
        'image': rng.integers(0, 256, (rows, 28, 28, 1)).astype(np.uint8),
        'label': rng.integers(0, 3, rows).astype(np.int32),
        'mask': np.array([1] * BATCH + [0] * PADDING, np.float32),
        'index': np.arange(rows, dtype=np.int32),
    }


def take_step(model, chunks):
    batch = make_batch()
    parts = StepParts(
        model=model,
        loss=losses.cross_entropy(),
        optimizer=sgd(),
        learning_rate=lambda updates: LEARNING_RATE,
        max_pixel=255,
        dtype=jnp.dtype('float32'),
        skip_nonfinite=False,
        chunk_size=len(batch['label']) // chunks,
    )
    state = create_state(model, parts.optimizer, (28, 28, 1), seed=0)
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
@pytest.mark.parametrize('chunks', [1, 2, 8])
def test_linen_layers_have_the_loss_gradient_and_statistics_of_plain_jax_on_the_whole_batch(model, chunks):
    state, new_state, sums = take_step(model(), chunks)
    loss, gradient, batch_stats = plain_gradient(model(Dropout), state)
    np.testing.assert_allclose(sums['loss'] / sums['count'], loss, rtol=1e-5)
    ours = jax.tree.map(lambda old, new: (old - new) / LEARNING_RATE, state.params, new_state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), new_state.batch_stats, batch_stats)
