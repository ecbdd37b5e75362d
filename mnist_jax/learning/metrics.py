"""Means from sums over examples, and the statistics of a confusion matrix.

The rows of a confusion matrix are the true classes, its columns the predicted ones. An undefined statistic, such as the
precision of a class that was never predicted, is None; averages are over the classes for which it is defined.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy

Totals = dict[str, np.ndarray]
"""Sums over examples, float64, by name."""
Number = float | None
Statistics = dict[str, Any]
"""Statistics by name, as written to JSON."""

TOP_K = (3, 5)
COLUMNS = {
    'precision': 'precision',
    'recall': 'recall',
    'f1': 'F1',
    'specificity': 'specificity',
    'negative_predictive_value': 'NPV',
    'balanced_accuracy': 'balanced',
    'prevalence': 'prevalence',
    'detection_rate': 'detected',
    'detection_prevalence': 'predicted',
    'support': 'support',
}
"""The statistics per class that tables show, in their order, with the headings of the columns."""


def add(totals: Totals, sums: Mapping[str, np.ndarray | float]) -> Totals:
    """Returns `totals + sums` in float64, so that adding many batches loses no precision; {} is the empty total."""
    return {name: totals.get(name, 0) + np.asarray(value, np.float64) for name, value in sums.items()}


def means(totals: Mapping[str, np.ndarray | float]) -> dict[str, float]:
    """Returns the mean loss and the accuracy."""
    count = float(totals['count'])
    return {'loss': float(totals['loss']) / count, 'accuracy': float(totals['correct']) / count}


def evaluation_means(totals: Mapping[str, np.ndarray | float]) -> dict[str, float]:
    """Returns `means`, and two means over the classes, in which each class counts equally.

    Returns:
      loss and accuracy; balanced_accuracy, the mean recall of the classes that have examples; macro_f1, the mean F1
      score of the classes for which it is defined.
    """
    matrix = np.asarray(totals['confusion_matrix'])
    correct, truths, predictions = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    recalls = correct[truths > 0] / truths[truths > 0]
    sizes = truths + predictions
    f1_scores = 2 * correct[sizes > 0] / sizes[sizes > 0]
    return {**means(totals), 'balanced_accuracy': float(recalls.mean()), 'macro_f1': float(f1_scores.mean())}


def statistics(matrix: np.ndarray, names: Sequence[str]) -> Statistics:
    """Returns all statistics of a confusion matrix KxK of integers, at least one of them positive."""
    classes = by_class(matrix)
    return {
        'overall': overall(matrix),
        'macro': average(classes, np.ones(len(matrix))),
        'weighted': average(classes, matrix.sum(axis=1)),
        'by_class': {name: row for name, row in zip(names, classes, strict=True)},
        'top_confusions': top_confusions(matrix, names),
    }


def overall(matrix: np.ndarray) -> Statistics:
    """Returns the accuracy and statistics that compare it with chance.

    Returns:
      accuracy; accuracy_interval, the exact 95% confidence interval (Clopper and Pearson 1934); no_information_rate,
      the fraction of the largest class; p_value, the probability of at least as many correct predictions at that rate
      (binomial, one-sided); kappa (Cohen 1960); symmetry_statistic and symmetry_p_value (McNemar 1947, Bowker 1948).
    """
    count, correct = int(matrix.sum()), int(np.trace(matrix))
    rate = matrix.sum(axis=1).max() / count
    chance = float(matrix.sum(axis=1) @ matrix.sum(axis=0)) / count**2
    statistic, p_value = symmetry(matrix)
    return {
        'accuracy': correct / count,
        'accuracy_interval': list(clopper_pearson(correct, count)),
        'no_information_rate': float(rate),
        # P(X >= correct) = P(X > correct - 1); bdtrc is not defined below 0.
        'p_value': float(scipy.special.bdtrc(correct - 1, count, rate)) if correct else 1.0,
        'kappa': _ratio(correct / count - chance, 1 - chance),
        'symmetry_statistic': statistic,
        'symmetry_p_value': p_value,
    }


def clopper_pearson(successes: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Returns the exact confidence interval of a binomial proportion (Clopper and Pearson 1934)."""
    tail = (1 - level) / 2
    lower = scipy.special.betaincinv(successes, count - successes + 1, tail) if successes else 0.0
    upper = scipy.special.betaincinv(successes + 1, count - successes, 1 - tail) if successes < count else 1.0
    return float(lower), float(upper)


def symmetry(matrix: np.ndarray) -> tuple[Number, Number]:
    """Returns the statistic and the p-value of Bowker's test of symmetry.

    For two classes this is McNemar's test with Edwards's continuity correction, as in R's mcnemar.test. Both are None
    if a pair of classes is never confused in either direction.
    """
    rows, columns = np.triu_indices(len(matrix), k=1)
    above, below = matrix[rows, columns].astype(float), matrix[columns, rows].astype(float)
    if not len(rows) or (above + below == 0).any():
        return None, None
    difference = np.abs(above - below)
    if len(matrix) == 2:
        difference = np.maximum(difference - 1, 0)
    statistic = float((difference**2 / (above + below)).sum())
    return statistic, float(scipy.special.chdtrc(len(rows), statistic))


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Returns the exact two-sided p-value of McNemar's test for two classifiers on the same examples (McNemar 1947).

    Args:
      only_first: The number of examples that only the first classifier gets right.
      only_second: The number of examples that only the second classifier gets right.
    """
    fewer, count = min(only_first, only_second), only_first + only_second
    return min(1.0, 2 * float(scipy.special.bdtr(fewer, count, 0.5)))


def paired(first_NxK: np.ndarray, second_NxK: np.ndarray, label_N: np.ndarray) -> Statistics:
    """Compares two classifiers on the same examples, given their probabilities.

    Returns:
      accuracy, that of the second one; only_first and only_second, the numbers of examples that only one of them gets
      right; and p_value, of `mcnemar_exact`.
    """
    first_correct, second_correct = (array.argmax(-1) == label_N for array in (first_NxK, second_NxK))
    only_first, only_second = (
        int((own & ~other).sum()) for own, other in ((first_correct, second_correct), (second_correct, first_correct))
    )
    return {
        'accuracy': float(second_correct.mean()),
        'only_first': only_first,
        'only_second': only_second,
        'p_value': mcnemar_exact(only_first, only_second),
    }


def by_class(matrix: np.ndarray) -> list[dict[str, Number]]:
    """Returns the statistics of each class against all other classes."""
    count = int(matrix.sum())
    return [
        _class_statistics(int(correct), int(truths - correct), int(predictions - correct), count)
        for correct, truths, predictions in zip(np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0), strict=True)
    ]


def _class_statistics(true_positives: int, false_negatives: int, false_positives: int, count: int) -> dict[str, Number]:
    true_negatives = count - true_positives - false_negatives - false_positives
    sensitivity = _ratio(true_positives, true_positives + false_negatives)
    specificity = _ratio(true_negatives, true_negatives + false_positives)
    precision = _ratio(true_positives, true_positives + false_positives)
    balanced = None if sensitivity is None or specificity is None else (sensitivity + specificity) / 2
    return {
        'sensitivity': sensitivity,
        'specificity': specificity,
        'positive_predictive_value': precision,
        'negative_predictive_value': _ratio(true_negatives, true_negatives + false_negatives),
        'prevalence': (true_positives + false_negatives) / count,
        'detection_rate': true_positives / count,
        'detection_prevalence': (true_positives + false_positives) / count,
        'balanced_accuracy': balanced,
        'precision': precision,
        'recall': sensitivity,
        'f1': _ratio(2 * true_positives, 2 * true_positives + false_negatives + false_positives),
        'support': true_positives + false_negatives,
    }


def average(classes: Sequence[Mapping[str, Number]], weights: np.ndarray) -> dict[str, Number]:
    """Returns the weighted mean of each statistic over the classes for which it is defined, and the total support."""
    averages: dict[str, Number] = {}
    for name in classes[0]:
        pairs = [(row[name], weight) for row, weight in zip(classes, weights, strict=True)]
        defined = [(value, weight) for value, weight in pairs if value is not None]
        averages[name] = _ratio(sum(value * weight for value, weight in defined), sum(weight for _, weight in defined))
    averages['support'] = sum(row['support'] or 0 for row in classes)
    return averages


def top_confusions(matrix: np.ndarray, names: Sequence[str], limit: int = 10) -> list[Statistics]:
    """Returns the most frequent errors in descending order, each with its share of the examples of the true class."""
    errors = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-errors, axis=None, kind='stable')[:limit]
    return [
        {
            'truth': names[truth],
            'prediction': names[prediction],
            'count': int(errors[truth, prediction]),
            'share': float(errors[truth, prediction] / matrix[truth].sum()),
        }
        for truth, prediction in zip(*np.unravel_index(order, errors.shape), strict=True)
        if errors[truth, prediction]
    ]


def _ratio(numerator: float, denominator: float) -> Number:
    return float(numerator / denominator) if denominator else None


def top_k_accuracies(probabilities_NxK: np.ndarray, label_N: np.ndarray) -> dict[str, float]:
    """Returns the fractions of the examples whose true class is among the k most probable ones, by k as text.

    k is each of `TOP_K` that is less than the number of classes. Of classes with the same probability, the first counts
    as more probable, as for the prediction.
    """
    count, classes = probabilities_NxK.shape
    own_Nx1 = np.take_along_axis(probabilities_NxK, label_N[:, None], axis=1)
    before_NxK = np.arange(classes) < label_N[:, None]
    rank_N = ((probabilities_NxK > own_Nx1) | ((probabilities_NxK == own_Nx1) & before_NxK)).sum(1)
    return {str(k): int((rank_N < k).sum()) / count for k in TOP_K if k < classes}


def calibration(probabilities_NxK: np.ndarray, label_N: np.ndarray, bins: int = 15) -> Statistics:
    """Measures how well the probability of the predicted class matches the accuracy.

    Returns:
      expected_calibration_error, the difference between confidence and accuracy in bins of equal width, averaged over
      the examples (Naeini 2015, Guo 2017); brier, the mean squared distance between the probabilities and the one-hot
      labels, from 0 to 2 (Brier 1950); bins, a list of {from, to, count, confidence, accuracy}, where the last
      two are None for an empty bin.
    """
    probabilities = probabilities_NxK.astype(np.float64)
    confidence, correct = probabilities.max(-1), probabilities.argmax(-1) == label_N
    # Bins include their upper end: (0, 0.1], (0.1, 0.2], ...
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    sums = {'confidence': np.bincount(index, confidence, bins), 'accuracy': np.bincount(index, correct, bins)}
    truth = np.eye(probabilities.shape[-1])[label_N]
    return {
        'expected_calibration_error': float(np.abs(sums['confidence'] - sums['accuracy']).sum() / len(label_N)),
        'brier': float(((probabilities - truth) ** 2).sum(-1).mean()),
        'bins': [
            {
                'from': number / bins,
                'to': (number + 1) / bins,
                'count': int(counts[number]),
                **{name: _ratio(total[number], counts[number]) for name, total in sums.items()},
            }
            for number in range(bins)
        ],
    }
