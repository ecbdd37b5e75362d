"""`mnist_jax.study`: the same trials as the command line, resumption, and what a notebook gets."""

import csv
import statistics

import numpy as np
import pytest
from conftest import make_small
from matplotlib.figure import Figure

import mnist_jax
from mnist_jax.config import load_config
from mnist_jax.data.source import BUILDERS, SOURCES, source_of
from mnist_jax.errors import UserError
from mnist_jax.models.architectures import MLP, MODELS
from mnist_jax.studies.space import choice, log_uniform, parse_domain, uniform, when
from mnist_jax.studies.study import read_study

FIELDS = {'dataset__validation': 'train[300:400]', 'devices': 1, 'epochs': 1}
VARY = {'optimizer.learning_rate': '1e-3, 1e-2', 'model.hidden': [(8,)]}


def table(workdir):
    """The rows of trials.csv without the times."""
    with open(workdir / 'trials.csv', newline='') as file:
        return [row[:-1] for row in csv.reader(file)]


def test_workers_and_the_command_line_have_the_trials_of_a_study_in_python(data_dir, program, tmp_path):
    config = load_config('configs/mlp.py')
    fields = {'dataset.train': 'train[:300]', 'dataset.validation': 'train[300:400]', 'dataset.test': 'test[:200]'}
    config.update_from_flattened_dict({**fields, 'epochs': 1, 'batch_size': 64, 'devices': 1})
    config.dataset.data_dir = data_dir
    study = mnist_jax.study(config, VARY, tmp_path / 'python', seeds=2, workers=2)
    assert len(study.points) == 2 and len(study.trials) == 4 and study.metric == 'validation_accuracy'

    # The directory describes the whole study, so the command line can resume it, and write its page and tables.
    resumed = program('--mode=sweep', f'--workdir={tmp_path / "python"}')
    assert resumed.returncode == 0, resumed.stderr
    assert 'trial 0' not in resumed.stderr
    values = {'optimizer.learning_rate': choice(1e-3, 1e-2), 'model.hidden': 'choice((8,))'}
    mnist_jax.study(config, values, tmp_path / 'alone', seeds=2, workers=1)
    assert table(tmp_path / 'python') == table(tmp_path / 'alone')
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


def test_numbers_of_numpy_are_plain_values(small, tmp_path):
    rates = np.array([0.001, 0.0100000004])
    config = small(**FIELDS)
    study = mnist_jax.study(config, {'optimizer.learning_rate': rates}, tmp_path, seeds=np.int64(2), workers=1)
    assert {type(point['optimizer.learning_rate']) for point in study.points} == {float}
    assert when(list(rates), 'optimizer.name', 'sgd').domain == choice(0.001, 0.0100000004)
    assert uniform(0.0, 0.99999).at(0.999999) == 0.99999  # Rounding does not leave the interval.
    assert (tmp_path / 'points.txt').read_text().endswith(study.table() + '\n')
    assert {row[1] for row in table(tmp_path)[1:]} == {'0.001', '0.0100000004'}


def test_runs_that_diverged_are_not_tested(small, tmp_path):
    study = mnist_jax.study(small(**FIELDS), {'optimizer.learning_rate': [1e38]}, tmp_path, workers=1)
    assert study.best['mean'] is None and set(study.figures())
    with pytest.raises(UserError, match='the study must have a best point, so one of which no run diverged'):
        study.test()


def test_an_own_part_is_trained_in_this_process(small, tmp_path, monkeypatch):
    class OwnMLP(MLP):
        """An MLP of the user."""

    OwnMLP.__module__ = 'notebook'
    monkeypatch.setitem(MODELS, 'own', OwnMLP)
    config = small(**FIELDS, model__name='own')
    study = mnist_jax.study(config, {'optimizer.learning_rate': [1e-3]}, tmp_path / 'study')
    assert len(study.points) == 1
    fields = {'model.name': ['mlp', 'own']}
    with pytest.raises(UserError, match='workers must be 1 for a config with parts of your own, got 2'):
        mnist_jax.study(small(**FIELDS), fields, tmp_path / 'names', search='optuna', trials=1, workers=2)
    referring = small(**FIELDS)
    with referring.unlocked():
        referring.reduce_lr.patience = referring.get_oneway_ref('batch_size') * 2
    with pytest.raises(UserError, match='workers must be 1 for a config with fields that refer to ones that vary, got'):
        mnist_jax.study(referring, {'batch_size': [32, 64]}, tmp_path / 'references', workers=2)
    monkeypatch.setitem(SOURCES, 'own', source_of('own', type('Own', (BUILDERS['mnist'],), {'__module__': 'notebook'})))
    for own in (config, small(**FIELDS, dataset__name='own')):
        with pytest.raises(UserError, match='workers must be 1 for a config with parts of your own, got 2'):
            mnist_jax.study(own, {'optimizer.learning_rate': [1e-3]}, tmp_path / 'other', workers=2)


@pytest.mark.parametrize(
    ('vary', 'options', 'message'),
    [
        ({}, {}, 'a study must vary at least one config field'),
        ({'model.wide': [1]}, {}, 'config.model.wide is not a field'),
        ({'epochs': 3}, {}, r'the values of epochs must be a domain such as choice\(0.1, 0.2\) or .*, got 3'),
        ({'epochs': []}, {}, 'choice must have at least one value, got none'),
        ({'epochs': 'uniform(1)'}, {}, r"--vary=epochs=VALUES must be .*, got 'uniform\(1\)'"),
        ({'epochs': [1, 2]}, {'search': 'random'}, '--trials, the number of points, must be set'),
        ({'epochs': [1, 2]}, {'workers': 0}, 'workers must be an integer from 1 to 64, got 0'),
        (None, {}, 'vary must be a dict of values by field, got None'),
        ({'epochs': [1, 2]}, {'search': 3}, 'search must be a name, or a dict with a name, got 3'),
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


def test_the_study_in_a_directory(data_dir, tmp_path, forked):
    config = make_small(data_dir, **FIELDS)
    space = {'optimizer.learning_rate': log_uniform(1e-3, 1e-2)}
    study = mnist_jax.study(
        config, space, tmp_path / 'study', search={'name': 'random', 'seed': 3}, trials=1, workers=1
    )
    read, saved = read_study(study.workdir)
    assert read.vary == space and dict(read.search) == {'name': 'random', 'seed': 3, 'trials': 1}
    assert saved == config
    for arguments, message in (
        ([f'--workdir={tmp_path}'], 'holds no study; to start one, give --config'),
        ([f'--workdir={study.workdir}', '--seeds=2'], '--seeds needs --config; without it, the study in --workdir is'),
        ([f'--workdir={study.workdir}'], "study.json' is damaged"),
    ):
        if 'damaged' in message:
            (study.workdir / 'study.json').write_text('{"search": 3}')
        failed = forked('--mode=sweep', *arguments)
        assert failed.returncode == 2 and message in failed.stderr and failed.stderr.count('\n') == 1
