"""Partitions: disjoint, complete, of the right sizes, decided by the seed."""

import numpy as np
import pytest

from mnist_jax.data import partition

# The rows of each class in Kaggle's train.csv.
KAGGLE = (4132, 4684, 4177, 4351, 4072, 3795, 4137, 4401, 4063, 4188)


def check_parts(parts, count):
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(count))
    assert all((np.diff(part) > 0).all() for part in parts)


def test_at_random():
    parts = partition.at_random(60_000, 0.1, seed=0)
    assert list(map(len, parts)) == [54_000, 6_000]
    check_parts(parts, 60_000)
    again, other = partition.at_random(60_000, 0.1, seed=0), partition.at_random(60_000, 0.1, seed=1)
    np.testing.assert_array_equal(parts[1], again[1])
    assert (parts[1] != other[1]).any()
    assert list(map(len, partition.at_random(10, 0.24, seed=0))) == [8, 2]


def test_the_published_sizes_of_the_kaggle_split():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), KAGGLE))
    train, others = partition.stratified(labels, 0.8, seed=0)
    assert (len(train), len(others)) == (33_604, 8_396)
    test, holdout = partition.stratified(labels[others], 0.8, seed=0)
    assert (len(test), len(holdout)) == (6_720, 1_676)
    check_parts((train, others), 42_000)
    for label, count in enumerate(KAGGLE):
        assert (labels[train] == label).sum() == -(-count * 4 // 5)


@pytest.mark.parametrize('count', [2, 3, 5, 10])
def test_folds_share_out_every_class(count):
    labels = np.repeat(np.arange(4), (11, 7, 1, 20))
    fold = partition.folds(labels, count, seed=0)
    sizes = np.bincount(fold, minlength=count)
    assert len(sizes) == count and sizes.max() - sizes.min() <= 1
    for label in range(4):
        shares = np.bincount(fold[labels == label], minlength=count)
        assert shares.max() - shares.min() <= 1
    assert (fold != partition.folds(labels, count, seed=1)).any()
    np.testing.assert_array_equal(fold, partition.folds(labels, count, seed=0))
