"""Parameter counts of the published models, and what the layers mean."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from mnist_jax.config import load_config
from mnist_jax.errors import UserError
from mnist_jax.models.architectures import MLP, MODELS, BatchNorm, Dropout, Flatten, Training, make_model
from mnist_jax.models.layer_table import list_layers
from mnist_jax.training import experiment

# The published experiments: parameters in all, and those that are not trainable.
PUBLISHED = {
    'mlp': (669_706, 0),
    'cnn': (224_394, 0),
    'fashion_cnn': (468_586, 384),
    'convnet_valid': (93_322, 0),
    'convnet_same': (257_162, 0),
    'digits_cnn': (994, 0),
    'kaggle_mlp': (550_346, 0),
    'kaggle_cnn': (1_199_882, 0),
}


def load(name):
    return load_config(str(ROOT / 'configs' / f'{name}.py'))


def training(size, index=None, mask=None):
    index = np.arange(size) if index is None else index
    mask = np.ones(size, np.float32) if mask is None else mask
    return Training(jnp.asarray(mask), jnp.asarray(index), lambda tree: tree)


@pytest.mark.parametrize('name', PUBLISHED)
def test_parameter_counts(name):
    total, fixed = PUBLISHED[name]
    table = experiment.model_summary(load(name))
    assert table.splitlines()[-1].startswith(
        f'parameters: {total:,} (trainable {total - fixed:,}, not trainable {fixed})'
    )


def test_every_model_has_a_pinned_count():
    assert {load(name).model.name for name in PUBLISHED} == set(MODELS)


def test_layer_table_of_the_cnn():
    layers = list_layers(make_model(load('convnet_valid').model, 10), (28, 28, 1))
    # 1 + (W - K + 2P)/S: 28 - 3 + 1 = 26, halved, and so on.
    assert [layer.output_shape for layer in layers] == [
        (26, 26, 32), (13, 13, 32), (11, 11, 64), (5, 5, 64), (3, 3, 64), (576,), (64,), (10,),
    ]  # fmt: skip
    assert layers[2].multiply_adds == 11 * 11 * 3 * 3 * 32 * 64


class Block(nn.Module):
    @nn.compact
    def __call__(self, image):
        return nn.Dense(3)(Flatten()(image))


class Nested(nn.Module):
    """A model of one's own: a block in it, and a parameter of its own."""

    @nn.compact
    def __call__(self, image, training=None):
        return nn.Dense(2)(Block()(image)) * self.param('scale', nn.initializers.ones, (1, 2))


def test_layer_table_of_a_nested_model():
    found = [(layer.name, layer.trainable, layer.multiply_adds) for layer in list_layers(Nested(), (4, 4, 1))]
    assert found == [
        ('Block_0/Flatten_0', 0, 0), ('Block_0/Dense_0', 51, 48), ('Dense_0', 8, 6), ('Nested', 2, 0),
    ]  # fmt: skip


def test_initialisers_are_keras():
    variables = MLP(10, hidden=(512,)).init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    kernel, bias = variables['params']['Dense_0']['kernel'], variables['params']['Dense_0']['bias']
    limit = np.sqrt(6 / (784 + 512))  # Glorot and Bengio 2010, equation 16
    assert not bias.any()
    assert np.abs(kernel).max() <= limit
    assert np.isclose(kernel.std(), limit / np.sqrt(3), rtol=0.01)


def test_dropout_depends_on_the_example_and_the_step_alone():
    x = jnp.ones((8, 100))
    order = np.array([5, 2, 7, 0, 1, 6, 3, 4])

    def dropped(key, index):
        return Dropout(0.3).apply({}, x, training(8, index), rngs={'dropout': jax.random.key(key)})

    straight, permuted = dropped(0, np.arange(8)), dropped(0, order)
    np.testing.assert_array_equal(np.asarray(straight)[order], permuted)
    assert (straight != dropped(1, np.arange(8))).any()
    assert set(np.unique(straight)) == {np.float32(0), np.float32(1) / np.float32(0.7)}
    assert abs((np.asarray(straight) == 0).mean() - 0.3) < 0.06
    np.testing.assert_array_equal(Dropout(0.3).apply({}, x, None), x)


def test_batch_norm_equals_linens_and_leaves_padding_out():
    x = jax.random.normal(jax.random.key(1), (12, 5, 5, 3)) * 3 + 2
    mask = np.array([1] * 9 + [0] * 3, np.float32)
    ours, theirs = BatchNorm(), nn.BatchNorm(use_running_average=False, momentum=0.99, epsilon=1e-3)
    ours_variables = ours.init(jax.random.key(0), x, None)
    theirs_variables = theirs.init(jax.random.key(0), x)
    y, updated = ours.apply(ours_variables, x, training(12, mask=mask), mutable=['batch_stats'])
    expected, theirs_updated = theirs.apply(theirs_variables, x[:9], mutable=['batch_stats'])
    np.testing.assert_allclose(y[:9], nn.relu(expected), atol=1e-5)
    stats, theirs_stats = updated['batch_stats'], theirs_updated['batch_stats']
    np.testing.assert_allclose(stats['mean'], theirs_stats['mean'], atol=1e-6)
    np.testing.assert_allclose(stats['variance'], theirs_stats['var'], atol=1e-6)
    inference = ours.apply({**ours_variables, **updated}, x, None)
    by_hand = (x - stats['mean'].reshape(1, 1, 1, 3)) / np.sqrt(stats['variance'].reshape(1, 1, 1, 3) + 1e-3)
    np.testing.assert_allclose(inference, np.maximum(by_hand, 0), atol=1e-5)


@pytest.mark.parametrize(
    ('config', 'told'),
    [
        ({'name': 'cmn'}, "model.name='cmn' is unknown (did you mean 'cnn'?); the choices are: cnn, mlp"),
        ({'name': 'mlp', 'hiden': (3,)}, "model.hiden is not for 'mlp' (did you mean 'hidden'?)"),
        ({'name': 'mlp', 'hidden': (0,)}, 'model.hidden must hold whole numbers from 1 to 1000000; 0 is among them'),
        ({'name': 'mlp', 'hidden': 5}, 'model.hidden must be a tuple; 5 is in its place'),
        ({'name': 'mlp', 'dropout': (0.5,)}, 'model.dropout has 1 rates for the 2 layers of model.hidden'),
        ({'name': 'mlp', 'dropout': (1.0, 0)}, 'model.dropout must hold rates from 0 to below 1; 1.0 is among them'),
        ({'name': 'cnn', 'stages': (32, 64)}, 'model.stages must be a tuple; 32 is in its place'),
        ({'name': 'cnn', 'pool': (2,)}, 'model.pool=(2,) must have one window for each of the 2 stages'),
        ({'name': 'cnn', 'padding': 'sane'}, "model.padding='sane' is unknown; the choices are: same, valid"),
        ({'name': 'cnn', 'batch_norm': 'yes'}, "model.batch_norm='yes' is wrong: its type is bool"),
        ({'name': 'cnn', 'num_classes': 3}, "model.num_classes is not for 'cnn'"),
    ],
)
def test_wrong_models_are_told(config, told):
    with pytest.raises(UserError) as error:
        make_model(config, 10)
    assert str(error.value).startswith(told)


def test_a_model_that_uses_up_its_image_is_told():
    model = make_model({'name': 'cnn', 'stages': ((4,),) * 4, 'pool': (2,) * 4, 'padding': 'valid'}, 10)
    with pytest.raises(UserError, match='does not fit images'):
        list_layers(model, (28, 28, 1))
