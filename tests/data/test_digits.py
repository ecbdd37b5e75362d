"""Tests the prepared digits dataset of scikit-learn."""

import numpy as np
from sklearn.datasets import load_digits

from mnist_jax.data.source import SOURCES


def test_the_digits_are_those_of_scikit_learn_in_order(tmp_path):
    source = SOURCES['digits'](
        data_dir=str(tmp_path), raw_dir='', train='train[:90%]', validation='train[90%:]', test='test'
    )
    source.data.prepare()
    whole = load_digits()
    splits = [source.split(name) for name in ('train', 'validation', 'test')]
    assert [len(split.label) for split in splits] == [1350, 150, 297]
    np.testing.assert_array_equal(np.concatenate([split.label for split in splits]), whole.target)
    np.testing.assert_array_equal(np.concatenate([split.image for split in splits])[..., 0], whole.images)
    assert (source.image_shape, source.max_pixel) == ((8, 8, 1), 16)
