"""The digits that come with scikit-learn: 1,797 images of 8x8, values 0 to 16."""

import numpy as np
import tensorflow_datasets as tfds

from mnist_jax.data.builder import ArrayBuilder, Arrays
from mnist_jax.data.images import Framing

TRAIN = 1_500


class Digits(ArrayBuilder):
    """scikit-learn's digits in their own order: the first 1,500 to train on, the last 297 to test."""

    SHAPE = (8, 8, 1)
    MAX_PIXEL = 16
    FRAMING = Framing(box=8, by_mass=False)

    def _arrays(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Arrays]:
        from sklearn.datasets import load_digits  # Takes a second, and only the preparation needs it.

        digits = load_digits()
        images = digits.images.astype(np.uint8)[..., np.newaxis]
        labels = digits.target
        return {'train': (images[:TRAIN], labels[:TRAIN]), 'test': (images[TRAIN:], labels[TRAIN:])}
