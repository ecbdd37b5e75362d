"""Tests the reproduction of the published experiments: its verdicts, and two small runs."""

import re

import numpy as np
import pytest
import scipy.stats

from mnist_jax.data import kaggle
from mnist_jax.errors import UserError
from mnist_jax.studies import reproduction
from mnist_jax.studies.reproduction import KAGGLE_CLASS_COUNTS, ROOT, reproduce, write_kaggle_csv
from mnist_jax.studies.results_table import (
    EXPERIMENTS,
    PUBLISHED,
    Environment,
    Experiment,
    Result,
    RunResult,
    format_results,
    mean_interval,
    merge,
    read_results,
    read_run,
    verdict,
)

HERE = Environment('2 cores of a test (AVX2)', '0.10.2', 'abcdef0 with changes')


def run_of(config, seed, accuracy, digest='0' * 12, split='test', environment=HERE):
    result = None if accuracy is None else Result(accuracy, 0.1, 2.0, digest)
    return RunResult(config, split, str(seed), result, environment)


@pytest.mark.parametrize(
    ('accuracies', 'expected'),
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
def test_verdict_compares_mean_and_range_with_the_published_accuracy(accuracies, expected):
    assert verdict(Experiment('x', 0.9, 0.1), accuracies) == expected


def test_failed_seed_fails_the_experiment():
    assert verdict(Experiment('x', 0.9, 0.1), [0.95], failed=1) == (False, 'FAILED')


def test_experiment_without_published_result_cannot_be_missed():
    assert verdict(Experiment('x'), [0.1]) == (True, 'none published')


def test_the_table_of_the_runs_is_enough_to_write_all_tables(tmp_path):
    # Rounded to tenths, the mean of 1.04 and 0.04 is 0.5, which is rounded to 0; of the exact numbers, it is 0.54.
    runs = [run_of('mlp', seed, 0.98) for seed in range(2)]
    runs = [
        run._replace(result=run.result._replace(seconds=seconds))
        for run, seconds in zip(runs, (1.04, 0.04), strict=True)
    ]
    (tmp_path / 'RESULTS.md').write_text(format_results(runs))
    assert format_results(read_results(tmp_path / 'RESULTS.md')) == format_results(runs)


def test_the_interval_of_the_mean_is_that_of_scipy():
    values = [0.991, 0.9934, 0.9921, 0.9919, 0.9931, 0.9925]
    expected = scipy.stats.t.interval(0.95, 5, np.mean(values), scipy.stats.sem(values))
    np.testing.assert_allclose(mean_interval(values), expected, rtol=1e-12)
    assert mean_interval([0.9]) is None


def test_every_config_except_those_of_this_project_has_a_published_experiment():
    names = {path.stem for path in (ROOT / 'configs').glob('*.py')}
    own = {'default', 'fast_gpu', 'image_folder', 'lenet5', 'resnet', 'depthwise', 'mixer', 'vit'}
    downloaded = {'emnist', 'kmnist', 'kuzushiji49', 'cifar10', 'cifar100', 'svhn_cropped'}
    assert {experiment.config for experiment in EXPERIMENTS} == names - own - downloaded


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
    (row,) = re.findall(r'^\| mlp \| mnist \| test \| 669,706 \| 668,672 \| (.*) \|$', text, re.MULTILINE)
    accuracy, interval, worst, best, _, seeds, _, published, _, reason = row.split(' | ')
    assert float(worst) < float(accuracy.split()[0]) < float(best) and ' to ' in interval
    assert (seeds, published, reason) == ('2', '0.9787', 'MISSED')
    assert 'Missed: mlp (test).' in text and {path.name for path in tmp_path.iterdir()} == {
        'mlp-0',
        'mlp-1',
        'RESULTS.md',
    }
    # The finished runs are enough to write the table again, and so is the table.
    runs = [read_run(PUBLISHED[0], str(seed), tmp_path / f'mlp-{seed}') for seed in range(2)]
    assert format_results(runs) == text == format_results(read_results(tmp_path / 'RESULTS.md'))
    digests = [run.result.digest for run in runs]
    assert [run.result.digest for run in read_results(tmp_path / 'RESULTS.md')] == digests


def test_the_published_tables_are_what_the_published_runs_give():
    text = (ROOT / 'RESULTS.md').read_text()
    runs = read_results(ROOT / 'RESULTS.md')
    assert format_results(runs) == text
    published = {(experiment.config, experiment.split or 'test'): experiment.seeds for experiment in PUBLISHED}
    for key, seeds in published.items():
        assert sum((run.config, run.split) == key and run.result is not None for run in runs) == seeds, key


def test_results_are_read_as_they_were_written(tmp_path):
    other = Environment('4 cores of another', '0.11.0', 'mnist_jax 0.2.0')
    runs = [
        run_of('mlp', 0, 0.98, 'a' * 12),
        run_of('mlp', 1, 0.9812, 'b' * 12, environment=other),
        run_of('mlp', 'ensemble of 2', 0.99, 'c' * 12),
        run_of('kaggle_mlp', 3, 0.97, 'd' * 12, split='holdout'),
    ]
    (tmp_path / 'RESULTS.md').write_text(format_results(runs))
    assert read_results(tmp_path / 'RESULTS.md') == runs
    assert read_results(tmp_path / 'nothing') == []
    assert '| 0.9806 ± 0.0008; ensemble of 2: 0.9900 | 0.9730 to 0.9882 | 0.9800 | 0.9812 |' in format_results(runs)
    new = [run_of('mlp', 0, 0.5), run_of('mlp', 2, None), run_of('cnn', 0, 0.6)]
    merged = merge(runs, new)
    assert merged == [new[0], runs[1], new[1], new[2], runs[3]]  # The ensemble was one of other runs.
    text = format_results(merged)
    (tmp_path / 'RESULTS.md').write_text(text)
    assert read_results(tmp_path / 'RESULTS.md')[2].result is None
    assert '| 0.7406 ± 0.3403; 1 failed |' in text and text.count('| FAILED |') == 1
    assert format_results(read_results(tmp_path / 'RESULTS.md')) == text


@pytest.mark.parametrize(
    'damage',
    [
        lambda text: text.replace('0.980000', '98'),
        lambda text: text.replace('0.980000', '0.98.1'),
        lambda text: text[:-20],
        lambda text: text + text.splitlines()[-1],
        lambda text: text.replace('| 1 | 2 cores', '| 7 | 2 cores'),
    ],
)
def test_a_damaged_table_is_one_line_before_anything_is_trained(tmp_path, damage):
    text = format_results([run_of('mlp', 0, 0.98, 'a' * 12)])
    (tmp_path / 'RESULTS.md').write_text(damage(text))
    with pytest.raises(UserError, match=r"line \d+ of '.*RESULTS.md' must be a run in the columns config, split, seed"):
        reproduce(['mlp'], 1, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['RESULTS.md']
    (tmp_path / 'RESULTS.md').write_bytes(b'\xff\xfe')
    with pytest.raises(UserError, match=r"RESULTS.md' must be a text file, got "):
        read_results(tmp_path / 'RESULTS.md')
    (tmp_path / 'RESULTS.md').write_bytes(text.replace('\n', '\r\n').encode())
    assert len(read_results(tmp_path / 'RESULTS.md')) == 1


def test_reproduction_says_of_each_run_whether_it_is_bit_identical_to_the_published_one(tmp_path, monkeypatch, caplog):
    def run(experiment, seed, workdir, overrides):
        return seed < 3

    def read(experiment, seed, workdir):
        return run_of(experiment.config, seed, 1.0, f'{int(seed):012x}')

    monkeypatch.setattr(reproduction, '_run_seed', run)
    monkeypatch.setattr(reproduction, 'read_run', read)
    monkeypatch.setattr(reproduction, 'CHECKOUT', tmp_path / 'checkout')
    published = format_results([run_of('mlp', 0, 1.0, f'{0:012x}'), run_of('mlp', 1, 1.0, 'f' * 12)])
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


def test_an_ensemble_of_all_seeds_is_evaluated(tmp_path, data_dir, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', data_dir)
    monkeypatch.delenv('PJRT_NPROC', raising=False)
    small = Experiment('mlp', seeds=2, has_ensemble=True)
    monkeypatch.setattr(reproduction, 'EXPERIMENTS', (small,))
    overrides = (
        '--config.epochs=1', '--config.dataset.train=train[:300]', '--config.dataset.test=test[:100]',
        '--config.model.hidden=(16,)',
    )  # fmt: skip
    *members, ensemble = reproduce(['mlp'], None, tmp_path, overrides)
    assert ensemble.seed == 'ensemble of 2' and len(members) == 2
    assert ensemble.result.seconds == pytest.approx(sum(run.result.seconds for run in members))
    read = read_run(small, 'ensemble of 2', tmp_path / 'mlp-ensemble-2')
    assert read.result.accuracy == ensemble.result.accuracy
    assert reproduce(['mlp'], 3, tmp_path, overrides)[-1].seed == 'ensemble of 3'
    assert [run.seed for run in read_results(tmp_path / 'RESULTS.md')] == ['0', '1', '2', 'ensemble of 3']


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
