"""The confusion matrix: as heat maps, as a flow from truth to prediction, and what follows from it for each class."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from mnist_jax.report import style
from mnist_jax.report.style import Picture

MAGNIFIED = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # times that errors may be drawn wider than hits
ERRORS_SHARE = 0.2  # of the flow's height that errors shall have at least, where they can
GAP = 0.02  # between two classes, of the flow's height
BAR = 0.04  # width of a class's bar


@style.styled
def heat_maps(matrix: np.ndarray, names: Sequence[str]) -> Picture:
    """Counts, whose errors have a scale of their own, and shares of each truth."""
    size = max(4.6, 0.5 * len(names))
    figure, (left, right) = style.new(2 * size + 1.4, size + 0.3, ncols=2)
    tips: dict[str, str] = {}
    errors = matrix - np.diag(np.diag(matrix))
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    worst, wrong = max(int(errors.max()), 1), max(float((shares - np.diag(np.diag(shares))).max()), 1e-9)
    for truth, prediction in np.ndindex(*matrix.shape):
        count, share = int(matrix[truth, prediction]), float(shares[truth, prediction])
        hit = truth == prediction
        told = f'{names[truth]} taken for {names[prediction]}: {count:,}, {share:.2%} of {matrix[truth].sum():,}'
        for axis, strength, text in (
            (left, share if hit else count / worst, f'{count:,}' if count else ''),
            (right, share if hit else share / wrong, f'{100 * share:.1f}' if count else ''),
        ):
            gid = f'cell-{"count" if axis is left else "share"}-{truth}-{prediction}'
            tips[gid] = told
            _cell(axis, truth, prediction, style.BLUE if hit else style.ORANGE, strength, text, gid)
    for axis, title in ((left, 'Counts'), (right, 'Shares of each truth, %')):
        _frame(axis, names, title)
    about = (
        'A row for each truth, a column for each prediction. Hits are blue, errors orange, each on a scale of its own: '
        f'the darkest orange is {worst:,} errors, or {wrong:.2%} of a truth.'
    )
    return Picture('Confusion matrix', about, figure, tips)


def _cell(axis: Axes, row: int, column: int, colour: str, strength: float, text: str, gid: str) -> None:
    alpha = 0.75 * strength**0.7 + 0.15 if strength else 0.03
    axis.add_patch(Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, color=colour, alpha=alpha, linewidth=0, gid=gid))
    ink = style.GROUND if alpha > 0.72 else style.INK
    # The text lets the mouse through to the cell: see report.css.
    axis.text(column, row, text, ha='center', va='center', fontsize=8, color=ink)


def _frame(axis: Axes, names: Sequence[str], title: str) -> None:
    count = len(names)
    axis.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), aspect='equal')
    long = max(map(len, names)) > 2
    axis.set_xticks(range(count), names, rotation=45 if long else 0, ha='right' if long else 'center')
    axis.set_yticks(range(count), names)
    axis.tick_params(length=0)
    axis.set(title=title, xlabel='prediction', ylabel='truth')
    for spine in axis.spines.values():
        spine.set_visible(False)


@style.styled
def flow(matrix: np.ndarray, names: Sequence[str]) -> Picture:
    """An alluvial diagram from truth to prediction; errors are coloured by truth, and wider where they are few."""
    figure, axis = style.new(11, 6.5)
    tips: dict[str, str] = {}
    factor = _magnification(matrix)
    widths = np.where(np.eye(len(matrix), dtype=bool), matrix, factor * matrix).astype(float)
    widths *= (1 - GAP * (len(matrix) - 1)) / widths.sum()
    tops = [_tops(widths.sum(axis=1)), _tops(widths.sum(axis=0))]
    within = [np.cumsum(widths, axis=1) - widths, np.cumsum(widths, axis=0) - widths]
    for truth, prediction in sorted(np.ndindex(*matrix.shape), key=lambda pair: pair[0] != pair[1]):
        if not matrix[truth, prediction]:
            continue
        hit = truth == prediction
        left = tops[0][truth] - within[0][truth, prediction]
        right = tops[1][prediction] - within[1][truth, prediction]
        colour = style.SOFT if hit else style.SERIES[truth % len(style.SERIES)]
        gid = f'flow-{truth}-{prediction}'
        _ribbon(axis, left, right, widths[truth, prediction], colour, 0.18 if hit else 0.75, gid)
        tips[gid] = f'{names[truth]} taken for {names[prediction]}: {matrix[truth, prediction]:,}'
    for side, (place, align) in enumerate(((0.0, 'right'), (1.0, 'left'))):
        for label, name in enumerate(names):
            height = widths.sum(axis=1 - side)[label]
            gid = f'bar-{side}-{label}'
            corner = (place - BAR * (side == 0), tops[side][label] - height)
            axis.add_patch(Rectangle(corner, BAR, height, color=style.INK, linewidth=0, gid=gid))
            total = matrix.sum(axis=1 - side)[label]
            tips[gid] = f'{"truth" if side == 0 else "prediction"} {name}: {total:,}'
            axis.text(place + (BAR + 0.02) * (1 if side else -1), corner[1] + height / 2, name, ha=align, va='center')
    axis.set(xlim=(-0.2, 1.2), ylim=(-0.03, 1.06))
    axis.text(0, 1.03, 'truth', ha='right', color=style.SOFT)
    axis.text(1, 1.03, 'prediction', ha='left', color=style.SOFT)
    axis.set_axis_off()
    wider = f' Errors are drawn {factor} times as wide as hits.' if factor > 1 else ''
    about = f'Grey are the hits; the errors have a colour for each truth.{wider}'
    return Picture('From truth to prediction', about, figure, tips)


def _magnification(matrix: np.ndarray) -> int:
    """The least factor that gives errors their share of the height."""
    hits, errors = int(np.trace(matrix)), int(matrix.sum() - np.trace(matrix))
    enough = (factor for factor in MAGNIFIED if factor * errors >= ERRORS_SHARE * (hits + factor * errors))
    return next(enough, MAGNIFIED[-1]) if errors else 1


def _tops(heights: np.ndarray) -> np.ndarray:
    return 1 - np.cumsum(heights) + heights - GAP * np.arange(len(heights))


def _ribbon(axis: Axes, left: float, right: float, width: float, colour: str, alpha: float, gid: str) -> None:
    """A band from the left bar to the right one, of which the tops are given."""
    ends = [(0, left), (0.5, left), (0.5, right), (1, right)]
    back = [(1, right - width), (0.5, right - width), (0.5, left - width), (0, left - width)]
    codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
    path = Path([*ends, *back, (0, left)], codes)
    axis.add_patch(PathPatch(path, facecolor=colour, alpha=alpha, linewidth=0, gid=gid))


@style.styled
def by_class(statistics: Mapping[str, Any]) -> Picture:
    """Precision and recall of each class."""
    classes = statistics['by_class']
    figure, axis = style.new(11, 1.2 + 0.3 * len(classes))
    tips: dict[str, str] = {}
    for number, (name, row) in enumerate(classes.items()):
        found = [row[key] for key in ('precision', 'recall') if row[key] is not None]
        axis.plot(found, [number] * len(found), color=style.LINE, linewidth=3, zorder=1)
        for key, colour, marker in (('precision', style.BLUE, 'o'), ('recall', style.ORANGE, 'D')):
            if row[key] is not None:
                gid = f'{key}-{number}'
                label = key if number == 0 else None
                axis.plot([row[key]], [number], marker, color=colour, markersize=7, gid=gid, label=label, linestyle='')
                tips[gid] = f'{name}: {key} {row[key]:.4f}'
    axis.set_yticks(range(len(classes)), list(classes))
    axis.invert_yaxis()
    axis.set(title='Precision and recall by class', xlabel='share', ylabel='class')
    style.grid(axis)
    axis.legend(loc='upper left', bbox_to_anchor=(1, 1))
    about = (
        'Precision: of what was taken for the class, the share that is of it. Recall: of the class, the share found.'
    )
    return Picture('Precision and recall', about, figure, tips)
