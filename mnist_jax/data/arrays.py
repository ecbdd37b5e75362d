"""Turns arrays as people store them into images, labels and splits."""

import math
import re
from collections.abc import Mapping

import numpy as np

from mnist_jax.data import partition
from mnist_jax.data.builder import MAX_CLASSES, Arrays
from mnist_jax.errors import UserError

CHANNELS = (1, 3)


def to_images(label: str, array: np.ndarray) -> np.ndarray:
    """Returns images as uint8 NxHxWxC.

    Args:
      label: What error messages call the array.
      array: NxHxW, NxHxWxC with 1 or 3 channels, or NxP with the P pixels of square gray images, from 0 to 255.

    Raises:
      UserError: the array has another shape, or a pixel that is not an integer from 0 to 255.
    """
    if array.dtype.kind not in 'uif' and array.dtype != bool:
        raise UserError(f'{label} must hold numbers, got the type {array.dtype}')
    shape = array.shape
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


def to_labels(label: str, array: np.ndarray) -> np.ndarray:
    """Returns one label per image, as integers or strings.

    Args:
      label: What error messages call the array.
      array: N or Nx1 integers, integers as floats, or strings; or one-hot rows NxK.

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
    if array.dtype.kind == 'O':
        array = array.astype(str)
    if array.ndim != 1 or array.dtype.kind not in 'biufSU':
        raise UserError(
            f'{label} must have one label per image, an integer or a text, got the shape {array.shape} and the type '
            f'{array.dtype}'
        )
    if array.dtype.kind == 'S':
        return np.char.decode(array, 'utf-8', 'replace')
    if array.dtype.kind == 'U':
        return array
    if not np.isfinite(array).all() or (array != np.rint(array)).any():
        raise UserError(f'{label} must have integers or texts as labels, got fractions or NaN')
    return array.astype(np.int64)


def number_classes(labels: Mapping[str, np.ndarray]) -> tuple[list[str], dict[str, np.ndarray]]:
    """Numbers the classes from 0.

    Integers that start with 0 or 1 stand for all classes up to the largest one, so that a class without images keeps
    its number. Of all other labels, the distinct ones are the classes, in natural order.

    Args:
      labels: The labels of each split, from `to_labels`.

    Returns:
      The names of the classes, and the numbers of the labels of each split.
    """
    distinct = np.unique(np.concatenate([array.astype(str) for array in labels.values()]))
    if all(array.dtype.kind == 'i' for array in labels.values()):
        values = np.unique(np.concatenate(list(labels.values())))
        if values[0] in (0, 1) and values[-1] <= MAX_CLASSES:
            values = np.arange(values[0], values[-1] + 1)
        return list(map(str, values)), {split: np.searchsorted(values, array) for split, array in labels.items()}
    names = sorted(map(str, distinct), key=natural_order)
    numbers = {name: number for number, name in enumerate(names)}
    return names, {
        split: np.array([numbers[str(value)] for value in array.tolist()], np.int64) for split, array in labels.items()
    }


def draw_test_split(arrays: dict[str, Arrays], test_fraction: float, seed: int) -> dict[str, Arrays]:
    """Draws the split 'test' from the training examples if there is none, the same fraction of each class.

    Args:
      arrays: Images and labels of the splits 'train' and, possibly, 'validation' and 'test'.
      test_fraction: The fraction to draw.
      seed: Seed of the draw.
    """
    if 'test' in arrays:
        return arrays
    images, labels = arrays['train']
    drawn, rest = partition.stratified_split(labels, 1 - test_fraction, seed)
    if not len(rest):
        raise UserError(
            f'config.dataset.test_fraction must leave at least one image for testing, got {test_fraction} of '
            f'{len(labels):,} images'
        )
    return {**arrays, 'train': (images[drawn], labels[drawn]), 'test': (images[rest], labels[rest])}


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts 'class 10' after 'class 9'."""
    return [(0, int(part), '') if part.isdecimal() else (1, 0, part) for part in re.split(r'(\d+)', name) if part]
