"""Writes small raw files in many formats, and prepares them."""

import io

import numpy as np
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mnist_jax.data.source import SOURCES
from mnist_jax.errors import UserError
from mnist_jax.factory import build


def idx_bytes(array):
    """Returns the contents of an IDX file of unsigned bytes."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, '>u4').tobytes() + array.tobytes()


def make_source(name, data_dir, raw_dir, **options):
    config = {'name': name, 'data_dir': str(data_dir), 'raw_dir': str(raw_dir), 'train': 'train', 'validation': ''}
    return build('config.dataset', SOURCES, {**config, 'test': 'test', **options}, fold=None, description=None)


def prepare(name, data_dir, raw_dir, **options):
    source = make_source(name, data_dir, raw_dir, **options)
    assert source.image_shape  # prepares the data
    return source


def refusal(name, tmp_path, raw_dir, **options):
    """Returns the error that raw data causes; checks that nothing was prepared."""
    with pytest.raises(UserError) as error:
        prepare(name, tmp_path / 'prepared', raw_dir, **options)
    left = [path for path in (tmp_path / 'prepared').rglob('*') if path.is_file() and path.name != 'prepare.lock']
    assert not left
    return str(error.value)


def write_folder(directory, images, labels, suffix='.png', names='{:03}'):
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = directory / str(label) / (names.format(index) + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return directory


def encode(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'PNG')
    return file.getvalue()


def write_parquet(path, images, labels, column='image', nested=True, metadata=None):

    cells = [{'bytes': encode(image), 'path': None} if nested else encode(image) for image in images]
    table = pyarrow.table({column: cells, 'label': list(labels)})
    if metadata:
        table = table.replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path)


class TinyDigits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A dataset as TFDS prepares it."""

    VERSION = tfds.core.Version('1.0.0')
    images, labels, names = {}, {}, ('0', '1', '2')

    def _info(self):
        shape = next(iter(self.images.values())).shape[1:]
        features = {'image': tfds.features.Image(shape=shape), 'label': tfds.features.ClassLabel(names=self.names)}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.images}

    def _generate_examples(self, split):
        for index, (image, label) in enumerate(zip(self.images[split], self.labels[split], strict=True)):
            # As a file: TFDS needs TensorFlow to encode an array.
            yield index, {'image': io.BytesIO(encode(image.squeeze())), 'label': int(label)}


def write_tfds(directory, images, labels, file_format='array_record', names=('0', '1', '2')):
    TinyDigits.images, TinyDigits.labels, TinyDigits.names = images, labels, names
    builder = TinyDigits(data_dir=str(directory), file_format=file_format)
    builder.download_and_prepare()
    return directory
