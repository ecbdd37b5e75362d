"""Tests that the folds of a cross-validation are independent runs, partition the training split, and can be resumed."""

import json
import math
import shutil
import statistics

import pytest
from ml_collections import ConfigDict

from mnist_jax.data.source import SOURCES
from mnist_jax.errors import UserError
from mnist_jax.evaluate import evaluate_workdir
from mnist_jax.studies.cross_validation import cross_validate
from mnist_jax.train import train
from mnist_jax.workdir.directory_lock import DirectoryLock
from mnist_jax.workdir.metrics_log import read_metrics


def test_each_fold_is_an_independent_run_and_a_missing_fold_is_retrained(small, tmp_path):
    config = small(folds=3, epochs=1)
    summary = cross_validate(config, tmp_path / 'a')
    assert json.loads((tmp_path / 'a' / 'folds.json').read_text()) == summary
    accuracies = [fold['validation_accuracy'] for fold in summary['folds']]
    assert summary['mean']['validation_accuracy'] == statistics.mean(accuracies)
    assert summary['standard_deviation']['validation_accuracy'] == statistics.stdev(accuracies)
    assert len({fold['params_sha256'] for fold in summary['folds']}) == 3
    evaluated = evaluate_workdir(tmp_path / 'a' / 'fold-2')
    assert evaluated['params_sha256'] == summary['folds'][1]['params_sha256']
    single = train(small(folds=3, fold=2, epochs=1), tmp_path / 'b')
    assert single['params_sha256'] == evaluated['params_sha256']
    shutil.rmtree(tmp_path / 'a' / 'fold-3')
    assert cross_validate(config, tmp_path / 'a') == summary
    with pytest.raises(UserError, match='holds a cross-validation; use another --workdir'):
        train(small(epochs=1), tmp_path / 'a')
    path = tmp_path / 'a' / 'fold-1' / 'metrics.csv'
    path.write_text(path.read_text().replace(repr(summary['folds'][0]['validation_loss']), 'nan'))
    assert math.isnan(read_metrics(path.parent)[0]['validation_loss'])
    diverged = cross_validate(config, tmp_path / 'a')
    assert diverged['folds'][0]['validation_loss'] is None and diverged['mean']['validation_loss'] is None
    assert diverged['mean']['test_loss'] == summary['mean']['test_loss']
    text = (tmp_path / 'a' / 'folds.json').read_text()
    assert 'NaN' not in text and json.loads(text) == diverged
    path.unlink()
    with pytest.raises(
        UserError, match=r"metrics.csv' must have validation metrics for step \d+; remove '.*/fold-1' and run"
    ):
        cross_validate(config, tmp_path / 'a')


def test_folds_partition_the_training_split(data_dir):
    labels = []
    for fold in (1, 2, 3):
        source = SOURCES['mnist'](
            data_dir=data_dir, raw_dir='', train='train[:301]', validation='', test='test', fold=(fold, 3)
        )
        validation, train_split = source.split('validation'), source.split('train')
        assert len(validation.label) in (100, 101) and len(train_split.label) == 301 - len(validation.label)
        assert source.count('train') == len(train_split.label)
        held_out = {image.tobytes() for image in validation.image}
        assert not held_out & {image.tobytes() for image in train_split.image}
        labels += validation.label.tolist()
    whole = SOURCES['mnist'](data_dir=data_dir, raw_dir='', train='train[:301]', validation='', test='test')
    assert sorted(labels) == sorted(whole.split('train').label.tolist())


def test_invalid_folds_and_workdirs_are_refused(small, tmp_path):
    with pytest.raises(UserError, match=r'config\.folds must be 0 or at least 2, got 1'):
        train(small(folds=1, fold=0), tmp_path)
    for folds, fold in ((3, 4), (0, 1)):
        with pytest.raises(UserError, match=f'config.fold must be at most config.folds={folds}, got {fold}'):
            train(small(folds=folds, fold=fold), tmp_path)
    with pytest.raises(
        UserError, match=r'config.dataset.validation_fraction and config.folds must not both select the'
    ):
        train(small(folds=2, fold=1, dataset__validation_fraction=0.1), tmp_path / 'run')
    with pytest.raises(UserError, match=r'config.folds must be at most the 2 examples of config.dataset.train, got 3'):
        train(small(folds=3, fold=1, dataset__train='train[:2]', batch_size=1), tmp_path / 'run')
    with pytest.raises(UserError, match=r'config.folds must be an integer from 0 to 100, got -3'):
        cross_validate(small(folds=-3), tmp_path / 'run')
    with pytest.raises(UserError, match=r'config.epochs must be at least 1 for cross-validation, got 0'):
        cross_validate(small(folds=3, epochs=0), tmp_path / 'run')
    train(small(epochs=0), tmp_path / 'run')
    with pytest.raises(UserError, match='holds a run; use another --workdir for a cross-validation'):
        cross_validate(small(folds=3), tmp_path / 'run')


def test_a_cross_validation_and_a_run_of_one_of_its_folds_exclude_each_other(small, tmp_path):
    (tmp_path / 'cv' / 'fold-1').mkdir(parents=True)
    with (
        DirectoryLock(tmp_path / 'cv' / 'fold-1', '--workdir'),
        pytest.raises(UserError, match=r'fold-1. is in use by'),
    ):
        cross_validate(small(folds=2), tmp_path / 'cv')
    with DirectoryLock(tmp_path / 'cv', '--workdir'), pytest.raises(UserError, match=r'cv. is in use by'):
        cross_validate(small(folds=2), tmp_path / 'cv')


def test_an_extended_cross_validation_says_in_which_folds_the_learning_rate_jumped(small, tmp_path):
    schedule = ConfigDict({'name': 'cosine'})
    train(small(folds=2, fold=1, epochs=1, schedule=schedule), tmp_path / 'fold-1')
    config = small(folds=2, epochs=2, schedule=schedule)
    with pytest.raises(UserError, match=r'config\.epochs must be 1, as in the run so far, got 2'):
        cross_validate(config, tmp_path)
    summary = cross_validate(config, tmp_path, reschedule=True)
    # Half of 300 examples make 3 steps per epoch.
    reschedules = [{'step': 3, 'epochs_before': 1, 'epochs_after': 2}]
    assert [fold['reschedules'] for fold in summary['folds']] == [reschedules, []]
