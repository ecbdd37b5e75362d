"""Losses against values from Keras 3.15, and against values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax.errors import UserError
from mnist_jax.factory import build
from mnist_jax.learning import losses

LOGITS = jnp.array([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]])
LABELS = jnp.array([0, 2])
KERAS = [
    ('cross_entropy', {}, [0.24131133, 2.169846]),
    ('cross_entropy', {'label_smoothing': 0.1}, [0.39131135, 2.1365128]),
    ('mean_squared_error', {}, [0.02607505, 0.49946818]),
    ('focal', {}, [0.01109275, 1.7025698]),
    ('focal', {'gamma': 0.5}, [0.11173599, 2.0421984]),
    ('focal', {'label_smoothing': 0.1}, [0.1495887, 1.6861737]),
]


@pytest.mark.parametrize(('name', 'fields', 'expected'), KERAS)
def test_losses_equal_those_of_keras(name, fields, expected):
    np.testing.assert_allclose(losses.LOSSES[name](**fields)(LOGITS, LABELS), expected, rtol=1e-6)


def test_every_loss_is_compared_with_keras():
    assert {name for name, *_ in KERAS} == set(losses.LOSSES)


def test_the_cross_entropy_for_accelerators_equals_that_for_the_cpu():
    def loss(logits):
        return losses.cross_entropy()(logits, LABELS)

    program = jax.export.export(jax.jit(jax.vmap(jax.jacobian(loss))), platforms=['cuda'])(LOGITS[None])
    assert 'scatter' not in program.mlir_module() and 'gather' not in program.mlir_module()
    for ours, reference in ((loss, losses._cross_entropy), (jax.jacobian(loss), jax.jacobian(losses._cross_entropy))):
        expected = reference(LOGITS, LABELS)
        np.testing.assert_allclose(ours(LOGITS), expected, rtol=1e-6, atol=1e-7)


def test_losses_by_hand():
    # Two equal logits: each class has probability 1/2.
    equal, label = jnp.zeros((1, 2)), jnp.array([1])
    np.testing.assert_allclose(losses.cross_entropy()(equal, label), [np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(losses.mean_squared_error()(equal, label), [(0.25 + 0.25) / 2])


def test_weights_multiply_the_loss_of_their_class():
    plain = losses.cross_entropy()
    weighted = losses.weighted(plain, np.array([0.5, 7.0, 3.0], np.float32))
    np.testing.assert_allclose(weighted(LOGITS, LABELS), plain(LOGITS, LABELS) * jnp.array([0.5, 3.0]), rtol=1e-7)
    assert losses.weighted(plain, None) is plain


def test_label_smoothing_out_of_range_is_an_error():
    with pytest.raises(UserError, match=r'^loss.label_smoothing must be a number from 0 to 1, got 1.5$'):
        build('loss', losses.LOSSES, {'name': 'cross_entropy', 'label_smoothing': 1.5})
