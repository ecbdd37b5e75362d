"""Tests that random partitions are disjoint and complete, have the right sizes, and depend only on the seed."""

import numpy as np
import pytest

from mnist_jax.data import partition

# The number of rows of each class in Kaggle's train.csv.
KAGGLE_CLASS_COUNTS = (4132, 4684, 4177, 4351, 4072, 3795, 4137, 4401, 4063, 4188)


def check_partition(parts, count):
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(count))
    assert all((np.diff(part) > 0).all() for part in parts)


def test_random_split():
    parts = partition.random_split(60_000, 0.1, seed=0)
    assert list(map(len, parts)) == [54_000, 6_000]
    check_partition(parts, 60_000)
    same_seed, other_seed = (partition.random_split(60_000, 0.1, seed) for seed in (0, 1))
    np.testing.assert_array_equal(parts[1], same_seed[1])
    assert (parts[1] != other_seed[1]).any()
    assert list(map(len, partition.random_split(10, 0.24, seed=0))) == [8, 2]


def test_stratified_splits_have_the_published_sizes_of_the_kaggle_splits():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), KAGGLE_CLASS_COUNTS))
    train, rest = partition.stratified_split(labels, 0.8, seed=0)
    assert (len(train), len(rest)) == (33_604, 8_396)
    test, holdout = partition.stratified_split(labels[rest], 0.8, seed=0)
    assert (len(test), len(holdout)) == (6_720, 1_676)
    check_partition((train, rest), 42_000)
    for label, count in enumerate(KAGGLE_CLASS_COUNTS):
        assert (labels[train] == label).sum() == -(-count * 4 // 5)


@pytest.mark.parametrize('count', [2, 3, 5, 10])
def test_folds_divide_every_class_evenly(count):
    labels = np.repeat(np.arange(4), (11, 7, 1, 20))
    folds = partition.assign_folds(labels, count, seed=0)
    sizes = np.bincount(folds, minlength=count)
    assert len(sizes) == count and sizes.max() - sizes.min() <= 1
    for label in range(4):
        counts = np.bincount(folds[labels == label], minlength=count)
        assert counts.max() - counts.min() <= 1
    assert (folds != partition.assign_folds(labels, count, seed=1)).any()
    np.testing.assert_array_equal(folds, partition.assign_folds(labels, count, seed=0))
