"""What trains, validates and tests: parts of the prepared data, and the ways to choose them."""

import numpy as np
import pytest

from mnist_jax.data.source import SOURCES
from mnist_jax.errors import UserError


def mnist(data_dir, train='train[:1000]', validation='', **fields):
    return SOURCES['mnist'](
        data_dir=data_dir, raw_dir='', train=train, validation=validation, test='test[:10]', **fields
    )


def test_a_random_fraction_validates_and_the_rest_trains_in_file_order(data_dir):
    whole = mnist(data_dir).split('train')
    found = mnist(data_dir, validation_fraction=0.1, split_seed=3)
    train, validation = found.split('train'), found.split('validation')
    assert (len(train.label), len(validation.label), found.count('train')) == (900, 100, 900)
    everything = [image.tobytes() for image in whole.image]
    places = [[everything.index(image.tobytes()) for image in part.image] for part in (train, validation)]
    assert sorted(places[0] + places[1]) == list(range(1000))
    for part, where in zip((train, validation), places, strict=True):
        assert where == sorted(where)
        np.testing.assert_array_equal(part.label, whole.label[where])
    assert max(places[1]) - min(places[1]) > 500
    again, other = (mnist(data_dir, validation_fraction=0.1, split_seed=seed) for seed in (3, 4))
    np.testing.assert_array_equal(again.split('validation').image, validation.image)
    assert (other.split('validation').image != validation.image).any()
    assert len(found.split('test').label) == 10


def test_without_a_way_to_validate_there_is_no_validation(data_dir):
    found = mnist(data_dir)
    assert found.split('validation') is None and not found.validated
    assert mnist(data_dir, validation='train[1000:]').validated and mnist(data_dir, fold=(1, 2)).validated


@pytest.mark.parametrize(
    ('fields', 'told'),
    [
        ({'validation_fraction': 1.0}, 'dataset.validation_fraction=1.0 is wrong: a number from 0 to below 1'),
        ({'validation_fraction': -0.1}, 'dataset.validation_fraction=-0.1 is wrong'),
        ({'split_seed': -1}, 'dataset.split_seed=-1 is wrong: a whole number from 0 to 2147483647 is wanted'),
        (
            {'validation_fraction': 0.0001},
            'dataset.validation_fraction=0.0001 of 1,000 examples leaves 1,000 to train on and 0 to validate with',
        ),
        (
            {'validation_fraction': 0.1, 'validation': 'train[1000:]'},
            "dataset.validation and dataset.validation_fraction both say what validates; leave one of them out: ''",
        ),
        ({'fold': (1, 1001)}, 'config.folds=1001 is more than the 1,000 examples of dataset.train'),
    ],
)
def test_wrong_fields_are_told(data_dir, fields, told):
    with pytest.raises(UserError) as error:
        mnist(data_dir, **fields).count('train')
    assert str(error.value).startswith(told)
