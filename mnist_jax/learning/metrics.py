"""From sums over examples to what is reported: means, and the statistics of a confusion matrix.

In a confusion matrix the rows are the truth and the columns the predictions. What is not defined, such as the
precision of a class that was never predicted, is None; averages are over the classes that have a value.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

Totals = dict[str, np.ndarray]
Number = float | None

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
"""The statistics by class in the order of the table for people, and their headings there."""


def add(totals: Totals, sums: Mapping[str, Any]) -> Totals:
    """`totals + sums` in float64, so that many batches add without rounding; {} is the empty total."""
    return {name: totals.get(name, 0) + np.asarray(value, np.float64) for name, value in sums.items()}


def means(totals: Totals) -> dict[str, float]:
    """Mean loss and accuracy over all examples counted."""
    count = float(totals['count'])
    return {'loss': float(totals['loss']) / count, 'accuracy': float(totals['correct']) / count}


def statistics(matrix: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """All statistics of a confusion matrix KxK of whole numbers, at least one of them positive, for JSON."""
    classes = by_class(matrix)
    return {
        'overall': overall(matrix),
        'macro': average(classes, np.ones(len(matrix))),
        'weighted': average(classes, matrix.sum(axis=1)),
        'by_class': {name: row for name, row in zip(names, classes, strict=True)},
        'top_confusions': top_confusions(matrix, names),
    }


def overall(matrix: np.ndarray) -> dict[str, Any]:
    """Accuracy and what says how far it is from chance.

    Returns:
      accuracy; accuracy_interval, the exact one of 95 % (Clopper and Pearson 1934); no_information_rate, the share of
      the largest class; p_value, of so many hits or more at that rate (binomial, one-sided); kappa (Cohen 1960);
      symmetry_statistic and symmetry_p_value (McNemar 1947, Bowker 1948).
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
        'p_value': float(special.bdtrc(correct - 1, count, rate)) if correct else 1.0,
        'kappa': _ratio(correct / count - chance, 1 - chance),
        'symmetry_statistic': statistic,
        'symmetry_p_value': p_value,
    }


def clopper_pearson(successes: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """The exact confidence interval of a binomial proportion."""
    tail = (1 - level) / 2
    lower = special.betaincinv(successes, count - successes + 1, tail) if successes else 0.0
    upper = special.betaincinv(successes + 1, count - successes, 1 - tail) if successes < count else 1.0
    return float(lower), float(upper)


def symmetry(matrix: np.ndarray) -> tuple[Number, Number]:
    """Bowker's statistic and P-value of a matrix that is symmetric but for chance.

    For two classes it is McNemar's test with Edwards's correction for continuity, as in R's mcnemar.test; not defined
    where a pair of classes is never confused, either way.
    """
    rows, columns = np.triu_indices(len(matrix), k=1)
    above, below = matrix[rows, columns].astype(float), matrix[columns, rows].astype(float)
    if not len(rows) or (above + below == 0).any():
        return None, None
    difference = np.abs(above - below)
    if len(matrix) == 2:
        difference = np.maximum(difference - 1, 0)
    statistic = float((difference**2 / (above + below)).sum())
    return statistic, float(special.chdtrc(len(rows), statistic))


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """The exact two-sided P-value of two classifiers' accuracies on the same examples (McNemar 1947).

    Args:
      only_first: how many examples the first classifier alone has right.
      only_second: how many the second alone.
    """
    fewer, count = min(only_first, only_second), only_first + only_second
    return min(1.0, 2 * float(special.bdtr(fewer, count, 0.5)))


def by_class(matrix: np.ndarray) -> list[dict[str, Number]]:
    """The statistics of each class against all others together."""
    count = int(matrix.sum())
    hits = np.diag(matrix)
    return [
        _of_class(int(hit), int(truths - hit), int(predictions - hit), count)
        for hit, truths, predictions in zip(hits, matrix.sum(axis=1), matrix.sum(axis=0), strict=True)
    ]


def _of_class(hits: int, misses: int, false_alarms: int, count: int) -> dict[str, Number]:
    rest = count - hits - misses - false_alarms
    sensitivity = _ratio(hits, hits + misses)
    specificity = _ratio(rest, rest + false_alarms)
    precision = _ratio(hits, hits + false_alarms)
    both = sensitivity is not None and specificity is not None
    return {
        'sensitivity': sensitivity,
        'specificity': specificity,
        'positive_predictive_value': precision,
        'negative_predictive_value': _ratio(rest, rest + misses),
        'prevalence': (hits + misses) / count,
        'detection_rate': hits / count,
        'detection_prevalence': (hits + false_alarms) / count,
        'balanced_accuracy': (sensitivity + specificity) / 2 if both else None,
        'precision': precision,
        'recall': sensitivity,
        'f1': _ratio(2 * hits, 2 * hits + misses + false_alarms),
        'support': hits + misses,
    }


def average(classes: Sequence[Mapping[str, Number]], weights: np.ndarray) -> dict[str, Number]:
    """The weighted mean of each statistic over the classes for which it is defined; of the support, the sum."""
    found: dict[str, Number] = {}
    for name in classes[0]:
        defined = [(row[name], weight) for row, weight in zip(classes, weights, strict=True) if row[name] is not None]
        found[name] = _ratio(sum(value * weight for value, weight in defined), sum(weight for _, weight in defined))
    found['support'] = sum(row['support'] for row in classes)
    return found


def top_confusions(matrix: np.ndarray, names: Sequence[str], most: int = 10) -> list[dict[str, Any]]:
    """The most frequent errors, the greatest first, with the share of that truth's examples."""
    errors = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-errors, axis=None, kind='stable')[:most]
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


def calibration(probabilities_NxK: np.ndarray, label_N: np.ndarray, bins: int = 15) -> dict[str, Any]:
    """How well the probabilities of the predicted classes say how often these are right.

    Returns:
      expected_calibration_error: the mean over the examples of the difference between confidence and accuracy in
      bins of equal width (Naeini 2015, Guo 2017); brier: the mean squared distance of the probabilities from the truth,
      from 0 to 2 (Brier 1950); bins: for each {from, to, count, confidence, accuracy}, the last two None where it is
      empty.
    """
    probabilities = probabilities_NxK.astype(np.float64)
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == label_N
    # A confidence on the border of two belongs to the lower one, as in (0, 0.1], (0.1, 0.2], ...
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(which, minlength=bins)
    sums = {'confidence': np.bincount(which, confidence, bins), 'accuracy': np.bincount(which, right, bins)}
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
