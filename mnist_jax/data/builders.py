"""TFDS builders for the raw sources, and the table of data sets. They need no TensorFlow."""

import hashlib
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from mnist_jax.data import idx
from mnist_jax.errors import UserError, first_line

FILES = {
    'train': ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte'),
    'test': ('t10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'),
}
REACH_SECONDS = 8.0


class IdxBuilder(tfds.core.GeneratorBasedBuilder):
    """A data set in four IDX files, in their order, as array_record.

    A subclass says where the files are and what they must hold. The digest of each split is kept with the prepared
    data (`info.metadata['sha256']`), so that damage shows when it is read.
    """

    VERSION = tfds.core.Version('1.0.0')
    SHA256: Mapping[str, str] = {}  # of the uncompressed files, by name, where they are known
    SHAPE = (28, 28, 1)
    NUM_CLASSES = 10
    MAX_PIXEL = 255
    DIRECTORY: Path | None = None  # where the files come with this package
    URL: str | None = None  # where they are published
    ELSEWHERE = ''  # where else they can be had

    def __init__(self, *, raw_dir: Path | None = None, data_dir: str | None = None):
        self._raw_dir = raw_dir or self.DIRECTORY
        super().__init__(data_dir=data_dir, file_format='array_record')

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    'image': tfds.features.Tensor(
                        shape=self.SHAPE, dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
                    ),
                    'label': tfds.features.ClassLabel(num_classes=self.NUM_CLASSES),
                }
            ),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(max_pixel=self.MAX_PIXEL, sha256={}),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        paths = self._raw_files(dl_manager)
        arrays = {split: self._read(paths, *names) for split, names in FILES.items()}
        logging.info('Preparing %s under %s (once)', self.name, self._data_dir_root)
        self.info.metadata['sha256'] = {split: digest(*pair) for split, pair in arrays.items()}
        return {split: self._generate_examples(*pair) for split, pair in arrays.items()}

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict]]:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {'image': image, 'label': int(label)}

    def _raw_files(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Path]:
        names = [name for pair in FILES.values() for name in pair]
        if self._raw_dir is not None:
            if not self._raw_dir.is_dir():
                raise UserError(
                    f'dataset.raw_dir {str(self._raw_dir)!r} is no directory; the raw files are wanted in it'
                )
            return {name: idx.find(self._raw_dir, name) for name in names}
        ways_out = (
            f'set --config.dataset.raw_dir to a directory with its four IDX files{self.ELSEWHERE}, or '
            '--config.dataset.data_dir to prepared data'
        )
        check_reachable(f'{self.URL}/{names[0]}.gz', REACH_SECONDS, ways_out)
        try:
            paths = dl_manager.download({name: f'{self.URL}/{name}.gz' for name in names})
        except Exception as error:  # The download manager raises whatever its backend does.
            raise UserError(f'the download from {self.URL} failed ({first_line(error)}); {ways_out}') from None
        return {name: Path(path) for name, path in paths.items()}

    def _read(self, paths: Mapping[str, Path], images_name: str, labels_name: str) -> tuple[np.ndarray, np.ndarray]:
        images = idx.read(paths[images_name], dimensions=3, sha256=self.SHA256.get(images_name))
        labels = idx.read(paths[labels_name], dimensions=1, sha256=self.SHA256.get(labels_name))
        path = str(paths[labels_name])
        if (*images.shape[1:], 1) != self.SHAPE:
            raise UserError(f'raw file {str(paths[images_name])!r} has images of {images.shape[1:]}, not {self.SHAPE}')
        if len(images) != len(labels):
            raise UserError(f'raw file {path!r} has {len(labels):,} labels for {len(images):,} images')
        if labels.size and labels.max() >= self.NUM_CLASSES:
            place = int(np.argmax(labels >= self.NUM_CLASSES))
            most = self.NUM_CLASSES - 1
            raise UserError(f'raw file {path!r} has the label {labels[place]} at {place}; 0 to {most} would be right')
        return images.reshape(-1, *self.SHAPE), labels


class MnistIdx(IdxBuilder):
    """MNIST, from the original files that come with this package."""

    DIRECTORY = Path(__file__).parent / 'mnist'
    SHA256 = {
        'train-images-idx3-ubyte': 'ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db',
        'train-labels-idx1-ubyte': '65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5',
        't10k-images-idx3-ubyte': '0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7',
        't10k-labels-idx1-ubyte': 'ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2',
    }


class FashionMnistIdx(IdxBuilder):
    """Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): downloaded, or from `config.dataset.raw_dir`."""

    URL = 'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com'
    ELSEWHERE = ' (Debian: apt-get install dataset-fashion-mnist, /usr/share/datasets/fashion-mnist)'
    SHA256 = {
        'train-images-idx3-ubyte': 'c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888',
        'train-labels-idx1-ubyte': 'bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9',
        't10k-images-idx3-ubyte': '5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b',
        't10k-labels-idx1-ubyte': '0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34',
    }


BUILDERS = {'mnist': MnistIdx, 'fashion_mnist': FashionMnistIdx}


def digest(images: np.ndarray, labels: np.ndarray) -> str:
    """The sha256 of a split: its pixels, then its labels, as bytes."""
    found = hashlib.sha256(np.ascontiguousarray(images, np.uint8))
    found.update(np.ascontiguousarray(labels, np.uint8))
    return found.hexdigest()


def check_reachable(url: str, seconds: float, ways_out: str) -> None:
    """Raise a UserError within `seconds` where `url` cannot be had; TFDS itself would retry for minutes."""
    failure = [f'no answer within {seconds:.0f} s']

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method='HEAD'), timeout=seconds):
                failure.clear()
        except (OSError, ValueError) as error:
            failure[0] = str(getattr(error, 'reason', error))

    # A thread, because the look-up of a host's name knows no time limit.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    if failure:
        host = urllib.parse.urlsplit(url).netloc
        raise UserError(f'the data set cannot be downloaded from {host} ({failure[0]}); {ways_out}')
