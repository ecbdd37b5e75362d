"""Square images in CSV files."""

import re
from pathlib import Path

import numpy as np

from mnist_jax.data import csv_tables
from mnist_jax.data.arrays import group_by_split, make_contents
from mnist_jax.data.builder import Contents, OpenBuilder
from mnist_jax.errors import UserError
from mnist_jax.factory import Rate

SUFFIX = re.compile(r'(\.csv)?(\.gz|\.zip)?$')  # what may differ between copies of a file


class Csv(OpenBuilder):
    """A CSV with a label and the pixels of an image per row, or a directory with a CSV per split."""

    RECURSIVE = False

    @classmethod
    def read(cls, raw_dir: Path, split_seed: int, *, test_fraction: Rate = 0.2) -> Contents:
        """Reads all rows; see `csv_tables.read_open`.

        Args:
          raw_dir: The CSV, plain, gzipped or in a zip archive; or a directory with CSVs whose names contain those of
            the splits, such as mnist_train.csv and mnist_test.csv. Of train.csv and train.csv.gz, the plain one is
            read.
          split_seed: Seed of the split into training and test images.
          test_fraction: The fraction of each class to draw for testing if there is no test file.
        """
        paths = [raw_dir]
        if raw_dir.is_dir():
            paths = _find(raw_dir)
        if not paths:
            raise UserError(f'config.dataset.raw_dir must contain CSV files, got {str(raw_dir)!r} without any')
        images, labels = {}, {}
        for split, files_of_split in group_by_split(raw_dir, paths).items():
            tables = [csv_tables.read_open(path) for path in files_of_split]
            shapes = {table[0].shape[1:]: path.name for table, path in zip(tables, files_of_split, strict=True)}
            if len(shapes) > 1:
                sizes = ', '.join(f'{shape} in {name}' for shape, name in shapes.items())
                raise UserError(f'the CSV files of a split must have images of one size, got {sizes}')
            images[split], labels[split] = (np.concatenate(arrays) for arrays in zip(*tables, strict=True))
        return make_contents(raw_dir, images, labels, test_fraction, split_seed)


def _find(directory: Path) -> list[Path]:
    """Returns the CSV files in a directory; of those that differ only by their compression, the plain one."""
    paths = [path for path in directory.iterdir() if csv_tables.is_table(path) and not path.name.startswith('.')]
    plain_last = sorted(paths, key=lambda path: (path.suffix.lower() == '.csv', path.name))
    return list({SUFFIX.sub('', path.name.lower()): path for path in plain_last}.values())
