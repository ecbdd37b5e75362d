"""Tests the figures of the confusion matrix, for small matrices."""

import numpy as np

from mnist_jax.learning import metrics
from mnist_jax.report import confusion, figures

NAMES = ['a', 'b', 'c']
MATRIX = np.array([[90, 10, 0], [0, 80, 0], [1, 0, 19]])
PERFECT = np.diag([5, 0, 3])


def test_heat_maps_show_counts_and_fractions_of_the_true_class():
    tooltips = confusion.heat_maps(MATRIX, NAMES).tooltips
    assert tooltips['cell-count-0-1'] == tooltips['cell-share-0-1'] == 'true a, predicted b: 10 (10.00% of 100)'
    assert tooltips['cell-share-2-0'] == 'true c, predicted a: 1 (5.00% of 20)' and len(tooltips) == 18


def test_flow_magnifies_rare_errors_and_is_reproducible():
    flow = confusion.flow(MATRIX, NAMES)
    # 11 errors and 189 correct predictions: drawn five times as wide, the errors take up 55 of 244, and 5 is the first
    # scale at which they take up more than a fifth.
    assert 'Errors are drawn 5 times as wide as correct predictions.' in flow.about
    assert flow.tooltips['flow-0-1'] == 'true a, predicted b: 10' and flow.tooltips['bar-1-1'] == 'predicted b: 90'
    assert 'flow-1-0' not in flow.tooltips
    assert figures.to_svg(flow) == figures.to_svg(confusion.flow(MATRIX, NAMES))
    assert 'times as wide' not in confusion.flow(PERFECT, NAMES).about


def test_classes_without_defined_statistics_have_no_marks():
    statistics = metrics.statistics(PERFECT, NAMES)
    assert {tooltip.split(':')[0] for tooltip in confusion.by_class(statistics).tooltips.values()} == {'a', 'c'}


def test_of_many_classes_those_that_do_not_occur_come_last():
    count = confusion.MAX_ROWS + 5
    matrix = np.zeros((count, count), int)
    matrix[-10:, -10:] = 5 + np.eye(10, dtype=int)
    figure = confusion.by_class(metrics.statistics(matrix, [f'class {number}' for number in range(count)]))
    assert len(figure.tooltips) == 20 and f'class {count - 1}: recall 0.1176' in figure.tooltips.values()


def test_perfect_predictions_and_a_single_class_can_be_drawn():
    single = np.array([[4]])
    for figure in (
        confusion.flow(PERFECT, NAMES),
        confusion.heat_maps(single, ['only']),
        confusion.flow(single, ['only']),
    ):
        assert len(figures.to_png(figure)) > 1000
