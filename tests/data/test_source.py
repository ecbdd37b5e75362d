"""Tests the splits of a run, and the ways to select validation examples."""

import numpy as np
import pytest
import sklearn.utils.class_weight

from mnist_jax.data.source import SOURCES
from mnist_jax.errors import UserError


def mnist(data_dir, train='train[:1000]', validation='', **options):
    return SOURCES['mnist'](
        data_dir=data_dir, raw_dir='', train=train, validation=validation, test='test[:10]', **options
    )


def test_a_random_fraction_is_for_validation_and_the_rest_for_training_both_in_file_order(data_dir):
    whole = mnist(data_dir).split('train')
    source = mnist(data_dir, validation_fraction=0.1, split_seed=3)
    train, validation = source.split('train'), source.split('validation')
    assert (len(train.label), len(validation.label), source.count('train')) == (900, 100, 900)
    all_images = [image.tobytes() for image in whole.image]
    indices = [[all_images.index(image.tobytes()) for image in split.image] for split in (train, validation)]
    assert sorted(indices[0] + indices[1]) == list(range(1000))
    for split, split_indices in zip((train, validation), indices, strict=True):
        assert split_indices == sorted(split_indices)
        np.testing.assert_array_equal(split.label, whole.label[split_indices])
    assert max(indices[1]) - min(indices[1]) > 500
    same_seed, other_seed = (mnist(data_dir, validation_fraction=0.1, split_seed=seed) for seed in (3, 4))
    np.testing.assert_array_equal(same_seed.split('validation').image, validation.image)
    assert (other_seed.split('validation').image != validation.image).any()
    assert len(source.split('test').label) == 10


def test_classes_of_unequal_sizes_have_weights(data_dir):
    source = mnist(data_dir, train='train[:200]', balance='loss')
    sizes = np.bincount(source.split('train').label)
    np.testing.assert_allclose(source.class_weights, sklearn.utils.class_weight.compute_class_weight(
        'balanced', classes=np.arange(10), y=source.split('train').label), rtol=1e-7)  # fmt: skip
    assert (source.class_weights * sizes).sum() == pytest.approx(200)
    doubled = mnist(data_dir, train='train[:200]', balance='loss', class_weights=(1.0,) * 9 + (2.0,))
    assert doubled.class_weights[9] == pytest.approx(2 * source.class_weights[9])
    assert mnist(data_dir).class_weights is None
    # The first five labels are 5, 0, 4, 1, 9, so each of these classes has one example, and the others have none.
    assert mnist(data_dir, train='train[:5]', balance='loss').class_weights.tolist() == [1.0] * 10
    with pytest.raises(
        UserError, match=r'class_weights must have one number for each of the 10 classes, or be .., got 2'
    ):
        _ = mnist(data_dir, class_weights=(1.0, 2.0)).class_weights


def test_the_order_of_an_epoch_is_shuffled_or_balanced(data_dir):
    source = mnist(data_dir, train='train[:200]', balance='sampling')
    assert np.bincount(source.split('train').label[source.train_order(0, 0)]).tolist() == [20] * 10
    assert sorted(mnist(data_dir, train='train[:200]').train_order(0, 0)) == list(range(200))


def test_a_source_without_validation_examples_has_no_validation_split(data_dir):
    source = mnist(data_dir)
    assert not source.validated and source.split_names == ('train', 'test')
    with pytest.raises(UserError, match=r"config.dataset.validation must be a split in TFDS's slicing notation"):
        source.split('validation')
    for options in ({'validation': 'train[1000:]'}, {'validation_fraction': 0.1}, {'fold': (1, 2)}):
        source = mnist(data_dir, **options)
        assert source.validated and source.split_names == ('train', 'validation', 'test')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'validation_fraction': 1.0},
            'config.dataset.validation_fraction must be at least 0 and less than 1, got 1.0',
        ),
        (
            {'validation_fraction': -0.1},
            'config.dataset.validation_fraction must be at least 0 and less than 1, got -0.1',
        ),
        ({'split_seed': -1}, 'config.dataset.split_seed must be an integer from 0 to 2147483647, got -1'),
        (
            {'validation_fraction': 0.0001},
            'config.dataset.validation_fraction must leave at least one example for training and one for validation, '
            'got 0.0001, which leaves 1,000 and 0 of 1,000 examples',
        ),
        (
            {'validation_fraction': 0.1, 'validation': 'train[1000:]'},
            'config.dataset.validation and config.dataset.validation_fraction must not both select the validation '
            "examples; unset one of them (''",
        ),
        ({'fold': (1, 1001)}, 'config.folds must be at most the 1,000 examples of config.dataset.train, got 1001'),
    ],
)
def test_invalid_fields_are_refused(data_dir, options, message):
    with pytest.raises(UserError) as error:
        mnist(data_dir, **options).count('train')
    assert str(error.value).startswith(message)


def test_what_may_be_wrong_about_the_splits_is_named(tmp_path):
    image, label = np.zeros((40, 4, 4, 1), np.uint8), np.array([0] * 19 + [1] * 19 + [2] * 2)
    image[label > 0] = 200
    np.savez(tmp_path / 'own.npz', x_train=image, y_train=label, x_test=image, y_test=label, x_val=image, y_val=label)

    def doubts(**fields):
        fields = {'train': 'train', 'validation': '', 'test': 'test', **fields}
        made = SOURCES['npz'](data_dir=str(tmp_path / 'data'), raw_dir=str(tmp_path / 'own.npz'), **fields)
        made.data.prepare()
        return made.doubts()

    assert doubts(validation='validation') == doubts(train='train+validation') == []
    unused, missing = doubts(validation_fraction=0.1)
    assert unused.startswith('the split validation of the dataset is not used; to use it, add --config.dataset.valid')
    assert missing == 'no validation example was drawn of the class 2'


@pytest.mark.parametrize(
    ('options', 'split', 'expected'),
    [
        ({}, None, []),
        # The training split of MNIST has 60,000 examples: 30,000 in its second half, 12,000 in its first fifth.
        (
            {'train': 'train', 'validation': 'train[50%:]', 'test': 'train[:20%]'},
            None,
            [('train', 'validation', 30_000), ('train', 'test', 12_000)],
        ),
        ({'validation': 'train[900:1100]', 'test': 'train[1050:]'}, None, [
            ('train', 'validation', 100), ('validation', 'test', 50),
        ]),
        ({'train': 'train[:1000]+test[5:]'}, None, [('train', 'test', 5)]),
        ({'train': 'train[:100]+train[50:200]'}, None, [('train', 'train', 50)]),
        ({'train': 'train[:0]+test[:1]', 'test': 'test'}, None, [('train', 'test', 1)]),
        # Random fractions and folds divide the training split, so that both parts together are the whole.
        ({'validation_fraction': 0.1}, None, []),
        ({'validation_fraction': 0.1, 'test': 'train'}, None, [('train', 'test', 900), ('validation', 'test', 100)]),
        ({'fold': (2, 4), 'test': 'train'}, None, [('train', 'test', 750), ('validation', 'test', 250)]),
        ({'validation': 'train[1000:1100]'}, 'validation', []),
        ({'validation': 'train[900:1100]'}, 'validation', [('train', 'validation', 100)]),
        ({}, 'train[:50]', [('train', '--split=train[:50]', 50)]),
        ({}, 'test', []),
        ({'test': 'train[:9]'}, 'test[:50]', []),
    ],
)  # fmt: skip
def test_overlaps_are_counted_for_each_pair_of_splits(data_dir, options, split, expected):
    fields = {'train': 'train[:1000]', 'validation': '', 'test': 'test[:10]', **options}
    source = SOURCES['mnist'](data_dir=data_dir, raw_dir='', **fields)
    assert source.overlaps(split) == expected
