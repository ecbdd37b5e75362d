"""`mnist_jax.study`: the same trials as the command line, resumption, and what a notebook gets."""

import csv
import statistics

import pytest
from conftest import make_small
from matplotlib.figure import Figure

import mnist_jax
from mnist_jax.config import load_config
from mnist_jax.errors import UserError
from mnist_jax.models.architectures import MLP, MODELS
from mnist_jax.studies.space import choice, log_uniform, parse_domain, uniform, when
from mnist_jax.studies.study import read_study

FIELDS = {'dataset__validation': 'train[300:400]', 'devices': 1, 'epochs': 1}
VARY = {'optimizer.learning_rate': [1e-3, 1e-2], 'model.hidden': '(8,), (16,)'}


def table(workdir):
    """The rows of trials.csv without the times."""
    with open(workdir / 'trials.csv', newline='') as file:
        return [row[:-1] for row in csv.reader(file)]


def test_a_study_in_python_has_the_trials_of_the_command_line(data_dir, program, tmp_path):
    config = load_config('configs/mlp.py')
    fields = {'dataset.train': 'train[:300]', 'dataset.validation': 'train[300:400]', 'dataset.test': 'test[:200]'}
    config.update_from_flattened_dict({**fields, 'epochs': 1, 'batch_size': 64})
    config.dataset.data_dir = data_dir
    study = mnist_jax.study(config, VARY, tmp_path / 'python', seeds=2, workers=2)
    assert len(study.points) == 4 and len(study.trials) == 8 and study.metric == 'validation_accuracy'

    # The directory describes the whole study, so the command line can resume it, and write its page and tables.
    resumed = program('--mode=sweep', f'--workdir={tmp_path / "python"}')
    assert resumed.returncode == 0, resumed.stderr
    assert 'trial 0' not in resumed.stderr
    flags = [f'--config.{name}={value}' for name, value in {**fields, 'epochs': 1, 'batch_size': 64}.items()]
    vary = ['--vary=optimizer.learning_rate=1e-3,1e-2', '--vary=model.hidden=(8,),(16,)', '--seeds=2', '--workers=1']
    command = [f'--config.dataset.data_dir={data_dir}', f'--workdir={tmp_path / "command"}']
    process = program('--mode=sweep', '--config=configs/mlp.py', *flags, *vary, *command)
    assert process.returncode == 0, process.stderr
    assert table(tmp_path / 'python') == table(tmp_path / 'command')
    # The same numbers by name.
    scores = [trial['validation_accuracy'] for trial in study.trials]
    assert sorted(map(repr, scores)) == sorted(row[5] for row in table(tmp_path / 'python')[1:])
    for point in study.points:
        own = [trial['validation_accuracy'] for trial in study.trials if point.items() >= trial_point(trial).items()]
        assert point['mean'] == statistics.fmean(own) and point['deviation'] == pytest.approx(statistics.stdev(own))


def trial_point(trial):
    return {name: trial[name] for name in VARY}


def test_a_study_is_resumed_grows_and_is_tested_once_at_the_end(small, tmp_path):
    config = small(**FIELDS)
    first = mnist_jax.study(config, {'optimizer.learning_rate': (1e-3, 1e-2)}, tmp_path, workers=1)
    assert repr(first) == f'<FinishedStudy {str(tmp_path)!r}: 2 points>'
    assert first.best['seeds'] == 1 and first.best['deviation'] is None
    study = mnist_jax.study(config, {'optimizer.learning_rate': choice(1e-3, 1e-2)}, tmp_path, seeds=2, workers=1)
    assert [len(point['workdirs']) for point in study.points] == [2, 2]
    means = [point['mean'] for point in study.points]
    assert means == sorted(means, reverse=True)
    header, _, *rows = study.table().splitlines()
    assert header.split()[:2] == ['point', 'optimizer.learning_rate'] and len(rows) == 2
    assert study.differences().splitlines()[2].split()[1] == '2'  # seeds
    figures = study.figures()
    assert {'slices', 'curves', 'parallel'} <= set(figures) and isinstance(figures['curves'], Figure)

    assert not list(tmp_path.rglob('eval.json'))
    results = study.test()
    assert [result['count'] for result in results] == [200, 200]
    assert sorted(tmp_path.rglob('eval.json')) == [path / 'eval.json' for path in study.best['workdirs']]
    assert mnist_jax.load(study.best['workdirs'][1]).result == results[1]


def test_an_own_part_is_trained_in_this_process(small, tmp_path, monkeypatch):
    class OwnMLP(MLP):
        """An MLP of the user."""

    OwnMLP.__module__ = 'notebook'
    monkeypatch.setitem(MODELS, 'own', OwnMLP)
    config = small(**FIELDS, model__name='own')
    study = mnist_jax.study(config, {'optimizer.learning_rate': [1e-3]}, tmp_path / 'study')
    assert len(study.points) == 1
    with pytest.raises(UserError, match='workers must be 1 for a config with parts of your own, got 2'):
        mnist_jax.study(config, {'optimizer.learning_rate': [1e-3]}, tmp_path / 'other', workers=2)


@pytest.mark.parametrize(
    ('vary', 'options', 'message'),
    [
        ({}, {}, 'a study must vary at least one config field'),
        ({'model.wide': [1]}, {}, 'config.model.wide is not a field'),
        ({'epochs': 3}, {}, 'the values of epochs must be one of mnist_jax.studies.space, got 3'),
        ({'epochs': []}, {}, 'choice must have at least one value, got none'),
        ({'epochs': 'uniform(1)'}, {}, r"--vary=epochs=VALUES must be .*, got 'uniform\(1\)'"),
        ({'epochs': [1, 2]}, {'search': 'random'}, '--trials, the number of points, must be set'),
        ({'epochs': [1, 2]}, {'workers': -1}, '--workers must be an integer from 0 to 64, got -1'),
    ],
)
def test_wrong_arguments(small, tmp_path, vary, options, message):
    with pytest.raises(UserError, match=message):
        mnist_jax.study(small(**FIELDS), vary, tmp_path / 'study', **options)
    assert not (tmp_path / 'study').exists()


@pytest.mark.parametrize(
    'domain',
    [
        choice(1, 0.1, 'adam', True, None, (8, 16), ({'name': 'shift', 'pixels': 1},), ()),
        uniform(0.0, 0.95),
        log_uniform(1e-4, 1e-2),
        parse_domain('x', 'integers(1, 9)'),
        parse_domain('x', 'log_integers(1, 9)'),
        when(uniform(0.0, 0.95), 'optimizer.name', 'sgd', 'nadam'),
        when(choice((1,)), 'model.batch_norm', True),
    ],
)
def test_a_domain_is_read_from_its_text(domain):
    assert parse_domain('x', str(domain)) == domain


@pytest.mark.parametrize('text', ['when(1, "a", 2)', 'when(uniform(0, 1))', 'when(when(choice(1), "a", 1), "b", 1)'])
def test_a_wrong_condition_is_refused(text):
    with pytest.raises(UserError, match="when must have at least one value of 'a', got none"):
        when(choice(1), 'a')
    with pytest.raises(UserError, match='--vary=x=VALUES must be'):
        parse_domain('x', text)


def test_the_study_in_a_directory(data_dir, tmp_path, program):
    config = make_small(data_dir, **FIELDS)
    space = {'optimizer.learning_rate': log_uniform(1e-3, 1e-2)}
    study = mnist_jax.study(
        config, space, tmp_path / 'study', search={'name': 'random', 'seed': 3}, trials=1, workers=1
    )
    read, saved = read_study(study.workdir)
    assert read.vary == space and dict(read.search) == {'name': 'random', 'seed': 3, 'trials': 1}
    assert saved == config
    for arguments, message in (
        ([f'--workdir={tmp_path}'], 'the directory of a study, or --config must be given'),
        ([f'--workdir={study.workdir}', '--seeds=2'], '--seeds needs --config; without it, the study in --workdir is'),
        ([f'--workdir={study.workdir}'], "study.json' is damaged"),
    ):
        if 'damaged' in message:
            (study.workdir / 'study.json').write_text('{"search": 3}')
        failed = program('--mode=sweep', *arguments)
        assert failed.returncode == 2 and message in failed.stderr and failed.stderr.count('\n') == 1
