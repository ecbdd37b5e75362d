"""Random partitions of the examples of a split, as pure functions of a seed; the indices are in file order."""

import math

import numpy as np


def sample(size: int, count: int) -> np.ndarray:
    """Returns the indices of `count` of `size` examples, or of all, in order: random ones, but always the same.

    The first examples would not do: those of a split may all belong to one class.
    """
    return np.sort(np.random.default_rng(0).permutation(size)[:count])


def random_split(count: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws `fraction` of `count` examples, rounded to the nearest example.

    Returns:
      The indices of the examples that were not drawn, and of those that were.
    """
    order = np.random.default_rng(seed).permutation(count)
    drawn = round(count * fraction)
    return np.sort(order[drawn:]), np.sort(order[:drawn])


def stratified_split(labels: np.ndarray, fraction: float, seed: int, spared: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draws `fraction` of each class, rounded up, as R's caret::createDataPartition does.

    Args:
      labels: The label of each example.
      fraction: The fraction to draw.
      seed: Seed of the draw.
      spared: How many examples of each class are not drawn, whatever the fraction is.

    Returns:
      The indices of the examples that were drawn, and of those that were not.
    """
    rng = np.random.default_rng(seed)
    drawn = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == label))
        # In floating point, a product such as 0.8 * 935 can be slightly too large.
        count = math.ceil(round(fraction * len(indices), 6))
        drawn[indices[: min(count, len(indices) - spared)]] = True
    return np.flatnonzero(drawn), np.flatnonzero(~drawn)


def assign_folds(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns the fold of each example, 0 to `count - 1`; each class is divided evenly among the folds.

    The folds' sizes, and their numbers of examples of each class, differ by at most one.
    """
    rng = np.random.default_rng(seed)
    folds = np.empty(len(labels), np.int64)
    assigned = 0
    for label in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == label))
        # Start with the fold after the last one of the previous class, so that the sizes differ by at most one.
        folds[indices] = (assigned + np.arange(len(indices))) % count
        assigned += len(indices)
    return folds
