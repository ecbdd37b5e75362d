"""One page on several runs: their accuracies, learning curves, and whether they differ by more than chance."""

from collections.abc import Sequence
from pathlib import Path

from mnist_jax.errors import UserError
from mnist_jax.report import curves, page
from mnist_jax.report.page import Section, Table
from mnist_jax.workdir.comparison import HEADER, PAIR_HEADER, pair_rows, read_runs, table_row


def compare_runs(patterns: Sequence[str], place: Path) -> Path:
    """Write one page on several runs, given as for `compare.compare`, to `report/` in `place`; returns its path."""
    runs = read_runs(patterns)
    if len(runs) < 2:
        raise UserError('--run names one run only; a comparison is of two or more, and --workdir is for one')
    if (place / 'config.json').exists():
        raise UserError(f'--workdir={str(place)!r} is a run, whose own report is there; give another directory')
    pairs, apart = pair_rows(runs)
    sections: dict[str, Section] = {
        'accuracies': curves.accuracies(runs),
        'runs': Table('Runs', '', HEADER, list(map(table_row, runs)), 3),
        'learning_curves': curves.curves_of(runs),
    }
    if pairs:
        about = "McNemar's exact test of the difference in accuracy, pair by pair." + f' {apart}' * bool(apart)
        sections['pairs'] = Table('Differences', about, PAIR_HEADER, pairs, 2)
    known = [run for run in runs if run.seconds is not None]
    best = max(runs, key=lambda run: run.result['accuracy'])
    facts = {
        'runs': ', '.join(run.name for run in runs),
        'data sets': ', '.join(sorted({run.result['dataset'] for run in runs})),
        'most accurate': f'{best.name}, {best.result["accuracy"]:.4f}',
        'fastest to train': min(known, key=lambda run: run.seconds).name if known else 'NA',
        'time of all': f'{sum(run.seconds for run in known):,.0f} s' if len(known) == len(runs) else 'NA',
    }
    return page.write(place / 'report', f'{len(runs)} runs compared', facts, sections)
