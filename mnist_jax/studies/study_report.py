"""The tables and the page of a study."""

import csv
import io
import itertools
import math
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from mnist_jax import files, text_tables
from mnist_jax.models.layer_table import list_layers
from mnist_jax.report import html_page, study_page
from mnist_jax.report.html_page import Section, Table
from mnist_jax.report.study_page import StudyPoint
from mnist_jax.studies.space import Point
from mnist_jax.studies.study import Standing
from mnist_jax.studies.sweep import Sweep
from mnist_jax.workdir import claims
from mnist_jax.workdir.metrics_log import read_metrics
from mnist_jax.workdir.provenance import program

CLAIM_HEADER = ('point', 'seeds', 'difference', '95% interval', 'p-value', 'corrected', 'superiority', 'verdict')


def write_report(sweep: Sweep) -> str:
    """Writes `trials.csv`, `points.txt` and the page; returns the contents of `points.txt`, '' without any point."""
    standings = sweep.standings()
    if not standings:
        return ''
    best = standings[0]
    monitor = sweep.monitor(best.point)
    fields = list(sweep.study.vary)
    rows = [['trial', *fields, 'seed', *_unless_varied(fields, 'epochs'), monitor, 'params_sha256', 'seconds']]
    for standing in sorted(standings, key=lambda standing: standing.number):
        for trial, outcome in zip(standing.trials, standing.outcomes, strict=True):
            score = 'diverged' if outcome.score is None else repr(sweep.value(standing.point, outcome.score))
            values = [_cell(standing.point, field) for field in fields]
            numbers = [str(sweep.config.seed + trial.seed), *_unless_varied(fields, str(standing.epochs))]
            rows.append([trial.name, *values, *numbers, score, outcome.params_sha256, f'{outcome.seconds:.1f}'])
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows(rows)
    files.write_text(sweep.workdir / 'trials.csv', text.getvalue())
    lines = [
        f'points by their mean {monitor} over the seeds, in validation; no trial was evaluated on the test split',
        '',
        *text_tables.titled(points_rows(sweep, standings), left=1 + len(fields)),
    ]
    files.write_text(sweep.workdir / 'points.txt', '\n'.join(lines) + '\n')
    logging.info('Report: %s', _write_page(sweep, standings))
    workdir = sweep.trial_workdir(best.trials[0])
    logging.info('To evaluate a run of the best point on the test split:')
    logging.info('  %s', shlex.join([*program(), '--mode=eval', f'--workdir={workdir}']))
    return '\n'.join(lines) + '\n'


def points_rows(sweep: Sweep, standings: Sequence[Standing]) -> list[list[str]]:
    """Returns a table of points: their values, and the mean and the deviation of their scores; with a header."""
    fields = list(sweep.study.vary)
    rows = [['point', *fields, *_unless_varied(fields, 'epochs'), 'seeds', 'mean', 'std. dev.', 'seconds']]
    for standing in standings:
        rows.append(
            [
                f'{standing.number:04d}',
                *(_cell(standing.point, field) for field in fields),
                *_unless_varied(fields, str(standing.epochs)),
                str(len(standing.outcomes)),
                'diverged' if standing.score is None else f'{sweep.value(standing.point, standing.score):.4f}',
                text_tables.number(standing.deviation),
                f'{standing.seconds:.1f}',
            ]
        )
    return rows


def _unless_varied(fields: Sequence[str], cell: str) -> list[str]:
    """Returns a cell of the column `epochs`; nothing if the study varies `epochs`, because its fields have columns."""
    return [] if 'epochs' in fields else [cell]


def claim_rows(sweep: Sweep, standings: Sequence[Standing]) -> list[list[str]]:
    """Compares each other point with the best one over the seeds; rows of `CLAIM_HEADER`.

    Points that successive halving stopped are left out. Differences are positive if the other point is better, whatever
    the metric is. The p-values are corrected for all pairs of points (Holm), not only for those shown, because the best
    point was chosen by the same scores.
    """
    compared = [
        point
        for point in standings
        if point.score is not None and (not sweep.study.reduction or point.epochs == standings[0].epochs)
    ]
    pairs = list(itertools.combinations(compared, 2))
    corrected = claims.holm([claims.sign_flip_p_value(np.subtract(a.scores, b.scores)) for a, b in pairs])
    return [
        [f'{other.number:04d}', *claims.cells(claims.compare(other.scores, best.scores), p_value, len(pairs))]
        for (best, other), p_value in zip(pairs, corrected, strict=True)
        if best is compared[0]
    ]


def make_sections(sweep: Sweep, standings: Sequence[Standing]) -> dict[str, Section]:
    """Returns the figures and tables of the report of a study by name."""
    fields, best = list(sweep.study.vary), standings[0]
    monitor, maximizes = sweep.monitor(best.point), sweep.maximizes(best.point)
    points = [_study_point(sweep, standing) for standing in standings]
    # Points that successive halving stopped early have scores after fewer epochs.
    common = min(standing.epochs for standing in standings) if sweep.study.reduction else best.epochs
    compared = [_after(point, common) for point in points] if common < best.epochs else points
    metric = f'{monitor} after epoch {common}' if common < best.epochs else monitor
    rows = points_rows(sweep, standings)
    about = f'Mean and standard deviation of the {monitor.replace("_", " ")} over the seeds.'
    sections: dict[str, Section] = {}
    if fields:
        sections['parallel'] = study_page.parallel_coordinates(fields, compared, metric)
    sections['points'] = Table('Points', about, rows[0], rows[1:], text_columns=1 + len(fields), highlighted=[0])
    if differences := claim_rows(sweep, standings) if sweep.study.seeds > 1 else []:
        about = (
            'Each point against the best one, over the same seeds: the mean difference, which is positive if the point '
            'is better, whatever the metric; its BCa bootstrap interval; and the p-value of the sign-flip permutation '
            'test, alone and corrected for all pairs of points (Holm), because the best one was chosen by the same '
            'scores.'
        )
        sections['claims'] = Table('Differences from the best point', about, CLAIM_HEADER, differences)
    if (figure := study_page.importance(fields, compared, metric)) is not None:
        sections['importance'] = figure
    if fields:
        sections['slices'] = study_page.slices(fields, compared, metric)
    sections['curves'] = study_page.learning_curves(points, monitor)
    sections['costs'] = study_page.costs(points, compared, monitor, metric, maximizes)
    return sections


def _write_page(sweep: Sweep, standings: Sequence[Standing]) -> Path:
    """Writes the report of a study; returns the path of the page."""
    best = standings[0]
    trials = sum(len(standing.outcomes) for standing in standings)
    seconds = sum(standing.seconds for standing in standings)
    facts = {
        'points': f'{len(standings):,}, with {sweep.study.seeds} seeds each'
        if sweep.study.seeds > 1
        else f'{len(standings):,}',
        'search': ', '.join(
            f'{name} {value}' if name != 'name' else value for name, value in sweep.study.search.items()
        ),
        'chosen by': f'{sweep.monitor(best.point).replace("_", " ")}; no trial was evaluated on the test split',
        'best point': f'{best.number:04d}: ' + ', '.join(f'{field}={value!r}' for field, value in best.point.items()),
        'training time': f'{seconds:,.0f} s in {trials:,} runs',
    }
    return html_page.write_page(sweep.workdir / 'report', 'Study', facts, make_sections(sweep, standings))


def _after(point: StudyPoint, epochs: int) -> StudyPoint:
    """Returns a point with the scores that its trials had after fewer epochs."""
    scores = [curve[epochs - 1] if len(curve) >= epochs else math.nan for curve in point.curves]
    return point._replace(scores=scores if all(map(math.isfinite, scores)) else [])


def _study_point(sweep: Sweep, standing: Standing) -> StudyPoint:
    """Returns what a figure needs to know about a point."""
    plan, monitor = sweep.plan(standing.point), sweep.monitor(standing.point)
    layers = list_layers(plan.model, plan.source.image_shape)
    rows = [read_metrics(sweep.trial_workdir(trial)) for trial in standing.trials]
    return StudyPoint(
        name=f'{standing.number:04d}',
        values=standing.point,
        scores=[] if standing.score is None else [sweep.value(standing.point, score) for score in standing.scores],
        seconds=statistics.fmean(outcome.seconds for outcome in standing.outcomes),
        parameters=sum(layer.trainable + layer.non_trainable for layer in layers),
        multiply_adds=sum(layer.multiply_adds for layer in layers),
        curves=[[row[monitor] for row in run[: standing.epochs] if monitor in row] for run in rows],
    )


def _cell(point: Point, field: str) -> str:
    if field not in point:
        return '-'
    value = point[field]
    if not isinstance(value, float):
        return str(value)
    short = f'{value:g}'
    return short if float(short) == value else repr(value)
