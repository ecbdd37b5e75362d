"""Figures of the confusion matrix: heat maps, a flow diagram, and the precision and recall of each class."""

import math
from collections.abc import Sequence

import matplotlib.colors
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from mnist_jax.files import JsonObject
from mnist_jax.report import figures
from mnist_jax.report.figures import ReportFigure

ERROR_SCALES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # how many times wider the flow may draw errors
MIN_ERROR_FRACTION = 0.2  # minimum fraction of the height of the flow for errors, if `ERROR_SCALES` allow it
GAP = 0.02  # gap between two classes, as a fraction of the height of the flow
MANY_CLASSES = 20  # With more classes, figures show those with the most errors, and the others as one.
SHOWN_CLASSES = 12  # how many of them
MAX_ROWS = 30  # classes in the figure of precision and recall
MAX_TICKS = 70  # names along a side of the whole matrix
BAR_WIDTH = 0.04  # width of the bar of a class, as a fraction of the distance between the bars


def most_confused(matrix: np.ndarray) -> np.ndarray:
    """Returns the labels of the `SHOWN_CLASSES` classes with the most errors, as truth or as prediction, in order."""
    errors = matrix - np.diag(np.diag(matrix))
    return np.sort(np.argsort(-(errors.sum(0) + errors.sum(1)), kind='stable')[:SHOWN_CLASSES])


def aggregate(matrix: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, list[str], str]:
    """Combines most of many classes into one.

    Args:
      matrix: The confusion matrix KxK; rows are true classes.
      names: The names of the classes.

    Returns:
      The matrix, the names, and a sentence that describes what was combined; '' if there are at most `MANY_CLASSES`,
      which remain as they are.
    """
    if len(names) <= MANY_CLASSES:
        return matrix, list(names), ''
    kept = most_confused(matrix)
    group = np.full(len(names), len(kept))
    group[kept] = np.arange(len(kept))
    combined = np.zeros((len(kept) + 1,) * 2, matrix.dtype)
    np.add.at(combined, (group[:, None], group[None, :]), matrix)
    others = len(names) - len(kept)
    about = (
        f' Shown are the {len(kept)} of {len(names)} classes with the most errors; the other {others} are combined, '
        'and the errors among them count as correct.'
    )
    return combined, [*(names[label] for label in kept), f'{others} others'], about


@figures.styled
def overview(matrix: np.ndarray, names: Sequence[str]) -> ReportFigure | None:
    """Draws the whole confusion matrix of many classes as one picture; returns None for few classes."""
    count = len(names)
    if count <= MANY_CLASSES:
        return None
    figure, ((axis,),) = figures.new_figure(8.6, 8)
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    correct = np.eye(count, dtype=bool)
    max_error = max(float(fractions[~correct].max()), 1e-9)
    strength = np.where(correct, fractions, fractions / max_error)
    colors = np.empty((count, count, 4))
    colors[..., :3] = matplotlib.colors.to_rgb(figures.ORANGE)
    colors[correct, :3] = matplotlib.colors.to_rgb(figures.BLUE)
    colors[..., 3] = np.where(matrix > 0, 0.15 + 0.8 * strength**0.7, 0.0)
    axis.imshow(colors, interpolation='none', gid='matrix')
    every = -(-count // MAX_TICKS)
    ticks = range(0, count, every)
    labels = [figures.shorten(names[label]) for label in ticks]
    axis.set_xticks(ticks, labels, rotation=90, fontsize=7)
    axis.set_yticks(ticks, labels, fontsize=7)
    axis.tick_params(length=0)
    axis.set(xlabel='predicted class', ylabel='true class')
    about = (
        'Rows are true classes, columns are predicted classes. Correct predictions are blue and errors are orange, as '
        f'fractions of the true class, on separate color scales: the darkest orange is {max_error:.1%}.'
    )
    if every > 1:
        about += f' One of {every} classes is named.'
    return ReportFigure('All classes', about, figure, {})


@figures.styled
def heat_maps(matrix: np.ndarray, names: Sequence[str]) -> ReportFigure:
    """Draws the confusion matrix twice: as counts, and as fractions of each true class.

    Errors have a color scale separate from that of correct predictions. Many classes are combined; see `aggregate`.
    """
    matrix, names, combined = aggregate(matrix, [figures.shorten(name) for name in names])
    size = max(4.6, 0.5 * len(names))
    figure, ((left, right),) = figures.new_figure(2 * size + 1.4, size + 0.3, ncols=2)
    tooltips: dict[str, str] = {}
    errors = matrix - np.diag(np.diag(matrix))
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    max_errors = int(errors.max())
    max_fraction = max(float((fractions - np.diag(np.diag(fractions))).max()), 1e-9)
    for truth, prediction in np.ndindex(*matrix.shape):
        count, fraction = int(matrix[truth, prediction]), float(fractions[truth, prediction])
        correct = truth == prediction
        color = figures.BLUE if correct else figures.ORANGE
        tooltip = (
            f'true {names[truth]}, predicted {names[prediction]}: {count:,} ({fraction:.2%} of {matrix[truth].sum():,})'
        )
        count_gid, fraction_gid = f'cell-count-{truth}-{prediction}', f'cell-share-{truth}-{prediction}'
        tooltips |= {count_gid: tooltip, fraction_gid: tooltip}
        strength = fraction if correct else count / max(max_errors, 1)
        _draw_cell(left, truth, prediction, color, strength, f'{count:,}' if count else '', count_gid)
        strength = fraction if correct else fraction / max_fraction
        _draw_cell(right, truth, prediction, color, strength, f'{100 * fraction:.1f}' if count else '', fraction_gid)
    rotated = max(map(len, names)) > 2
    for axis, title in ((left, 'Counts'), (right, 'Percentage of the true class')):
        axis.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5), aspect='equal')
        axis.set_xticks(range(len(names)), names, rotation=45 if rotated else 0, ha='right' if rotated else 'center')
        axis.set_yticks(range(len(names)), names)
        axis.tick_params(length=0)
        axis.set(title=title, xlabel='predicted class', ylabel='true class')
        for spine in axis.spines.values():
            spine.set_visible(False)
    about = 'Rows are true classes, columns are predicted classes. Correct predictions are blue and errors are orange'
    if max_errors:
        errors_text = '1 error' if max_errors == 1 else f'{max_errors:,} errors'
        about += (
            f', on separate color scales: the darkest orange is {errors_text} on the left, and {max_fraction:.2%} of a '
            'true class on the right'
        )
    about += '.'
    return ReportFigure('Confusion matrix', about + combined, figure, tooltips)


def _draw_cell(axis: Axes, row: int, column: int, color: str, strength: float, text: str, gid: str) -> None:
    alpha = 0.75 * strength**0.7 + 0.15 if strength else 0.03
    axis.add_patch(Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, color=color, alpha=alpha, linewidth=0, gid=gid))
    text_color = figures.BACKGROUND if alpha > 0.72 else figures.TEXT
    # report.css makes the text ignore the mouse, so that it does not block the cell's tooltip.
    axis.text(column, row, text, ha='center', va='center', fontsize=8, color=text_color)


@figures.styled
def flow(matrix: np.ndarray, names: Sequence[str]) -> ReportFigure:
    """Draws an alluvial diagram from true to predicted classes.

    Errors have the color of their true class, and are drawn wider than correct predictions if they are rare. Many
    classes are combined; see `aggregate`.
    """
    matrix, names, combined = aggregate(matrix, [figures.shorten(name) for name in names])
    figure, ((axis,),) = figures.new_figure(11, 6.5)
    tooltips: dict[str, str] = {}
    scale = _error_scale(matrix)
    widths = np.where(np.eye(len(matrix), dtype=bool), matrix, scale * matrix).astype(float)
    widths *= (1 - GAP * (len(matrix) - 1)) / widths.sum()
    tops = [_bar_tops(widths.sum(axis=1)), _bar_tops(widths.sum(axis=0))]
    offsets = [np.cumsum(widths, axis=1) - widths, np.cumsum(widths, axis=0) - widths]
    # Correct predictions first, so that errors are drawn on top of them.
    for truth, prediction in sorted(np.ndindex(*matrix.shape), key=lambda pair: pair[0] != pair[1]):
        if not matrix[truth, prediction]:
            continue
        correct = truth == prediction
        left = tops[0][truth] - offsets[0][truth, prediction]
        right = tops[1][prediction] - offsets[1][truth, prediction]
        color = figures.MUTED if correct else figures.SERIES_COLORS[truth % len(figures.SERIES_COLORS)]
        gid = f'flow-{truth}-{prediction}'
        _draw_ribbon(axis, left, right, float(widths[truth, prediction]), color, 0.18 if correct else 0.75, gid)
        tooltips[gid] = f'true {names[truth]}, predicted {names[prediction]}: {matrix[truth, prediction]:,}'
    for side, (x, align, kind) in enumerate(((0.0, 'right', 'true'), (1.0, 'left', 'predicted'))):
        heights, totals = widths.sum(axis=1 - side), matrix.sum(axis=1 - side)
        for label, name in enumerate(names):
            gid = f'bar-{side}-{label}'
            corner = (x - BAR_WIDTH * (side == 0), tops[side][label] - heights[label])
            axis.add_patch(Rectangle(corner, BAR_WIDTH, heights[label], color=figures.TEXT, linewidth=0, gid=gid))
            tooltips[gid] = f'{kind} {name}: {totals[label]:,}'
            text_x = x + (BAR_WIDTH + 0.02) * (1 if side else -1)
            axis.text(text_x, corner[1] + heights[label] / 2, name, ha=align, va='center')
    axis.set(xlim=(-0.2, 1.2), ylim=(-0.03, 1.06))
    axis.text(0, 1.03, 'true class', ha='right', color=figures.MUTED)
    axis.text(1, 1.03, 'predicted class', ha='left', color=figures.MUTED)
    axis.set_axis_off()
    about = 'Correct predictions are gray; errors have the color of their true class.'
    if scale > 1:
        about += f' Errors are drawn {scale} times as wide as correct predictions.'
    return ReportFigure('From true to predicted classes', about + combined, figure, tooltips)


def _error_scale(matrix: np.ndarray) -> int:
    """Returns the smallest scale at which errors take up `MIN_ERROR_FRACTION` of the height."""
    correct, errors = int(np.trace(matrix)), int(matrix.sum() - np.trace(matrix))
    if not errors:
        return 1
    sufficient = (s for s in ERROR_SCALES if s * errors >= MIN_ERROR_FRACTION * (correct + s * errors))
    return next(sufficient, ERROR_SCALES[-1])


def _bar_tops(heights: np.ndarray) -> np.ndarray:
    return 1 - np.cumsum(heights) + heights - GAP * np.arange(len(heights))


def _draw_ribbon(axis: Axes, left: float, right: float, width: float, color: str, alpha: float, gid: str) -> None:
    """Draws a band whose top edge goes from `left` on the left bar to `right` on the right bar."""
    top = [(0, left), (0.5, left), (0.5, right), (1, right)]
    bottom = [(1, right - width), (0.5, right - width), (0.5, left - width), (0, left - width)]
    codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
    path = Path([*top, *bottom, (0, left)], codes)
    axis.add_patch(PathPatch(path, facecolor=color, alpha=alpha, linewidth=0, gid=gid))


def _defined(row: JsonObject) -> list[float]:
    return [row[key] for key in ('precision', 'recall') if row[key] is not None]


@figures.styled
def by_class(statistics: JsonObject) -> ReportFigure:
    """Draws the precision and recall of each class; `statistics` are those of `metrics.statistics`."""
    classes = statistics['by_class']
    count = len(classes)
    if count > MAX_ROWS:
        # Classes that do not occur come last.
        worst = sorted(classes, key=lambda name: min(_defined(classes[name]), default=math.inf))
        classes = {name: classes[name] for name in worst[:MAX_ROWS]}
    figure, ((axis,),) = figures.new_figure(11, 1.2 + 0.3 * len(classes))
    tooltips: dict[str, str] = {}
    labeled: set[str] = set()  # what the legend explains
    for index, (name, row) in enumerate(classes.items()):
        defined = _defined(row)
        axis.plot(defined, [index] * len(defined), color=figures.BORDER, linewidth=3, zorder=1)
        for key, color, marker in (('precision', figures.BLUE, 'o'), ('recall', figures.ORANGE, 'D')):
            if row[key] is not None:
                gid = f'{key}-{index}'
                label = None if key in labeled else key
                labeled.add(key)
                axis.plot([row[key]], [index], marker, color=color, markersize=7, gid=gid, label=label, linestyle='')
                tooltips[gid] = f'{name}: {key} {row[key]:.4f}'
    axis.set_yticks(range(len(classes)), list(map(figures.shorten, classes)))
    axis.invert_yaxis()
    axis.set(title='Precision and recall by class', xlabel='precision, recall', ylabel='class')
    figures.add_grid(axis)
    if labeled:
        axis.legend(loc='upper left', bbox_to_anchor=(1, 1))
    about = (
        'Precision is the fraction of the predictions of a class that are correct; recall is the fraction of the '
        'examples of a class that are predicted as that class.'
    )
    if count > MAX_ROWS:
        about += f' Shown are the {MAX_ROWS} of {count} classes with the lowest precision or recall.'
    return ReportFigure('Precision and recall', about, figure, tooltips)
