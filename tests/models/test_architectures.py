"""Parameter counts of the published models, and errors in their configs."""

import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT

from mnist_jax.config import load_config
from mnist_jax.errors import UserError
from mnist_jax.models.architectures import MODELS
from mnist_jax.models.layer_table import list_layers
from mnist_jax.training.plan import make_model, make_plan, model_summary

# Parameters of the published models: the total, and how many of them are not trainable.
PUBLISHED = {
    'mlp': (669_706, 0),
    'cnn': (224_394, 0),
    'fashion_cnn': (468_586, 384),
    'convnet_valid': (93_322, 0),
    'convnet_same': (257_162, 0),
    'digits_cnn': (994, 0),
    'kaggle_mlp': (550_346, 0),
    'kaggle_cnn': (1_199_882, 0),
    # Not reproduced: of the same architectures in PyTorch (`benchmarks/torch_models.py`), with running averages.
    'lenet5': (61_706, 0),
    'resnet': (176_650, 1_120),
    'depthwise': (20_266, 960),
    'mixer': (82_062, 0),
    'vit': (138_890, 0),
}


def load(name):
    return load_config(str(ROOT / 'configs' / f'{name}.py'))


@pytest.mark.parametrize('name', PUBLISHED)
def test_parameter_counts(name):
    total, fixed = PUBLISHED[name]
    table = model_summary(load(name))
    assert table.splitlines()[-1].startswith(
        f'parameters: {total:,} (trainable {total - fixed:,}, not trainable {fixed:,})'
    )


@pytest.mark.parametrize(
    ('name', 'limit'), [('mnist_1k', 1_000), ('mnist_5k', 5_000), ('mnist_10k', 10_000), ('mnist_50k', 50_000)]
)
def test_small_models_have_at_most_the_parameters_that_their_names_say(name, limit):
    plan = make_plan(load(name))
    layers = list_layers(plan.model, plan.source.image_shape)
    assert 0.8 * limit < sum(layer.trainable + layer.non_trainable for layer in layers) <= limit


def test_every_model_has_a_pinned_count():
    assert {load(name).model.name for name in PUBLISHED} == set(MODELS)


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (
            {'name': 'cmn'},
            "config.model.name must be one of cnn, depthwise, lenet5, mixer, mlp, resnet, vit, got 'cmn' (did you mean",
        ),
        ({'name': 'mlp', 'hiden': (3,)}, "config.model.hiden is not a field for 'mlp' (did you mean 'hidden'?)"),
        ({'name': 'mlp', 'hidden': (0,)}, 'config.model.hidden[0] must be an integer from 1 to 1000000, got 0'),
        ({'name': 'mlp', 'hidden': (3, True)}, 'config.model.hidden[1] must be of type int, got True'),
        ({'name': 'mlp', 'hidden': 5}, 'config.model.hidden must be a tuple, got 5'),
        (
            {'name': 'mlp', 'dropout': (0.5,)},
            'config.model.dropout must have one value for each of the 2 entries of config.model.hidden, or be (), '
            'got (0.5,)',
        ),
        ({'name': 'mlp', 'dropout': (1.0, 0)}, 'config.model.dropout[0] must be at least 0 and less than 1, got 1.0'),
        ({'name': 'cnn', 'stages': (32, 64)}, 'config.model.stages[0] must be a tuple, got 32'),
        ({'name': 'cnn', 'stages': ((32, 'x'),)}, "config.model.stages[0][1] must be of type int, got 'x'"),
        (
            {'name': 'cnn', 'pool': (2,)},
            'config.model.pool must have one value for each of the 2 entries of config.model.stages, got (2,)',
        ),
        (
            {'name': 'cnn', 'padding': 'sane'},
            "config.model.padding must be one of same, valid, got 'sane' (did you mean 'same'?)",
        ),
        ({'name': 'cnn', 'batch_norm': 'yes'}, "config.model.batch_norm must be of type bool, got 'yes'"),
        ({'name': 'cnn', 'activation': 'swish'}, 'config.model.activation must be one of'),
        ({'name': 'cnn', 'normalization': 'batchnorm'}, 'config.model.normalization must be one of'),
        (
            {'name': 'depthwise', 'strides': (1, 2)},
            'config.model.strides must have one value for each of the 4 entries',
        ),
        ({'name': 'resnet', 'widths': ()}, 'config.model.widths must not be empty'),
        (
            {'name': 'cnn', 'batch_norm': True, 'normalization': 'layer'},
            "config.model.batch_norm must be False if config.model.normalization is neither 'none' nor 'batch', got",
        ),
        ({'name': 'vit', 'heads': 5}, 'config.model.width must be a multiple of config.model.heads=5, got 64'),
        ({'name': 'resnet', 'stochastic_depth': 1.0}, 'config.model.stochastic_depth must be at least 0 and less'),
        ({'name': 'cnn', 'num_classes': 3}, "config.model.num_classes is not a field for 'cnn'"),
    ],
)
def test_a_wrong_field_is_an_error_that_names_it(config, message):
    with pytest.raises(UserError) as error:
        make_model(config, 10)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize('shape', [(8, 8, 1), (28, 28, 1), (32, 32, 3), (5, 17, 2)])
@pytest.mark.parametrize('name', sorted(set(MODELS) - {'mlp', 'cnn', 'lenet5'}))
def test_architectures_take_images_of_any_shape_and_any_number_of_classes(name, shape):
    model = MODELS[name](7)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
    logits = jax.eval_shape(model.apply, variables, jnp.zeros((3, *shape)))
    assert logits.shape == (3, 7)


def test_a_shape_that_leaves_no_pixels_is_an_error():
    config = load('lenet5')
    config.dataset.name = 'digits'
    with pytest.raises(UserError, match=r'does not fit images of shape \(8, 8, 1\): no pixels are left'):
        model_summary(config)


@pytest.mark.parametrize('normalization', ['none', 'group'])
def test_no_pixels_are_left_to_average_over(normalization):
    config = load('cnn')
    with config.model.unlocked():
        config.model.update(padding='valid', pool=(14, 2), normalization=normalization, hidden=(), global_pool=True)
    with pytest.raises(UserError, match=r'does not fit images of shape \(28, 28, 1\): no pixels are left'):
        model_summary(config)


@pytest.mark.parametrize('name', sorted(set(MODELS) - {'lenet5'}))
def test_a_batch_without_examples_has_no_logits(name):
    model, image = MODELS[name](7), jnp.zeros((0, 28, 28, 1))
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    assert jax.eval_shape(model.apply, variables, image).shape == (0, 7)


def test_batch_norm_is_the_earlier_name_of_a_normalization():
    image = jnp.ones((2, 8, 8, 1))
    old, new = (MODELS['cnn'](10, stages=((3,),), pool=(2,), **fields) for fields in OLD_AND_NEW)
    variables = old.init(jax.random.key(0), image)
    assert jax.tree.structure(variables) == jax.tree.structure(new.init(jax.random.key(0), image))
    assert (old.apply(variables, image) == new.apply(variables, image)).all()


OLD_AND_NEW = ({'batch_norm': True}, {'normalization': 'batch'})


def test_attention_counts_its_products():
    layers = list_layers(MODELS['vit'](10, depth=1), (28, 28, 1))
    (products,) = [layer for layer in layers if layer.kind == 'AttentionProducts']
    assert products.multiply_adds == 2 * 49 * 49 * 64  # scores, and sums of values, over all heads


def test_the_summary_says_what_is_frozen():
    config = load('lenet5')
    config.init.freeze = ('Conv_*',)
    frozen = sum(layer.trainable for layer in list_layers(make_plan(config).model, (28, 28, 1)) if 'Conv' in layer.name)
    assert (
        f'not trainable {frozen:,})' in model_summary(config)
        and f'not trainable {frozen:,})' in make_plan(config).layer_table()
    )
