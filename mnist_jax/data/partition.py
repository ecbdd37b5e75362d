"""Which examples of a split go where, at random by a seed: pure functions from labels to places, in file order."""

import math

import numpy as np


def at_random(count: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The places of the rest, and of `fraction` (to the nearest example) drawn at random out of `count`."""
    order = np.random.default_rng(seed).permutation(count)
    drawn = round(count * fraction)
    return np.sort(order[drawn:]), np.sort(order[:drawn])


def stratified(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The places of `fraction` of each class, rounded up, drawn at random; and of the rest.

    Rounded up as by R's caret::createDataPartition.
    """
    rng = np.random.default_rng(seed)
    drawn = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        places = rng.permutation(np.flatnonzero(labels == label))
        # A product such as 0.8 * 935 may come out a little too large in floating point.
        drawn[places[: math.ceil(round(fraction * len(places), 6))]] = True
    return np.flatnonzero(drawn), np.flatnonzero(~drawn)


def folds(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The fold, 0 to `count - 1`, of each example: of each class, every fold has equally many, give or take one."""
    rng = np.random.default_rng(seed)
    fold = np.empty(len(labels), np.int64)
    dealt = 0
    for label in np.unique(labels):
        places = rng.permutation(np.flatnonzero(labels == label))
        # Going on where the class before ended, so that the folds differ by one example at most.
        fold[places] = (dealt + np.arange(len(places))) % count
        dealt += len(places)
    return fold
