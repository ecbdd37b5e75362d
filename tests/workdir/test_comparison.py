"""Comparing runs: the table, and McNemar's test on predictions that are made up so that its result is known."""

import json
import shutil

import numpy as np
import pytest
from conftest import make_small
from ml_collections import ConfigDict

from mnist_jax.errors import UserError
from mnist_jax.evaluate import evaluate_workdir
from mnist_jax.train import train
from mnist_jax.workdir.comparison import HEADER, comparison_table, notes, table_row
from mnist_jax.workdir.finished_runs import read_run
from mnist_jax.workdir.results import read_predictions, result_paths


@pytest.fixture(scope='module')
def trained(data_dir, tmp_path_factory):
    directory = tmp_path_factory.mktemp('trained')
    train(make_small(data_dir, epochs=2), directory / 'one')
    train(make_small(data_dir, epochs=1), directory / 'two')
    train(make_small(data_dir, epochs=0, dataset__test='test[:100]'), directory / 'three')
    return directory


@pytest.fixture
def runs(trained, tmp_path):
    """The directory of two finished runs with the same test split and one with another."""
    return shutil.copytree(trained, tmp_path / 'runs')


def set_correct(workdir, correct):
    """Makes the stored predictions of a run correct for the examples `correct`, and wrong for all others."""
    path, predictions_path = result_paths(workdir)
    result = json.loads(path.read_text())
    label, _ = read_predictions(workdir, result)
    prediction = np.where(np.isin(np.arange(len(label)), correct), label, (label + 1) % 10)
    np.savez(predictions_path, label=label, prediction=prediction)
    matrix = np.zeros((10, 10), int)
    np.add.at(matrix, (label, prediction), 1)
    changes = {'correct': len(correct), 'accuracy': len(correct) / len(label), 'confusion_matrix': matrix.tolist()}
    path.write_text(json.dumps({**result, **changes}))


def test_table_lists_runs_and_tests_each_comparable_pair(runs):
    # Only the first run is right about 20 of the examples, and only the second about 5.
    set_correct(runs / 'one', range(0, 120))
    set_correct(runs / 'two', range(20, 125))
    text = comparison_table([f'{runs}/*'])
    lines = text.splitlines()
    result = json.loads((runs / 'one' / 'eval.json').read_text())
    (row,) = [line.split() for line in lines if line.split()[:2] == ['one', 'mnist']]
    assert row[1:7] == ['mnist', 'mlp', f'{result["parameters"]:,}', '2', '10', f'{result["accuracy"]:.4f}']
    (pair,) = [line.split() for line in lines if line.split()[:2] == ['one', 'two']]
    # Two-sided binomial test of 5 out of 25: 2 * 68406 / 2**25.
    p_value = f'{2 * 68406 / 2**25:.3g}'
    assert pair[3:7] == ['20', '5', p_value, p_value] and pair[7] == 'significant'
    assert 'Not tested, because they were evaluated on different examples: one and three; three and two' in text


def test_a_few_differences_may_be_due_to_chance(runs):
    set_correct(runs / 'one', range(0, 100))
    set_correct(runs / 'two', range(2, 101))
    text = comparison_table([str(runs / 'one'), str(runs / 'two'), str(runs / 'one')])
    (pair,) = [line.split() for line in text.splitlines() if line.split()[:2] == ['one', 'two']]
    # 1 out of 3: P(X <= 1) = 4 / 8, times two.
    assert pair[3:] == ['2', '1', '1', '1', 'may', 'be', 'chance']


def test_several_pairs_are_corrected_for_their_number(runs):
    shutil.copytree(runs / 'two', runs / 'four')
    set_correct(runs / 'one', range(0, 109))
    for name in ('two', 'four'):
        set_correct(runs / name, range(8, 110))
    text = comparison_table([str(runs / name) for name in ('one', 'two', 'four')])
    pairs = {tuple(line.split()[:2]): line.split()[5:] for line in text.splitlines() if '+0.0' in line}
    # 1 out of 9: 2 * (1 + 9) / 2**9 = 0.0391, and three pairs.
    assert pairs['one', 'two'] == pairs['one', 'four'] == ['0.0391', '0.117', 'may', 'be', 'chance']
    assert pairs['two', 'four'] == ['1', '1', 'may', 'be', 'chance']


def test_damaged_metrics_are_an_error_and_missing_metrics_are_na(runs):
    path = runs / 'one' / 'metrics.csv'
    header, first, second = path.read_text().splitlines(keepends=True)
    # The last has 5 of the 10 steps, although no epoch was stopped in the middle.
    for text in (header + second, header + second + first, header + first):
        path.write_text(text)
        run = read_run(runs / 'one', 'one')
        assert run.seconds is None and run.epochs
        assert 'one: metrics.csv lacks the rows of some epochs, so the training time is unknown.' in notes([run])
    path.write_text(header + first + 'x')
    with pytest.raises(UserError, match=r"metrics.csv' is damaged: only 1 of its rows can be read"):
        read_run(runs / 'one', 'one')
    path.unlink()
    row = table_row(read_run(runs / 'one', 'one'))
    assert [row[HEADER.index(name)] for name in ('epochs', 'training time', 'images/s')] == ['NA'] * 3


def changed(text, **fields):
    return json.dumps({**json.loads(text), **fields})


def test_missing_or_damaged_results_are_user_errors(runs, tmp_path):
    with pytest.raises(UserError, match=r"--run must be a workdir, or a pattern .*, got '.*/nothing-\*'"):
        comparison_table([f'{runs}/nothing-*'])
    with pytest.raises(UserError, match=r"'.*/runs' has no config.json"):
        comparison_table([str(runs)])
    np.savez(runs / 'two' / 'predictions.npz', label=np.zeros(200), prediction=np.zeros(200))
    with pytest.raises(UserError, match=r"predictions.npz' does not match eval.json; --mode=eval rewrites both"):
        comparison_table([f'{runs}/*'])
    (runs / 'two' / 'predictions.npz').write_bytes(b'PK')
    with pytest.raises(UserError, match=r"predictions.npz' is missing or damaged"):
        comparison_table([f'{runs}/*'])
    valid = (runs / 'one' / 'eval.json').read_text()
    accuracy = f'"accuracy": {json.loads(valid)["accuracy"]}'
    for text, message in (
        ('{}', "it has no 'dataset'"),
        ('[]', 'it must be a JSON object'),
        (valid[:100], ''),
        (valid.replace(accuracy, '"accuracy": "x"', 1), 'accuracy must be of type float, got str'),
        (valid.replace(accuracy, '"accuracy": 2.0', 1), 'accuracy must be correct / count, got 2.0'),
        (valid.replace('"statistics"', '"statistic"'), "it has no 'statistics'"),
        (changed(valid, loss=float('nan')), 'loss must be finite, got nan'),
        (changed(valid, cross_entropy=float('nan')), 'cross_entropy must be a finite number, got nan'),
        (changed(valid, overlaps=[{'first': 'train'}]), "it has no 'second'"),
        (changed(valid, reschedules=3), 'not iterable'),
        (changed(valid, uncertainty={'prediction_sets': []}), "it has no 'temperature'"),
        (changed(valid, top_k={'3': 'most'}), "Unknown format code 'f'"),
        (changed(valid, confusion_matrix=[]), 'its confusion matrix must be 10 x 10'),
        (changed(valid, confusion_matrix=[[0.5] * 10] * 10), 'its confusion matrix must contain non-negative integers'),
        (changed(valid, confusion_matrix=[[2] * 10] * 10), 'its count and correct must match its confusion matrix'),
        (changed(valid, statistics={'by_class': None}), 'not iterable'),
    ):
        (runs / 'one' / 'eval.json').write_text(text)
        with pytest.raises(UserError, match=rf"eval.json' is damaged: .*{message}"):
            comparison_table([f'{runs}/*'])
    (runs / 'one' / 'eval.json').write_text(valid)
    (runs / 'one' / 'metrics.csv').unlink()
    (runs / 'one' / 'metrics.csv').mkdir()
    with pytest.raises(UserError, match=r"metrics.csv' is damaged: only 0 of its rows can be read"):
        comparison_table([f'{runs}/*'])
    (runs / 'one' / 'eval.json').unlink()
    with pytest.raises(UserError, match=r'has no eval.json; it is written when training ends'):
        comparison_table([f'{runs}/*'])


def test_the_losses_of_different_functions_are_not_compared_but_the_cross_entropy(data_dir, runs):
    squared = ConfigDict({'name': 'mean_squared_error'})
    smooth = ConfigDict({'name': 'cross_entropy', 'label_smoothing': 0.2})
    for name, loss in (('two', squared), ('three', smooth)):
        shutil.rmtree(runs / name)
        train(make_small(data_dir, epochs=1, loss=loss), runs / name)
    expected = []
    for name in ('one', 'two', 'three'):
        with np.load(runs / name / 'predictions.npz') as arrays:
            expected.append(-np.log(arrays['probabilities'][np.arange(200), arrays['label']]).mean())

    def column():
        return [
            table_row(read_run(runs / name, name))[HEADER.index('cross-entropy')] for name in ('one', 'two', 'three')
        ]

    assert column() == [f'{value:.4f}' for value in expected] and 'loss' not in HEADER
    # A run that was evaluated before evaluations had a cross-entropy has one if it was the loss.
    for name in ('one', 'two', 'three'):
        path = runs / name / 'eval.json'
        result = json.loads(path.read_text())
        del result['cross_entropy'], result['overlaps'], result['reschedules']
        path.write_text(json.dumps(result))
    assert column() == [f'{expected[0]:.4f}', 'NA', 'NA']
    text = comparison_table([f'{runs}/*'])
    assert 'two: cross-entropy NA: it was evaluated by an older version; --mode=eval adds it.' in text.splitlines()
    assert 'one: cross-entropy' not in text
    evaluate_workdir(runs / 'two')
    assert column() == [f'{expected[0]:.4f}', f'{expected[1]:.4f}', 'NA']


def test_the_comparison_says_which_runs_have_overlapping_splits(data_dir, runs):
    path = runs / 'two' / 'eval.json'
    overlaps = [{'first': 'train', 'second': 'test', 'examples': 1234}]
    path.write_text(changed(path.read_text(), overlaps=overlaps))
    assert 'two: overlap train and test share 1,234 examples.' in comparison_table([f'{runs}/*']).splitlines()
