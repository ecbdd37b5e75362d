"""Test labels that most people did not confirm."""

from typing import NamedTuple

import numpy as np


class KnownError(NamedTuple):
    """The label, and the other class that most people saw; None if most saw neither, or if there was no majority."""

    label: int
    seen: int | None


# The test examples of MNIST whose label fewer than 3 of 5 people confirmed, by index (Northcutt, Athalye and Mueller
# 2021; https://github.com/cleanlab/label-errors, mturk/mnist_mturk.json).
MNIST = {
    947: KnownError(8, 9),
    1621: KnownError(0, 6),
    1901: KnownError(9, 4),
    2130: KnownError(4, None),
    2462: KnownError(2, 0),
    2597: KnownError(5, 3),
    2654: KnownError(6, None),
    3520: KnownError(6, None),
    3558: KnownError(5, 0),
    5937: KnownError(5, 3),
    6651: KnownError(0, 6),
    6783: KnownError(1, 6),
    8527: KnownError(4, None),
    9679: KnownError(6, None),
    9729: KnownError(5, 6),
}


def known_label_errors(dataset: str, split: str, label_N: np.ndarray) -> dict[int, KnownError]:
    """Returns the known errors among the labels of a split, by index; none for another dataset or other labels."""
    fits = (dataset, split) == ('mnist', 'test') and len(label_N) > max(MNIST)
    return MNIST if fits and all(label_N[index] == error.label for index, error in MNIST.items()) else {}
