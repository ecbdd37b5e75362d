"""Finds a sheet of paper, photographed on a darker background, and the drawing on it."""

from typing import NamedTuple

import numpy as np
import scipy
from PIL import Image

MAX_SIDE = 256  # pixels of the longer side of the analyzed images; more would be slower, not better
MIN_AREA = 0.02  # minimum area of the sheet, as a fraction of the image
# Minimum fraction of its convex hull that the sheet fills. A drawing that reaches an edge merges with the background.
MIN_FILLED = 0.85
MIN_QUADRANGLE = 0.93  # minimum fraction of its convex hull that an inscribed quadrangle fills; for a disc, 0.64
MARGIN = 0.04  # width of the sheet's edges, where shadows lie, as a fraction of the sheet's size
MIN_CONTRAST = 32  # between the sheet and the drawing, of 256 gray levels
MAX_STROKE = 1 / 3  # maximum width of a stroke, as a fraction of the longer side
MAX_DRAWN = 0.35  # maximum fraction of the sheet that the drawing covers; the hole of a bold zero covers more


class Sheet(NamedTuple):
    """A sheet of paper in a photograph."""

    drawing: np.ndarray  # HxW, light on dark, cropped to the sheet and shrunk
    inner: np.ndarray  # HxW, which pixels show the sheet without its edges


def shrink(grays_HxW: np.ndarray, max_side: int = MAX_SIDE) -> np.ndarray:
    """Scales an image down to at most `max_side` pixels per side, as float32."""
    picture = Image.fromarray(grays_HxW.astype(np.float32))
    picture.thumbnail((max_side, max_side), Image.Resampling.BOX)
    return np.asarray(picture)


def subtract_background(ink_HxW: np.ndarray, max_stroke: float = MAX_STROKE) -> np.ndarray:
    """Returns the strokes of a drawing, light on dark, on a background of 0 instead of paper in uneven light.

    Args:
      ink_HxW: The drawing.
      max_stroke: The maximum width of a stroke, as a fraction of the longer side; anything wider is paper.
    """
    size = max(3, int(max(ink_HxW.shape) * max_stroke))
    background = scipy.ndimage.grey_opening(scipy.ndimage.gaussian_filter(ink_HxW, 1), size=(size, size))
    return np.maximum(ink_HxW - scipy.ndimage.gaussian_filter(background, size / 8), 0)


def find_drawing(grays_HxW: np.ndarray) -> Sheet | None:
    """Finds the drawing on a sheet of paper that is the only object in an image; None if there is no such sheet.

    Args:
      grays_HxW: Gray levels from 0 to 255. The sheet is lighter than the background and than the drawing.
    """
    small = shrink(grays_HxW)
    smooth = scipy.ndimage.gaussian_filter(small, 1)
    parts, count = scipy.ndimage.label(smooth > otsu_threshold(smooth))
    if count == 0:
        return None
    sheet = _fill_quadrangle(parts == 1 + np.bincount(parts.ravel())[1:].argmax())
    if sheet is None or sheet.sum() < MIN_AREA * sheet.size:
        return None
    rows, columns = (np.flatnonzero(sheet.any(axis=1 - axis)) for axis in (0, 1))
    box = np.array([rows[0], rows[-1] + 1, columns[0], columns[-1] + 1])
    top, bottom, left, right = np.rint(box * np.repeat(np.array(grays_HxW.shape) / small.shape, 2)).astype(int)
    cropped = shrink(grays_HxW[top:bottom, left:right])
    # Resample the mask of the sheet to the resolution of the cropped image.
    rows, columns = (np.arange(side) for side in cropped.shape)
    rows, columns = rows * (box[1] - box[0]) // cropped.shape[0], columns * (box[3] - box[2]) // cropped.shape[1]
    return _extract_drawing(cropped, sheet[box[0] + rows[:, None], box[2] + columns])


def _extract_drawing(grays_HxW: np.ndarray, sheet_HxW: np.ndarray) -> Sheet | None:
    """Returns the dark parts of the sheet, or None if there is nothing or too much for a drawing."""
    padded_sheet = np.pad(sheet_HxW, 1)  # The border of the image is an edge of the sheet.
    iterations = max(2, round(MARGIN * sheet_HxW.sum() ** 0.5))
    inner = scipy.ndimage.binary_erosion(padded_sheet, iterations=iterations)[1:-1, 1:-1]
    if not inner.any():
        return None
    drawing = np.where(inner, np.maximum(_fit_brightness(grays_HxW, inner) - grays_HxW, 0), 0)
    dark = inner & (drawing > otsu_threshold(drawing[inner]))
    is_drawing = drawing.max() >= MIN_CONTRAST and dark.sum() <= MAX_DRAWN * inner.sum()
    return Sheet(drawing, inner) if is_drawing else None


def _fit_brightness(grays_HxW: np.ndarray, mask_HxW: np.ndarray) -> np.ndarray:
    """Returns the brightness of a sheet that is lit from one side: a plane fitted to the bright pixels in the mask."""
    coordinates_HxWx3 = np.stack([*np.indices(grays_HxW.shape), np.ones(grays_HxW.shape)], -1)
    bright = mask_HxW & (grays_HxW > otsu_threshold(grays_HxW[mask_HxW]))
    if bright.sum() < mask_HxW.sum() / 2:  # The sheet is empty, and only its lighting varies.
        bright = mask_HxW
    return coordinates_HxWx3 @ np.linalg.lstsq(coordinates_HxWx3[bright], grays_HxW[bright], rcond=None)[0]


def otsu_threshold(grays: np.ndarray) -> float:
    """Returns the gray level that best separates two classes of pixels (Otsu 1979)."""
    counts, edges = np.histogram(grays, 256)
    centers = (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    mean_below = np.cumsum(counts * centers) / np.maximum(below, 1)
    mean_above = (np.cumsum((counts * centers)[::-1]) / np.maximum(np.cumsum(counts[::-1]), 1))[::-1]
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(centers[int(np.argmax(between))])


def _fill_quadrangle(mask_HxW: np.ndarray) -> np.ndarray | None:
    """Returns the convex hull of a connected mask as a mask; None unless it is a quadrangle that is nearly filled."""
    from scipy.spatial import ConvexHull  # Importing it takes 0.2 s, and training does not need it.

    points = np.argwhere(mask_HxW ^ scipy.ndimage.binary_erosion(mask_HxW))
    if np.ptp(points, axis=0).min() < 2:
        return None
    hull = ConvexHull(points)
    corners = hull.points[hull.vertices]
    # The largest quadrangle is made of the largest triangles on both sides of a diagonal.
    diagonal = corners[None, :] - corners[:, None]
    offset = corners[None, None, :] - corners[:, None, None]
    doubled_areas = diagonal[..., None, 0] * offset[..., 1] - diagonal[..., None, 1] * offset[..., 0]
    largest_area = (doubled_areas.max(-1) - doubled_areas.min(-1)).max() / 2
    filled = scipy.ndimage.binary_fill_holes(mask_HxW)
    if largest_area < MIN_QUADRANGLE * hull.volume or filled.sum() < MIN_FILLED * hull.volume:
        return None
    rows, columns = np.indices(mask_HxW.shape)
    normals, offsets = hull.equations[:, :2], hull.equations[:, 2]
    return (
        normals[:, 0, None, None] * rows + normals[:, 1, None, None] * columns + offsets[:, None, None] <= 1e-6
    ).all(0)
