"""Tests the reliability diagram, and the calibration that it draws, against numbers worked out by hand."""

import numpy as np

from mnist_jax.learning import metrics
from mnist_jax.report import calibration

# Of ten examples with confidence 0.85, eight are correct; of four with 0.55, one is.
PROBABILITIES = np.array([[0.85, 0.15]] * 10 + [[0.45, 0.55]] * 4, np.float32)
LABEL = np.array([0] * 8 + [1] * 2 + [1] + [0] * 3)


def test_calibration_matches_numbers_worked_out_by_hand():
    result = metrics.calibration(PROBABILITIES, LABEL, bins=10)
    np.testing.assert_allclose(result['expected_calibration_error'], (10 * 0.05 + 4 * 0.3) / 14, atol=1e-6)
    # With two classes, the Brier score of an example is twice the square of 0.15, 0.85, 0.45 or 0.55.
    brier = 2 * (8 * 0.15**2 + 2 * 0.85**2 + 0.45**2 + 3 * 0.55**2) / 14
    np.testing.assert_allclose(result['brier'], brier, atol=1e-6)
    filled = {round(row['to'], 1): (row['count'], row['accuracy']) for row in result['bins'] if row['count']}
    assert filled == {0.9: (10, 0.8), 0.6: (4, 0.25)}
    assert sum(row['count'] for row in result['bins']) == 14 and result['bins'][0]['accuracy'] is None


def test_tooltips_show_the_count_and_the_accuracy_of_a_bin():
    tooltips = calibration.reliability(PROBABILITIES, LABEL).tooltips.values()
    assert any('4 examples' in tooltip and 'accuracy 0.2500' in tooltip for tooltip in tooltips)
