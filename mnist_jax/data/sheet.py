"""Find a sheet of paper, photographed on a darker ground, and what is drawn on it."""

import numpy as np
from PIL import Image
from scipy import ndimage

WORKED_ON = 256  # pixels of the longer side of what is looked at: more cost time and show nothing
MIN_AREA = 0.02  # of the image
FULL = 0.85  # least share of its convex hull: what is drawn can reach an edge and open into the ground
FOUR_SIDED = 0.93  # least share of the convex hull that is in a quadrangle; of a disc, it is 0.64
MARGIN = 0.04  # of the sheet's size: its edges, where shadows lie
CONTRAST = 32  # least, of 256 greys, between the sheet and what is drawn on it
MAX_DRAWN = 0.35  # of the sheet; a bold zero's hole is larger


def shrunk(greys_HxW: np.ndarray) -> np.ndarray:
    """The same image, with no more than `WORKED_ON` pixels a side."""
    picture = Image.fromarray(greys_HxW.astype(np.float32))
    picture.thumbnail((WORKED_ON, WORKED_ON), Image.Resampling.BOX)
    return np.asarray(picture)


def shown_on(greys_HxW: np.ndarray) -> np.ndarray | None:
    """What is drawn on the sheet that is all the image shows: light on dark, cropped to the sheet, and shrunk.

    Args:
      greys_HxW: 0 to 255. The sheet is lighter than the ground it lies on, and than what is drawn.

    Returns:
      None where there is no such sheet.
    """
    small = shrunk(greys_HxW)
    smooth = ndimage.gaussian_filter(small, 1)
    parts, count = ndimage.label(smooth > threshold(smooth))
    if count == 0:
        return None
    sheet = _quadrangle(parts == 1 + np.bincount(parts.ravel())[1:].argmax())
    if sheet is None or sheet.sum() < MIN_AREA * sheet.size:
        return None
    rows, columns = (np.flatnonzero(sheet.any(axis=1 - axis)) for axis in (0, 1))
    box = np.array([rows[0], rows[-1] + 1, columns[0], columns[-1] + 1])
    top, bottom, left, right = np.rint(box * np.repeat(np.array(greys_HxW.shape) / small.shape, 2)).astype(int)
    light = shrunk(greys_HxW[top:bottom, left:right])
    rows, columns = (np.arange(side) for side in light.shape)
    rows, columns = rows * (box[1] - box[0]) // light.shape[0], columns * (box[3] - box[2]) // light.shape[1]
    return _drawn(light, sheet[box[0] + rows[:, None], box[2] + columns])


def _drawn(light_HxW: np.ndarray, sheet_HxW: np.ndarray) -> np.ndarray | None:
    """What is dark on the sheet, light on dark, or None where there is nothing, or too much to be drawn."""
    inside = np.pad(sheet_HxW, 1)  # No sheet goes on beyond the image.
    inner = ndimage.binary_erosion(inside, iterations=max(2, round(MARGIN * sheet_HxW.sum() ** 0.5)))[1:-1, 1:-1]
    if not inner.any():
        return None
    drawn = np.where(inner, np.maximum(_plane(light_HxW, inner) - light_HxW, 0), 0)
    dark = inner & (drawn > threshold(drawn[inner]))
    return drawn if drawn.max() >= CONTRAST and dark.sum() <= MAX_DRAWN * inner.sum() else None


def _plane(light_HxW: np.ndarray, within_HxW: np.ndarray) -> np.ndarray:
    """The greys of a sheet that is lit from one side: the plane that fits best to what is not dark."""
    planes = np.stack([*np.indices(light_HxW.shape), np.ones(light_HxW.shape)], -1)
    bright = within_HxW & (light_HxW > threshold(light_HxW[within_HxW]))
    if bright.sum() < within_HxW.sum() / 2:  # All of it is alike, but for the light.
        bright = within_HxW
    return planes @ np.linalg.lstsq(planes[bright], light_HxW[bright], rcond=None)[0]


def threshold(greys: np.ndarray) -> float:
    """The grey that separates two kinds of pixels best (Otsu 1979)."""
    counts, edges = np.histogram(greys, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    mean_below = np.cumsum(counts * centres) / np.maximum(below, 1)
    mean_above = (np.cumsum((counts * centres)[::-1]) / np.maximum(np.cumsum(counts[::-1]), 1))[::-1]
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(centres[int(np.argmax(between))])


def _quadrangle(mask_HxW: np.ndarray) -> np.ndarray | None:
    """The convex hull of what is connected, if it is one of four sides and nearly full."""
    from scipy.spatial import ConvexHull  # It takes a fifth of a second, which trainings do not need.

    points = np.argwhere(mask_HxW ^ ndimage.binary_erosion(mask_HxW))
    if np.ptp(points, axis=0).min() < 2:
        return None
    hull = ConvexHull(points)
    corners = hull.points[hull.vertices]
    # The largest quadrangle: on a diagonal, two triangles, one on each side.
    diagonal = corners[None, :] - corners[:, None]
    offset = corners[None, None, :] - corners[:, None, None]
    doubled = diagonal[..., None, 0] * offset[..., 1] - diagonal[..., None, 1] * offset[..., 0]
    largest = (doubled.max(-1) - doubled.min(-1)).max() / 2
    within = ndimage.binary_fill_holes(mask_HxW)
    if largest < FOUR_SIDED * hull.volume or within.sum() < FULL * hull.volume:
        return None
    rows, columns = np.indices(mask_HxW.shape)
    normals, offsets = hull.equations[:, :2], hull.equations[:, 2]
    return (
        normals[:, 0, None, None] * rows + normals[:, 1, None, None] * columns + offsets[:, None, None] <= 1e-6
    ).all(0)
