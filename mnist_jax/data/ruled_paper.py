"""Removes the lines of ruled paper (lined, squared, millimeter, with a margin) from the picture of a drawing.

A line of ruled paper is straight, thin, of even darkness, and runs from one edge of the picture to the other; a stroke
of a digit hardly ever does. The lines of one direction are found and removed in these steps:

1. The slope. The columns of the picture are shifted until its rows add up to the sharpest ridges (the projection
   profile of document analysis). Shifting by whole pixels loses nothing and can be undone exactly.
2. The rows. The picture is divided into strips from left to right. A row is a line if it is darker than the rows above
   and below it in most of the strips, instead of on average: a digit is dark, but covers few strips.
3. The evidence. Many parallel lines are ruling. A few may be strokes, so two of these must hold: they are much lighter
   than the ink, they have parallels, they extend beyond the drawing at both ends, and they do not touch it. So a seven
   that fills its picture keeps its bar, and a four its stem.
4. The removal. A grayscale opening across a line replaces its pixels: it erases what is as thin as the line and keeps
   strokes that cross it. Pixels that are much darker than the line are ink, and remain.
5. The residue. Parts of lines remain if the lines are bent or uneven. They are small, or lie where a line was, or are
   thinner than the strokes.
"""

from typing import NamedTuple

import numpy as np
import scipy

from mnist_jax.data import paper

MIN_SIDE = 64  # pixels of the shorter side; in smaller pictures, lines and strokes look alike
MAX_SIDE = 512  # pixels of the longer side of the analyzed pictures; thin lines must not blur into each other
MAX_SLOPE = 0.18  # of the lines, as a ratio; about 10 degrees
MAX_STROKE = 1 / 2  # maximum width of a stroke, as a fraction of the longer side; the picture may be cropped tightly
STRIPS = 32
DISTANCES = (2, 4, 8)  # pixels from the middle of a line to the compared rows, for lines of different thickness
MIN_CONTRAST = 4.0  # between a line and the compared rows, of 256 gray levels
COVERAGE = 0.7  # minimum fraction of the strips that show a line, of those that are not covered by ink
# Minimum number of strips of a line that are not covered by ink: if it is the evidence of ruling, and otherwise.
MIN_STRIPS, MIN_STRIPS_RULED = 13, 4
END_STRIPS, END_ROWS = 2, 5  # size of the areas at both ends of a line that it must reach; lines may be a little curved
MAX_HALF = 10  # pixels from the middle of a line to its edge
WHITE = 255.0  # the gray level of the darkest ink
DENSE = 0.4  # if lines cover a larger fraction of the rows, as on millimeter paper, all rows are cleaned alike
INK = 1.4  # minimum darkness of ink on a line, as a multiple of the line's
MIN_EVIDENCE = 2  # minimum number of reasons to believe that lines are ruling
MANY = 4  # minimum number of parallel lines that cannot be strokes
SPREAD = 0.25  # minimum distance between the outermost parallel lines, as a fraction of the height; strokes are thinner
LIGHT = 0.6  # maximum darkness of lines that are much lighter than the ink, as a fraction of the ink's
# By which lines, and a line without parallels, extend beyond the drawing at both ends, as a fraction of the width.
OVERHANG, OVERHANG_ALONE = 0.04, 0.1
MAX_TOUCHED = 0.5  # maximum fraction of a line that touches the drawing; the edge of a stroke touches it everywhere
THIN = 0.5  # maximum thickness of a residue, as a fraction of the drawing's
MAX_BANDS = 0.6  # maximum fraction of the paper that is so close to lines that a residue is expected
MOSTLY = 0.7  # minimum fraction of the pixels of a residue that lie on lines
LARGE_PART = 0.1  # minimum size of a part of the drawing, as a fraction of the largest part


class RuledDrawing(NamedTuple):
    """A drawing whose paper may be ruled."""

    ink: np.ndarray  # HxW, without the lines that were removed
    removed: int  # number of lines that were removed
    kept: int  # number of lines that were kept because they may be strokes


class _Line(NamedTuple):
    """A horizontal line."""

    rows: slice  # where it is visible, with its blurred edges
    darkness: float  # above the paper
    strips: int  # number of strips in which it is not covered by ink


def remove_lines(ink_HxW: np.ndarray, known_HxW: np.ndarray | None = None) -> RuledDrawing:
    """Removes the lines of ruled paper.

    Args:
      ink_HxW: The picture, light on dark, with at most `MAX_SIDE` pixels per side.
      known_HxW: Which pixels show the paper; all of them by default.
    """
    known_HxW = np.ones(ink_HxW.shape, bool) if known_HxW is None else known_HxW
    removed, kept, bands_HxW = [0, 0], [0, 0], np.zeros(ink_HxW.shape, bool)
    if min(ink_HxW.shape) < MIN_SIDE:
        return RuledDrawing(ink_HxW, 0, 0)
    original_HxW, ink_HxW = ink_HxW, paper.subtract_background(ink_HxW, MAX_STROKE)
    for axis in (0, 1, 0, 1):  # Without the lines of one direction, those of the other are easier to find.
        turned = [array.T if axis else array for array in (ink_HxW, known_HxW, bands_HxW)]
        erased = _erase_horizontal(turned[0], turned[1], turned[2], ruled=any(removed))
        ink_HxW, bands_HxW = (array.T if axis else array for array in (erased.ink, erased.bands))
        removed[axis] += erased.removed
        kept[axis] = erased.kept
        if axis == 1 and not any(removed):
            break
    if not any(removed):
        return RuledDrawing(original_HxW, 0, sum(kept))
    return RuledDrawing(_erase_residue(ink_HxW, known_HxW, bands_HxW), sum(removed), sum(kept))


class _Erased(NamedTuple):
    """A picture without its nearly horizontal lines."""

    ink: np.ndarray  # HxW
    bands: np.ndarray  # HxW, where lines were
    removed: int  # number of lines that were removed
    kept: int  # number of lines that were kept because they may be strokes


def _erase_horizontal(ink_HxW: np.ndarray, known_HxW: np.ndarray, bands_HxW: np.ndarray, ruled: bool) -> _Erased:
    """Erases the nearly horizontal lines of a picture, unless they may be strokes."""
    # A dark edge of a scan looks like a line if the picture continues as paper; only ruled paper has lines there.
    beyond = 0.0 if ruled else WHITE
    shifts_W = _find_shifts(ink_HxW, known_HxW, beyond)
    margin = int(np.abs(shifts_W).max())
    straight_HxW, known_HxW = (_shift_columns(array, shifts_W, margin) for array in (ink_HxW, known_HxW))
    evident = [line for line in _find_lines(straight_HxW, known_HxW, beyond) if line.strips >= MIN_STRIPS]
    lines = _find_lines(straight_HxW, known_HxW, 0.0) if evident or ruled else []
    if not lines:
        return _Erased(ink_HxW, bands_HxW, removed=0, kept=0)
    erased_HxW = _erase(straight_HxW, lines)
    evidence = _count_evidence(evident or lines, erased_HxW, known_HxW, ruled)
    if evidence < MIN_EVIDENCE:
        return _Erased(ink_HxW, bands_HxW, removed=0, kept=len(evident) if evidence else 0)
    straight_bands_HxW = np.zeros(straight_HxW.shape, bool)
    for line in lines:
        straight_bands_HxW[max(0, line.rows.start - 1) : line.rows.stop + 1] = True
    bands_HxW = bands_HxW | _shift_columns(straight_bands_HxW, -shifts_W, -margin)
    return _Erased(_shift_columns(erased_HxW, -shifts_W, -margin), bands_HxW, removed=len(lines), kept=0)


def _erase_residue(ink_HxW: np.ndarray, known_HxW: np.ndarray, bands_HxW: np.ndarray) -> np.ndarray:
    """Erases what is left of lines that are not quite straight or even: small parts, and parts where the lines were."""
    dark_HxW = known_HxW & (ink_HxW > paper.otsu_threshold(ink_HxW[known_HxW]))
    parts_HxW, count = scipy.ndimage.label(dark_HxW, np.ones((3, 3)))
    indices = np.arange(count + 1)
    depth_HxW = scipy.ndimage.distance_transform_edt(dark_HxW)
    # If lines are everywhere, as on millimeter paper, only the thickness tells them from the drawing.
    bands_HxW = bands_HxW & (bands_HxW[known_HxW].mean() <= MAX_BANDS)
    sizes, masses, depths = (
        measure(weights_HxW, parts_HxW, indices)
        for measure, weights_HxW in (
            (scipy.ndimage.sum_labels, dark_HxW),
            (scipy.ndimage.sum_labels, depth_HxW**2 * ~bands_HxW),
            (scipy.ndimage.maximum, depth_HxW),
        )
    )
    drawing = masses.argmax()
    in_bands = scipy.ndimage.sum_labels(bands_HxW & dark_HxW, parts_HxW, indices) >= MOSTLY * sizes
    in_bands |= depths < THIN * depths[drawing]
    residue = (sizes < LARGE_PART * sizes[drawing]) | (in_bands & (sizes < sizes[drawing]))
    residue[[0, drawing]] = False
    residue_HxW = scipy.ndimage.binary_dilation(residue[parts_HxW], np.ones((3, 3)), iterations=2)
    return np.where(residue_HxW & ~scipy.ndimage.binary_dilation(parts_HxW == drawing), 0, ink_HxW)


def _find_shifts(ink_HxW: np.ndarray, known_HxW: np.ndarray, beyond: float) -> np.ndarray:
    """Returns by how many pixels to move each column up, so that the lines become horizontal."""
    height, width = ink_HxW.shape
    rows_Hx1 = np.arange(height)[:, None] + width  # The shifts are smaller than the width.
    known_HxS = _strip_means(known_HxW) == 1
    ridges_HxS = np.clip(_ridges(_strip_means(ink_HxW), beyond).max(0), 0, 4 * MIN_CONTRAST) * known_HxS
    centers_S = (np.arange(STRIPS) + 0.5) * width / STRIPS

    def sharpness(slope: float) -> float:
        rows = (rows_Hx1 - _shifts(slope, centers_S, width)).ravel()
        ridges, known = (np.bincount(rows, array_HxS.ravel()) for array_HxS in (ridges_HxS, known_HxS))
        return float(np.square(ridges / np.maximum(known, STRIPS / 2)).sum())

    best = 0.0
    for radius, step in ((MAX_SLOPE, 3 / width), (3 / width, 0.5 / width)):
        slopes = best + step * np.arange(-round(radius / step), round(radius / step) + 1)
        best = max(sorted(slopes, key=abs), key=sharpness)
    return _shifts(best, np.arange(width), width)


def _shifts(slope: float, columns: np.ndarray, width: int) -> np.ndarray:
    return np.rint(slope * (columns - (width - 1) / 2)).astype(int)


def _shift_columns(array_HxW: np.ndarray, shifts_W: np.ndarray, margin: int = 0) -> np.ndarray:
    """Moves each column up, and adds `margin` rows above and below, or removes them if it is negative."""
    rows_HxW = np.arange(-margin, len(array_HxW) + margin)[:, None] + shifts_W
    outside_HxW = (rows_HxW < 0) | (rows_HxW >= len(array_HxW))
    shifted_HxW = np.take_along_axis(array_HxW, np.where(outside_HxW, 0, rows_HxW), 0)
    shifted_HxW[outside_HxW] = 0
    return shifted_HxW


def _strip_means(array_HxW: np.ndarray) -> np.ndarray:
    """Returns the means over `STRIPS` groups of neighboring columns, HxS."""
    bounds = np.arange(STRIPS + 1) * array_HxW.shape[1] // STRIPS
    return np.add.reduceat(array_HxW.astype(np.float32), bounds[:-1], axis=1) / np.diff(bounds)


def _ridges(means_HxS: np.ndarray, beyond: float) -> np.ndarray:
    """Returns by how much a pixel exceeds those above and below it, which may be `beyond` the picture, DxHxS."""
    height, most = len(means_HxS), max(DISTANCES)
    padded = np.pad(means_HxS, ((most, most), (0, 0)), constant_values=beyond)
    above = [padded[most - distance :][:height] for distance in DISTANCES]
    below = [padded[most + distance :][:height] for distance in DISTANCES]
    return means_HxS - np.maximum(above, below)


def _find_lines(straight_HxW: np.ndarray, known_HxW: np.ndarray, beyond: float) -> list[_Line]:
    means_HxS, known_HxS = _strip_means(straight_HxW), _strip_means(known_HxW) == 1
    level_H = _quantile(means_HxS, known_HxS, 0.5)
    # Strips that are much darker than most of the row show ink; whether the line continues below it is unknown.
    visible_HxS = known_HxS & (means_HxS <= INK * level_H[:, None] + MIN_CONTRAST)
    ridges_DxHxS = _ridges(np.where(known_HxS, means_HxS, beyond), beyond)
    ridge_H = np.max([_line_contrast(ridge_HxS, visible_HxS) for ridge_HxS in ridges_DxHxS], 0)
    strips_H = visible_HxS.sum(1)
    ridge_H[strips_H < MIN_STRIPS_RULED] = 0
    lines: list[_Line] = []
    for row in sorted(np.flatnonzero(ridge_H >= MIN_CONTRAST).tolist(), key=lambda row: -ridge_H[row]):
        if any(line.rows.start <= row < line.rows.stop for line in lines):
            continue
        light_H = level_H <= level_H[row] - ridge_H[row] / 2
        start = next((r for r in range(row, max(-1, row - MAX_HALF), -1) if light_H[r]), row - MAX_HALF)
        stop = next((r for r in range(row, min(len(light_H), row + MAX_HALF)) if light_H[r]), row + MAX_HALF) + 1
        rows = slice(max(0, start), stop)
        paper_level = level_H[max(0, start - 2) : stop + 2].min()
        # Where a sloping line coincides with a row of pixels, it is darker than on average.
        darkest = _quantile(means_HxS[rows], visible_HxS[rows], 0.9).max()
        lines.append(_Line(rows, float(darkest - paper_level), int(strips_H[row])))
    return lines


def _line_contrast(ridge_HxS: np.ndarray, visible_HxS: np.ndarray) -> np.ndarray:
    """Returns for each row the least contrast of a line that it may show: in most strips, and at both ends."""
    ridge_or_ink_HxS = scipy.ndimage.maximum_filter1d(np.where(visible_HxS, ridge_HxS, np.inf), END_ROWS, axis=0)
    ends = [ridge_or_ink_HxS[:, :END_STRIPS].max(1), ridge_or_ink_HxS[:, -END_STRIPS:].max(1)]
    return np.minimum(_quantile(ridge_HxS, visible_HxS, 1 - COVERAGE), np.min(ends, 0))


def _quantile(array_HxS: np.ndarray, known_HxS: np.ndarray, fraction: float) -> np.ndarray:
    """Returns a quantile of the known elements of each row; 0 if there are none."""
    ordered_HxS = np.sort(np.where(known_HxS, array_HxS, np.inf), axis=1)
    index_H = (fraction * np.maximum(known_HxS.sum(1) - 1, 0)).astype(int)
    return np.where(known_HxS.any(1), np.take_along_axis(ordered_HxS, index_H[:, None], 1)[:, 0], 0)


def _erase(straight_HxW: np.ndarray, lines: list[_Line]) -> np.ndarray:
    height = len(straight_HxW)
    thickness = [line.rows.stop - line.rows.start for line in lines]
    if sum(thickness) > DENSE * height:
        lines, thickness = [_Line(slice(0, height), max(line.darkness for line in lines), STRIPS)], [max(thickness)]
    erased_HxW = straight_HxW.copy()
    for (rows, darkness, _), size in zip(lines, thickness, strict=True):
        first = max(0, rows.start - 2 * size)
        opened_HxW = scipy.ndimage.grey_opening(
            straight_HxW[first : rows.stop + 2 * size], (size + 1, 1), mode='constant'
        )
        opened_HxW = opened_HxW[rows.start - first : rows.stop - first]
        is_line = straight_HxW[rows] <= opened_HxW + INK * darkness + 2 * MIN_CONTRAST
        erased_HxW[rows] = np.where(is_line, np.minimum(erased_HxW[rows], opened_HxW), erased_HxW[rows])
    return erased_HxW


def _count_evidence(lines: list[_Line], erased_HxW: np.ndarray, known_HxW: np.ndarray, ruled: bool) -> int:
    """Returns how much speaks for ruling, from 0 to 4, instead of strokes of the drawing that is left without it."""
    height, width = erased_HxW.shape
    parallel = np.ptp([line.rows.start for line in lines]) >= SPREAD * height
    if parallel and len(lines) >= MANY:
        return MIN_EVIDENCE
    ink_HxW = np.where(known_HxW, np.maximum(erased_HxW - np.median(erased_HxW[known_HxW]), 0), 0)
    dark_HxW = ink_HxW > paper.otsu_threshold(ink_HxW)
    parts_HxW, _ = scipy.ndimage.label(dark_HxW, np.ones((3, 3)))
    sizes = np.bincount(parts_HxW[dark_HxW], minlength=2)
    drawing_HxW = dark_HxW & (sizes >= LARGE_PART * sizes.max())[parts_HxW]
    if not drawing_HxW.any():
        return 0
    bands = [drawing_HxW[max(0, line.rows.start - 2) : line.rows.stop + 2].any(0) for line in lines]
    if max(band_W.mean() for band_W in bands) > MAX_TOUCHED:
        return 0
    columns = np.flatnonzero(drawing_HxW.any(0))
    light = max(line.darkness for line in lines) <= LIGHT * np.median(ink_HxW[drawing_HxW])
    overhang = min(columns[0], width - 1 - columns[-1]) / width
    apart = not np.any(bands)
    evidence = sum((light, ruled or parallel, overhang >= OVERHANG, apart))
    # A line without parallels may be the bar of a digit that fills the picture.
    return evidence if ruled or parallel or overhang >= OVERHANG_ALONE else min(evidence, MIN_EVIDENCE - 1)
