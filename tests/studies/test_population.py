"""Populations: each member has the bits of the same run alone."""

import json
import statistics

import pytest

from mnist_jax.errors import MAX_INT, Interrupted, UserError
from mnist_jax.evaluate import evaluate_workdir
from mnist_jax.studies.population import train_population
from mnist_jax.train import train


def test_members_are_the_runs_alone_and_resume(small, tmp_path, capsys):
    config = small(population=3, seed=5, devices=1, dataset__validation='train[300:400]')
    assert train_population(config, tmp_path / 'population', 1) == 0
    printed = capsys.readouterr().out
    results = [json.loads((tmp_path / 'population' / f'member-{seed}' / 'eval.json').read_text()) for seed in (5, 6, 7)]
    summary = json.loads((tmp_path / 'population' / 'population.json').read_text())
    assert [member['params_sha256'] for member in summary['members']] == [run['params_sha256'] for run in results]
    accuracies = [run['accuracy'] for run in results]
    assert summary['mean'] == statistics.fmean(accuracies)
    assert summary['standard_deviation'] == statistics.stdev(accuracies)
    assert summary['quantiles']['0.5'] == statistics.median(accuracies)
    assert f'mean        {summary["mean"]:.4f}' in printed and '0% ' in printed
    alone = small(seed=6, devices=1, dataset__validation='train[300:400]')
    assert train(alone, tmp_path / 'alone')['params_sha256'] == results[1]['params_sha256']
    (tmp_path / 'population' / 'member-6' / 'eval.json').unlink()  # as if killed before its evaluation
    config.population = 4
    train_population(config, tmp_path / 'population', 1)
    again = json.loads((tmp_path / 'population' / 'population.json').read_text())
    assert again['members'][:3] == summary['members'] and len(again['members']) == 4


def test_a_member_that_was_evaluated_before_its_end_is_trained_further(small, tmp_path):
    config = small(population=2, devices=1)
    train_population(config, tmp_path / 'whole', 1)
    train(small(seed=1, devices=1), tmp_path / 'member' / 'member-1', until=1)
    evaluate_workdir(tmp_path / 'member' / 'member-1')

    def stop(step, request):
        request.signal = 15

    with pytest.raises(Interrupted):  # in the first epoch, so that metrics.csv has no row
        train(small(devices=1), tmp_path / 'member' / 'member-0', on_step=stop)
    evaluate_workdir(tmp_path / 'member' / 'member-0')
    train_population(config, tmp_path / 'member')  # in this process: there is no command line to start again
    with pytest.raises(UserError, match=r'the number of workers must be 1 without a command line .*, got 2'):
        train_population(config, tmp_path / 'member', 2)
    whole, other = (
        json.loads((tmp_path / name / 'population.json').read_text())['members'] for name in ('whole', 'member')
    )
    assert [member['params_sha256'] for member in other] == [member['params_sha256'] for member in whole]


def test_a_population_ends_if_the_metrics_of_a_member_are_damaged(small, tmp_path, capsys):
    # With a learning rate of 0, the first epoch is the best one, with which the run ends.
    fields = {'optimizer__learning_rate': 0.0, 'early_stopping__restore_best': True}
    config = small(population=1, devices=1, dataset__validation='train[300:400]', **fields)
    train_population(config, tmp_path)
    capsys.readouterr()
    path = tmp_path / 'member-0' / 'metrics.csv'
    path.write_text(''.join(path.read_text().splitlines(keepends=True)[:-1]))
    train_population(config, tmp_path)
    assert capsys.readouterr().out.count('mean  ') == 1


def test_the_fields_of_a_member_may_refer_to_its_seed(small, tmp_path):
    config = small(population=2, devices=1, epochs=0)
    with config.unlocked():
        config.dataset.split_seed = config.get_oneway_ref('seed')
    train_population(config, tmp_path)
    seeds = [json.loads((tmp_path / f'member-{seed}' / 'config.json').read_text())['dataset'] for seed in (0, 1)]
    assert [fields['split_seed'] for fields in seeds] == [0, 1]
    config.seed = MAX_INT
    with pytest.raises(UserError, match=r'config.seed \+ config.population - 1 must be an integer from 0 to'):
        train_population(config, tmp_path / 'large')


def test_two_workers_train_a_population(program, tmp_path):
    fields = {'dataset.train': 'train[:300]', 'dataset.test': 'test[:200]', 'epochs': '1', 'model.hidden': '16,'}
    flags = [f'--config.{name}={value}' for name, value in fields.items()]
    arguments = ['--config=configs/mlp.py', *flags, '--config.population=2', f'--workdir={tmp_path}', '--workers=2']
    finished = program(*arguments)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count('mean  ') == 1 and finished.stderr.count('accuracy') == 2
    assert len(json.loads((tmp_path / 'population.json').read_text())['members']) == 2


def test_wrong_populations_are_refused(small, forked, tmp_path):
    train(small(epochs=0), tmp_path / 'run')
    with pytest.raises(UserError, match='holds a run; use another --workdir for a population'):
        train_population(small(population=2), tmp_path / 'run')
    with pytest.raises(UserError, match=r'config\.population must be 0 for a single run, got 2; mnist_jax\.studies'):
        train(small(population=2), tmp_path / 'new')
    with pytest.raises(UserError, match=r'config\.folds must be 0 in a population, got 3'):
        train_population(small(population=2, folds=3), tmp_path / 'new')
    with pytest.raises(UserError, match=r'config\.population must be an integer from 0 to 1000, got -1'):
        train_population(small(population=-1), tmp_path / 'new')
    train_population(small(population=1, epochs=1), tmp_path / 'other', 1)
    with pytest.raises(UserError, match='different config: batch_size'):
        train_population(small(population=2, epochs=1, batch_size=32), tmp_path / 'other', 1)
    with pytest.raises(UserError, match=r'config\.epochs must be 1, as in .*member-0'):
        train_population(small(population=2), tmp_path / 'other', 1)
    assert not (tmp_path / 'other' / 'member-1').exists()
    failed = forked('--config=configs/mlp.py', '--workers=2', f'--workdir={tmp_path / "new"}')
    assert failed.returncode == 2 and '--workers needs --config.population' in failed.stderr
    for field in ('population', 'folds'):
        failed = forked('--config=configs/mlp.py', f'--config.{field}=2', '--report', f'--workdir={tmp_path / "new"}')
        assert failed.returncode == 2 and f'--report must not be combined with --config.{field}' in failed.stderr
    assert not (tmp_path / 'new').exists()
