"""The base classes of the TFDS builders: prepare arrays in memory and record their digests, without TensorFlow."""

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from mnist_jax.data.content_digests import MOVED, raw_sha256
from mnist_jax.data.framing import Framing
from mnist_jax.data.records import Split
from mnist_jax.errors import UserError

MIN_CLASSES, MAX_CLASSES = 2, 1000
# Characters that XML, and so SVG, cannot hold.
NOT_TEXT = re.compile(r'[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]')
MAX_SPLIT_BYTES = 2**30  # limit on the pixels of a split; TFDS needs TensorFlow to prepare a larger one

Arrays = tuple[np.ndarray, np.ndarray]
"""Images, uint8 NxHxWxC, and their labels."""


class Description(NamedTuple):
    """What a model has to know about a dataset; part of every workdir, so that prediction needs no data.

    Attributes:
      image_shape: Height, width and channels.
      class_names: The names of the classes, in the order of the labels.
      max_pixel: The pixel value that maps to 1.0.
      framing: How the objects in the images are framed; None if they are not single objects on a plain background.
      fit: How a user's own images of another size are fitted if `framing` is None; see `image_files.Fit`.
      mean, deviation: Those of a `Normalization` that was measured; () for none.
    """

    image_shape: tuple[int, ...]
    class_names: Sequence[str]
    max_pixel: int = 255
    framing: Framing | None = None
    fit: str = 'resize'
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the description as a JSON object."""
        return self._asdict() | {'framing': self.framing and self.framing._asdict()}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Returns the description that `to_json` has written; raises a ValueError for anything else."""
        try:
            framing = value['framing'] and Framing(**value['framing'])
            shape, names = tuple(map(int, value['image_shape'])), tuple(map(str, value['class_names']))
            moments = [tuple(map(float, value.get(name, ()))) for name in ('mean', 'deviation')]
            max_pixel = int(value['max_pixel'])
            if len(shape) != 3 or min(shape) < 1 or not names or max_pixel < 1:
                raise ValueError('image_shape, class_names or max_pixel is invalid')
            if any(len(moment) not in (0, shape[2]) for moment in moments):
                raise ValueError('mean or deviation is invalid')
            return cls(shape, names, max_pixel, framing, str(value['fit']), *moments)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise ValueError(f'it must be the description of a dataset ({type(error).__name__}: {error})') from None


class Contents(NamedTuple):
    """The raw data of a dataset: the arrays of each split, and the names of the classes in the order of the labels."""

    arrays: Mapping[str, Arrays]
    class_names: Sequence[str]


class ArrayBuilder(tfds.core.GeneratorBasedBuilder):
    """A dataset whose splits fit in memory; prepared in file order, as array_record files.

    Subclasses override the class attributes and `_load_arrays`. The digest of each split is stored with the prepared
    data (`info.metadata['sha256']`), so that damage is detected when the split is read.
    """

    VERSION = tfds.core.Version('1.0.0')
    SHAPE: tuple[int, ...] = (28, 28, 1)
    CLASS_NAMES: Sequence[str] = '0123456789'
    MAX_PIXEL = 255
    FRAMING: Framing | None = None
    RECURSIVE = True  # whether files in subdirectories of `raw_dir` are read, and so identify the data

    def __init__(
        self,
        *,
        raw_dir: Path | None,
        data_dir: str,
        split_seed: int,
        variant: str,
        check_unchanged: Callable[[], None],
    ):
        """Creates a builder without preparing anything yet.

        Args:
          raw_dir: The directory or the file with the raw data; None for the default of the subclass.
          data_dir: TFDS's data directory.
          split_seed: Seed of random splits.
          variant: What `variant` returns for these arguments.
          check_unchanged: Raises a UserError if the raw files are no longer those of `variant`; called after they have
            been read.
        """
        self._raw_dir = raw_dir
        self._check_unchanged = check_unchanged
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
        digest = [raw_sha256(raw_dir, cls.RECURSIVE)[:16]] if raw_dir is not None else []
        return '-'.join([*digest, *([f'seed{split_seed}'] if split_seed else [])])

    @classmethod
    def framing(cls, raw_dir: Path | None) -> Framing | None:
        """Returns how the objects in the images are framed; `raw_dir` may be missing."""
        return cls.FRAMING

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
        loaded = self._load_arrays(dl_manager)
        arrays = {split: (np.asarray(images), np.asarray(labels)) for split, (images, labels) in loaded.items()}
        self._check_unchanged()
        for split, (images, labels) in arrays.items():
            self._check_arrays(split, images, labels)
            if seems_scaled(images, self.MAX_PIXEL):
                raise UserError(
                    f'the raw pixels of {self.name} must be from 0 to {self.MAX_PIXEL}, got only 0 and 1 in the split '
                    f'{split!r}{"" if self._raw_dir is None else f" of {str(self._raw_dir)!r}"}; multiply them by '
                    f'{self.MAX_PIXEL}'
                )
        logging.info('Preparing %s in %s; this happens once', self.name, self._data_dir_root)
        self.info.metadata['sha256'] = {split: Split(*pair).sha256 for split, pair in arrays.items()}
        return {split: self._generate_examples(*pair) for split, pair in arrays.items()}

    def _check_arrays(self, split: str, images: np.ndarray, labels: np.ndarray) -> None:
        what, classes = f'the split {split!r} of {self.name}', len(self.CLASS_NAMES)
        if images.dtype != np.uint8 or images.shape != (len(labels), *self.SHAPE):
            raise UserError(
                f'the images of {what} must be uint8 of shape {(len(labels), *self.SHAPE)}, one for each label, got '
                f'{images.dtype} of shape {images.shape}'
            )
        if images.max(initial=0) > self.MAX_PIXEL:
            raise UserError(f'the pixels of {what} must be at most {self.MAX_PIXEL}, got {images.max()}')
        valid = np.issubdtype(labels.dtype, np.integer) and labels.ndim == 1
        if not valid or (labels.size and (labels.min() < 0 or labels.max() >= classes)):
            got = f'{labels.min()} to {labels.max()}' if valid else f'{labels.dtype} of shape {labels.shape}'
            raise UserError(f'the labels of {what} must be integers from 0 to {classes - 1}, its classes, got {got}')

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, object]]]:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {'image': image, 'label': int(label)}


class OpenBuilder(ArrayBuilder):
    """A dataset whose image shape and classes depend on its raw files.

    Subclasses implement `read`. Its keyword-only arguments are fields of `config.dataset`; like `raw_dir` and
    `split_seed`, they are part of what identifies the prepared data.
    """

    SHAPE: tuple[int, ...] = ()
    CLASS_NAMES: Sequence[str] = ()

    def __init__(
        self,
        *,
        raw_dir: Path | None,
        split_seed: int,
        options: Mapping[str, Any],
        description: Description | None,
        **fields: Any,
    ):
        """Reads the raw files, unless `description` is that of the data that is prepared already.

        Args:
          raw_dir, split_seed, **fields: See `ArrayBuilder`.
          options: The keyword-only arguments of `read`.
          description: The description of the prepared data; None if it is not prepared.

        Raises:
          UserError: the raw files are invalid.
        """
        self._contents: Contents | None = None
        if description is None:
            raw_dir = self.locate(raw_dir, **options)
            assert raw_dir is not None  # A `Published` dataset was downloaded.
            self._contents = self.read(raw_dir, split_seed, **options)
            check_contents(raw_dir, self._contents, self.MAX_PIXEL)
            images = next(iter(self._contents.arrays.values()))[0]
            fit = options.get('fit', 'resize')
            shape, framing = images.shape[1:], self.framing(raw_dir)
            description = Description(shape, self._contents.class_names, self.MAX_PIXEL, framing, fit)
        self.SHAPE, self.CLASS_NAMES = description.image_shape, description.class_names
        self._description = description
        super().__init__(raw_dir=raw_dir, split_seed=split_seed, **fields)

    @classmethod
    def variant(cls, raw_dir: Path | None, split_seed: int, **options: Any) -> str:
        """Returns a name made of the digests of the raw files and of the options, and the seed unless it is 0."""
        raw_dir = cls.locate(raw_dir, **options)
        defaults = {name: parameter.default for name, parameter in cls.options().items()}
        changed = {name: value for name, value in options.items() if value != defaults[name]}
        text = json.dumps(changed, sort_keys=True)
        digest = [hashlib.sha256(text.encode()).hexdigest()[:8]] if changed else []
        return '-'.join(filter(None, [super().variant(raw_dir, split_seed), *digest]))

    @classmethod
    def locate(cls, raw_dir: Path | None, **options: Any) -> Path | None:
        """Returns where the raw files are, which exist; None if they have yet to be downloaded.

        Args:
          raw_dir: The value of `config.dataset.raw_dir`; None if it is not set.
          **options: The keyword-only arguments of `read`.

        Raises:
          UserError: there is nothing.
        """
        if raw_dir is None:
            assert cls.__doc__ is not None
            what = cls.__doc__.partition('\n')[0].rstrip('.')
            raise UserError(f"config.dataset.raw_dir must be {what[0].lower()}{what[1:]}, got ''")
        if not raw_dir.exists():
            raise UserError(f'config.dataset.raw_dir must exist, got {str(raw_dir)!r}, which does not{MOVED}')
        if not raw_dir.is_dir() and not raw_dir.is_file():  # Reading it could block.
            raise UserError(f'config.dataset.raw_dir must be a directory or a regular file, got {str(raw_dir)!r}')
        return raw_dir

    @classmethod
    def options(cls) -> dict[str, inspect.Parameter]:
        """Returns the keyword-only arguments of `read`."""
        parameters = inspect.signature(cls.read, eval_str=True).parameters
        return {name: value for name, value in parameters.items() if value.kind is value.KEYWORD_ONLY}

    @classmethod
    def read(cls, raw_dir: Path, split_seed: int) -> Contents:
        """Returns the contents of the raw files.

        Args:
          raw_dir: What `locate` returns.
          split_seed: Seed of random splits.

        Raises:
          UserError: the raw files are invalid.
        """
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        info = super()._info()
        info.metadata['description'] = self._description.to_json()
        return info

    def _load_arrays(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Arrays]:
        contents, self._contents = self._contents, None  # frees the memory when the data is prepared
        assert contents is not None
        return dict(contents.arrays)


def check_contents(raw_dir: Path, contents: Contents, max_pixel: int) -> None:
    """Raises a UserError unless the contents of raw files are what a model can be trained on."""
    label = f'the raw data in {str(raw_dir)!r}'
    count = len(contents.class_names)
    if not MIN_CLASSES <= count <= MAX_CLASSES:
        raise UserError(f'{label} must have from {MIN_CLASSES} to {MAX_CLASSES:,} classes, got {count:,}')
    for name in contents.class_names:
        if NOT_TEXT.search(name):
            raise UserError(f'{label} must have names of classes without control characters, got {name!r}')
    shapes = {split: images.shape[1:] for split, (images, _) in contents.arrays.items()}
    if len(set(shapes.values())) > 1:
        sizes = ', '.join(f'{shape} in {split!r}' for split, shape in shapes.items())
        raise UserError(f'{label} must have images of one shape, got {sizes}')
    for split, (images, labels) in contents.arrays.items():
        if images.nbytes > MAX_SPLIT_BYTES:
            raise UserError(
                f'{label} must have at most {MAX_SPLIT_BYTES:,} bytes of pixels per split, got {images.nbytes:,} in '
                f'{split!r}; use smaller images'
            )
        if len(images) != len(labels):
            raise UserError(f'{label} must have one label per image, got {len(labels):,} for {len(images):,} images')
    largest = max(int(images.max(initial=0)) for images, _ in contents.arrays.values())
    if 1 < largest < max_pixel / 15:  # A pixel of 12 bits in a 16-bit image is at most a sixteenth of white.
        logging.warning(
            '%s has no pixel above %d of %d; are there fewer gray levels, or 12 bits per pixel in 16-bit images?',
            label,
            largest,
            max_pixel,
        )
    missing = [name for name, number in zip(contents.class_names, _class_counts(contents), strict=True) if not number]
    if missing:
        logging.warning('%s has no training images of the classes %s', label, ', '.join(missing[:10]))


def _class_counts(contents: Contents) -> np.ndarray:
    """Returns the number of images of each class in the split 'train', or else in the first one."""
    arrays = contents.arrays
    labels = arrays['train' if 'train' in arrays else next(iter(arrays))][1]
    return np.bincount(labels, minlength=len(contents.class_names))


def seems_scaled(images: np.ndarray, max_pixel: int) -> bool:
    """Returns whether pixels that must be from 0 to `max_pixel` are at most 1, but not all 0: binary or scaled."""
    return 0 < images.max(initial=0) <= 1 < max_pixel
