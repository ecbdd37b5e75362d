"""The page that compares several runs: their accuracies, their learning curves and significance tests."""

from collections.abc import Sequence
from pathlib import Path

from mnist_jax.errors import UserError
from mnist_jax.files import user_path
from mnist_jax.report import curves, html_page
from mnist_jax.report.html_page import Section, Table
from mnist_jax.workdir.checkpoints import check_holds_only
from mnist_jax.workdir.comparison import HEADER, PAIR_HEADER, PAIR_TEST, notes, pair_rows, table_row
from mnist_jax.workdir.finished_runs import read_runs
from mnist_jax.workdir.recipes import (
    CLAIM_HEADER,
    SUMMARY_HEADER,
    claim_rows,
    field_rows,
    group_runs,
    summary_rows,
    uncounted_runs,
)

CROSS_ENTROPY = (
    'Cross-entropy: the mean negative log-likelihood of the true class in nats, whatever the loss of a run is.'
)


def compare_runs(patterns: Sequence[str], directory: str | Path) -> Path:
    """Writes a page that compares several runs to `report/` in `directory`; returns the path of the page.

    Args:
      patterns: The workdirs of the runs, as for `workdir.finished_runs.read_runs`.
      directory: Where to write; must not be the workdir of a run.
    """
    directory = user_path(directory, '--workdir')
    runs = read_runs(patterns)
    if len(runs) < 2:
        raise UserError(f'--run must name at least two runs to compare, got {len(runs)}; for one run, use --workdir')
    if (directory / 'config.json').exists():
        raise UserError(
            f'--workdir {str(directory)!r} is a run, whose own report would be overwritten; use another --workdir'
        )
    check_holds_only(directory, 'a comparison')
    pairs, untested = pair_rows(runs)
    sections: dict[str, Section] = {
        'accuracies': curves.accuracies(runs),
        'runs': Table(
            'Runs', ' '.join([CROSS_ENTROPY, *notes(runs)]), HEADER, [table_row(run) for run in runs], text_columns=3
        ),
        'learning_curves': curves.curves_of_runs(runs),
    }
    fields, omitted = field_rows(runs)
    if fields:
        about = f'The config fields in which the runs differ. {omitted}'.strip()
        sections['fields'] = Table('Fields', about, fields[0], fields[1:], text_columns=len(fields[0]))
    if pairs:
        about = f'{PAIR_TEST}. {untested}'.strip()
        sections['pairs'] = Table('Pairwise differences', about, PAIR_HEADER, pairs, text_columns=2)
    recipes = group_runs(runs)
    if any(len(recipe.runs) > 1 for recipe in recipes):
        about = (
            'Runs that differ only in the seed. Test noise is the standard deviation that comes from the choice of the '
            f'test examples. {uncounted_runs(runs, recipes)}'.strip()
        )
        sections['recipes'] = Table('Recipes', about, SUMMARY_HEADER, summary_rows(recipes))
        if rows := claim_rows(recipes):
            about = (
                'Mean difference over the common seeds, its BCa bootstrap interval, and the p-value of the sign-flip '
                'permutation test, alone and corrected for the number of pairs (Holm).'
            )
            sections['claims'] = Table('Differences between recipes', about, CLAIM_HEADER, rows, text_columns=2)
    seconds = {run.name: run.seconds for run in runs if run.seconds is not None}
    best = max(runs, key=lambda run: run.result['accuracy'])
    facts = {
        'runs': ', '.join(run.name for run in runs),
        'datasets': ', '.join(sorted({run.result['dataset'] for run in runs})),
        'most accurate': f'{best.name}, {best.result["accuracy"]:.4f}',
        'fastest to train': min(seconds, key=lambda name: seconds[name]) if seconds else 'NA',
        'total training time': f'{sum(seconds.values()):,.0f} s' if len(seconds) == len(runs) else 'NA',
    }
    return html_page.write_page(directory / 'report', f'Comparison of {len(runs)} runs', facts, sections)
