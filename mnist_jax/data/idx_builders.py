"""MNIST and Fashion-MNIST: datasets of four IDX files, from a local directory or downloaded."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from mnist_jax.data import idx
from mnist_jax.data.builder import MOVED, ArrayBuilder, Arrays
from mnist_jax.data.downloads import download
from mnist_jax.data.framing import Framing
from mnist_jax.errors import UserError

FILES = {
    'train': ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte'),
    'test': ('t10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'),
}
NAMES = tuple(name for pair in FILES.values() for name in pair)
MNIST_FRAMING = Framing(box_size=20, center_by_mass=True)
EMNIST_FRAMING = Framing(box_size=24, center_by_mass=False)


class IdxBuilder(ArrayBuilder):
    """A dataset of four IDX files, in file order. Subclasses set where the files are and what they must contain."""

    FRAMING: Framing | None = MNIST_FRAMING
    SHA256: Mapping[str, str] = {}  # digests of the uncompressed files, by name, if they are known
    DIRECTORIES: Sequence[Path] = ()  # where to look for the files if `raw_dir` is not set
    URL: str | None = None  # where to download the files from
    PACKAGE_HINT = ''  # how else to get the files, for error messages

    @classmethod
    def variant(cls, raw_dir: Path | None, split_seed: int) -> str:
        """Returns '' for the files with the digests in `SHA256`; otherwise a name made of the digests of the files."""
        if raw_dir is None:
            return ''
        paths, prefix = _find_files(raw_dir)
        digests = {name: idx.digest(path, _dimensions(name)) for name, path in paths.items()}
        transposed = idx.is_transposed(prefix)
        if digests == cls.SHA256 and not transposed:
            return ''
        if cls.SHA256:
            name = cls.name.removesuffix('_idx')
            logging.warning(
                'The files in %s differ from the published ones of %s; using them as they are', raw_dir, name
            )
        digest = hashlib.sha256(''.join(digests[name] for name in NAMES).encode()).hexdigest()
        return digest[:16] + ('-transposed' if transposed else '')

    @classmethod
    def framing(cls, raw_dir: Path | None) -> Framing | None:
        """Returns that of EMNIST for its files; see `ArrayBuilder.framing`."""
        is_emnist = raw_dir is not None and raw_dir.is_dir() and idx.is_transposed(idx.find_prefix(raw_dir))
        return EMNIST_FRAMING if is_emnist else cls.FRAMING

    def _load_arrays(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Arrays]:
        paths, prefix = self._raw_files(dl_manager)
        transposed = idx.is_transposed(prefix)
        if transposed:
            logging.info("The images in EMNIST's files are transposed: rows and columns are swapped back")
        return {split: self._read_split(paths, *names, transposed) for split, names in FILES.items()}

    def _raw_files(self, dl_manager: tfds.download.DownloadManager) -> tuple[dict[str, Path], str]:
        """Returns the result of `_find_files`; downloads the files if no directory has them."""
        raw_dir = self._raw_dir or next(filter(Path.is_dir, self.DIRECTORIES), None)
        if raw_dir is not None:
            return _find_files(raw_dir)
        hint = (
            f'set --config.dataset.raw_dir to a directory with its four IDX files{self.PACKAGE_HINT}, or '
            '--config.dataset.data_dir to prepared data'
        )
        return download(dl_manager, {name: f'{self.URL}/{name}.gz' for name in NAMES}, hint), ''

    def _read_split(self, paths: Mapping[str, Path], images_name: str, labels_name: str, transposed: bool) -> Arrays:
        # A variant is named by the digests of its files, so only the default one has files with known digests.
        known = {} if self.builder_config else self.SHA256
        images, labels = (
            idx.read(paths[name], _dimensions(name), known.get(name)) for name in (images_name, labels_name)
        )
        images_file, labels_file = (f'raw file {str(paths[name])!r}' for name in (images_name, labels_name))
        if (*images.shape[1:], 1) != self.SHAPE:
            raise UserError(f'{images_file} must have images of shape {self.SHAPE[:2]}, got {images.shape[1:]}')
        if not len(images):
            raise UserError(f'{images_file} must have at least one image, got none')
        if len(images) != len(labels):
            raise UserError(f'{labels_file} must have {len(images):,} labels, one per image, got {len(labels):,}')
        if labels.max() >= len(self.CLASS_NAMES):
            index = int(np.argmax(labels >= len(self.CLASS_NAMES)))
            hint = "; of EMNIST, only 'digits' and 'mnist' have these classes" if transposed else ''
            raise UserError(
                f'{labels_file} must have labels from 0 to {len(self.CLASS_NAMES) - 1}, the {len(self.CLASS_NAMES)} '
                f'classes of this dataset, got {labels[index]} at index {index} and labels from {labels.min()} to '
                f'{labels.max()} in all{hint}'
            )
        if transposed:
            images = images.transpose(0, 2, 1)
        return images.reshape(-1, *self.SHAPE), labels


def _find_files(raw_dir: Path) -> tuple[dict[str, Path], str]:
    """Returns the paths of the four raw files by their names in `NAMES`, and the prefix of their actual names."""
    if not raw_dir.is_dir():
        problem = 'is a file' if raw_dir.exists() else f'does not exist{MOVED}'
        raise UserError(
            f'config.dataset.raw_dir must be a directory with the raw files, got {str(raw_dir)!r}, which {problem}'
        )
    prefix = idx.find_prefix(raw_dir)
    return {name: idx.find(raw_dir, name, prefix) for name in NAMES}, prefix


def _dimensions(name: str) -> int:
    """Returns the number of dimensions of a file in `NAMES`: 3 for images, 1 for labels."""
    return 3 if 'images' in name else 1


class MnistIdx(IdxBuilder):
    """MNIST, from the original files that come with this package."""

    DIRECTORIES = (Path(__file__).parent / 'mnist',)
    SHA256 = {
        'train-images-idx3-ubyte': 'ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db',
        'train-labels-idx1-ubyte': '65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5',
        't10k-images-idx3-ubyte': '0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7',
        't10k-labels-idx1-ubyte': 'ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2',
    }


class FashionMnistIdx(IdxBuilder):
    """Fashion-MNIST (Xiao, Rasul and Vollgraf 2017), from Debian's files if they are installed, or downloaded."""

    CLASS_NAMES = (
        'T-shirt/top', 'trouser', 'pullover', 'dress', 'coat', 'sandal', 'shirt', 'sneaker', 'bag', 'ankle boot',
    )  # fmt: skip
    FRAMING = Framing(box_size=28, center_by_mass=False)
    DIRECTORIES = (Path('/usr/share/datasets/fashion-mnist'),)
    URL = 'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com'
    PACKAGE_HINT = ' (Debian: apt-get install dataset-fashion-mnist, /usr/share/datasets/fashion-mnist)'
    SHA256 = {
        'train-images-idx3-ubyte': 'c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888',
        'train-labels-idx1-ubyte': 'bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9',
        't10k-images-idx3-ubyte': '5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b',
        't10k-labels-idx1-ubyte': '0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34',
    }
