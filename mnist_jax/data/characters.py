"""Datasets of handwritten characters that are downloaded from their publishers: EMNIST, KMNIST and Kuzushiji-49."""

import string
from pathlib import Path
from typing import Literal

import numpy as np

from mnist_jax.data import idx
from mnist_jax.data.arrays import make_contents, to_images, to_labels
from mnist_jax.data.builder import Contents
from mnist_jax.data.framing import Framing
from mnist_jax.data.idx_builders import EMNIST_FRAMING, FILES
from mnist_jax.data.npz import read_file
from mnist_jax.data.published import Published, find_files
from mnist_jax.errors import UserError

SPLITS = ('train', 'test')
MERGED = string.digits + string.ascii_uppercase + 'abdefghnqrt'  # lower-case letters that look unlike the capitals
EMNIST_CLASSES = {
    'byclass': string.digits + string.ascii_uppercase + string.ascii_lowercase,
    'bymerge': MERGED,
    'balanced': MERGED,
    'letters': string.ascii_uppercase,
    'digits': string.digits,
    'mnist': string.digits,
}


class EmnistIdx(Published):
    """EMNIST (Cohen et al. 2017), handwritten letters and digits: gzip.zip, or the IDX files in it."""

    IMAGE_SHAPE = (28, 28, 1)
    URL = 'https://biometrics.nist.gov/cs_links/EMNIST'
    FILES = {'gzip.zip': 'sha256:fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e'}
    FRAMING = EMNIST_FRAMING

    @classmethod
    def read(
        cls,
        raw_dir: Path,
        split_seed: int,
        *,
        variety: Literal['byclass', 'bymerge', 'balanced', 'letters', 'digits', 'mnist'] = 'balanced',
    ) -> Contents:
        """Reads the files of one of the six varieties, whose images are stored transposed.

        Args:
          raw_dir: The archive, or a directory with the archive or its files.
          split_seed: Not used.
          variety: byclass: 62 digits and letters; bymerge: 47 classes, with those lower-case letters that look like
            their capitals merged with them; balanced: equally many examples of each of these 47; letters: 26, upper and
            lower case merged; digits: 10; mnist: 10, with as many examples as MNIST.
        """
        names = {
            split: tuple(f'emnist-{variety}-{split}-{kind}-ubyte' for kind in ('images-idx3', 'labels-idx1'))
            for split in SPLITS
        }
        images, labels = {}, {}
        with find_files(raw_dir, [name for pair in names.values() for name in pair], 'gzip.zip') as paths:
            for split, (images_name, labels_name) in names.items():
                transposed = idx.read(paths[images_name], dimensions=3)
                images[split] = to_images(images_name, transposed.transpose(0, 2, 1))
                numbers = to_labels(labels_name, idx.read(paths[labels_name], dimensions=1))
                if variety == 'letters':  # They are numbered from 1.
                    if numbers.min(initial=1) < 1:
                        raise UserError(f'{labels_name} in {str(raw_dir)!r} must have labels from 1 to 26, got 0')
                    numbers = numbers - 1
                labels[split] = numbers
        return make_contents(raw_dir, images, labels, 0.0, split_seed, EMNIST_CLASSES[variety])


class KmnistIdx(Published):
    """Kuzushiji-MNIST (Clanuwat et al. 2018), ten classes of Japanese cursive characters: four IDX files."""

    IMAGE_SHAPE = (28, 28, 1)
    URL = 'http://codh.rois.ac.jp/kmnist/dataset/kmnist'
    FILES = {
        'train-images-idx3-ubyte.gz': 'sha256:51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4',
        'train-labels-idx1-ubyte.gz': 'sha256:e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17',
        't10k-images-idx3-ubyte.gz': 'sha256:edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5',
        't10k-labels-idx1-ubyte.gz': 'sha256:20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c',
    }
    FRAMING = Framing(box_size=28, center_by_mass=False)
    NAMES = 'o ki su tsu na ha ma ya re wo'

    @classmethod
    def read(cls, raw_dir: Path, split_seed: int) -> Contents:
        """Reads all files."""
        with find_files(raw_dir, [name for pair in FILES.values() for name in pair]) as paths:
            images, labels = (
                {split: idx.read(paths[pair[kind]], dimensions) for split, pair in FILES.items()}
                for kind, dimensions in ((0, 3), (1, 1))
            )
        images = {split: to_images(FILES[split][0], array) for split, array in images.items()}
        labels = {split: to_labels(FILES[split][1], array) for split, array in labels.items()}
        return make_contents(raw_dir, images, labels, 0.0, split_seed, cls.NAMES.split())


class Kuzushiji49Npz(Published):
    """Kuzushiji-49 (Clanuwat et al. 2018), 48 hiragana and an iteration mark, imbalanced: four .npz files."""

    IMAGE_SHAPE = (28, 28, 1)
    URL = 'http://codh.rois.ac.jp/kmnist/dataset/k49'
    FILES = {
        'k49-train-imgs.npz': 'md5:7ac088b20481cf51dcd01ceaab89d821',
        'k49-train-labels.npz': 'md5:44a8e1b893f81e63ff38d73cad420f7a',
        'k49-test-imgs.npz': 'md5:d352e201d846ce6b94f42c990966f374',
        'k49-test-labels.npz': 'md5:4da6f7a62e67a832d5eb1bd85c5ee448',
    }
    FRAMING = Framing(box_size=28, center_by_mass=False)
    NAMES = (
        'a i u e o ka ki ku ke ko sa shi su se so ta chi tsu te to na ni nu ne no ha hi fu he ho ma mi mu me mo '
        'ya yu yo ra ri ru re ro wa wi we wo n mark'
    )

    @classmethod
    def read(cls, raw_dir: Path, split_seed: int) -> Contents:
        """Reads all files."""
        with find_files(raw_dir, list(cls.FILES)) as paths:
            arrays = {name: _read_array(path) for name, path in paths.items()}
        images = {split: to_images(name, arrays[name]) for split in SPLITS if (name := f'k49-{split}-imgs.npz')}
        labels = {split: to_labels(name, arrays[name]) for split in SPLITS if (name := f'k49-{split}-labels.npz')}
        return make_contents(raw_dir, images, labels, 0.0, split_seed, cls.NAMES.split())


def _read_array(path: Path) -> np.ndarray:
    """Returns the only array in a .npz file."""
    arrays = [array for _, array in read_file(path)]
    if len(arrays) != 1:
        raise UserError(f'raw file {str(path)!r} must have one array, got {len(arrays) or "none"}')
    return arrays[0]
