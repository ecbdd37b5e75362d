"""Finds examples whose labels are probably wrong, from predictions of models that were not trained on them.

The method is confident learning (Northcutt, Jiang and Chuang 2021, https://arxiv.org/abs/1911.00068).
"""

from typing import NamedTuple

import numpy as np


class LabelSuspects(NamedTuple):
    """Examples whose labels are probably wrong, the most suspicious first."""

    example: np.ndarray  # M: their indices
    suggestion: np.ndarray  # M: the class that is suggested instead of the label
    margin: np.ndarray  # M: the probability of the label minus that of the suggestion
    confident: np.ndarray  # M: whether the suggestion is confident


def find_label_suspects(probabilities_NxK: np.ndarray, label_N: np.ndarray) -> LabelSuspects:
    """Returns the examples for which a class other than their label is suggested.

    A class counts as confident for an example if its probability is at least the mean of this probability over the
    examples with this label. The suggestion is the most probable confident class, or the most probable class if none
    is confident.

    Args:
      probabilities_NxK: The probabilities of the classes, from models that were not trained on the example.
      label_N: The labels.
    """
    probabilities = probabilities_NxK.astype(np.float64)
    classes = probabilities.shape[1]
    sizes = np.bincount(label_N, minlength=classes)
    own = np.take_along_axis(probabilities, label_N[:, None], axis=1)[:, 0]
    # A class without labels is never confident.
    thresholds = np.where(sizes, np.bincount(label_N, own, classes) / np.maximum(sizes, 1), np.inf)
    confident_NxK = probabilities >= thresholds
    confident: np.ndarray = np.max(confident_NxK, axis=1)
    suggestion = np.where(confident_NxK | ~confident[:, None], probabilities, -1.0).argmax(1)
    margin = own - np.take_along_axis(probabilities, suggestion[:, None], axis=1)[:, 0]
    suspicious = np.flatnonzero(suggestion != label_N)
    example = suspicious[np.argsort(margin[suspicious], kind='stable')]
    return LabelSuspects(example, suggestion[example], margin[example], confident[example])
