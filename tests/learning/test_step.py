"""The train and eval steps against numbers worked out by hand and against plain JAX."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_numbers, make_parts

from mnist_jax.learning import losses, metrics
from mnist_jax.learning.averaging import AVERAGES
from mnist_jax.learning.optimizers import OPTIMIZERS, with_accumulation
from mnist_jax.learning.state import create_state
from mnist_jax.learning.step import RunNumbers, eval_step, train_step
from mnist_jax.models.architectures import MLP


class ConstantLogits(nn.Module):
    """A model with the same logits, 0, 1 and 2, for every image."""

    @nn.compact
    def __call__(self, image_BxHxWxC, training=None):
        bias = self.param('bias', lambda key: jnp.array([0.0, 1.0, 2.0]))
        return jnp.zeros((len(image_BxHxWxC), 3)) + bias[None, :]


def make_batch(labels, mask=None):
    count = len(labels)
    return {
        'image': np.random.default_rng(0).integers(0, 256, (count, 28, 28, 1)).astype(np.uint8),
        'label': np.array(labels, np.int32),
        'mask': np.ones(count, np.float32) if mask is None else np.array(mask, np.float32),
        'index': np.arange(count, dtype=np.int32),
    }


def identity(tree):
    return tree


def make_steps(model, chunk_size, learning_rate=0.1, loss=None):
    parts = make_parts(model, chunk_size, learning_rate)
    parts = dataclasses.replace(parts, loss=loss or parts.loss)
    state = create_state(model, parts.optimizer, (28, 28, 1), seed=3)
    train = jax.jit(lambda state, batch: train_step(state, batch, make_numbers(3), parts=parts, all_sum=identity))
    evaluate = jax.jit(
        lambda state, batch: eval_step(state.variables, batch, parts=parts, all_sum=identity, all_rows=identity)
    )
    return state, train, evaluate


def test_a_skipped_update_at_the_end_of_an_epoch_counts_in_the_mean_over_epochs():
    parts = make_parts(ConstantLogits(), 3, 1.0)
    parts = dataclasses.replace(parts, averaging=AVERAGES['swa'](), skip_nonfinite=True, steps_per_epoch=2)
    state = create_state(ConstantLogits(), parts.optimizer, (28, 28, 1), seed=0, average_evaluated=True)
    step = jax.jit(
        lambda state, rate: train_step(
            state, make_batch([0, 1, 2]), RunNumbers(0, rate), parts=parts, all_sum=identity
        )[0]
    )
    states = []
    for rate in (0.1, np.inf, 0.1, 0.1):  # The second update is not finite, and ends the first epoch.
        state = step(state, jnp.float32(rate))
        states.append(state)
    first, second = states[0].params['bias'], states[3].params['bias']
    np.testing.assert_array_equal(states[1].params['bias'], first)
    assert float(state.average.weight) == 2
    np.testing.assert_allclose(state.average.variables.params['bias'], (first + second) / 2, rtol=1e-6)


def test_a_state_without_the_average_of_the_step_is_refused():
    parts = dataclasses.replace(make_parts(ConstantLogits(), 3, 1.0), averaging=AVERAGES['ema']())
    state = create_state(ConstantLogits(), parts.optimizer, (28, 28, 1), seed=0)
    with pytest.raises(ValueError, match='the state must hold an average'):
        train_step(state, make_batch([0, 1, 2]), make_numbers(0), parts=parts, all_sum=identity)


@pytest.mark.parametrize('chunk_size', [1, 2, 3, 6])
def test_constant_logits_have_the_loss_and_gradient_worked_out_by_hand(chunk_size):
    # exp of the logits: 1, 2.718282, 7.389056; the logarithm of their sum 11.107338 is 2.407606.
    # Five examples of the classes 0 1 2 2 1: loss 5 * 2.407606 - (0 + 1 + 2 + 2 + 1) = 6.038030. The sixth is padding.
    # Class 2 is always predicted: two of five are correct.
    state, train, evaluate = make_steps(ConstantLogits(), chunk_size)
    batch = make_batch([0, 1, 2, 2, 1, 2], [1, 1, 1, 1, 1, 0])
    sums, probabilities = evaluate(state, batch)
    np.testing.assert_allclose(probabilities, [[0.090031, 0.244728, 0.665241]] * 6, atol=1e-6)
    np.testing.assert_allclose([sums['loss'], sums['cross_entropy']], 6.038030, rtol=1e-6)
    np.testing.assert_array_equal(sums['confusion_matrix'], [[0, 0, 1], [0, 0, 2], [0, 0, 2]])
    means = metrics.means(metrics.add(metrics.add({}, sums), sums))
    assert means['accuracy'] == 4 / 10
    assert np.isclose(means['loss'], 6.038030 / 5)
    # The gradient of the mean loss: softmax 0.090031 0.244728 0.665241 minus the class shares 0.2 0.4 0.4.
    new_state, sums = train(state, batch)
    gradient = (state.params['bias'] - new_state.params['bias']) / 0.1
    np.testing.assert_allclose(gradient, [0.090031 - 0.2, 0.244728 - 0.4, 0.665241 - 0.4], atol=2e-6)
    assert (int(new_state.step), float(sums['count']), float(sums['correct'])) == (1, 5, 2)


@pytest.mark.parametrize('loss', [losses.mean_squared_error(), losses.cross_entropy(label_smoothing=0.5)])
def test_every_evaluation_has_the_plain_cross_entropy(loss):
    state, _, evaluate = make_steps(ConstantLogits(), 2, loss=loss)
    batch = make_batch([0, 1, 2, 2, 1, 2], [1, 1, 1, 1, 1, 0])
    sums, _ = evaluate(state, batch)
    np.testing.assert_allclose(sums['cross_entropy'], 6.038030, rtol=1e-6)
    assert abs(float(sums['loss']) - 6.038030) > 0.1
    # The probability of class 0 is exp(-200), which is 0 in float32; its logarithm is -200.
    certain = dataclasses.replace(state, params={'bias': jnp.array([0.0, 0.0, 200.0])})
    sums, probabilities = evaluate(certain, batch)
    assert probabilities[0, 0] == 0 and float(sums['cross_entropy']) == 3 * 200


def test_chunks_and_padding_do_not_change_the_gradient():
    model = MLP(10, hidden=(8,))
    batch = make_batch(np.arange(12) % 10)
    padded = {name: np.concatenate([rows, rows[:4]]) for name, rows in batch.items()}
    padded['mask'][12:] = 0
    state, train, _ = make_steps(model, 12)
    expected = train(state, batch)[0]
    for chunk_size in (4, 16):
        new_state = make_steps(model, chunk_size)[1](state, padded)[0]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), new_state.params, expected.params)

    def mean_loss(params):
        logits = model.apply({'params': params}, batch['image'] / np.float32(255))
        return -jnp.mean(jax.nn.log_softmax(logits)[np.arange(12), batch['label']])

    plain = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, jax.grad(mean_loss)(state.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), expected.params, plain)


def test_dropout_differs_between_steps_and_is_reproducible():
    model = MLP(10, hidden=(8,), dropout=(0.5,))
    state, train, _ = make_steps(model, 4, learning_rate=0.0)
    batch = make_batch(np.arange(8))
    first = train(state, batch)
    assert float(train(state, batch)[1]['loss']) == float(first[1]['loss'])
    assert float(train(first[0], batch)[1]['loss']) != float(first[1]['loss'])


def test_sharpness_aware_minimization_takes_the_gradient_at_the_worst_point_nearby():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (6, 2, 2, 1), np.uint8), rng.integers(0, 3, 6)
    parts = dataclasses.replace(make_parts(MLP(3, (4,)), 2, 0.5), sam_radius=0.3)
    state = create_state(parts.model, parts.optimizer, (2, 2, 1), 0)
    batch = {'image': images, 'label': labels, 'mask': np.ones(6, np.float32), 'index': np.arange(6, dtype=np.int32)}
    new, _ = train_step(state, batch, make_numbers(0), parts=parts, all_sum=lambda tree: tree)

    def loss(params):
        logits = parts.model.apply({'params': params}, images / np.float32(255))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    gradient = jax.grad(loss)(state.params)
    norm = optax.tree.norm(gradient)
    nearby = jax.tree.map(lambda param, grad: param + 0.3 * grad / norm, state.params, gradient)
    expected = jax.tree.map(lambda param, grad: param - 0.5 * grad, state.params, jax.grad(loss)(nearby))
    for own, other in zip(jax.tree.leaves(new.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', ['ema', 'swa', 'schedule_free'])
def test_accumulated_batches_move_an_average_like_one_large_batch(name):
    batches = [make_batch(np.arange(8) + start) for start in range(2)]
    batches = [{**batch, 'label': batch['label'] % 10} for batch in batches]
    large = {field: np.concatenate([batch[field] for batch in batches]) for field in batches[0]}
    states = []
    for accumulate, epochs in ((1, [[large]] * 3), (2, [batches] * 3)):
        model = MLP(10, hidden=(8,))
        parts = dataclasses.replace(
            make_parts(model, 8, 0.1),
            optimizer=with_accumulation(OPTIMIZERS['sgd'](), accumulate),
            averaging=AVERAGES[name](),
            steps_per_epoch=accumulate,
        )
        state = create_state(model, parts.optimizer, (28, 28, 1), 3, average_evaluated=True)
        step = jax.jit(functools.partial(train_step, parts=parts, all_sum=identity))
        for batch in (batch for epoch in epochs for batch in epoch):
            state, _ = step(state, batch, make_numbers(3))
        states.append(state)
    for one, other in zip(*(jax.tree.leaves(state.choices) for state in states), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_class_weights_multiply_the_loss_of_the_teachers_too():
    teacher = np.full((3, 3), 0.2, np.float32) + 0.4 * np.eye(3, dtype=np.float32)
    batch = {**make_batch([0, 1, 2]), 'teacher': teacher}
    weights = np.array([0.0, 2.0, 0.5], np.float32)
    model = ConstantLogits()
    parts = dataclasses.replace(make_parts(model, 3, 0.1), distillation=(0.75, 1.0), class_weights=weights)
    state = create_state(model, parts.optimizer, (28, 28, 1), seed=3)
    _, sums = train_step(state, batch, make_numbers(3), parts=parts, all_sum=identity)
    log_softmax = np.arange(3) - np.log(np.exp(np.arange(3)).sum())
    losses_B = 0.25 * -log_softmax + 0.75 * -(teacher @ log_softmax)
    assert float(sums['loss']) == pytest.approx(float(weights @ losses_B), rel=1e-5)
