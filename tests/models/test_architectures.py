"""Parameter counts of the published models, and errors in their configs."""

import pytest
from conftest import ROOT

from mnist_jax.config import load_config
from mnist_jax.errors import UserError
from mnist_jax.models.architectures import MODELS
from mnist_jax.training.plan import make_model, model_summary

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
}


def load(name):
    return load_config(str(ROOT / 'configs' / f'{name}.py'))


@pytest.mark.parametrize('name', PUBLISHED)
def test_parameter_counts(name):
    total, fixed = PUBLISHED[name]
    table = model_summary(load(name))
    assert table.splitlines()[-1].startswith(
        f'parameters: {total:,} (trainable {total - fixed:,}, not trainable {fixed})'
    )


def test_every_model_has_a_pinned_count():
    assert {load(name).model.name for name in PUBLISHED} == set(MODELS)


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({'name': 'cmn'}, "config.model.name must be one of cnn, mlp, got 'cmn' (did you mean 'cnn'?)"),
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
        ({'name': 'cnn', 'num_classes': 3}, "config.model.num_classes is not a field for 'cnn'"),
    ],
)
def test_a_wrong_field_is_an_error_that_names_it(config, message):
    with pytest.raises(UserError) as error:
        make_model(config, 10)
    assert str(error.value).startswith(message)
