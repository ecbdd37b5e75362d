"""The layer table: output sizes, parameters and multiply-adds, found without running the model."""

import re

import flax.linen as nn
import pytest
from conftest import ROOT

from mnist_jax.config import load_config
from mnist_jax.errors import UserError
from mnist_jax.models.layer_table import format_table, list_layers
from mnist_jax.models.layers import Flatten
from mnist_jax.training.plan import make_model


def test_layer_table_of_the_cnn():
    model = make_model(load_config(str(ROOT / 'configs' / 'convnet_valid.py')).model, 10)
    layers = list_layers(model, (28, 28, 1))
    # 1 + (W - K + 2P)/S: 28 - 3 + 1 = 26, halved by the pool, and so on.
    assert [layer.output_shape for layer in layers] == [
        (26, 26, 32), (13, 13, 32), (11, 11, 64), (5, 5, 64), (3, 3, 64), (576,), (64,), (10,),
    ]  # fmt: skip
    assert layers[2].multiply_adds == 11 * 11 * 3 * 3 * 32 * 64


class Block(nn.Module):
    @nn.compact
    def __call__(self, image):
        return nn.Dense(3)(Flatten()(image))


class Nested(nn.Module):
    """A user's model, with a nested block and its own parameter."""

    @nn.compact
    def __call__(self, image, training=None):
        return nn.Dense(2)(Block()(image)) * self.param('scale', nn.initializers.ones, (1, 2))


def test_layer_table_of_a_nested_model():
    layers = [(layer.name, layer.trainable, layer.multiply_adds) for layer in list_layers(Nested(), (4, 4, 1))]
    assert layers == [
        ('Block_0/Flatten_0', 0, 0), ('Block_0/Dense_0', 51, 48), ('Dense_0', 8, 6), ('Nested', 2, 0),
    ]  # fmt: skip


class Recurrent(nn.Module):
    """A user's model, with a layer that has two outputs, and a cell inside a loop."""

    @nn.compact
    def __call__(self, image, training=None):
        (carry, _), _ = nn.RNN(nn.GRUCell(4), return_carry=True)(image.mean(-1)), None
        return nn.Dense(2)(carry)


def test_layer_table_of_a_recurrent_model():
    layers = {layer.name: layer for layer in list_layers(Recurrent(), (5, 3, 1))}
    assert layers['Dense_0'].trainable == 10 and layers['Dense_0'].output_shape == (2,)
    assert sum(layer.trainable for layer in layers.values()) == 10 + 3 * (3 * 4 + 4 * 4) + 4 * 4


class WithoutParameters(nn.Module):
    @nn.compact
    def __call__(self, image, training=None):
        return Flatten()(image)


def test_layer_table_of_a_model_without_parameters():
    assert [layer.trainable for layer in list_layers(WithoutParameters(), (2, 2, 1))] == [0]


def test_a_model_that_shrinks_its_image_to_nothing_is_an_error():
    model = make_model({'name': 'cnn', 'stages': ((4,),) * 4, 'pool': (2,) * 4, 'padding': 'valid'}, 10)
    with pytest.raises(UserError, match='does not fit images'):
        list_layers(model, (28, 28, 1))


class LinenAttention(nn.Module):
    """A user's model with 4 heads over 4 tokens of 8 features."""

    @nn.compact
    def __call__(self, image, training=None):
        return nn.MultiHeadDotProductAttention(num_heads=4)(image.reshape(len(image), 4, 8)).mean(1)


def test_a_dense_layer_with_several_output_axes_has_one_position_per_token():
    layers = {layer.name.rpartition('/')[2]: layer for layer in list_layers(LinenAttention(), (4, 8, 1))}
    assert layers['query'].output_shape == (4, 4, 2)
    assert layers['query'].multiply_adds == layers['out'].multiply_adds == 4 * 8 * 8


def test_frozen_parameters_are_not_trainable():
    table = format_table(Nested(), (4, 4, 1), lambda path: path in ('scale', 'Block_0/Dense_0/kernel'))
    assert 'parameters: 61 (trainable 11, not trainable 50)' in table  # 51 + 8 + 2 with 48 + 2 frozen
    assert re.search('^Nested .* 2 +0 +0$', table, re.MULTILINE)
