"""Temperature scaling and conformal prediction sets: by hand, and against SciPy."""

import numpy as np
import pytest
import scipy.special

from mnist_jax.inference.calibration import assess, fit_temperature, smallest_probability, with_temperature


def sample(count, sharpness, seed=0, classes=4):
    """Returns probabilities, those of `sharpness` times the logits from which the labels are drawn, and the labels."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(count, classes))
    true = scipy.special.softmax(logits, axis=-1)
    label = (true.cumsum(axis=-1) > rng.uniform(size=(count, 1))).argmax(-1)
    return scipy.special.softmax(sharpness * logits, axis=-1).astype(np.float32), label


def test_a_temperature_divides_the_logits():
    logits = np.array([[1.0, -2.0, 0.5]])
    expected = scipy.special.softmax(logits / 3, axis=-1)
    np.testing.assert_allclose(with_temperature(scipy.special.softmax(logits, axis=-1), 3.0), expected, rtol=1e-12)
    assert np.isfinite(with_temperature(np.array([[1.0, 0.0]]), 0.1)).all()


@pytest.mark.parametrize('sharpness', [0.5, 1.0, 3.0])
def test_the_fitted_temperature_undoes_the_sharpness(sharpness):
    assert abs(fit_temperature(*sample(20_000, sharpness)) / sharpness - 1) < 0.03


def test_the_threshold_by_hand():
    # Nine examples: 10 * 0.2 = 2, so the second smallest probability of a label; 10 * 0.05 = 0.5, so all classes.
    own = np.array([0.9, 0.1, 0.8, 0.3, 0.7, 0.95, 0.6, 0.5, 0.4])
    probabilities = np.stack([own, 1 - own], axis=1)
    label = np.zeros(9, int)
    assert smallest_probability(probabilities, label, 0.8) == 0.3
    assert smallest_probability(probabilities, label, 0.9) == 0.1
    assert smallest_probability(probabilities, label, 0.95) == 0


def test_prediction_sets_keep_their_promise_over_many_draws():
    """The mean coverage is between the target and the target plus 1 / (n + 1), whatever the model is like."""
    count, coverage = 39, 0.9
    covered = []
    for seed in range(400):
        probabilities, label = sample(2 * count, 2.5, seed)
        threshold = smallest_probability(probabilities[:count], label[:count], coverage)
        own = np.take_along_axis(probabilities[count:], label[count:, None], axis=1)
        covered.append((own >= threshold).mean())
    error = np.std(covered) / 20
    assert coverage - 3 * error < np.mean(covered) < coverage + 1 / (count + 1) + 3 * error


def test_what_eval_json_says_about_them():
    probabilities, label = sample(3000, 3.0)
    validation, validation_label = sample(3000, 3.0, seed=1)
    result = assess(probabilities, label, validation, validation_label)
    assert result['validation_examples'] == 3000 and abs(result['temperature'] - 3) < 0.3
    assert result['cross_entropy_with_temperature'] < result['cross_entropy']
    for row in result['prediction_sets']:
        assert abs(row['covered'] - row['coverage']) < 0.02
    sizes = [row['mean_size'] for row in result['prediction_sets']]
    assert 1 < sizes[0] < sizes[1] < sizes[2] <= 4
