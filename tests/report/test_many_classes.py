"""Figures and tables of datasets with many classes."""

import numpy as np
import pytest

from mnist_jax.learning.metrics import statistics
from mnist_jax.report import confusion, figures
from mnist_jax.workdir.results import MAX_PRINTED_CLASSES, format_result


def matrix_of(count):
    """Returns a confusion matrix in which class 7 is predicted as class 3 five times, and all else is correct."""
    matrix = 10 * np.eye(count, dtype=int)
    matrix[7, 7], matrix[7, 3] = 5, 5
    return matrix


def test_few_classes_remain_as_they_are():
    matrix, names = matrix_of(20), [str(label) for label in range(20)]
    combined, same, about = confusion.aggregate(matrix, names)
    assert np.array_equal(combined, matrix) and same == names and not about
    assert confusion.overview(matrix, names) is None


def test_the_classes_with_the_most_errors_are_shown():
    matrix, names = matrix_of(47), [f'class {label}' for label in range(47)]
    matrix[40, 41] = 2
    combined, shown, about = confusion.aggregate(matrix, names)
    assert {'class 3', 'class 7', 'class 40', 'class 41'} <= set(shown) and shown[-1] == '35 others'
    assert combined.sum() == matrix.sum() and '12 of 47 classes' in about
    three, seven, others = shown.index('class 3'), shown.index('class 7'), len(shown) - 1
    assert combined[seven, three] == 5 and combined[others, others] == 350


@pytest.mark.parametrize('count', [2, 47, 62, 100, 200])
def test_figures_have_a_size_that_can_be_read(count):
    matrix, names = matrix_of(max(count, 8))[:count, :count], [f'the class number {label}' for label in range(count)]
    result = statistics(matrix, names)
    drawn = [confusion.heat_maps(matrix, names), confusion.flow(matrix, names), confusion.by_class(result)]
    drawn += [figure for figure in [confusion.overview(matrix, names)] if figure is not None]
    assert len(drawn) == 3 + (count > confusion.MANY_CLASSES)
    for figure in drawn:
        assert max(figure.figure.get_size_inches()) < 20 and len(figure.tooltips) < 700


def test_a_large_confusion_matrix_is_not_printed():
    texts = []
    for count in (MAX_PRINTED_CLASSES, MAX_PRINTED_CLASSES + 1):
        matrix = matrix_of(count)
        numbers = {'count': int(matrix.sum()), 'step': 1, 'accuracy': 0.9, 'loss': 0.1, 'cross_entropy': 0.1}
        names = [f'c{label}' for label in range(count)]
        result = {'dataset': 'd', 'split': 'test', 'statistics': statistics(matrix, names), **numbers}
        texts.append(format_result({**result, 'confusion_matrix': matrix.tolist()}))
    assert 'rows: truth, columns: prediction' in texts[0] and 'rows: truth' not in texts[1]
    assert '31 x 31, in eval.json and in the report' in texts[1]


def test_long_names_keep_both_ends():
    assert figures.shorten('short') == 'short'
    assert figures.shorten('Cypripedium calceolus var. 12') == 'Cypripedium\N{HORIZONTAL ELLIPSIS}us var. 12'
