"""Reads, writes and prepares the CSV of Kaggle's Digit Recognizer (https://www.kaggle.com/c/digit-recognizer)."""

from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from mnist_jax.data import csv_tables, partition
from mnist_jax.data.builder import MOVED, ArrayBuilder, Arrays
from mnist_jax.data.csv_tables import SIDE
from mnist_jax.data.idx_builders import MNIST_FRAMING
from mnist_jax.errors import UserError

HEADER = ['label', *csv_tables.PIXEL_NAMES[0]]
# The raw file, if `raw_dir` is a directory; Kaggle's archive contains train.csv and test.csv.
TRAIN, TEST = 'train.csv', 'test.csv'
FILES = (TRAIN, f'{TRAIN}.gz', f'{TRAIN}.zip', 'digit-recognizer.zip')


def find(raw_dir: Path | None) -> Path:
    """Returns the path of the CSV at `raw_dir`, which is that file or a directory with one of `FILES`."""
    if raw_dir is None:
        raise UserError(
            'config.dataset.raw_dir must be the train.csv of https://www.kaggle.com/c/digit-recognizer, or its '
            "directory, got ''"
        )
    paths = [raw_dir / name for name in FILES] if raw_dir.is_dir() else [raw_dir]
    path = next(filter(Path.is_file, paths), None)
    if path is None:
        raise UserError(
            f'config.dataset.raw_dir must be a CSV, or a directory with train.csv, but {str(paths[0])!r} '
            f'does not exist{MOVED}'
        )
    return path


def read(path: Path) -> Arrays:
    """Reads a CSV with the columns label,pixel0,...,pixel783, or similar ones; see `csv_tables.read`.

    Returns:
      Images, uint8 Nx28x28x1, and labels, uint8 N.
    """
    table = csv_tables.read(path, TRAIN, labeled=True)
    return table[:, 1:].reshape(-1, SIDE, SIDE, 1), table[:, 0]


def read_unlabeled(path: Path) -> np.ndarray:
    """Reads the images, uint8 Nx28x28x1, of a CSV without labels, like Kaggle's test.csv.

    Otherwise like `read`.
    """
    return csv_tables.read(path, TEST, labeled=False).reshape(-1, SIDE, SIDE, 1)


def to_csv(images: np.ndarray, labels: np.ndarray) -> str:
    """Returns images, uint8 Nx28x28x1, and their labels as the text of a CSV that `read` accepts."""
    words = list(map(str, range(256)))
    table = np.column_stack([labels, images.reshape(len(images), -1)])
    rows = (','.join(map(words.__getitem__, row)) for row in table.tolist())
    return '\n'.join([','.join(HEADER), *rows, ''])


class KaggleDigits(ArrayBuilder):
    """Kaggle's digits. Of each class, 80% are for training; of the rest, 80% are for testing and 20% are held out.

    `info.metadata['rows']` holds the indices of the CSV rows in each split, from 0.
    """

    FRAMING = MNIST_FRAMING

    @classmethod
    def variant(cls, raw_dir: Path | None, split_seed: int) -> str:
        """Returns a name made of the digest of the CSV and the seed, so that a changed CSV is prepared again."""
        digest = csv_tables.sha256(find(raw_dir), TRAIN)
        return f'{digest[:16]}-seed{split_seed}'

    def _load_arrays(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Arrays]:
        path = find(self._raw_dir)
        images, labels = read(path)
        train, rest = partition.stratified_split(labels, 0.8, self._split_seed)
        test, holdout = (rest[indices] for indices in partition.stratified_split(labels[rest], 0.8, self._split_seed))
        rows = {'train': train, 'test': test, 'holdout': holdout}
        for name, indices in rows.items():
            if not len(indices):
                raise UserError(
                    f'raw file {str(path)!r} must have at least 25 rows of some class, got {len(labels)} rows in all, '
                    f'which leaves none for the split {name!r}'
                )
        self.info.metadata['rows'] = {name: indices.tolist() for name, indices in rows.items()}
        return {name: (images[indices], labels[indices]) for name, indices in rows.items()}
