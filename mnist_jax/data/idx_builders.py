"""MNIST and Fashion-MNIST: data sets in four IDX files, at hand or downloaded."""

import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from mnist_jax.data import idx
from mnist_jax.data.builder import ArrayBuilder, Arrays
from mnist_jax.data.images import Framing
from mnist_jax.errors import UserError, first_line

FILES = {
    'train': ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte'),
    'test': ('t10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'),
}
REACH_SECONDS = 8.0


class IdxBuilder(ArrayBuilder):
    """A data set in four IDX files, in their order. A subclass says where they are and what they must hold."""

    SHA256: Mapping[str, str] = {}  # of the uncompressed files, by name, where they are known
    DIRECTORIES: Sequence[Path] = ()  # where the files may lie without being told
    URL: str | None = None  # where they are published
    ELSEWHERE = ''  # where else they can be had

    def _arrays(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Arrays]:
        paths = self._raw_files(dl_manager)
        return {split: self._read(paths, *names) for split, names in FILES.items()}

    def _raw_files(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Path]:
        names = [name for pair in FILES.values() for name in pair]
        raw_dir = self._raw_dir or next(filter(Path.is_dir, self.DIRECTORIES), None)
        if raw_dir is not None:
            if not raw_dir.is_dir():
                raise UserError(f'dataset.raw_dir {str(raw_dir)!r} is no directory; the raw files are wanted in it')
            return {name: idx.find(raw_dir, name) for name in names}
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

    def _read(self, paths: Mapping[str, Path], images_name: str, labels_name: str) -> Arrays:
        images = idx.read(paths[images_name], dimensions=3, sha256=self.SHA256.get(images_name))
        labels = idx.read(paths[labels_name], dimensions=1, sha256=self.SHA256.get(labels_name))
        path = str(paths[labels_name])
        if (*images.shape[1:], 1) != self.SHAPE:
            raise UserError(f'raw file {str(paths[images_name])!r} has images of {images.shape[1:]}, not {self.SHAPE}')
        if len(images) != len(labels):
            raise UserError(f'raw file {path!r} has {len(labels):,} labels for {len(images):,} images')
        if labels.size and labels.max() >= len(self.CLASS_NAMES):
            place = int(np.argmax(labels >= len(self.CLASS_NAMES)))
            most = len(self.CLASS_NAMES) - 1
            raise UserError(f'raw file {path!r} has the label {labels[place]} at {place}; 0 to {most} would be right')
        return images.reshape(-1, *self.SHAPE), labels


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
    """Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): Debian's files where they are installed, or downloaded."""

    CLASS_NAMES = (
        'T-shirt/top', 'trouser', 'pullover', 'dress', 'coat', 'sandal', 'shirt', 'sneaker', 'bag', 'ankle boot',
    )  # fmt: skip
    FRAMING = Framing(box=28, by_mass=False)
    DIRECTORIES = (Path('/usr/share/datasets/fashion-mnist'),)
    URL = 'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com'
    ELSEWHERE = ' (Debian: apt-get install dataset-fashion-mnist, /usr/share/datasets/fashion-mnist)'
    SHA256 = {
        'train-images-idx3-ubyte': 'c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888',
        'train-labels-idx1-ubyte': 'bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9',
        't10k-images-idx3-ubyte': '5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b',
        't10k-labels-idx1-ubyte': '0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34',
    }


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
