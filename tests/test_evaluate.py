"""Evaluation: every example counts, the result is reproducible, and any split can be evaluated."""

import json

import numpy as np
import pytest

from mnist_jax.errors import UserError
from mnist_jax.evaluate import evaluate_workdir
from mnist_jax.train import train


@pytest.mark.parametrize('batch_size', [64, 999, 10**9])
def test_evaluation_counts_every_example(small, tmp_path, batch_size):
    config = small(eval_batch_size=batch_size, epochs=0, dataset__test='test')
    result = train(config, tmp_path)
    assert result['count'] == 10_000
    assert sum(map(sum, result['confusion_matrix'])) == 10_000
    # The class counts of the MNIST test set: http://yann.lecun.com/exdb/mnist/
    assert [sum(row) for row in result['confusion_matrix']] == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert result['correct'] == sum(result['confusion_matrix'][i][i] for i in range(10))
    assert result['accuracy'] == result['correct'] / 10_000


def test_evaluating_the_workdir_again_gives_the_same_files(small, tmp_path):
    train(small(dataset__test='test[:500]'), tmp_path)
    written = (tmp_path / 'eval.json').read_bytes()
    predictions = (tmp_path / 'predictions.npz').read_bytes()
    for _ in range(2):
        (tmp_path / 'eval.json').unlink()
        (tmp_path / 'predictions.npz').unlink()
        evaluate_workdir(tmp_path)
        assert (tmp_path / 'eval.json').read_bytes() == written
        assert (tmp_path / 'predictions.npz').read_bytes() == predictions
    assert set(json.loads(written)) == {
        'dataset', 'split', 'split_sha256', 'step', 'count', 'loss', 'accuracy', 'correct', 'parameters',
        'params_sha256', 'confusion_matrix', 'statistics', 'skipped_steps',
    }  # fmt: skip


def test_stored_predictions_agree_with_the_result(small, tmp_path):
    result = train(small(dataset__test='test[:333]', eval_batch_size=100), tmp_path)
    with np.load(tmp_path / 'predictions.npz') as arrays:
        label, prediction, probabilities = (arrays[name] for name in ('label', 'prediction', 'probabilities'))
    assert probabilities.shape == (333, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), prediction)
    matrix = np.zeros((10, 10), int)
    np.add.at(matrix, (label, prediction), 1)
    assert matrix.tolist() == result['confusion_matrix']
    assert result['loss'] == pytest.approx(-np.log(probabilities[np.arange(333), label]).mean(), rel=1e-5)


def test_another_split_is_written_to_separate_files(small, tmp_path):
    expected = train(small(epochs=1), tmp_path)
    written = (tmp_path / 'eval.json').read_bytes()
    result = evaluate_workdir(tmp_path, split='train[:50]')
    assert (result['split'], result['count'], result['params_sha256']) == ('train[:50]', 50, expected['params_sha256'])
    assert json.loads((tmp_path / 'eval-train[:50].json').read_text()) == result
    assert (tmp_path / 'eval.json').read_bytes() == written and (tmp_path / 'predictions-train[:50].npz').exists()
    message = r"--split must be one of the splits test, train of mnist, or a slice .*, got 'holdout'"
    with pytest.raises(UserError, match=message):
        evaluate_workdir(tmp_path, split='holdout')
