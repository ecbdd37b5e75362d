"""The steps against numbers worked out by hand and against plain JAX."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax.learning import losses, metrics
from mnist_jax.learning.optimizers import sgd
from mnist_jax.learning.step import create_state, eval_step, train_step
from mnist_jax.models.architectures import MLP


class ConstantLogits(nn.Module):
    """Says the same of every image: logits 0, 1 and 2."""

    @nn.compact
    def __call__(self, image_BxHxWxC, training=None):
        bias = self.param('bias', lambda key: jnp.array([0.0, 1.0, 2.0]))
        return jnp.zeros((len(image_BxHxWxC), 3)) + bias[None, :]


def batch_of(labels, mask=None):
    count = len(labels)
    return {
        'image': np.random.default_rng(0).integers(0, 256, (count, 28, 28, 1)).astype(np.uint8),
        'label': np.array(labels, np.int32),
        'mask': np.ones(count, np.float32) if mask is None else np.array(mask, np.float32),
        'index': np.arange(count, dtype=np.int32),
    }


def steps(model, chunk_size, rate=0.1, dtype=jnp.float32):
    optimizer = sgd()
    parts = {'model': model, 'loss': losses.cross_entropy(), 'max_pixel': 255, 'dtype': dtype, 'chunk_size': chunk_size}
    state = create_state(model, optimizer, (28, 28, 1), seed=3)

    def train(state, batch):
        given = {'optimizer': optimizer, 'learning_rate': lambda step: rate, 'seed': 3, 'all_sum': lambda tree: tree}
        given['skip_nonfinite'] = False
        return train_step(state, batch, **parts, **given)

    def evaluate(state, batch):
        return eval_step(state, batch, **parts, all_sum=lambda tree: tree)

    return state, jax.jit(train), jax.jit(evaluate)


@pytest.mark.parametrize('chunk_size', [1, 2, 3, 6])
def test_constant_logits_have_the_loss_worked_out_by_hand(chunk_size):
    # exp of the logits: 1, 2.718282, 7.389056; their sum 11.107338 has the logarithm 2.407606.
    # Five examples 0 1 2 2 1: loss 5 * 2.407606 - (0 + 1 + 2 + 2 + 1) = 6.038030. The sixth is padding.
    # Class 2 is said every time: two right of five.
    state, train, evaluate = steps(ConstantLogits(), chunk_size)
    batch = batch_of([0, 1, 2, 2, 1, 2], [1, 1, 1, 1, 1, 0])
    sums, probabilities = evaluate(state, batch)
    np.testing.assert_allclose(probabilities, [[0.090031, 0.244728, 0.665241]] * 6, atol=1e-6)
    np.testing.assert_allclose(sums['loss'], 6.038030, rtol=1e-6)
    np.testing.assert_array_equal(sums['confusion_matrix'], [[0, 0, 1], [0, 0, 2], [0, 0, 2]])
    means = metrics.means(metrics.add(metrics.add({}, sums), sums))
    assert means['accuracy'] == 4 / 10
    assert np.isclose(means['loss'], 6.038030 / 5)
    # The gradient of the mean loss: softmax 0.090031 0.244728 0.665241 less the shares 0.2 0.4 0.4 of the classes.
    after, sums = train(state, batch)
    gradient = (state.params['bias'] - after.params['bias']) / 0.1
    np.testing.assert_allclose(gradient, [0.090031 - 0.2, 0.244728 - 0.4, 0.665241 - 0.4], atol=2e-6)
    assert (int(after.step), float(sums['count']), float(sums['correct'])) == (1, 5, 2)


def test_chunks_and_padding_do_not_change_the_gradient():
    model = MLP(10, hidden=(8,))
    batch = batch_of(np.arange(12) % 10)
    padded = {name: np.concatenate([rows, rows[:4]]) for name, rows in batch.items()}
    padded['mask'][12:] = 0
    state, train, _ = steps(model, 12)
    expected = train(state, batch)[0]
    for chunk_size in (4, 16):
        found = steps(model, chunk_size)[1](state, padded)[0]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), found.params, expected.params)

    def mean_loss(params):
        logits = model.apply({'params': params}, batch['image'] / np.float32(255))
        return -jnp.mean(jax.nn.log_softmax(logits)[np.arange(12), batch['label']])

    plain = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, jax.grad(mean_loss)(state.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), expected.params, plain)


def test_dropout_changes_from_step_to_step_and_is_the_same_again():
    model = MLP(10, hidden=(8,), dropout=(0.5,))
    state, train, _ = steps(model, 4, rate=0.0)
    batch = batch_of(np.arange(8))
    first = train(state, batch)
    assert float(train(state, batch)[1]['loss']) == float(first[1]['loss'])
    assert float(train(first[0], batch)[1]['loss']) != float(first[1]['loss'])
