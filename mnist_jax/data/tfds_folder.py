"""Image-classification datasets of TFDS that are prepared already."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from mnist_jax import files
from mnist_jax.data.arrays import SPLITS, make_contents, to_images
from mnist_jax.data.builder import MAX_SPLIT_BYTES, Contents, OpenBuilder
from mnist_jax.data.downloads import CONNECT_SECONDS, check_reachable
from mnist_jax.errors import UserError, comma_separated, first_line
from mnist_jax.factory import Rate


class TfdsFolder(OpenBuilder):
    """The directory of a version of a TFDS dataset, such as cifar10/3.0.2, prepared as array_record files."""

    @classmethod
    def locate(cls, raw_dir: Path | None, *, builder: str = '', **options: Any) -> Path | None:
        """Returns the directory of the dataset; prepares the dataset `builder` if it is not prepared."""
        if raw_dir is not None or not builder:
            return super().locate(raw_dir)
        try:
            found = tfds.builder(builder, file_format='array_record')
        except Exception as error:  # TFDS raises whatever it finds.
            raise UserError(
                f'config.dataset.builder must be a dataset of TFDS, such as cifar10 or emnist/letters, got {builder!r} '
                f'({first_line(error)})'
            ) from None
        directory = Path(found.data_dir)
        if not directory.exists():
            files.make_directory(directory.parent, 'TFDS_DATA_DIR')
            with files.locked(directory.parent / 'prepare.lock'):
                if not directory.exists():  # Another process may have prepared it in the meantime.
                    _prepare(builder, found, directory)
        return directory

    @classmethod
    def read(
        cls,
        raw_dir: Path,
        split_seed: int,
        *,
        builder: str = '',
        image: str = 'image',
        label: str = 'label',
        test_fraction: Rate = 0.2,
    ) -> Contents:
        """Reads all splits, without TensorFlow, except for additional ones that are too large or have no labels.

        Args:
          raw_dir: The directory with dataset_info.json; or one above it, if only one version lies below.
          split_seed: Seed of the split into training and test images.
          builder: The name of the dataset, such as emnist/letters, if `raw_dir` is not set; it is in TFDS's data
            directory, or it is prepared there first.
          image: The name of the feature with the images.
          label: The name of the feature with the labels.
          test_fraction: The fraction of each class to draw for testing if there is no split 'test'.
        """
        prepared = _open(raw_dir)
        if prepared.name == 'emnist':
            logging.warning(
                'The images of the TFDS dataset emnist are transposed, and own images are not; '
                '--config.dataset.name=emnist sets them upright'
            )
        features = prepared.info.features
        for name, field in ((image, 'image'), (label, 'label')):
            if not isinstance(features, tfds.features.FeaturesDict) or name not in features:
                known = comma_separated(list(features)) if isinstance(features, tfds.features.FeaturesDict) else 'none'
                raise UserError(f'config.dataset.{field} must be one of the features {known}, got {name!r}')
        names = getattr(features[label], 'names', None)
        images, labels = {}, {}
        for split in prepared.info.splits:
            try:
                examples = prepared.as_data_source(split=split)
                pairs = [(example[image], int(example[label])) for example in examples]
            except Exception as error:  # TFDS raises whatever its parsers raise.
                raise UserError(f'split {split!r} of {str(raw_dir)!r} cannot be read: {first_line(error)}') from None
            shapes = {array.shape: None for array, _ in pairs}
            if len(shapes) != 1:
                sizes = ', '.join(map(str, itertools.islice(shapes, 5))) or 'none'
                raise UserError(f'the images of {str(raw_dir)!r} must have one size, got {sizes} in split {split!r}')
            reason = _why_unusable(pairs)
            if reason and split not in SPLITS:  # such as STL-10's unlabeled images
                logging.warning('Leaving out the split %s of %s: %s', split, raw_dir, reason)
                continue
            images[split] = to_images(f'the images of {str(raw_dir)!r}', np.stack([array for array, _ in pairs]))
            labels[split] = np.array([number for _, number in pairs])
        return make_contents(raw_dir, images, labels, test_fraction, split_seed, names or ())


def _why_unusable(pairs: Sequence[tuple[np.ndarray, int]]) -> str:
    """Returns why images and labels cannot be a split of a dataset; '' if nothing is wrong."""
    if len(pairs) * pairs[0][0].size > MAX_SPLIT_BYTES:
        return f'it has more than {MAX_SPLIT_BYTES:,} bytes of pixels'
    return 'it has examples without a label' if min(label for _, label in pairs) < 0 else ''


def _prepare(name: str, builder: tfds.core.DatasetBuilder, directory: Path) -> None:
    """Prepares the dataset called `name` in TFDS's directory."""
    hint = (
        f'on a machine with a network, run tfds build {name} --file_format=array_record, and copy the result to '
        f'{str(directory)!r}'
    )
    if urls := getattr(builder, 'url_infos', None):  # the checksums of what it downloads, by address
        check_reachable(next(iter(urls)), CONNECT_SECONDS, hint)
    logging.info('Preparing the TFDS dataset %s in %s; this happens once', name, directory)
    try:
        builder.download_and_prepare()
    except Exception as error:  # TFDS raises whatever its downloads and its parsers raise.
        raise UserError(
            f'the TFDS dataset {name!r} cannot be prepared ({first_line(error)}); many builders need TensorFlow: '
            f'pip install tensorflow; or, {hint}'
        ) from None


def _open(raw_dir: Path) -> tfds.core.DatasetBuilder:
    found = sorted(raw_dir.rglob('dataset_info.json')) if raw_dir.is_dir() else []
    if len(found) != 1:
        raise UserError(
            'config.dataset.raw_dir must be the directory of a prepared TFDS dataset, with dataset_info.json, got '
            f'{str(raw_dir)!r}, which has {len(found) or "none"}; prepare it with: '
            'tfds build NAME --file_format=array_record'
        )
    try:
        builder = tfds.builder_from_directory(found[0].parent)
    except Exception as error:  # TFDS raises whatever its parsers raise.
        raise UserError(f'{str(found[0])!r} cannot be read: {first_line(error)}') from None
    file_format = builder.info.file_format
    if file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f'the TFDS dataset in {str(raw_dir)!r} must be prepared as array_record, got {file_format.value}; convert '
            f'it with: tfds convert_format --dataset_dir={found[0].parent} --out_path={found[0].parent} '
            '--out_file_format=array_record'
        )
    return builder
