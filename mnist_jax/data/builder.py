"""What the TFDS builders share: arrays in memory become a prepared data set, checked by a digest. No TensorFlow."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from mnist_jax.data.images import Framing
from mnist_jax.data.records import Split

Arrays = tuple[np.ndarray, np.ndarray]
"""Images, uint8 NxHxWxC, and their labels."""


class ArrayBuilder(tfds.core.GeneratorBasedBuilder):
    """A data set whose splits fit in memory, written in their order as array_record.

    A subclass says what it holds and where it comes from. The digest of each split is kept with the prepared data
    (`info.metadata['sha256']`), so that damage shows when it is read.
    """

    VERSION = tfds.core.Version('1.0.0')
    SHAPE = (28, 28, 1)
    CLASS_NAMES: Sequence[str] = '0123456789'
    MAX_PIXEL = 255
    FRAMING = Framing(box=20, by_mass=True)  # MNIST's

    def __init__(self, *, raw_dir: Path | None, data_dir: str, split_seed: int, variant: str):
        """`raw_dir` is where the raw files lie, if not where the subclass says; `split_seed` is of a random split."""
        self._raw_dir = raw_dir
        self._split_seed = split_seed
        config = tfds.core.BuilderConfig(name=variant) if variant else None
        super().__init__(data_dir=data_dir, file_format='array_record', config=config)

    @classmethod
    def variant(cls, raw_dir: Path | None, split_seed: int) -> str:
        """What tells data prepared from these arguments from that of others, as a directory's name; '' for nothing."""
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

    def _arrays(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Arrays]:
        """The splits; UserError where the raw files are not what they must be."""
        raise NotImplementedError

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        arrays = self._arrays(dl_manager)
        logging.info('Preparing %s under %s (once)', self.name, self._data_dir_root)
        self.info.metadata['sha256'] = {split: Split(*pair).sha256 for split, pair in arrays.items()}
        return {split: self._generate_examples(*pair) for split, pair in arrays.items()}

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict]]:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {'image': image, 'label': int(label)}
