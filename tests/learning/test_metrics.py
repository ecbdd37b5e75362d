"""Statistics of confusion matrices against a published table, scikit-learn, SciPy, and numbers worked out by hand."""

import numpy as np
import pytest
import sklearn.metrics
from scipy import stats

from mnist_jax.learning import metrics

NAMES = '0123456789'
# As published from the output of R's caret, in which the rows are the predictions.
PUBLISHED = np.array(
    [
        [974, 0, 3, 2, 1, 4, 4, 1, 6, 3],
        [2, 1129, 0, 0, 1, 0, 3, 4, 1, 2],
        [1, 3, 1022, 6, 11, 1, 3, 16, 8, 1],
        [0, 0, 2, 991, 0, 10, 1, 1, 6, 5],
        [0, 0, 0, 0, 944, 0, 1, 0, 1, 4],
        [0, 1, 0, 4, 0, 873, 12, 0, 7, 4],
        [2, 1, 1, 0, 5, 1, 932, 0, 0, 0],
        [1, 1, 2, 3, 7, 1, 0, 1004, 3, 8],
        [0, 0, 2, 2, 1, 1, 2, 1, 939, 3],
        [0, 0, 0, 2, 12, 1, 0, 1, 3, 979],
    ]
).T


def rounded(values):
    return tuple(round(value, 4) for value in values)


def test_means_over_the_classes_count_each_class_equally():
    # Class 0: 8 of 10 right, class 1: 1 of 2; class 2 has no examples, and is never predicted.
    matrix = np.array([[8, 2, 0], [1, 1, 0], [0, 0, 0]])
    totals = {'loss': 6.0, 'correct': 9.0, 'count': 12.0, 'confusion_matrix': matrix}
    means = metrics.evaluation_means(totals)
    assert means == {
        'loss': 0.5,
        'accuracy': 0.75,
        'balanced_accuracy': pytest.approx((0.8 + 0.5) / 2),
        'macro_f1': pytest.approx((16 / 19 + 2 / 5) / 2),
    }


def test_published_statistics_are_matched_to_every_printed_digit():
    overall = metrics.overall(PUBLISHED)
    assert rounded([overall['accuracy'], *overall['accuracy_interval']]) == (0.9787, 0.9757, 0.9814)
    assert rounded([overall['no_information_rate'], overall['kappa']]) == (0.1135, 0.9763)
    assert overall['p_value'] < 2.2e-16
    assert overall['symmetry_statistic'] is None and overall['symmetry_p_value'] is None
    names = (
        'sensitivity',
        'specificity',
        'positive_predictive_value',
        'negative_predictive_value',
        'prevalence',
        'detection_rate',
        'detection_prevalence',
        'balanced_accuracy',
    )
    rows = [rounded(row[name] for name in names) for row in metrics.by_class(PUBLISHED)]
    assert rows[0] == (0.9939, 0.9973, 0.9760, 0.9993, 0.0980, 0.0974, 0.0998, 0.9956)
    assert rows[8] == (0.9641, 0.9987, 0.9874, 0.9961, 0.0974, 0.0939, 0.0951, 0.9814)


def examples(matrix):
    """Returns labels and predictions that have this confusion matrix."""
    truth, prediction = np.indices(matrix.shape).reshape(2, -1)
    return np.repeat(truth, matrix.ravel()), np.repeat(prediction, matrix.ravel())


def assert_close(values, expected):
    """Compares values, with None replaced by NaN."""
    np.testing.assert_allclose([np.nan if value is None else value for value in values], expected, rtol=1e-12)


@pytest.mark.parametrize('seed', range(8))
def test_random_matrices_against_scikit_learn_and_scipy(seed):
    generator = np.random.default_rng(seed)
    size = int(generator.integers(2, 12))
    matrix = generator.poisson(generator.choice([0.3, 3.0, 100.0]), (size, size)) + np.diag(np.arange(size))
    if seed % 2:
        matrix[0], matrix[:, 1] = 0, 0  # The first class has no example, the second is never predicted.
    truth, prediction = examples(matrix)
    labels = list(range(size))
    statistics = metrics.statistics(matrix, [str(label) for label in labels])
    overall, rows = statistics['overall'], list(statistics['by_class'].values())
    assert overall['accuracy'] == pytest.approx(sklearn.metrics.accuracy_score(truth, prediction))
    assert overall['kappa'] == pytest.approx(sklearn.metrics.cohen_kappa_score(truth, prediction))
    binomial = stats.binomtest(int(np.trace(matrix)), int(matrix.sum()), overall['no_information_rate'], 'greater')
    assert overall['p_value'] == pytest.approx(binomial.pvalue, rel=1e-9, abs=1e-300)
    interval = stats.binomtest(int(np.trace(matrix)), int(matrix.sum())).proportion_ci(method='exact')
    assert overall['accuracy_interval'] == pytest.approx(list(interval), rel=1e-9)
    columns = ('precision', 'recall', 'f1', 'support')
    options = {'labels': labels, 'zero_division': np.nan}
    by_class = sklearn.metrics.precision_recall_fscore_support(truth, prediction, **options)
    for name, expected in zip(columns, by_class, strict=True):
        assert_close([row[name] for row in rows], expected)
    for kind in ('macro', 'weighted'):
        expected = sklearn.metrics.precision_recall_fscore_support(truth, prediction, average=kind, **options)
        assert_close([statistics[kind][name] for name in columns[:3]], expected[:3])
    for row, ((tn, fp), (fn, tp)) in zip(
        rows, sklearn.metrics.multilabel_confusion_matrix(truth, prediction, labels=labels), strict=True
    ):
        count = len(truth)
        assert_close(
            [row['specificity'], row['negative_predictive_value'], row['detection_prevalence']],
            [tn / (tn + fp), tn / (tn + fn) if tn + fn else np.nan, (tp + fp) / count],
        )


def test_a_class_without_examples_and_one_never_predicted():
    # Of three classes, the second has no example, and the third is never predicted.
    matrix = np.array([[4, 1, 0], [0, 0, 0], [3, 2, 0]])
    statistics = metrics.statistics(matrix, 'abc')
    first, second, third = statistics['by_class'].values()
    assert (first['recall'], first['precision']) == (4 / 5, 4 / 7)
    assert (second['recall'], second['precision'], second['balanced_accuracy'], second['f1']) == (None, 0, None, 0)
    assert (third['recall'], third['precision'], third['f1'], third['support']) == (0, None, 0, 5)
    assert statistics['macro']['recall'] == pytest.approx((4 / 5 + 0) / 2)
    assert statistics['macro']['precision'] == pytest.approx((4 / 7 + 0) / 2)
    assert statistics['weighted']['recall'] == statistics['overall']['accuracy'] == 4 / 10
    assert statistics['macro']['support'] == 10
    assert statistics['top_confusions'] == [
        {'truth': 'c', 'prediction': 'a', 'count': 3, 'share': 3 / 5},
        {'truth': 'c', 'prediction': 'b', 'count': 2, 'share': 2 / 5},
        {'truth': 'a', 'prediction': 'b', 'count': 1, 'share': 1 / 5},
    ]


def test_only_one_class_has_examples():
    statistics = metrics.statistics(np.array([[7, 0], [0, 0]]), 'ab')
    assert statistics['overall']['accuracy'] == statistics['overall']['p_value'] == 1
    assert statistics['overall']['kappa'] is None
    assert statistics['by_class']['a']['specificity'] is None and statistics['by_class']['b']['f1'] is None
    assert metrics.overall(np.array([[7]]))['symmetry_p_value'] is None


def test_all_predictions_correct():
    statistics = metrics.statistics(3 * np.eye(4, dtype=int), 'abcd')
    # The lower end of the exact interval for n successes out of n is (alpha / 2) ** (1 / n).
    assert statistics['overall']['accuracy_interval'] == [pytest.approx(0.025 ** (1 / 12)), 1.0]
    assert statistics['overall']['p_value'] == pytest.approx(0.25**12)
    assert statistics['overall']['kappa'] == 1 and statistics['top_confusions'] == []
    assert statistics['macro']['f1'] == statistics['weighted']['specificity'] == 1


def test_all_predictions_wrong():
    statistics = metrics.statistics(np.array([[0, 3], [5, 0]]), 'ab')
    assert statistics['overall']['accuracy_interval'] == [0.0, pytest.approx(1 - 0.025 ** (1 / 8))]
    assert (statistics['overall']['accuracy'], statistics['overall']['p_value']) == (0, 1)
    assert statistics['macro']['f1'] == 0
    # (|3 - 5| - 1) ** 2 / (3 + 5), with one degree of freedom.
    assert statistics['overall']['symmetry_statistic'] == 1 / 8
    assert statistics['overall']['symmetry_p_value'] == pytest.approx(stats.chi2.sf(1 / 8, 1))


def test_bowker_by_hand():
    # (1 - 4)^2 / 5 + (2 - 6)^2 / 8 + (3 - 1)^2 / 4, with three degrees of freedom.
    statistic, p_value = metrics.symmetry(np.array([[9, 1, 2], [4, 9, 3], [6, 1, 9]]))
    assert statistic == pytest.approx(1.8 + 2.0 + 1.0)
    assert p_value == pytest.approx(stats.chi2.sf(4.8, 3))


@pytest.mark.parametrize(('first', 'second'), [(0, 0), (1, 9), (9, 1), (30, 12), (500, 430)])
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(first, second):
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert metrics.mcnemar_exact(first, second) == pytest.approx(expected)


def test_top_k_accuracies():
    probabilities = np.array(
        [[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25], [0.0, 0.1, 0.2, 0.7]]
    )
    # The ranks of the true classes are 3 (the last), 2, 2 (two classes with the same probability come first) and 0.
    assert metrics.top_k_accuracies(probabilities, np.array([3, 1, 2, 3])) == {'3': 0.75}
    assert metrics.top_k_accuracies(np.eye(6)[[0, 5]], np.array([0, 5])) == {'3': 1.0, '5': 1.0}
    assert metrics.top_k_accuracies(np.eye(2), np.array([0, 1])) == {}
