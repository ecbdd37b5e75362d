"""Recipes: runs that differ only in the seed, and differences between them, with made-up results."""

import json

import pytest
from conftest import make_small

from mnist_jax.workdir.comparison import comparison_table
from mnist_jax.workdir.finished_runs import FinishedRun
from mnist_jax.workdir.recipes import (
    MAX_COLUMNS,
    claim_rows,
    field_rows,
    group_runs,
    recipe_lines,
    summary_rows,
    uncounted_runs,
)

FIRST = (0.910, 0.912, 0.911, 0.913, 0.914, 0.915)
SECOND = (0.900, 0.903, 0.899, 0.902, 0.905, 0.906)


@pytest.fixture
def runs(data_dir, tmp_path):
    """Makes finished runs of a recipe, one for each accuracy; the seeds are 0, 1, ..."""

    def make(accuracies, split='a', validation=0.9, **fields):
        configs = [make_small(data_dir, seed=seed, **fields) for seed in range(len(accuracies))]
        return [
            FinishedRun(
                name=f'run-{config.seed}',
                workdir=tmp_path,
                config=config,
                result={'accuracy': accuracy, 'step': 10 * config.epochs, 'split_sha256': split, 'count': 1000},
                epochs=[
                    {'epoch': number, 'step': 10 * number, 'validation_accuracy': validation}
                    for number in range(1, config.epochs + 1)
                ],
            )
            for config, accuracy in zip(configs, accuracies, strict=True)
        ]

    return make


def test_runs_are_grouped_by_what_affects_a_result(runs):
    all_runs = (
        runs(FIRST) + runs(SECOND, optimizer__learning_rate=0.1) + runs((0.5,), epochs=7) + runs((0.4,), devices=1)
    )
    recipes = group_runs(all_runs)
    assert [list(recipe.runs) for recipe in recipes] == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0]]
    rate = all_runs[0].config.optimizer.learning_rate
    assert [recipe.name for recipe in recipes] == [
        f'epochs=2, optimizer.learning_rate={rate}',
        'epochs=2, optimizer.learning_rate=0.1',
        f'epochs=7, optimizer.learning_rate={rate}',
    ]
    assert recipes[0].accuracies == list(FIRST)  # The run on another number of devices is the same one.
    assert group_runs(runs(FIRST))[0].name == 'run-0'


def test_runs_whose_result_is_not_that_of_their_end_do_not_count(runs):
    finished, unfinished, stale, best = runs(FIRST[:4], epochs=3, early_stopping__restore_best=True)
    stopped = runs(FIRST[:5], epochs=9, early_stopping__patience=2)[4]
    del unfinished.epochs[2:], stopped.epochs[3:]  # early stopping after two epochs without an improvement
    stopped.result['step'] = 30
    for run in (finished, unfinished, best):
        run.result['step'] = 10  # All epochs are equally good, so the first is the best.
    assert finished.progress == best.progress == stopped.progress == ''
    assert unfinished.progress == 'has 2 of 3 epochs: the run is not finished'
    assert stale.progress == 'is that of step 30, but the run ends with step 10; --mode=eval rewrites it'
    assert stale.caveats['result'] == stale.progress
    (unstarted,) = runs(FIRST[:1])
    unstarted.epochs.clear()
    assert unstarted.progress == '' and 'has no epoch' in unstarted.caveats['metrics.csv']
    unstarted.result['step'] = 0
    assert unstarted.progress == 'has 0 of 2 epochs: the run is not finished'
    all_runs = [finished, unfinished, stale, best, stopped]
    recipes = group_runs(all_runs)
    assert [list(recipe.runs) for recipe in recipes] == [[0, 3], [4]]
    sentence = 'Not counted, because the result is not that of the end of the run: run-1, run-2.'
    assert uncounted_runs(all_runs, recipes) == sentence


def test_runs_with_other_data_are_another_recipe(runs, tmp_path):
    first, second, again = runs(FIRST[:2]), runs(SECOND[:2], split='b'), runs(FIRST[:1])
    recipes = group_runs([*first, *second, *again])
    assert [len(recipe.runs) for recipe in recipes] == [2, 2] and recipes[0].accuracies == list(FIRST[:2])
    sentence = uncounted_runs([*first, *second, *again], recipes)
    assert sentence == 'Not counted, because another run has the same config, data and seed: run-0.'
    assert uncounted_runs(first, group_runs(first)) == ''
    # The same test split, but another training split.
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / 'digests.json').write_text('{"config": "1", "data": {"train": "2"}}')
    other = first[1]._replace(workdir=tmp_path / 'other')
    assert [len(recipe.runs) for recipe in group_runs([first[0], other])] == [1, 1]


def test_a_run_with_a_changed_schedule_is_another_recipe(runs):
    first, second = runs(FIRST), runs((0.5,))
    second[0].result['reschedules'] = [{'step': 10, 'epochs': 1}]
    assert [list(recipe.runs) for recipe in group_runs(first + second)] == [[0, 1, 2, 3, 4, 5], [0]]


def test_the_summary_is_sorted_by_validation_not_by_the_test_split(runs):
    better_in_validation = runs(SECOND, validation=0.95, batch_size=32)
    rows = summary_rows(group_runs(runs(FIRST) + better_in_validation))
    assert [row[0] for row in rows] == ['batch_size=32', 'batch_size=64']
    # The standard deviation of 0.900, 0.903, 0.899, 0.902, 0.905, 0.906; sqrt(0.9025 * 0.0975 / 1000).
    assert rows[0][1:] == ['6', '0.9500', '0.9025', '0.0027', '0.0094', '0.8990', '0.9060']


def test_differences_are_paired_by_seed_and_corrected(runs):
    recipes = group_runs(runs(FIRST) + runs(SECOND, batch_size=32) + runs(FIRST[:3], batch_size=16))
    rows = {tuple(row[:2]): row[2:] for row in claim_rows(recipes)}
    row = rows['batch_size=64', 'batch_size=32']
    # The mean of 0.010, 0.009, 0.012, 0.011, 0.009, 0.009; all have the same sign: p = 2 / 64; three pairs.
    assert row[:2] == ['6', '+0.0100'] and row[3:6] == ['0.0312', '0.0938', '100%']
    # There are three pairs, and 3 / 64 is the first smallest p-value below 5%.
    assert rows['batch_size=64', 'batch_size=16'][-1] == 'too few seeds to tell: at least 7 are needed'
    alone = claim_rows(group_runs(runs(FIRST) + runs(SECOND, batch_size=32)))
    assert alone[0][-1] == 'better'
    assert claim_rows(group_runs(runs(FIRST) + runs(SECOND, split='b', batch_size=32))) == []


def test_single_runs_have_no_recipes(runs, trained):
    assert recipe_lines(runs(FIRST[:1]) + runs(SECOND[:1], batch_size=32)) == []
    assert 'recipes' not in comparison_table([str(trained)])
    text = '\n'.join(recipe_lines(runs(FIRST) + runs(SECOND, batch_size=32)))
    assert 'sign-flip permutation test' in text and json.dumps('batch_size=32')[1:-1] in text


def test_the_fields_in_which_runs_differ(runs):
    (first,), (second,), (third,) = (
        runs((0.9,)),
        runs((0.9,), model__hidden=(8, 8), devices=1),
        runs((0.9,), dataset__validation='train[300:400]', optimizer__epsilon=0.5),
    )
    assert field_rows([first, first]) == ([], '') == field_rows([first])
    rows, omitted = field_rows([first, second, third])
    # Devices do not affect a result; an empty text is shown as one.
    assert rows == [
        ['run', 'dataset.validation', 'model.hidden', 'optimizer.epsilon'],
        ['run-0', "''", '(16,)', '1e-07'],
        ['run-0', "''", '(8, 8)', '1e-07'],
        ['run-0', 'train[300:400]', '(16,)', '0.5'],
    ]
    assert omitted == ''
    stopping = {'min_delta': 1.0, 'patience': 1, 'restore_best': True, 'mode': 'max'}
    reduction = {'min_delta': 1.0, 'patience': 1, 'factor': 0.5, 'cooldown': 1, 'min_lr': 0.1}
    options = {f'early_stopping__{name}': value for name, value in stopping.items()}
    (other,) = runs((0.9,), **options, **{f'reduce_lr__{name}': value for name, value in reduction.items()})
    rows, omitted = field_rows([first, other])
    assert len(rows[0]) == 1 + MAX_COLUMNS and omitted.startswith('They also differ in: reduce_lr.')
    shown = {*rows[0][1:], *omitted.removeprefix('They also differ in: ').rstrip('.').split(', ')}
    assert shown == {f'early_stopping.{name}' for name in stopping} | {f'reduce_lr.{name}' for name in reduction}
