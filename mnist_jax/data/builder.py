"""The base class of the TFDS builders: prepares arrays in memory and records their digests, without TensorFlow."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from mnist_jax.data.framing import Framing
from mnist_jax.data.records import Split
from mnist_jax.errors import UserError

# How to resume or evaluate a run whose raw files are elsewhere now; the end of error messages.
MOVED = '; if the raw files were moved after training, run the training command again with the new raw_dir'

Arrays = tuple[np.ndarray, np.ndarray]
"""Images, uint8 NxHxWxC, and their labels."""


class ArrayBuilder(tfds.core.GeneratorBasedBuilder):
    """A dataset whose splits fit in memory; prepared in file order, as array_record files.

    Subclasses override the class attributes and `_load_arrays`. The digest of each split is stored with the prepared
    data (`info.metadata['sha256']`), so that damage is detected when the split is read.
    """

    VERSION = tfds.core.Version('1.0.0')
    SHAPE = (28, 28, 1)
    CLASS_NAMES: Sequence[str] = '0123456789'
    MAX_PIXEL = 255
    FRAMING = Framing(box_size=20, center_by_mass=True)  # that of MNIST

    def __init__(self, *, raw_dir: Path | None, data_dir: str, split_seed: int, variant: str):
        """Creates a builder without preparing anything yet.

        Args:
          raw_dir: The directory or the file with the raw data; None for the default of the subclass.
          data_dir: TFDS's data directory.
          split_seed: Seed of random splits.
          variant: What `variant` returns for these arguments.
        """
        self._raw_dir = raw_dir
        self._split_seed = split_seed
        config = tfds.core.BuilderConfig(name=variant) if variant else None
        super().__init__(data_dir=data_dir, file_format='array_record', config=config)

    @classmethod
    def variant(cls, raw_dir: Path | None, split_seed: int) -> str:
        """Returns the directory name that distinguishes variants of the prepared data; '' for the default one.

        Data that is prepared already is used only if it was prepared from the same raw files. So the name identifies
        them by the digest of their contents, and by the seed unless it is 0. Subclasses override this method to name
        only what their data depends on, and to refuse what they do not read.

        Raises:
          UserError: `raw_dir` cannot be read.
        """
        digest = [_sha256(raw_dir)[:16]] if raw_dir is not None else []
        return '-'.join([*digest, *([f'seed{split_seed}'] if split_seed else [])])

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    'image': tfds.features.Tensor(
                        shape=self.SHAPE, dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
                    ),
                    'label': tfds.features.ClassLabel(num_classes=len(self.CLASS_NAMES)),
                }
            ),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(max_pixel=self.MAX_PIXEL, sha256={}),
        )

    def _load_arrays(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Arrays]:
        """Returns the arrays of each split; raises a UserError if the raw files are invalid."""
        raise NotImplementedError

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, object]]]]:
        arrays = self._load_arrays(dl_manager)
        for split, (images, _) in arrays.items():
            if seems_scaled(images, self.MAX_PIXEL):
                raise UserError(
                    f'the raw pixels of {self.name} must be from 0 to {self.MAX_PIXEL}, got only 0 and 1 in the split '
                    f'{split!r}{"" if self._raw_dir is None else f" of {str(self._raw_dir)!r}"}; multiply them by '
                    f'{self.MAX_PIXEL}'
                )
        logging.info('Preparing %s in %s; this happens once', self.name, self._data_dir_root)
        self.info.metadata['sha256'] = {split: Split(*pair).sha256 for split, pair in arrays.items()}
        return {split: self._generate_examples(*pair) for split, pair in arrays.items()}

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, object]]]:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {'image': image, 'label': int(label)}


def seems_scaled(images: np.ndarray, max_pixel: int) -> bool:
    """Returns whether pixels that must be from 0 to `max_pixel` are at most 1, but not all 0: binary or scaled."""
    return 0 < images.max(initial=0) <= 1 < max_pixel


def _sha256(raw_dir: Path) -> str:
    """Returns the digest of a file, or of the names and contents of all files in a directory."""
    digest = hashlib.sha256()
    try:
        for path in sorted(filter(Path.is_file, raw_dir.rglob('*'))) if raw_dir.is_dir() else [raw_dir]:
            with open(path, 'rb') as file:
                contents = hashlib.file_digest(file, 'sha256').hexdigest()
            digest.update(os.fsencode(f'{path.relative_to(raw_dir)}\0{contents}\0'))
    except OSError as error:
        raise UserError(
            f'config.dataset.raw_dir must be readable, got {str(raw_dir)!r} '
            f'({error.strerror}: {error.filename!r}){MOVED}'
        ) from None
    return digest.hexdigest()
