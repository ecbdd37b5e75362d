"""The reproduction of the published experiments: its judgement by hand, and two small runs of it."""

import re

import numpy as np
import pytest

from mnist_jax.data import kaggle
from mnist_jax.errors import UserError
from mnist_jax.studies.reproduction import (
    EXPERIMENTS,
    KAGGLE_COUNTS,
    ROOT,
    Measured,
    Published,
    reproduce,
    write_kaggle_csv,
)


@pytest.mark.parametrize(
    ('accuracies', 'verdict'),
    [
        ([0.91, 0.90], (True, 'mean above')),
        ([0.899, 0.8975], (True, 'mean within 0.002')),
        ([0.8979, 0.8978], (False, 'MISSED')),
        ([0.85, 0.9], (True, 'in the range of the seeds')),
        ([0.85, 0.8999], (False, 'MISSED')),
        ([0.85, 0.89996], (True, 'in the range of the seeds')),
        ([], (False, 'FAILED')),
    ],
)
def test_the_verdict(accuracies, verdict):
    assert Measured(Published('x', 0.9, 0.1), accuracies, accuracies, []).verdict() == verdict


def test_a_failed_seed_fails_its_row():
    assert Measured(Published('x', 0.9, 0.1), [0.95], [0.1], [1.0], failed=1).verdict() == (False, 'FAILED')


def test_what_nobody_published_cannot_be_missed():
    assert Measured(Published('x', None, None), [0.1], [1.0], []).verdict() == (True, 'none published')


def test_every_published_experiment_has_its_config():
    names = {path.stem for path in (ROOT / 'configs').glob('*.py')}
    assert {published.config for published in EXPERIMENTS} == names - {'default', 'fast'}


def test_a_run_of_it_goes_on_with_what_is_there_and_tells_what_is_missed(tmp_path, data_dir, monkeypatch, capsys):
    monkeypatch.setenv('TFDS_DATA_DIR', data_dir)
    monkeypatch.delenv('PJRT_NPROC', raising=False)
    overrides = (
        '--config.epochs=1', '--config.dataset.train=train[:600]', '--config.dataset.test=test[:100]',
        '--config.model.hidden=(16,)',
    )  # fmt: skip
    for seeds in (1, 2):
        with pytest.raises(SystemExit) as ended:
            reproduce(['mlp'], seeds, tmp_path, overrides)
        assert ended.value.code == 1
    text = (tmp_path / 'RESULTS.md').read_text()
    assert capsys.readouterr().out.endswith(text + '\n')
    (row,) = re.findall(r'^\| mlp \| test \| 0.9787 \| 0.1212 \| (.*) \|$', text, re.MULTILINE)
    accuracy, spread, _, seeds, _, verdict = row.split(' | ')
    least, greatest = map(float, spread.split(' to '))
    assert least < float(accuracy.split()[0]) < greatest and (seeds, verdict) == ('2', 'MISSED')
    assert 'Missed: mlp.' in text and {path.name for path in tmp_path.iterdir()} == {'mlp-0', 'mlp-1', 'RESULTS.md'}


def test_wrong_input_is_told(tmp_path):
    with pytest.raises(UserError, match=r'--experiments=mpl is none of the published ones: mlp, cnn,'):
        reproduce(['mpl'], 1, tmp_path)
    with pytest.raises(UserError, match='--seeds=0 is wrong: at least 1 is wanted'):
        reproduce([], 0, tmp_path)


def test_the_csv_has_the_classes_of_kaggles(tmp_path, data_dir, monkeypatch):
    monkeypatch.setattr('tensorflow_datasets.core.constants.DATA_DIR', data_dir)
    write_kaggle_csv(tmp_path / 'train.csv')
    images, labels = kaggle.read(tmp_path / 'train.csv')
    assert tuple(np.bincount(labels)) == KAGGLE_COUNTS and len(images) == 42_000
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == 42_000
