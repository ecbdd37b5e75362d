"""Evaluation: every example counts, the result is reproducible, and any split can be evaluated."""

import dataclasses
import hashlib
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import mnist_jax
from mnist_jax.errors import UserError
from mnist_jax.evaluate import evaluate_workdir
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.learning.state import TrainState, Variables
from mnist_jax.report.run_page import write_report
from mnist_jax.train import train
from mnist_jax.training.evaluation import evaluate_split
from mnist_jax.training.experiment import make_experiment
from mnist_jax.workdir.results import format_result
from mnist_jax.workdir.snapshot import params_sha256


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
        'params_sha256', 'confusion_matrix', 'statistics', 'skipped_steps', 'cross_entropy', 'overlaps', 'reschedules',
        'deterministic', 'origin', 'own_code', 'changed_code', 'top_k',
    }  # fmt: skip


def test_a_run_can_be_evaluated_on_fewer_devices(small, tmp_path, caplog):
    result = train(small(), tmp_path)
    path = tmp_path / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'devices': 64}))
    with caplog.at_level('INFO'):
        assert evaluate_workdir(tmp_path) == result
    assert f'devices   {jax.local_device_count()} instead of config.devices=64' in caplog.text


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
    assert result['overlaps'] == [{'first': 'train', 'second': '--split=train[:50]', 'examples': 50}]
    assert 'overlap    train and --split=train[:50] share 50 examples\n' in format_result(result)
    assert json.loads((tmp_path / 'eval-train[:50].json').read_text()) == result
    assert (tmp_path / 'eval.json').read_bytes() == written and (tmp_path / 'predictions-train[:50].npz').exists()
    message = r"--split must be one of the splits test, train of mnist, or a slice .*, got 'holdout'"
    with pytest.raises(UserError, match=message):
        evaluate_workdir(tmp_path, split='holdout')


def halved(params):
    return jax.tree.map(lambda leaf: np.asarray(leaf) / 2, params)


def sha256_of_layers(params):
    """Returns the digest of the parameters of an MLP with two layers."""
    leaves = [params[layer][name] for layer in ('Dense_0', 'Dense_1') for name in ('bias', 'kernel')]
    return hashlib.sha256(b''.join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()


def test_the_digest_is_that_of_the_evaluated_parameters_if_these_are_not_the_trained_ones(small, tmp_path, monkeypatch):
    raw_result = train(small(), tmp_path / 'raw')
    raw_params = RestoredModel.load(tmp_path / 'raw').params
    assert raw_result['params_sha256'] == sha256_of_layers(raw_params)
    # As if the evaluation used an average of the parameters over the steps.
    monkeypatch.setattr(TrainState, 'variables', property(lambda state: Variables(halved(state.params), {})))
    result = train(small(), tmp_path / 'other')
    assert result['params_sha256'] == sha256_of_layers(halved(raw_params)) != raw_result['params_sha256']
    assert result['loss'] != raw_result['loss'] and evaluate_workdir(tmp_path / 'other') == result
    assert mnist_jax.load(tmp_path / 'other').result == result
    # The evaluation of the average does not count as that of the run's own parameters.
    monkeypatch.undo()
    message = r"eval.json' must be the result of the restored checkpoint, with the params_sha256 \w+, got"
    with pytest.raises(UserError, match=message):
        mnist_jax.load(tmp_path / 'other').result  # noqa: B018
    with pytest.raises(UserError, match=message):
        write_report(RestoredModel.load(tmp_path / 'other'))
    assert evaluate_workdir(tmp_path / 'other') == raw_result


def test_evaluation_takes_no_other_parameters_than_those_of_the_digest(small):
    experiment = make_experiment(small())
    state = experiment.create_state()
    other = dataclasses.replace(state, params=halved(state.params))
    test = experiment.source.split('test')
    losses = [float(evaluate_split(experiment, tree.variables, test)[0]['loss']) for tree in (state, other)]
    digests = [params_sha256(tree.variables) for tree in (state, other)]
    assert digests == [sha256_of_layers(state.params), sha256_of_layers(other.params)]
    assert losses[0] != losses[1] and digests[0] != digests[1]


def test_the_cross_entropy_is_that_of_the_stored_probabilities_for_every_loss(small, tmp_path):
    for name, fields in (('mse', {'name': 'mean_squared_error'}), ('smooth', {'label_smoothing': 0.2})):
        loss = ConfigDict({'name': 'cross_entropy', **fields})
        result = train(small(loss=loss, epochs=1), tmp_path / name)
        with np.load(tmp_path / name / 'predictions.npz') as arrays:
            expected = -np.log(arrays['probabilities'][np.arange(200), arrays['label']]).mean()
        assert result['cross_entropy'] == pytest.approx(expected, rel=1e-5) != result['loss']
        assert f'; cross-entropy {expected:.4f}\n' in mnist_jax.load(tmp_path / name).table()


def test_a_run_that_was_not_deterministic_is_never_evaluated_as_one(small, tmp_path):
    train(small(dataset__test='test[:50]', epochs=1), tmp_path)
    assert json.loads((tmp_path / 'eval.json').read_text())['deterministic'] is True
    path = tmp_path / 'provenance.json'
    path.write_text(path.read_text().replace('"deterministic": true', '"deterministic": false'))
    assert evaluate_workdir(tmp_path)['deterministic'] is False


@pytest.mark.parametrize(('validation', 'size'), [('', 20), ('train[300:350]', 50), ('train[300:400]', 64)])
def test_a_small_test_split_does_not_make_the_batches_of_validation_small(small, validation, size):
    config = small(eval_batch_size=64, dataset__test='test[:20]', dataset__validation=validation)
    assert make_experiment(config).eval_batch_size == size
