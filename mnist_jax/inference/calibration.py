"""Calibrated uncertainty from validation examples: a temperature, and prediction sets that contain the truth."""

from collections.abc import Sequence

import numpy as np
import scipy.optimize

from mnist_jax.files import JsonObject

COVERAGES = (0.9, 0.95, 0.99)  # the fractions of examples whose prediction sets are to contain their class
TEMPERATURES = (0.05, 20.0)  # the range of temperatures
SMALLEST = np.finfo(np.float32).tiny


def with_temperature(probabilities_NxK: np.ndarray, temperature: float) -> np.ndarray:
    """Returns the softmax of the logits divided by `temperature`, given the softmax of the logits."""
    log_NxK = np.log(np.maximum(probabilities_NxK.astype(np.float64), SMALLEST)) / temperature
    powers_NxK = np.exp(log_NxK - log_NxK.max(axis=-1, keepdims=True))
    return powers_NxK / powers_NxK.sum(axis=-1, keepdims=True)


def cross_entropy(probabilities_NxK: np.ndarray, label_N: np.ndarray) -> float:
    """Returns the mean negative logarithm of the probabilities of the labels, in nats."""
    own_N = np.take_along_axis(probabilities_NxK, label_N[:, None], axis=1)
    return float(-np.log(np.maximum(own_N, SMALLEST)).mean(dtype=np.float64))


def fit_temperature(probabilities_NxK: np.ndarray, label_N: np.ndarray) -> float:
    """Returns the temperature with the smallest cross-entropy (Guo et al. 2017); above 1 if it is overconfident."""
    result = scipy.optimize.minimize_scalar(
        lambda log: cross_entropy(with_temperature(probabilities_NxK, np.exp(log)), label_N),
        bounds=tuple(np.log(TEMPERATURES)),
        method='bounded',
        options={'xatol': 1e-4},
    )
    return float(np.exp(result.x))


def smallest_probability(probabilities_NxK: np.ndarray, label_N: np.ndarray, coverage: float) -> float:
    """Returns the threshold of split conformal prediction (Vovk et al. 2005; Sadinle et al. 2019).

    A prediction set holds the classes with at least this probability. If the N examples and a new one are exchangeable,
    the set of the new one contains its class with a probability of at least `coverage`. With too few examples for that,
    the threshold is 0, so the set holds all classes.
    """
    own_N = np.sort(np.take_along_axis(probabilities_NxK, label_N[:, None], axis=1)[:, 0])
    # The ceil((N + 1) coverage)-th smallest of the scores 1 - p is the floor((N + 1) (1 - coverage))-th smallest p.
    rank = int((len(own_N) + 1) * (1 - coverage) + 1e-9)
    return float(own_N[rank - 1]) if rank else 0.0


def assess(
    probabilities_NxK: np.ndarray,
    label_N: np.ndarray,
    validation_probabilities_MxK: np.ndarray,
    validation_label_M: np.ndarray,
    coverages: Sequence[float] = COVERAGES,
) -> JsonObject:
    """Returns what validation examples say about probabilities, and how well it holds for other examples.

    Returns:
      temperature, which was fitted on the validation examples; the cross-entropies of the other examples without and
      with it; and for each coverage the threshold, the fraction of the other examples whose set contains their class,
      and the mean number of classes in a set.
    """
    temperature = fit_temperature(validation_probabilities_MxK, validation_label_M)
    sets = []
    for coverage in coverages:
        threshold = smallest_probability(validation_probabilities_MxK, validation_label_M, coverage)
        in_set_NxK = probabilities_NxK >= threshold
        sets.append(
            {
                'coverage': coverage,
                'smallest_probability': threshold,
                'covered': float(np.take_along_axis(in_set_NxK, label_N[:, None], axis=1).mean()),
                'mean_size': float(in_set_NxK.sum(axis=-1).mean()),
            }
        )
    return {
        'validation_examples': len(validation_label_M),
        'temperature': temperature,
        'cross_entropy': cross_entropy(probabilities_NxK, label_N),
        'cross_entropy_with_temperature': cross_entropy(with_temperature(probabilities_NxK, temperature), label_N),
        'prediction_sets': sets,
    }
