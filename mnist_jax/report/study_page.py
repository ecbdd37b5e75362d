"""Figures of a study: which values gave which scores, how the runs learned, and what accuracy costs."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mnist_jax.report import figures
from mnist_jax.report.figures import BLUE, MUTED, ORANGE, ReportFigure

MIN_POINTS = 8  # for an estimate of importance
MAX_SLICES = 12
COLUMNS = 3  # small figures per row
LOG_RATIO = 20  # Numbers whose largest is this many times the smallest are drawn on a logarithmic scale.


class StudyPoint(NamedTuple):
    """A point of a study.

    Attributes:
      name: Its number.
      values: The values of the varied fields by name; a field that the point does not have is missing.
      scores: The monitored metric of each trial; empty if one of them diverged.
      seconds: The mean training time of a trial.
      parameters: The number of parameters of the model.
      multiply_adds: Its multiplications and additions for an image.
      curves: For each trial, the monitored metric after each epoch.
    """

    name: str
    values: Mapping[str, Any]
    scores: Sequence[float]
    seconds: float
    parameters: int
    multiply_adds: int
    curves: Sequence[Sequence[float]]

    @property
    def mean(self) -> float:
        """The mean score; NaN if a trial diverged."""
        return float(np.mean(self.scores)) if self.scores else math.nan


class _Scale:
    """Maps the values of a field to positions from 0 to 1, and labels some of them."""

    def __init__(self, values: Sequence[Any]):
        numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        self.is_number = len(numbers) == len(values) and len(set(numbers)) > 1
        if self.is_number:
            low, high = min(numbers), max(numbers)
            self.is_log = low > 0 and high / low >= LOG_RATIO
            self._ends = self._transform(low), self._transform(high)
            ticks = np.linspace(self._ends[0], self._ends[1], 4).tolist()
            inverse: Callable[[float], float] = (lambda tick: 10**tick) if self.is_log else (lambda tick: tick)
            digits = 3 if self.is_log else max(3, 2 + math.ceil(math.log10(max(abs(low), abs(high)) / (high - low))))
            self.ticks = {self.position(inverse(tick)): f'{inverse(tick):.{digits}g}' for tick in ticks}
        else:
            self.is_log = False
            self._choices = sorted({str(value) for value in values})
            self.ticks = {self.position(text): figures.shorten(text) for text in self._choices}

    def _transform(self, value: float) -> float:
        return math.log10(value) if self.is_log else value

    def position(self, value: Any) -> float:
        """Returns where a value lies."""
        if self.is_number:
            low, high = self._ends
            return (self._transform(value) - low) / (high - low)
        return (self._choices.index(str(value)) + 0.5) / len(self._choices)


def _ranked(points: Sequence[StudyPoint]) -> list[StudyPoint]:
    """Returns the points that have a score, the best last, so that they are drawn on top.

    The study ranks them: with successive halving, the best point need not have had the best score after few epochs.
    """
    return [point for point in reversed(points) if math.isfinite(point.mean)]


def _styles(count: int) -> list[dict[str, Any]]:
    """Returns how to draw the points of `_ranked`: the best one, the best tenth, and all others."""
    plain = {'color': MUTED, 'alpha': 0.35, 'linewidth': 1.0}
    good = {'color': BLUE, 'alpha': 0.8, 'linewidth': 1.4}
    best = {'color': ORANGE, 'alpha': 1.0, 'linewidth': 2.4}
    others = max(0, count - 1)
    few = min(others, max(1, count // 10))
    return ([plain] * (others - few) + [good] * few + [best])[:count] if count else []


LEGEND = 'Orange: the best point; blue: the best tenth of the others.'


@figures.styled
def parallel_coordinates(fields: Sequence[str], points: Sequence[StudyPoint], metric: str) -> ReportFigure:
    """Draws a line per point, the best first, through an axis for each field and one for the score."""
    ranked = _ranked(points)
    columns = [[point.values[field] for point in ranked if field in point.values] for field in fields]
    scales = [*map(_Scale, columns), _Scale([point.mean for point in ranked])]
    figure, axes = figures.new_figure(11, 4)
    axis: Axes = axes[0, 0]
    tooltips: dict[str, str] = {}
    for number, (point, style) in enumerate(zip(ranked, _styles(len(ranked)), strict=True)):
        places = [
            scale.position(point.values[field]) if field in point.values else math.nan
            for field, scale in zip(fields, scales, strict=False)
        ]
        gid = f'parallel-{number}'
        axis.plot(range(len(scales)), [*places, scales[-1].position(point.mean)], gid=gid, **style)
        tooltips[gid] = _describe(point, metric)
    for place, scale in enumerate(scales):
        axis.axvline(place, color=MUTED, linewidth=0.8)
        for position, label in scale.ticks.items():
            axis.text(place + 0.02, position, figures.literal_text(label), fontsize=8, color=figures.TEXT, va='center')
    names = [*fields, metric.replace('_', ' ')]
    axis.set_xticks(
        range(len(scales)), [figures.literal_text(name.replace('.', '.\n', 1)) for name in names], fontsize=8
    )
    axis.set(yticks=[], xlim=(-0.1, len(scales) - 0.6), ylim=(-0.05, 1.05))
    for spine in axis.spines.values():
        spine.set_visible(False)
    about = f'A line per point; the last axis is the mean over its seeds. {LEGEND}'
    return ReportFigure('All points', about, figure, tooltips)


def _describe(point: StudyPoint, metric: str) -> str:
    values = ', '.join(f'{field}={value!r}' for field, value in point.values.items())
    return f'point {point.name}: {values}: {metric} {point.mean:.4f}, {point.parameters:,} parameters'


@figures.styled
def slices(fields: Sequence[str], points: Sequence[StudyPoint], metric: str) -> ReportFigure:
    """Draws the score of every trial against the value of each field; the best point is the first."""
    ranked, shown = _ranked(points), fields[:MAX_SLICES]
    rows = -(-len(shown) // COLUMNS)
    columns = min(COLUMNS, len(shown))
    figure, axes = figures.new_figure(3.6 * columns, 2.6 * rows, rows, columns)
    tooltips: dict[str, str] = {}
    for index, (axis, field) in enumerate(zip(axes.flat, shown, strict=False)):
        scale = _Scale([point.values[field] for point in ranked if field in point.values])
        for number, (point, style) in enumerate(zip(ranked, _styles(len(ranked)), strict=True)):
            if field not in point.values:
                continue
            gid = f'slice-{index}-{number}'
            place = scale.position(point.values[field])
            axis.plot(
                [place] * len(point.scores), point.scores, 'o', color=style['color'], alpha=max(0.5, style['alpha']),
                markersize=4, gid=gid,
            )  # fmt: skip
            tooltips[gid] = _describe(point, metric)
        axis.set_xticks(list(scale.ticks), [figures.literal_text(label) for label in scale.ticks.values()], fontsize=8)
        axis.set(title=figures.literal_text(field), xlim=(-0.08, 1.08))
        figures.add_grid(axis)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for row in axes:
        row[0].set_ylabel(metric.replace('_', ' '))
    return ReportFigure('Values and scores', f'A dot per trial. {LEGEND}', figure, tooltips)


@figures.styled
def learning_curves(points: Sequence[StudyPoint], metric: str) -> ReportFigure:
    """Draws the monitored metric of all trials after each epoch; the best point is the first."""
    ranked = _ranked(points)
    figure, axes = figures.new_figure(11, 4)
    axis: Axes = axes[0, 0]
    tooltips: dict[str, str] = {}
    for number, (point, style) in enumerate(zip(ranked, _styles(len(ranked)), strict=True)):
        for trial, curve in enumerate(point.curves):
            gid = f'curve-{number}-{trial}'
            marker = 'o' if len(curve) == 1 else None
            axis.plot(range(1, len(curve) + 1), curve, marker=marker, markersize=3, gid=gid, **style)
            tooltips[gid] = _describe(point, metric)
    axis.set(xlabel='epoch', ylabel=metric.replace('_', ' '))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    figures.add_grid(axis)
    about = f'A line per trial; those of successive halving end where they were stopped. {LEGEND}'
    return ReportFigure('Learning curves', about, figure, tooltips)


@figures.styled
def costs(
    points: Sequence[StudyPoint], compared: Sequence[StudyPoint], monitor: str, metric: str, maximizes: bool
) -> ReportFigure:
    """Draws the score against the training time and the size of the model, with the Pareto fronts.

    Args:
      points: The points with the scores of their last epochs, which took the time.
      compared: The points with their scores after the same number of epochs, which the sizes are drawn against.
      monitor, metric: The names of the two scores.
      maximizes: Whether a larger score is better.
    """
    figure, axes = figures.new_figure(11, 3.4, 1, 3)
    tooltips: dict[str, str] = {}
    panels = (
        ('training time in seconds', 'seconds', points, monitor),
        ('parameters', 'parameters', compared, metric),
        ('multiply-adds', 'multiply_adds', compared, metric),
    )
    labeled = ''  # the score that the panel to the left has
    for index, (axis, (label, name, drawn, score)) in enumerate(zip(axes.flat, panels, strict=True)):
        ranked = _ranked(drawn)
        cost = [float(getattr(point, name)) for point in ranked]
        for number, (point, own) in enumerate(zip(ranked, cost, strict=True)):
            gid = f'cost-{index}-{number}'
            axis.plot(own, point.mean, 'o', color=BLUE, markersize=5, alpha=0.7, gid=gid, zorder=3)
            tooltips[gid] = _describe(point, score)
        front = pareto_front(cost, [point.mean if maximizes else -point.mean for point in ranked])
        axis.step(
            [cost[place] for place in front],
            [ranked[place].mean for place in front],
            where='post',
            color=ORANGE,
            zorder=2,
        )
        if cost and min(cost) > 0 and max(cost) / min(cost) >= LOG_RATIO:
            axis.set_xscale('log')
        axis.set(xlabel=label, ylabel='' if score == labeled else score.replace('_', ' '))
        labeled = score
        figures.add_grid(axis)
    about = 'A dot per point. The orange line joins those that no other point beats at the same cost or a lower one.'
    return ReportFigure('What it costs', about, figure, tooltips)


def pareto_front(cost: Sequence[float], gain: Sequence[float]) -> list[int]:
    """Returns the indices of the items that none is better than at the same cost or a lower one, by rising cost."""
    front: list[int] = []
    for index in sorted(range(len(cost)), key=lambda index: (cost[index], -gain[index])):
        if not front or gain[index] > gain[front[-1]]:
            front.append(index)
    return front


@figures.styled
def importance(fields: Sequence[str], points: Sequence[StudyPoint], metric: str) -> ReportFigure | None:
    """Draws how much the score depends on each field; None for fewer than eight points, or if it depends on none.

    It is the permutation importance (Breiman 2001) in a random forest that predicts the mean score of a point: the mean
    loss of explained variance if the values of the field are shuffled.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    finite = [point for point in points if math.isfinite(point.mean)]
    if len(finite) < MIN_POINTS or not fields:
        return None
    columns = []
    for field in fields:
        scale = _Scale([point.values[field] for point in finite if field in point.values])
        columns.append([scale.position(point.values[field]) if field in point.values else -1.0 for point in finite])
    inputs, targets = np.array(columns).T, np.array([point.mean for point in finite])
    if not np.ptp(targets):  # A forest predicts equal scores perfectly, whatever the fields.
        return None
    forest = RandomForestRegressor(200, oob_score=True, random_state=0).fit(inputs, targets)
    # The score on the points of the fit would be high even if no field mattered.
    if forest.oob_score_ <= 0:
        return None
    result = permutation_importance(forest, inputs, targets, n_repeats=30, random_state=0)
    order = np.argsort(result.importances_mean)
    figure, axes = figures.new_figure(11, 0.45 * len(fields) + 1)
    axis: Axes = axes[0, 0]
    tooltips: dict[str, str] = {}
    for place, index in enumerate(order):
        gid = f'importance-{place}'
        axis.barh(place, max(0.0, result.importances_mean[index]), color=BLUE, height=0.6, gid=gid)
        tooltips[gid] = f'{fields[index]}: {result.importances_mean[index]:.3f}'
    axis.set_yticks(range(len(fields)), [figures.literal_text(fields[index]) for index in order])
    axis.set(xlabel='loss of explained variance if the field is shuffled')
    figures.add_grid(axis)
    about = (
        f'Permutation importance in a random forest that predicts the {metric.replace("_", " ")} of {len(finite)} '
        f'points. It predicts {forest.oob_score_:.0%} of their variance when they are left out (out of bag). It says '
        'nothing about values that were not tried.'
    )
    return ReportFigure('Importance of the fields', about, figure, tooltips)
