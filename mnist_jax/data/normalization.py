"""How pixel values become the inputs of a model."""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mnist_jax.data.records import BLOCK_SIZE, Examples


class Normalization(NamedTuple):
    """A pixel value x becomes x / max_pixel or, with means and deviations, (x / max_pixel - mean) / deviation.

    Attributes:
      max_pixel: The pixel value that maps to 1.0.
      mean: The mean of each channel, of values that are divided by `max_pixel`; () for none.
      deviation: The standard deviation of each channel; () for none.
    """

    max_pixel: int
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()


def measure(examples: Examples, max_pixel: int) -> Normalization:
    """Returns the normalization with the means and standard deviations of the channels of all pixels.

    The sums are sums of integers, so the result depends neither on the order of the examples nor on the machine. A
    channel without variation is given a deviation of 1.
    """
    values = np.arange(256)
    counts = functools.reduce(np.add, map(_count_values, _blocks(examples)))  # Cx256
    means, deviations = [], []
    for count in counts:
        number, total, squares = (int((count * values**power).sum()) for power in (0, 1, 2))
        # Exact up to the division: Python's integers do not overflow.
        variance = (number * squares - total**2) / number**2
        means.append(total / number / max_pixel)
        deviations.append(math.sqrt(variance) / max_pixel or 1.0)
    return Normalization(max_pixel, tuple(means), tuple(deviations))


def _blocks(examples: Examples) -> Iterator[np.ndarray]:
    for start in range(0, examples.size, BLOCK_SIZE):
        yield examples.take(slice(start, start + BLOCK_SIZE)).image


def _count_values(image_NxHxWxC: np.ndarray) -> np.ndarray:
    """Returns how often each value from 0 to 255 occurs in each channel, int64 Cx256."""
    channels = np.moveaxis(image_NxHxWxC, -1, 0)
    return np.stack([np.bincount(channel.ravel(), minlength=256) for channel in channels])
