"""Converts arrays in common layouts to images, labels and splits."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mnist_jax.data import partition
from mnist_jax.data.builder import MAX_CLASSES, MAX_SPLIT_BYTES, Arrays, Contents
from mnist_jax.errors import UserError, comma_separated

CHANNELS = (1, 3)
MAX_LABEL = 10**9  # the largest number of a class
# The words that name a split, in the names of files, directories and arrays.
SPLITS = {'train': ('train', 'training'), 'validation': ('validation', 'valid', 'val'), 'test': ('test', 'testing')}


def words_of(name: str) -> set[str]:
    """Returns the words in the name of a file or an array, such as 'x_train', in lower case."""
    return set(re.split('[^a-z]+', name.lower()))


def split_of(name: str) -> str | None:
    """Returns the split that a name such as 'x_train' or 'train-00000-of-00001' contains; None if it contains none."""
    words = words_of(name)
    return next((split for split, names in SPLITS.items() if words & set(names)), None)


def group_by_split(raw_dir: Path, paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Returns the files of each split, in order; if no file names a split, they are all training files.

    Args:
      raw_dir: The directory of the files, or the only file.
      paths: The files. One whose name contains no split is of that of the nearest directory below `raw_dir`.

    Raises:
      UserError: only some of the files name a split.
    """
    groups: dict[str, list[Path]] = {}
    for path in sorted(paths):
        names = [path.name, *(parent.name for parent in path.parents if raw_dir in parent.parents)]
        groups.setdefault(next(filter(None, map(split_of, names)), ''), []).append(path)
    unnamed = groups.pop('', [])
    if groups and unnamed:
        raise UserError(
            f'the names of all files in {str(raw_dir)!r}, or of their directories, must contain that of a split '
            f'(train, validation or test), or none of them, got {str(unnamed[0].relative_to(raw_dir))!r}'
        )
    return groups or {'train': unnamed}


def to_images(label: str, array: np.ndarray) -> np.ndarray:
    """Returns images as uint8 NxHxWxC.

    Args:
      label: What error messages call the array.
      array: NxHxW, NxHxWxC with 1 or 3 channels, or NxP with the P pixels of square gray images, from 0 to 255.

    Raises:
      UserError: the array has another shape, or a pixel with a value that is not an integer from 0 to 255.
    """
    if array.dtype.kind not in 'uif' and array.dtype != bool:
        raise UserError(f'{label} must hold numbers, got the type {array.dtype}')
    shape = array.shape
    if array.ndim and not len(array):
        raise UserError(f'{label} must have at least one image, got the shape {shape}')
    if array.ndim == 2 and math.isqrt(shape[1]) ** 2 == shape[1] > 0:
        array = array.reshape(len(array), math.isqrt(shape[1]), -1)
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] not in CHANNELS or 0 in array.shape:
        hint = '; move the channels to the last axis' if array.ndim == 4 and array.shape[1] in CHANNELS else ''
        raise UserError(
            f'{label} must have the shape N x height x width, or N x height x width x 1 or 3, got {shape}{hint}'
        )
    if array.dtype == np.uint8:
        return array
    low, high = array.min(), array.max()
    if not (0 <= low <= high <= 255) or not np.array_equal(array, array.astype(np.uint8)):
        hint = '; multiply them by 255 and round them' if 0 <= low <= high <= 1 else ''
        raise UserError(f'the pixels of {label} must be integers from 0 to 255, got {low:g} to {high:g}{hint}')
    return array.astype(np.uint8)


class ImageStacks:
    """The images of each split, which are checked one by one: too many large ones must not fill the memory first."""

    def __init__(self) -> None:
        self._images: dict[str, list[np.ndarray]] = {}
        self._first: tuple[tuple[int, ...], object] | None = None  # the size and the name of the first image

    def add(self, split: str, image_HxWxC: np.ndarray, name: object) -> None:
        """Adds an image, uint8, to a split.

        Args:
          split: The split.
          image_HxWxC: The image, uint8.
          name: What error messages call it.

        Raises:
          UserError: it has another size than the first one, or the split has become too large.
        """
        images, size = self._images.setdefault(split, []), image_HxWxC.shape[:2]
        self._first = self._first or (size, name)
        if size != self._first[0]:
            raise UserError(
                f'config.dataset.image_size must be set, for example to {self._first[0]}, if the images have several '
                f'sizes, got {self._first[0]} for {str(self._first[1])!r} and {size} for {str(name)!r}'
            )
        images.append(image_HxWxC)
        if len(images) * size[0] * size[1] > MAX_SPLIT_BYTES:
            raise UserError(
                f'config.dataset.image_size must be so small that a split has at most {MAX_SPLIT_BYTES:,} bytes of '
                f'pixels, got more in the first {len(images):,} images of {split!r}, whose size is {size}'
            )

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the images of each split as one array, NxHxWxC; gray images become colored if others are."""
        channels = max(image.shape[2] for images in self._images.values() for image in images)
        return {
            split: np.stack([np.broadcast_to(image, (*image.shape[:2], channels)) for image in images])
            for split, images in self._images.items()
        }


def to_labels(label: str, array: np.ndarray) -> np.ndarray:
    """Returns one label per image, as integers or strings.

    Args:
      label: What error messages call the array.
      array: N or Nx1 integers, integers as floats, or strings; or one-hot rows NxK, for integers from 0.

    Raises:
      UserError: the array is anything else.
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if (
        array.ndim == 2
        and array.dtype.kind in 'biuf'
        and (np.sort(array)[:, :-1] == 0).all()
        and (array.sum(1) == 1).all()
    ):
        return array.argmax(1)
    if array.dtype.kind == 'O' and all(isinstance(value, str) for value in array.ravel().tolist()):
        array = array.astype(str)
    if array.ndim != 1 or array.dtype.kind not in 'biufSU':
        raise UserError(
            f'{label} must have one label per image, an integer or a text, got the shape {array.shape} and the type '
            f'{array.dtype}'
        )
    if array.dtype.kind == 'S':
        try:
            return np.char.decode(array, 'utf-8')
        except UnicodeDecodeError:
            raise UserError(f'{label} must be texts in UTF-8, got other bytes') from None
    if array.dtype.kind == 'U':
        return array
    if array.size and not -MAX_LABEL <= array.min() <= array.max() <= MAX_LABEL:  # also true for NaN
        raise UserError(f'{label} must have integers up to {MAX_LABEL:,} as labels, got {array.min()} to {array.max()}')
    if (array != np.rint(array)).any():
        raise UserError(f'{label} must have integers or texts as labels, got fractions or NaN')
    return array.astype(np.int64)


def number_classes(labels: Mapping[str, np.ndarray]) -> tuple[list[str], dict[str, np.ndarray]]:
    """Numbers the classes from 0.

    Up to 1,000 integers that start with 0 or 1 stand for all classes up to the largest one, so that a class without
    images keeps its number. Of all other labels, the distinct ones are the classes, in natural order.

    Args:
      labels: The labels of each split, from `to_labels`.

    Returns:
      The names of the classes, and the numbers of the labels of each split.
    """
    if all(array.dtype.kind == 'i' for array in labels.values()):
        values = np.unique(np.concatenate(list(labels.values())))
        if values[0] in (0, 1) and values[-1] - values[0] < MAX_CLASSES:
            values = np.arange(values[0], values[-1] + 1)
        return list(map(str, values)), {split: np.searchsorted(values, array) for split, array in labels.items()}
    distinct = np.unique(np.concatenate([array.astype(str) for array in labels.values()]))
    names = sorted(map(str, distinct), key=natural_order)
    numbers = {name: number for number, name in enumerate(names)}
    return names, {
        split: np.array([numbers[str(value)] for value in array.tolist()], np.int64) for split, array in labels.items()
    }


def make_contents(
    raw_dir: Path,
    images: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    test_fraction: float,
    split_seed: int,
    class_names: Sequence[str] = (),
) -> Contents:
    """Returns the contents of raw files, with their classes numbered and a test split.

    Args:
      raw_dir: Where the raw files are, for error messages.
      images: The images of each split, from `to_images`; one split is 'train'.
      labels: The labels of each split, from `to_labels`.
      test_fraction: The fraction of each class of 'train' to draw for testing if there is no split 'test'.
      split_seed: Seed of this draw.
      class_names: The names of the classes if the labels are their numbers, from 0.

    Raises:
      UserError: there is no split 'train', the numbers of images and labels differ, or nothing is left for testing.
    """
    if 'train' not in images:
        raise UserError(f"{str(raw_dir)!r} must have a split 'train', got {comma_separated(images)}")
    for split, array in images.items():
        if len(array) != len(labels[split]) or not len(array):
            raise UserError(
                f'the split {split!r} of {str(raw_dir)!r} must have images, and one label per image, got '
                f'{len(array):,} images and {len(labels[split]):,} labels'
            )
    numbers = labels
    if not class_names:
        class_names, numbers = number_classes(labels)
    elif any(array.min() < 0 or array.max() >= len(class_names) for array in labels.values()):
        raise UserError(
            f'the labels of {str(raw_dir)!r} must be from 0 to {len(class_names) - 1}, the numbers of its classes, got '
            f'{min(array.min() for array in labels.values())} to {max(array.max() for array in labels.values())}'
        )
    arrays = {split: (array, numbers[split]) for split, array in images.items()}
    return Contents(draw_test_split(arrays, test_fraction, split_seed), class_names)


def draw_test_split(arrays: dict[str, Arrays], test_fraction: float, seed: int) -> dict[str, Arrays]:
    """Draws the split 'test' from the training examples if there is none.

    The same fraction of each class is drawn, rounded up, but never its last example.

    Args:
      arrays: Images and labels of the splits 'train' and, possibly, 'validation' and 'test'.
      test_fraction: The fraction to draw.
      seed: Seed of the draw.
    """
    if 'test' in arrays:
        return arrays
    images, labels = arrays['train']
    test, train = partition.stratified_split(labels, test_fraction, seed, spared=1)
    if not len(test):
        raise UserError(
            f'config.dataset.test_fraction must select at least one image for testing, got {test_fraction} of '
            f'{len(labels):,} images'
        )
    return {**arrays, 'train': (images[train], labels[train]), 'test': (images[test], labels[test])}


def natural_order(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """A key that sorts 'class 10' after 'class 9', and no two names alike."""

    def key(part: str) -> tuple[int, int, str]:
        # The number with fewer digits is the smaller one; Python refuses to convert those with thousands of digits.
        digits = part.lstrip('0')
        return (0, len(digits), digits) if part.isdecimal() else (1, 0, part)

    return [key(part) for part in re.split(r'(\d+)', name) if part], name
