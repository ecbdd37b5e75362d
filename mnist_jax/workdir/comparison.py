"""Compares finished runs: a table, and tests whether any two differ by more than chance."""

import itertools
from collections.abc import Sequence

import numpy as np

from mnist_jax import text_tables
from mnist_jax.errors import UserError
from mnist_jax.learning import metrics
from mnist_jax.workdir import claims
from mnist_jax.workdir.finished_runs import FinishedRun, read_runs
from mnist_jax.workdir.recipes import field_rows, recipe_lines
from mnist_jax.workdir.results import read_predictions

HEADER = (
    'run', 'dataset', 'model', 'parameters', 'epochs', 'step', 'accuracy', '95% interval', 'cross-entropy',
    'training time', 'images/s',
)  # fmt: skip
PAIR_HEADER = (
    'first run', 'second run', 'difference', 'only first correct', 'only second correct', 'p-value', 'corrected', '',
)  # fmt: skip
PAIR_TEST = (
    "McNemar's exact test of the difference in accuracy of each pair of runs: its p-value, alone and corrected for the "
    'number of pairs (Holm)'
)


def comparison_table(patterns: Sequence[str]) -> str:
    """Returns the comparison of the runs in the workdirs `patterns`, paths or glob patterns, as text."""
    runs = read_runs(patterns)
    lines = text_tables.titled([HEADER, *map(table_row, runs)], left=3)
    if sentences := notes(runs):
        lines += ['', *sentences]
    fields, omitted = field_rows(runs)
    if fields:
        lines += ['', 'Config fields in which the runs differ', '', *text_tables.titled(fields, left=len(fields[0]))]
        lines += [omitted] if omitted else []
    rows, note = pair_rows(runs)
    if rows:
        lines += ['', PAIR_TEST, '']
        lines += text_tables.titled([PAIR_HEADER, *rows], left=2)
    lines += ['', note] if note else []
    if recipes := recipe_lines(runs):
        lines += ['', *recipes]
    return '\n'.join(lines)


def table_row(run: FinishedRun) -> list[str]:
    """Returns a run as strings in the columns of `HEADER`."""
    lower, upper = run.result['statistics']['overall']['accuracy_interval']
    speeds = [row['images_per_second'] for row in run.epochs]
    return [
        run.name,
        run.result['dataset'],
        run.config.model.name,
        f'{run.result["parameters"]:,}',
        run.epochs_text,
        f'{run.result["step"]:,}',
        f'{run.result["accuracy"]:.4f}',
        f'{lower:.4f} to {upper:.4f}',
        text_tables.number(run.cross_entropy),
        run.seconds_text,
        f'{np.median(speeds):,.0f}' if speeds else 'NA',
    ]


def notes(runs: Sequence[FinishedRun]) -> list[str]:
    """Returns what a reader of the table must know about single runs, one sentence per item."""
    sentences = [f'{run.name}: {name} {text}.' for run in runs for name, text in run.caveats.items()]
    return sentences + [
        f'{run.name}: cross-entropy NA: it was evaluated by an older version; --mode=eval adds it.'
        for run in runs
        if run.cross_entropy is None
    ]


def pair_rows(runs: Sequence[FinishedRun]) -> tuple[list[list[str]], str]:
    """Compares all pairs of runs; the p-values are corrected for the number of pairs (Holm).

    Returns:
      A row of `PAIR_HEADER` for each pair that was evaluated on the same examples, and a sentence about the other
      pairs, or ''.
    """
    tested, untested = [], []
    for first, second in itertools.combinations(runs, 2):
        if first.result['split_sha256'] == second.result['split_sha256']:
            tested.append((first, second, *_disagreements(first, second)))
        else:
            untested.append(f'{first.name} and {second.name}')
    p_values = [metrics.mcnemar_exact(only_first, only_second) for *_, only_first, only_second in tested]
    rows = [
        [
            first.name,
            second.name,
            f'{first.result["accuracy"] - second.result["accuracy"]:+.4f}',
            str(only_first),
            str(only_second),
            f'{p_value:.3g}',
            f'{corrected:.3g}',
            'significant at 5%' if corrected < 0.05 else 'may be chance',
        ]
        for (first, second, only_first, only_second), p_value, corrected in zip(
            tested, p_values, claims.holm(p_values), strict=True
        )
    ]
    if not untested:
        return rows, ''
    return rows, f'Not tested, because they were evaluated on different examples: {"; ".join(untested)}'


def _disagreements(first: FinishedRun, second: FinishedRun) -> tuple[int, int]:
    """Returns how many examples only the first run classifies correctly, and how many only the second one."""
    label, first_prediction = read_predictions(first.workdir, first.result)
    second_label, second_prediction = read_predictions(second.workdir, second.result)
    if not np.array_equal(label, second_label):
        raise UserError(f'the predictions of {first.name!r} and {second.name!r} must be for the same examples')
    first_correct, second_correct = first_prediction == label, second_prediction == label
    return int((first_correct & ~second_correct).sum()), int((~first_correct & second_correct).sum())
