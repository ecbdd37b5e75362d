"""Studies: which trials are trained, their outcomes, and what a killed study loses."""

import csv
import json
import math
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, environment

from mnist_jax.config import load_config
from mnist_jax.errors import UserError
from mnist_jax.studies.population import train_population
from mnist_jax.studies.rounds import Rounds
from mnist_jax.studies.search import SEARCHES
from mnist_jax.studies.space import choice, log_uniform, when
from mnist_jax.studies.study import Outcome, Standing, Study, load_study, read_study
from mnist_jax.studies.study_report import claim_rows, make_sections
from mnist_jax.studies.sweep import Sweep, run_sweep
from mnist_jax.train import train

FIELDS = {'dataset__validation': 'train[300:400]', 'devices': 1}
RATES = {'optimizer.learning_rate': choice(1e-3, 1e-2)}


def outcome(score):
    return Outcome(score, {}, 1.0, '')


def simulate(rounds, score):
    """Returns the tasks of each round, and the outcomes, if the score of a task is `score(task)`."""
    outcomes, found = {}, []
    while tasks := rounds.next_tasks(outcomes):
        found.append(tasks)
        outcomes |= {(task.trial.name, task.epochs): outcome(score(task)) for task in tasks}
    return found, outcomes


def test_successive_halving_trains_the_best_further(small, tmp_path):
    values = tuple(range(1, 10))
    study = Study({'batch_size': choice(*values)}, seeds=2, reduction=3)
    sweep = Sweep(study, small(epochs=10, **FIELDS), tmp_path)
    quality = {value: (value * 7) % 10 for value in values}  # 7 4 1 8 5 2 9 6 3

    def score(task):  # The second seed is better by 1; one point diverges.
        return (
            None if task.trial.point['batch_size'] == 7 else quality[task.trial.point['batch_size']] + task.trial.seed
        )

    rounds, _ = simulate(sweep.rounds, score)
    assert [[task.epochs for task in tasks] for tasks in rounds] == [[1] * 18, [3] * 6, [10] * 2]
    points = [sorted({task.trial.point['batch_size'] for task in tasks}) for tasks in rounds]
    assert points == [list(values), [1, 4, 8], [4]]
    assert {task.trial.seed for task in rounds[2]} == {0, 1}


def test_each_round_has_exactly_its_share_of_the_points(small):
    study = Study({'batch_size': choice(*range(1, 170))}, reduction=13)
    rounds, _ = simulate(Rounds(study, small(epochs=169)), lambda task: -task.trial.number)
    assert [len(tasks) for tasks in rounds] == [169, 13, 1]  # In floating point, 169 (1 / 13 / 13) is more than 1.


def test_a_search_learns_from_scores_after_the_same_number_of_epochs(small, monkeypatch):
    received = []

    def two_batches():
        def propose(space, values, results):
            received[:] = results
            return [{'batch_size': len(results) + number} for number in (1, 2, 3)] if len(results) < 6 else []

        return propose

    monkeypatch.setitem(SEARCHES, 'two_batches', two_batches)
    study = Study({'batch_size': choice(*range(1, 7))}, {'name': 'two_batches'}, reduction=3)
    # A score rises by 1 with each epoch. The best point of each batch is trained further, and the last one diverges.
    diverging = {'batch_size': 6}
    simulate(
        Rounds(study, small(epochs=9)),
        lambda task: (
            None if task.trial.point == diverging and task.epochs == 9 else task.trial.point['batch_size'] + task.epochs
        ),
    )
    assert [score for _, score in received] == [2, 3, 4, 5, 6, None]


def test_differences_are_corrected_for_all_pairs_of_points(small, tmp_path):
    def standing(number, scores):
        return Standing(number, {}, 1, [outcome(score) for score in scores])

    best = np.linspace(0.90, 0.97, 8)
    points = [standing(0, best), standing(1, best - 0.01), standing(2, best[::-1] - 0.02)]
    sweep = Sweep(Study(RATES, seeds=8), small(epochs=2, **FIELDS), tmp_path)
    (first, second) = claim_rows(sweep, points)
    # All 8 seeds agree, so that p = 2 / 256; there are 3 pairs of points.
    assert first[:3] == ['0001', '8', '-0.0100'] and first[4:6] == ['0.00781', f'{3 * 2 / 256:.3g}']
    assert first[-1] == 'worse' and second[-1].startswith('may be chance')
    # A point that halving stopped is not compared; one with another value of `epochs` is.
    points[1] = Standing(1, {}, 2, points[1].outcomes)
    halving = Sweep(Study(RATES, seeds=8, reduction=2), small(epochs=2, **FIELDS), tmp_path)
    assert [len(claim_rows(study, points)) for study in (sweep, halving)] == [2, 1]


def test_points_with_several_numbers_of_epochs_are_drawn_with_their_last_scores(small, tmp_path):
    vary = {'epochs': choice(1, 2), 'optimizer.learning_rate': choice(1e-3, 1e-2)}
    config = small(dataset__validation='train[300:400]', devices=1)
    sweep = Sweep(Study(vary, seeds=1), config, tmp_path)
    run_sweep(sweep, 1)
    sections, standings = make_sections(sweep, sweep.standings()), sweep.standings()
    best = standings[0]
    (tooltip,) = [text for text in sections['parallel'].tooltips.values() if f'point {best.number:04d}:' in text]
    assert f'{sweep.value(best.point, best.score):.4f}' in tooltip
    assert sections['points'].header.count('epochs') == 1


def test_a_round_waits_for_all_of_its_tasks(small, tmp_path):
    sweep = Sweep(Study(RATES, seeds=2, reduction=2), small(epochs=2, **FIELDS), tmp_path)
    first = sweep.rounds.next_tasks({})
    outcomes = {(task.trial.name, task.epochs): outcome(0.5) for task in first[1:]}
    assert sweep.rounds.next_tasks(outcomes) == first and {task.epochs for task in first} == {1}
    outcomes[first[0].trial.name, 1] = outcome(0.9)
    assert {
        (task.trial.point['optimizer.learning_rate'], task.epochs) for task in sweep.rounds.next_tasks(outcomes)
    } == {(1e-3, 2)}


def test_a_trial_is_an_ordinary_run_that_was_not_evaluated_on_the_test_split(small, tmp_path, capsys):
    config = small(epochs=2, **FIELDS)
    sweep = Sweep(Study(RATES, seeds=2), config, tmp_path / 'study')
    assert run_sweep(sweep, 1) == 0
    printed = capsys.readouterr().out
    standings = sweep.standings()
    assert [standing.score for standing in standings] == sorted((s.score for s in standings), reverse=True)
    config.optimizer.learning_rate, config.seed = 1e-2, 1
    alone = train(config, tmp_path / 'alone')
    trial = tmp_path / 'study' / 'trials' / '0001-seed1'
    rows = list(csv.DictReader((tmp_path / 'study' / 'trials.csv').open()))
    assert [row['trial'] for row in rows] == ['0000-seed0', '0000-seed1', '0001-seed0', '0001-seed1']
    assert rows[3]['params_sha256'] == alone['params_sha256'] and rows[3]['optimizer.learning_rate'] == '0.01'
    assert not (trial / 'eval.json').exists() and (tmp_path / 'alone' / 'eval.json').exists()
    assert 'no trial was evaluated on the test split' in printed and f'{alone["accuracy"]:.4f}' not in printed
    # Continuing the trial as a run only evaluates it.
    assert (
        train(sweep.trial_config(sweep.rounds.next_tasks({})[3].trial), trial)['params_sha256']
        == alone['params_sha256']
    )


def test_a_rung_stops_a_run_in_its_schedule_and_continues_it(small, tmp_path):
    config = small(epochs=4, schedule__name='one_cycle', **FIELDS)
    whole = train(config, tmp_path / 'whole')
    stopped = train(config, tmp_path / 'run', until=1, evaluate=False)
    assert stopped['step'] == 5 and not (tmp_path / 'run' / 'eval.json').exists()
    assert train(config, tmp_path / 'run', until=4, evaluate=False)['params_sha256'] == whole['params_sha256']


def table(workdir):
    """Returns the rows of the table without the times."""
    return [row[:-1] for row in csv.reader((workdir / 'trials.csv').open())]


def test_a_killed_study_resumes_to_the_same_table(small, data_dir, tmp_path):
    fields = {'dataset.train': 'train[:4000]', 'dataset.validation': 'train[4000:4500]', 'dataset.test': 'test[:200]'}
    flags = [f'--config.{name}={value}' for name, value in {**fields, 'epochs': 2, 'model.hidden': '16,'}.items()]
    vary = '--vary=optimizer.learning_rate=1e-3,1e-2'
    program = [sys.executable, '-m', 'mnist_jax.main', '--mode=sweep', '--config=configs/mlp.py', *flags, vary]
    command = [*program, f'--workdir={tmp_path / "killed"}', '--workers=2']
    variables = environment(data_dir)
    process = subprocess.Popen(command, cwd=ROOT, env=variables, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / 'killed' / 'trials').glob('*/metrics.csv')):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)  # Its workers get SIGTERM.
    process.wait()
    config = load_config(str(ROOT / 'configs' / 'mlp.py'))
    config.update_from_flattened_dict({**fields, 'epochs': 2, 'model.hidden': (16,)})
    config.dataset.data_dir = data_dir
    run_sweep(Sweep(Study(RATES), config, tmp_path / 'killed'), 1)
    run_sweep(Sweep(Study(RATES), config, tmp_path / 'whole'), 1)
    assert table(tmp_path / 'killed') == table(tmp_path / 'whole') and len(table(tmp_path / 'whole')) == 3


def test_a_study_grows_but_does_not_change(small, tmp_path):
    config = small(epochs=1, **FIELDS)
    search = {'name': 'random', 'trials': 1}
    space = {'optimizer.learning_rate': log_uniform(1e-3, 1e-2)}
    run_sweep(Sweep(Study(space, search), config, tmp_path), 1)
    first = (tmp_path / 'outcomes' / '0000-seed0-epochs1.json').read_bytes()
    larger = Sweep(Study(space, {**search, 'trials': 2}, seeds=2), config, tmp_path)
    run_sweep(larger, 1)
    assert (tmp_path / 'outcomes' / '0000-seed0-epochs1.json').read_bytes() == first
    assert len(list((tmp_path / 'outcomes').iterdir())) == 4
    with pytest.raises(UserError, match=r'holds another study: epochs \(was 1, is 2\); use another --workdir'):
        Sweep(Study(space, search), small(epochs=2, **FIELDS), tmp_path)
    with pytest.raises(UserError, match=r'holds another study: vary \(was'):
        Sweep(Study(RATES, search), config, tmp_path)
    digests = tmp_path / 'trials' / '0000-seed0' / 'digests.json'
    digests.write_text(digests.read_text().replace('"train": "', '"train": "0'))  # as if the data had changed
    with pytest.raises(UserError, match=r'the dataset must be the one that the run in .*0000-seed0. was started with'):
        run_sweep(larger, 1)
    (tmp_path / 'outcomes' / '0000-seed0-epochs1.json').write_text('{')
    with pytest.raises(
        UserError, match=r"0000-seed0-epochs1.json' is damaged: .*; delete it, and run the same command"
    ):
        larger.__class__(larger.study, config, tmp_path).standings()


def test_a_trial_that_diverges_is_the_last(small, tmp_path, capsys):
    study = Study({'optimizer.learning_rate': choice(1e38, 1e-3)})
    run_sweep(Sweep(study, small(epochs=1, **FIELDS), tmp_path), 1)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines[-2:]] == ['0001', '0000'] and 'diverged' in lines[-1]


def test_points_keep_their_results(small, tmp_path):
    """Another order of fields, or other proposals of the search, must not give a point the result of another one."""
    config = small(epochs=1, **FIELDS)
    space = {**RATES, 'batch_size': choice(32, 64)}
    run_sweep(Sweep(Study(space), config, tmp_path), 1)
    with pytest.raises(UserError, match=r'holds another study: vary \(was'):
        Sweep(Study(dict(reversed(space.items()))), config, tmp_path)
    with pytest.raises(UserError, match=r'optimizer.learning_rate \(was 0.001, is 0.5\); use another --workdir'):
        Sweep(Study(space), small(epochs=1, optimizer__learning_rate=0.5, **FIELDS), tmp_path)
    with pytest.raises(UserError, match='--seeds must be at least 3, as in the study in'):
        definition = tmp_path / 'study.json'
        definition.write_text(definition.read_text().replace('"seeds": 1', '"seeds": 3'))
        Sweep(Study(space), config, tmp_path)
    definition.write_text(definition.read_text().replace('"seeds": 3', '"seeds": 1'))

    shutil.rmtree(tmp_path / 'trials' / '0002-seed0')  # is trained again
    digests = [row[-1] for row in table(tmp_path)]
    halved = Sweep(Study(space), config, tmp_path)
    assert len(halved.read_outcomes()) == 3
    later = tmp_path / 'outcomes' / '0002-seed0-epochs3.json'
    shutil.copy(later.with_name('0002-seed0-epochs1.json'), later)
    (task,) = [task for task in halved.rounds.next_tasks({}) if task.trial.name == '0002-seed0']
    halved.run(task)
    assert not later.exists() and len(Sweep(Study(space), config, tmp_path).read_outcomes()) == 4
    shutil.rmtree(tmp_path / 'trials' / '0002-seed0')
    run_sweep(Sweep(Study(space), config, tmp_path), 1)
    assert (tmp_path / 'trials' / '0002-seed0').is_dir() and [row[-1] for row in table(tmp_path)] == digests

    path = tmp_path / 'outcomes' / '0001-seed0-epochs1.json'
    saved = json.loads(path.read_text())
    for damaged in ({'score': True}, {'score': 'a'}, {'seconds': None}, {'score': math.inf}, {'point': 3}):
        path.write_text(json.dumps({**saved, **damaged}))
        with pytest.raises(UserError, match=r"0001-seed0-epochs1.json' is damaged: .*; delete it"):
            Sweep(Study(space), config, tmp_path).standings()
    path.write_text(json.dumps({**saved, 'point': {**saved['point'], 'batch_size': 16}}))
    with pytest.raises(UserError, match=r"0001-seed0 in .* must have been trained with .*'batch_size': 64.*, got .*16"):
        run_sweep(Sweep(Study(space), config, tmp_path), 1)


def test_nothing_is_written_if_the_config_does_not_fit_the_data(small, tmp_path):
    with pytest.raises(UserError, match=r'config.batch_size must be at most the number of training examples, 300'):
        run_sweep(Sweep(Study(RATES), small(batch_size=400, **FIELDS), tmp_path / 'study'), 1)
    assert not (tmp_path / 'study').exists()


def test_directories_hold_one_thing(small, tmp_path):
    config = small(epochs=1, **FIELDS)
    run_sweep(Sweep(Study({'optimizer.learning_rate': choice(1e-3)}), config, tmp_path / 'study'), 1)
    with pytest.raises(UserError, match='holds a study; use another --workdir for a run'):
        train(config, tmp_path / 'study')
    with pytest.raises(UserError, match='holds a study; use another --workdir for a population'):
        train_population(small(epochs=1, population=1), tmp_path / 'study')
    train_population(small(epochs=0, population=1), tmp_path / 'population', 1)
    with pytest.raises(UserError, match='holds a population; use another --workdir for a run'):
        train(config, tmp_path / 'population')
    with pytest.raises(UserError, match='holds a population; use another --workdir for a study'):
        Sweep(Study(RATES), config, tmp_path / 'population')


def test_fields_of_a_trial_may_refer_to_one_that_varies(small, tmp_path):
    config = small(**FIELDS)
    with config.unlocked():
        config.reduce_lr.patience = config.get_oneway_ref('epochs') * 2
    sweep = Sweep(Study({'epochs': choice(1, 3)}), config, tmp_path)
    assert [sweep.trial_config(task.trial).reduce_lr.patience for task in sweep.rounds.next_tasks({})] == [2, 6]
    assert not sweep.is_described_by_values()
    sweep.write()
    with pytest.raises(UserError, match=r'--config must be given to resume the study in .*: fields of the config'):
        read_study(tmp_path)
    other = Sweep(Study({'batch_size': choice(32, 64)}), config, tmp_path / 'other')
    assert other.is_described_by_values()  # No field refers to one that varies.


def test_a_score_stands_for_a_value_of_any_sign(small, tmp_path):
    fields = {**FIELDS, 'early_stopping__monitor': 'validation_loss'}
    for config, values in ((small(**FIELDS), [0.5, -0.5]), (small(**fields), [-0.5, 0.5])):
        sweep = Sweep(Study(RATES), config, tmp_path)
        assert [sweep.value({'optimizer.learning_rate': 1e-3}, score) for score in (0.5, -0.5)] == values


def test_trials_of_another_config_are_not_taken_for_those_of_a_study(small, tmp_path):
    study = Study({'optimizer.learning_rate': choice(1e-3)})
    run_sweep(Sweep(study, small(epochs=1, **FIELDS), tmp_path), 1)
    (tmp_path / 'study.json').unlink()
    with pytest.raises(UserError, match='batch_size'):
        run_sweep(Sweep(study, small(epochs=1, batch_size=32, **FIELDS), tmp_path), 1)


def test_a_study_in_which_all_runs_diverge_has_a_page(small, tmp_path):
    study = Study({'optimizer.learning_rate': choice(1e38, 2e38)})
    assert run_sweep(Sweep(study, small(epochs=1, **FIELDS), tmp_path), 1) == 0
    assert (tmp_path / 'report' / 'index.html').exists() and 'diverged' in (tmp_path / 'points.txt').read_text()


@pytest.mark.parametrize(
    ('study', 'fields', 'message'),
    [
        (Study({}), {}, 'a study must vary at least one config field'),
        (Study({'model.wide': choice(1)}), {}, "config.model.wide is not a field for 'mlp'"),
        (
            Study({'batch_size': choice(64, 'x')}),
            {},
            r"config.batch_size must be of type int, got 'x' \(with batch_size='x'",
        ),
        (Study({'seed': choice(1, 2)}), {}, 'a study must not vary the seed as a field; set --seeds'),
        (Study(RATES), {'dataset__validation': ''}, 'a study chooses by validation, so'),
        (Study(RATES, seeds=0), {}, '--seeds must be an integer from 1 to 1000, got 0'),
        (Study(RATES, reduction=1), {}, '--reduction must be an integer from 2 to 1000, got 1'),
        (Study(RATES, {'name': 'randm'}), {}, r'--search must be one of .*did you mean'),
        (Study(RATES, {'name': 'random'}), {}, "--trials, the number of points, must be set for the search 'random'"),
        (Study(RATES, {'name': 'grid', 'trials': 3}), {}, "--trials must not be set for the search 'grid'"),
        (Study(RATES, {'name': 'random', 'trials': 0}), {}, 'search.trials must be an integer from 1 to'),
        (Study(RATES), {'folds': 3}, 'config.folds must be 0 in a study, got 3'),
        (Study(RATES), {'population': 2}, 'config.population must be 0 in a study, got 2'),
        (
            Study({'early_stopping.monitor': choice('validation_loss')}),
            {},
            'must not vary config.early_stopping.monitor, by which it compares its points',
        ),
        (Study({'epochs': choice(0, 1)}), {}, r'config.epochs must be an integer from 1 to .*, got 0'),
        (
            Study({'loss.label_smoothing': choice(0.0, 0.1)}),
            {'early_stopping__monitor': 'validation_loss'},
            "another metric than config.early_stopping.monitor='validation_loss', which has another meaning for each",
        ),
        (
            Study({'dataset.class_weights': choice((), (0.1,) * 10)}),
            {'early_stopping__monitor': 'validation_loss'},
            "another metric than config.early_stopping.monitor='validation_loss', which has another meaning for each",
        ),
        (
            Study({'dataset.train': choice('train[:50%]', 'train')}),
            {'dataset__validation': '', 'dataset__validation_fraction': 0.1},
            'must not vary config.dataset.train: its points would be compared on different examples',
        ),
        (
            Study({'dataset.test_fraction': choice(0.1, 0.2)}),
            {},
            'must not vary config.dataset.test_fraction: its points would be compared on different examples',
        ),
        (Study({1: choice(0.1, 0.2)}), {}, 'the fields that a study varies must be strings, got 1'),
        (
            Study({'dataset.validation_fraction': choice(0.1, 0.2)}),
            {},
            'must not vary config.dataset.validation_fraction: its points would be compared on different examples',
        ),
        (Study(RATES, reduction=3), {}, 'config.epochs must be at least 3 with --reduction=3, got 2'),
        (Study({}, {'name': 'random', 'trials': 2}, seeds=2), {}, "--search must be 'grid' if no field is varied"),
        (
            Study({'batch_size': when(choice(32), 'chunks', 4), 'chunks': choice(2, 4)}),
            {},
            'the condition of batch_size must be on a field of the config, or one that is varied before it',
        ),
        (
            Study({'chunks': choice(2, 4), 'batch_size': when(choice(32), 'chunks', 8)}),
            {},
            'the condition of batch_size must name one of the values of chunks, 2, 4, got 8',
        ),
        (
            Study({'optimizer.momentum': when(choice(0.0), 'optimizer.name', 'sgd')}),
            {},
            "the condition of optimizer.momentum must name one of the values of optimizer.name, 'rmsprop', got 'sgd'",
        ),
        (Study(RATES), {'epochs': None}, 'config.epochs must be of type int, got None'),
        (
            Study({'optimizer.momentum': when(choice(0.0), 'optimiser.name', 'sgd')}),
            {},
            'the condition of optimizer.momentum must be on a field of the config, or one that is varied before it',
        ),
    ],
)
def test_wrong_studies_are_refused_before_anything_is_written(small, tmp_path, study, fields, message):
    with pytest.raises(UserError, match=message):
        Sweep(study, small(**{**FIELDS, **fields}), tmp_path / 'study')
    assert not (tmp_path / 'study').exists()


def test_a_study_is_not_put_into_a_run(small, tmp_path):
    train(small(epochs=0), tmp_path)
    with pytest.raises(UserError, match='holds a run; use another --workdir for a study'):
        Sweep(Study(RATES), small(**FIELDS), tmp_path)


def test_studies_in_files(tmp_path):
    path = tmp_path / 'study.py'
    path.write_text(
        'from mnist_jax.studies.space import choice\nfrom mnist_jax.studies.sweep import Study\n'
        "def get_study():\n    return Study({'batch_size': choice(32, 64)}, seeds=5)\n"
    )
    assert load_study(path) == Study({'batch_size': choice(32, 64)}, seeds=5)
    for text, message in (
        ('', 'AttributeError'),
        ('def get_study(): return 1', 'must return a'),
        ('def', 'SyntaxError'),
        ('import sys\ndef get_study(): sys.exit(7)', r'get_study\(\) in .*study.py.* failed: SystemExit: 7'),
        ('import mnist_jax.studies.study as s\ndef get_study(): return s.Study([1])', 'must be a dict of domains'),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            load_study(path)
    with pytest.raises(UserError, match='--sweep must be a Python file that defines get_study'):
        load_study(tmp_path / 'nowhere.py')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--sweep=study.py', '--seeds=3'], '--seeds must not be combined with --sweep'),
        (['--vary=chunks=2', '--vary=chunks=4'], "with another field than the others, got 'chunks' twice"),
        (['--vary==64'], "each --vary must be FIELD=VALUES, with another field than the others, got '=64'"),
        (['--vary=batch_size=32,64', '--workers=-1'], '--workers must be an integer from 1 to 64, got -1'),
    ],
)
def test_wrong_flags(forked, tmp_path, arguments, message):
    fields = ('--config=configs/mlp.py', '--config.dataset.validation_fraction=0.1', f'--workdir={tmp_path / "study"}')
    failed = forked('--mode=sweep', *fields, *arguments)
    assert failed.returncode == 2 and message in failed.stderr and failed.stderr.count('\n') == 1
    assert not (tmp_path / 'study').exists()
