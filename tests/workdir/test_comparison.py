"""Comparisons of runs: the table, and McNemar's test on predictions made up so that its result is known."""

import json
import shutil

import numpy as np
import pytest
from conftest import make_small

from mnist_jax.errors import UserError
from mnist_jax.train import train
from mnist_jax.workdir.comparison import HEADER, comparison_table, read_run, table_row
from mnist_jax.workdir.results import read_predictions, result_paths


@pytest.fixture(scope='module')
def trained(data_dir, tmp_path_factory):
    runs = tmp_path_factory.mktemp('trained')
    train(make_small(data_dir, epochs=2), runs / 'one')
    train(make_small(data_dir, epochs=1), runs / 'two')
    train(make_small(data_dir, epochs=0, dataset__test='test[:100]'), runs / 'three')
    return runs


@pytest.fixture
def runs(trained, tmp_path):
    """Two finished runs on the same test split and one on another."""
    return shutil.copytree(trained, tmp_path / 'runs')


def predict(workdir, right):
    """Make the stored predictions of a run right for the examples `right` and wrong for the others."""
    path, predictions_path = result_paths(workdir)
    result = json.loads(path.read_text())
    label, _ = read_predictions(workdir, result)
    prediction = np.where(np.isin(np.arange(len(label)), right), label, (label + 1) % 10)
    np.savez(predictions_path, label=label, prediction=prediction)
    matrix = np.zeros((10, 10), int)
    np.add.at(matrix, (label, prediction), 1)
    changed = {'correct': len(right), 'accuracy': len(right) / len(label), 'confusion_matrix': matrix.tolist()}
    path.write_text(json.dumps({**result, **changed}))


def test_the_table_and_the_test_of_every_comparable_pair(runs):
    # 20 examples that only the first has right, 5 that only the second has.
    predict(runs / 'one', range(0, 120))
    predict(runs / 'two', range(20, 125))
    text = comparison_table([f'{runs}/*'])
    lines = text.splitlines()
    read = json.loads((runs / 'one' / 'eval.json').read_text())
    (row,) = [line.split() for line in lines if line.split()[:2] == ['one', 'mnist']]
    assert row[1:7] == ['mnist', 'mlp', f'{read["parameters"]:,}', '2', '10', f'{read["accuracy"]:.4f}']
    (pair,) = [line.split() for line in lines if line.split()[:2] == ['one', 'two']]
    # Two-sided binomial test of 5 out of 25: 2 * 68406 / 2**25.
    assert pair[3:6] == ['20', '5', f'{2 * 68406 / 2**25:.3g}'] and pair[6] == 'significant'
    assert 'Evaluated on different examples, and so without a test: one and three; three and two' in text


def test_few_differences_may_be_chance(runs):
    predict(runs / 'one', range(0, 100))
    predict(runs / 'two', range(2, 101))
    text = comparison_table([str(runs / 'one'), str(runs / 'two'), str(runs / 'one')])
    (pair,) = [line.split() for line in text.splitlines() if line.split()[:2] == ['one', 'two']]
    # 1 out of 3: P(X <= 1) = 4 / 8, twice.
    assert pair[3:] == ['2', '1', '1', 'may', 'be', 'chance']


def test_metrics_that_are_missing_or_lack_epochs(runs):
    path = runs / 'one' / 'metrics.csv'
    head, first, second = path.read_text().splitlines(keepends=True)
    for left in (head + second, head + second + first):
        path.write_text(left)
        with pytest.raises(UserError, match=r"metrics.csv' is damaged: it has rows of . epochs, the last of them"):
            read_run(runs / 'one', 'one')
    path.write_text(head + first)  # 5 steps of 10, and no epoch was stopped within
    with pytest.raises(UserError, match='it has rows of 1 epochs, the last of them 1, and the result is of step 10;'):
        read_run(runs / 'one', 'one')
    path.write_text(head + first + 'x')
    with pytest.raises(UserError, match=r"metrics.csv' is damaged: 1 of its lines are rows of metrics, others are not"):
        read_run(runs / 'one', 'one')
    path.unlink()
    row = table_row(read_run(runs / 'one', 'one'))
    assert [row[HEADER.index(name)] for name in ('epochs', 'training', 'images/s')] == ['NA'] * 3


def changed(text, **fields):
    return json.dumps({**json.loads(text), **fields})


def test_what_is_no_finished_run_is_told(runs, tmp_path):
    with pytest.raises(UserError, match=r"--run='.*/nothing-\*' is no workdir, nor a pattern of workdirs"):
        comparison_table([f'{runs}/nothing-*'])
    with pytest.raises(UserError, match=r"'.*/runs' holds no config.json"):
        comparison_table([str(runs)])
    np.savez(runs / 'two' / 'predictions.npz', label=np.zeros(200), prediction=np.zeros(200))
    with pytest.raises(UserError, match=r"predictions.npz' does not fit eval.json beside it"):
        comparison_table([f'{runs}/*'])
    (runs / 'two' / 'predictions.npz').write_bytes(b'PK')
    with pytest.raises(UserError, match=r"predictions.npz' is missing or damaged"):
        comparison_table([f'{runs}/*'])
    good = (runs / 'one' / 'eval.json').read_text()
    accuracy = f'"accuracy": {json.loads(good)["accuracy"]}'
    for text, told in (
        ('{}', "it has no 'dataset'"),
        ('[]', ''),
        (good[:100], ''),
        (good.replace(accuracy, '"accuracy": "x"', 1), 'accuracy is wrong'),
        (good.replace(accuracy, '"accuracy": 2.0', 1), 'its accuracy or its loss is wrong'),
        (good.replace('"statistics"', '"statistic"'), "it has no 'statistics'"),
        (changed(good, loss=float('nan')), 'its accuracy or its loss is wrong'),
        (changed(good, confusion_matrix=[]), 'its confusion matrix is not 10 x 10'),
        (changed(good, confusion_matrix=[[0.5] * 10] * 10), 'a cell that is no count'),
        (changed(good, confusion_matrix=[[2] * 10] * 10), 'its counts are not those of its confusion matrix'),
        (changed(good, statistics={'by_class': None}), 'not iterable'),
    ):
        (runs / 'one' / 'eval.json').write_text(text)
        with pytest.raises(UserError, match=rf"eval.json' is damaged: .*{told}"):
            comparison_table([f'{runs}/*'])
    (runs / 'one' / 'eval.json').unlink()
    with pytest.raises(UserError, match=r'holds no eval.json; it is written when a training ends'):
        comparison_table([f'{runs}/*'])
