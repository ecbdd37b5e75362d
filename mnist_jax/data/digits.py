"""scikit-learn's digits: 1,797 images of 8x8 pixels with values from 0 to 16."""

from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from mnist_jax.data.builder import ArrayBuilder, Arrays
from mnist_jax.data.framing import Framing
from mnist_jax.errors import UserError

TRAIN_SIZE = 1_500


class Digits(ArrayBuilder):
    """scikit-learn's digits in their original order: the first 1,500 for training, the last 297 for testing."""

    SHAPE = (8, 8, 1)
    MAX_PIXEL = 16
    FRAMING = Framing(box_size=8, center_by_mass=False)

    @classmethod
    def variant(cls, raw_dir: Path | None, split_seed: int) -> str:
        """Returns ''; raises a UserError if `raw_dir` is set."""
        if raw_dir is not None:
            raise UserError(
                f"config.dataset.raw_dir must be '' for digits, which come with scikit-learn, got {str(raw_dir)!r}"
            )
        return ''

    def _load_arrays(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Arrays]:
        from sklearn.datasets import load_digits  # Importing it takes a second, and only preparing the data needs it.

        dataset = load_digits()
        images = dataset.images.astype(np.uint8)[..., np.newaxis]
        labels = dataset.target
        return {
            'train': (images[:TRAIN_SIZE], labels[:TRAIN_SIZE]),
            'test': (images[TRAIN_SIZE:], labels[TRAIN_SIZE:]),
        }
