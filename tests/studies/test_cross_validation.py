"""Cross-validation: the folds are runs of their own, complete and disjoint, and can be gone on with."""

import json
import shutil
import statistics

import pytest

from mnist_jax.data.source import SOURCES
from mnist_jax.errors import UserError
from mnist_jax.evaluate import evaluate_workdir
from mnist_jax.studies.cross_validation import cross_validate
from mnist_jax.train import train


def test_each_fold_is_a_run_and_the_mean_is_theirs(small, tmp_path):
    config = small(folds=3, epochs=1)
    found = cross_validate(config, tmp_path / 'a')
    assert json.loads((tmp_path / 'a' / 'folds.json').read_text()) == found
    accuracies = [fold['validation_accuracy'] for fold in found['folds']]
    assert found['mean']['validation_accuracy'] == statistics.mean(accuracies)
    assert found['standard_deviation']['validation_accuracy'] == statistics.stdev(accuracies)
    assert len({fold['params_sha256'] for fold in found['folds']}) == 3
    again = evaluate_workdir(tmp_path / 'a' / 'fold-2')
    assert again['params_sha256'] == found['folds'][1]['params_sha256']
    alone = train(small(folds=3, fold=2, epochs=1), tmp_path / 'b')
    assert alone['params_sha256'] == again['params_sha256']
    shutil.rmtree(tmp_path / 'a' / 'fold-3')
    assert cross_validate(config, tmp_path / 'a') == found
    with pytest.raises(UserError, match='holds a cross-validation; give another --workdir'):
        train(small(epochs=1), tmp_path / 'a')
    (tmp_path / 'a' / 'fold-1' / 'metrics.csv').unlink()
    with pytest.raises(UserError, match=r"metrics.csv' has no validation of step \d+; remove '.*/fold-1'"):
        cross_validate(config, tmp_path / 'a')


def test_the_folds_share_out_the_training_split(data_dir):
    labels = []
    for fold in (1, 2, 3):
        source = SOURCES['mnist'](
            data_dir=data_dir, raw_dir='', train='train[:301]', validation='', test='test', fold=(fold, 3)
        )
        validation, train_split = source.split('validation'), source.split('train')
        assert len(validation.label) in (100, 101) and len(train_split.label) == 301 - len(validation.label)
        assert source.count('train') == len(train_split.label)
        held = {image.tobytes() for image in validation.image}
        assert not held & {image.tobytes() for image in train_split.image}
        labels += validation.label.tolist()
    whole = SOURCES['mnist'](data_dir=data_dir, raw_dir='', train='train[:301]', validation='', test='test')
    assert sorted(labels) == sorted(whole.split('train').label.tolist())


def test_wrong_folds_are_told(small, tmp_path):
    for folds, fold in ((1, 0), (3, 4), (0, 1)):
        with pytest.raises(UserError, match=f'config.folds={folds} and config.fold={fold} are wrong'):
            train(small(folds=folds, fold=fold), tmp_path)
    with pytest.raises(UserError, match=r'dataset.validation_fraction and folds both say what validates'):
        train(small(folds=2, fold=1, dataset__validation_fraction=0.1), tmp_path / 'run')
    with pytest.raises(UserError, match=r'config.folds=3 is more than the 2 examples of dataset.train'):
        train(small(folds=3, fold=1, dataset__train='train[:2]', batch_size=1), tmp_path / 'run')
    with pytest.raises(UserError, match=r'config.folds=-3 is wrong: a whole number from 0 to 100'):
        cross_validate(small(folds=-3), tmp_path / 'run')
    with pytest.raises(UserError, match=r'config.epochs=0 is wrong: cross-validation needs an epoch'):
        cross_validate(small(folds=3, epochs=0), tmp_path / 'run')
    train(small(epochs=0), tmp_path / 'run')
    with pytest.raises(UserError, match='holds a run without folds; give another --workdir'):
        cross_validate(small(folds=3), tmp_path / 'run')
