"""Datasets of 32 x 32 color images that are downloaded from their publishers: CIFAR-10, CIFAR-100 and SVHN."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from mnist_jax.data.arrays import make_contents, to_images, to_labels
from mnist_jax.data.builder import Contents
from mnist_jax.data.published import Published, find_files
from mnist_jax.errors import UserError, first_line

SIDE = 32


class Cifar10Binary(Published):
    """CIFAR-10 (Krizhevsky 2009): cifar-10-binary.tar.gz, or the .bin files and batches.meta.txt in it."""

    IMAGE_SHAPE = (32, 32, 3)
    URL = 'https://www.cs.toronto.edu/~kriz'
    FILES = {'cifar-10-binary.tar.gz': 'sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd'}

    @classmethod
    def read(cls, raw_dir: Path, split_seed: int) -> Contents:
        """Reads the five files of training images and the one of test images."""
        splits = {'train': [f'data_batch_{number}.bin' for number in range(1, 6)], 'test': ['test_batch.bin']}
        return _read_cifar(raw_dir, next(iter(cls.FILES)), splits, 'batches.meta.txt', label_bytes=1, label_byte=0)


class Cifar100Binary(Published):
    """CIFAR-100 (Krizhevsky 2009): cifar-100-binary.tar.gz, or train.bin, test.bin and the names of the labels."""

    IMAGE_SHAPE = (32, 32, 3)
    URL = Cifar10Binary.URL
    FILES = {'cifar-100-binary.tar.gz': 'sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec'}

    @classmethod
    def read(cls, raw_dir: Path, split_seed: int, *, labels: Literal['fine', 'coarse'] = 'fine') -> Contents:
        """Returns the contents of both files.

        Args:
          raw_dir: The archive, or a directory with the archive or its files.
          split_seed: Not used.
          labels: fine: 100 classes; coarse: 20 superclasses.
        """
        splits = {'train': ['train.bin'], 'test': ['test.bin']}
        names, label_byte = f'{labels}_label_names.txt', ('coarse', 'fine').index(labels)
        return _read_cifar(raw_dir, next(iter(cls.FILES)), splits, names, label_bytes=2, label_byte=label_byte)


def _read_cifar(
    raw_dir: Path,
    archive: str,
    splits: Mapping[str, Sequence[str]],
    names_file: str,
    label_bytes: int,
    label_byte: int,
) -> Contents:
    """Returns the images and labels of files in CIFAR's binary format.

    An example consists of the bytes of its labels, then of the red, the green and the blue values, row by row.

    Args:
      raw_dir: The archive, or a directory with the archive or its files.
      archive: The name of the archive.
      splits: The names of the files of each split.
      names_file: The name of the file with the names of the classes, one per line.
      label_bytes: How many labels an example has.
      label_byte: The index of the label to use.
    """
    is_python = '-python' in raw_dir.name or any(raw_dir.glob('*-python*')) or any(raw_dir.rglob('data_batch_1'))
    hint = '; it seems to have the Python version, not the binary one' if is_python else ''
    images, labels = {}, {}
    size = label_bytes + SIDE * SIDE * 3
    names = [*(name for files in splits.values() for name in files), names_file]
    with find_files(raw_dir, names, archive, hint) as paths:
        class_names = paths[names_file].read_text(encoding='utf-8', errors='replace').split()
        if not class_names:
            raise UserError(f'{names_file} of {str(raw_dir)!r} must have the name of a class per line, got none')
        for split, files in splits.items():
            contents = [paths[name].read_bytes() for name in files]
            for name, part in zip(files, contents, strict=True):
                if not part or len(part) % size:
                    raise UserError(
                        f'{name} of {str(raw_dir)!r} must consist of images of {size:,} bytes each, got {len(part):,} '
                        'bytes'
                    )
            rows = np.frombuffer(b''.join(contents), np.uint8).reshape(-1, size)
            images[split] = rows[:, label_bytes:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
            labels[split] = rows[:, label_byte].astype(np.int64)
    return make_contents(raw_dir, images, labels, 0.0, 0, class_names)


class SvhnCroppedMat(Published):
    """SVHN (Netzer et al. 2011), cropped house numbers: train_32x32.mat and test_32x32.mat, without the extra set."""

    IMAGE_SHAPE = (32, 32, 3)
    URL = 'http://ufldl.stanford.edu/housenumbers'
    FILES = {
        'train_32x32.mat': 'sha256:435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8',
        'test_32x32.mat': 'sha256:cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b',
    }

    @classmethod
    def read(cls, raw_dir: Path, split_seed: int) -> Contents:
        """Returns the contents of both files, in which the digit 0 has the label 10."""
        import scipy.io  # Only preparing this dataset needs it.

        images, labels = {}, {}
        with find_files(raw_dir, list(cls.FILES)) as paths:
            for split in ('train', 'test'):
                path = paths[f'{split}_32x32.mat']
                try:
                    contents = scipy.io.loadmat(path, variable_names=('X', 'y'))
                    pixels, numbers = contents['X'], contents['y']
                except Exception as error:  # SciPy raises whatever its parsers raise.
                    reason = f'no {error}' if isinstance(error, KeyError) else first_line(error)
                    raise UserError(
                        f'raw file {str(path)!r} must be a MATLAB file with the arrays X and y, got {reason}'
                    ) from None
                if pixels.shape[:3] != (SIDE, SIDE, 3) or pixels.ndim != 4:
                    raise UserError(f'X in {str(path)!r} must have the shape 32 x 32 x 3 x N, got {pixels.shape}')
                images[split] = to_images(f'X in {str(path)!r}', pixels.transpose(3, 0, 1, 2))
                digits = to_labels(f'y in {str(path)!r}', numbers)
                if digits.dtype.kind != 'i' or digits.min(initial=1) < 1 or digits.max(initial=1) > 10:
                    raise UserError(
                        f'y in {str(path)!r} must have labels from 1 to 10, where 10 stands for the digit 0'
                    )
                labels[split] = np.where(digits == 10, 0, digits)
        return make_contents(raw_dir, images, labels, 0.0, split_seed, '0123456789')
