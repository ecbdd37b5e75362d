"""Label suspects, worked out by hand."""

import numpy as np

from mnist_jax.learning.label_errors import find_label_suspects


def test_an_example_is_suspicious_if_another_class_reaches_its_mean_confidence():
    label = np.array([0, 0, 0, 1, 1, 1])
    of_class_1 = np.array([0.1, 0.3, 0.95, 0.8, 0.6, 0.2])
    # Mean probability of class 0 for label 0: (0.9 + 0.7 + 0.05) / 3 = 0.55; of class 1 for label 1: 1.6 / 3 = 0.533.
    suspects = find_label_suspects(np.stack([1 - of_class_1, of_class_1], axis=1), label)
    assert suspects.example.tolist() == [2, 5]
    assert suspects.suggestion.tolist() == [1, 0]
    np.testing.assert_allclose(suspects.margin, [0.05 - 0.95, 0.2 - 0.8])
    assert suspects.confident.all()


def test_a_prediction_below_the_threshold_is_not_confident():
    label = np.array([0, 0, 1, 1])
    of_class_1 = np.array([0.1, 0.6, 0.9, 0.8])  # The thresholds are 0.65 and 0.85.
    suspects = find_label_suspects(np.stack([1 - of_class_1, of_class_1], axis=1), label)
    assert (suspects.example.tolist(), suspects.confident.tolist()) == ([1], [False])


def test_a_class_without_labels_is_never_confident():
    probabilities = np.array([[0.1, 0.0, 0.9], [0.2, 0.8, 0.0], [0.9, 0.1, 0.0]])
    suspects = find_label_suspects(probabilities, np.array([0, 1, 0]))
    assert not suspects.confident[suspects.suggestion == 2].any()


def test_of_several_confident_classes_the_most_probable_one_counts():
    label = np.array([0, 1, 2, 2])
    probabilities = np.array([[0.5, 0.3, 0.2], [0.3, 0.3, 0.4], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    # Thresholds 0.5, 0.3, 0.5. Example 2 reaches those of classes 0 and 1.
    suspects = find_label_suspects(probabilities, label)
    assert suspects.example.tolist() == [2]
    assert suspects.suggestion.tolist() == [0]
    assert suspects.confident.tolist() == [True]
