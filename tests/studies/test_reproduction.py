"""Tests the reproduction of the published experiments: its verdicts, and two small runs."""

import json
import re

import numpy as np
import pytest

from mnist_jax.data import kaggle
from mnist_jax.errors import UserError
from mnist_jax.studies import reproduction
from mnist_jax.studies.reproduction import (
    EXPERIMENTS,
    KAGGLE_CLASS_COUNTS,
    ROOT,
    Measurement,
    PublishedResult,
    format_results,
    read_digests,
    read_measurement,
    reproduce,
    table_row,
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
def test_verdict_compares_mean_and_range_with_the_published_accuracy(accuracies, verdict):
    assert Measurement(PublishedResult('x', 0.9, 0.1), accuracies, accuracies, []).verdict() == verdict


def test_failed_seed_fails_the_experiment():
    measurement = Measurement(PublishedResult('x', 0.9, 0.1), [0.95], [0.1], [1.0], failed=1)
    assert measurement.verdict() == (False, 'FAILED')


def test_experiment_without_published_result_cannot_be_missed():
    measurement = Measurement(PublishedResult('x', None, None), [0.1], [1.0], [])
    assert measurement.verdict() == (True, 'none published')


def test_every_config_except_those_of_this_project_has_a_published_experiment():
    names = {path.stem for path in (ROOT / 'configs').glob('*.py')}
    own = {'default', 'fast', 'fast_gpu', 'image_folder', 'lenet5', 'resnet', 'depthwise', 'mixer', 'vit'}
    downloaded = {'emnist', 'kmnist', 'kuzushiji49', 'cifar10', 'cifar100', 'svhn_cropped'}
    assert {published.config for published in EXPERIMENTS} == names - own - downloaded


def test_reproduction_resumes_finished_runs_and_reports_a_missed_accuracy(tmp_path, data_dir, monkeypatch, capsys):
    monkeypatch.setenv('TFDS_DATA_DIR', data_dir)
    monkeypatch.delenv('PJRT_NPROC', raising=False)
    overrides = (
        '--config.epochs=1', '--config.dataset.train=train[:600]', '--config.dataset.test=test[:100]',
        '--config.model.hidden=(16,)',
    )  # fmt: skip
    for seeds in (1, 2):
        with pytest.raises(SystemExit) as raised:
            reproduce(['mlp'], seeds, tmp_path, overrides)
        assert raised.value.code == 1
    text = (tmp_path / 'RESULTS.md').read_text()
    assert capsys.readouterr().out.endswith(text + '\n')
    (row,) = re.findall(r'^\| mlp \| test \| 0.9787 \| 0.1212 \| (.*) \|$', text, re.MULTILINE)
    accuracy, accuracy_range, _, seeds, _, verdict = row.split(' | ')
    lowest, highest = map(float, accuracy_range.split(' to '))
    assert lowest < float(accuracy.split()[0]) < highest and (seeds, verdict) == ('2', 'MISSED')
    assert 'Missed: mlp.' in text and {path.name for path in tmp_path.iterdir()} == {'mlp-0', 'mlp-1', 'RESULTS.md'}
    # The finished runs are enough to write the table again.
    measurement = read_measurement(EXPERIMENTS[0], range(2), tmp_path)
    digests = [json.loads((tmp_path / f'mlp-{seed}' / 'eval.json').read_text())['params_sha256'] for seed in range(2)]
    assert measurement.digests == {seed: digest[:12] for seed, digest in enumerate(digests)}
    assert read_digests(tmp_path / 'RESULTS.md') == {'mlp': measurement.digests}
    cells = table_row(measurement)
    assert ' | '.join(cells) in format_results([cells], 'command', 'environment') and ' | '.join(cells[4:]) == row


def test_reproduction_says_of_each_run_whether_it_is_bit_identical_to_the_published_one(tmp_path, monkeypatch, caplog):
    def run(published, seed, workdir, overrides):
        return seed < 3

    def read(published, seeds, workdir):
        digests = {seed: f'{seed:012x}' for seed in seeds}
        return Measurement(published, [1.0] * len(digests), [0.1], [1.0], digests=digests)

    monkeypatch.setattr(reproduction, '_run_seed', run)
    monkeypatch.setattr(reproduction, 'read_measurement', read)
    monkeypatch.setattr(reproduction, 'CHECKOUT', tmp_path / 'checkout')
    published = format_results([], '', '', {'mlp': {0: f'{0:012x}', 1: 'f' * 12}})
    (tmp_path / 'checkout').mkdir()
    (tmp_path / 'checkout' / 'RESULTS.md').write_text(published)
    with caplog.at_level('INFO'):
        reproduce(['mlp'], 3, tmp_path)
    assert [message for message in caplog.messages if message.startswith('mlp, seed')] == [
        'mlp, seed 0: 000000000000 is bit-identical to the published run',
        'mlp, seed 1: 000000000001 differs from the published run, whose digest is ffffffffffff',
        'mlp, seed 2: 000000000002 has no published digest',
    ]
    assert (tmp_path / 'checkout' / 'RESULTS.md').read_text() == published
    assert read_digests(tmp_path / 'nothing') == {}


def test_unknown_experiment_and_zero_seeds_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"--experiments must be among mlp, cnn, .*, got 'mpl'"):
        reproduce(['mpl'], 1, tmp_path)
    with pytest.raises(UserError, match='--seeds must be at least 1, got 0'):
        reproduce([], 0, tmp_path)


def test_generated_csv_has_the_class_counts_of_kaggle_and_no_duplicates(tmp_path, data_dir, monkeypatch):
    monkeypatch.setattr('tensorflow_datasets.core.constants.DATA_DIR', data_dir)
    write_kaggle_csv(tmp_path / 'train.csv')
    images, labels = kaggle.read(tmp_path / 'train.csv')
    assert tuple(np.bincount(labels)) == KAGGLE_CLASS_COUNTS and len(images) == 42_000
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == 42_000
