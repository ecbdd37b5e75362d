"""The base class of the TFDS builders: prepares arrays in memory and records their digests, without TensorFlow."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from mnist_jax.data.framing import Framing
from mnist_jax.data.records import Split

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
        """Returns the directory name that distinguishes variants of the prepared data; '' if there is only one."""
        return ''

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
        logging.info('Preparing %s in %s; this happens once', self.name, self._data_dir_root)
        self.info.metadata['sha256'] = {split: Split(*pair).sha256 for split, pair in arrays.items()}
        return {split: self._generate_examples(*pair) for split, pair in arrays.items()}

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, object]]]:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {'image': image, 'label': int(label)}
