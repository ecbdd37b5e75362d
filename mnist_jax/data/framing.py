"""Frames drawings and photographs of any size: crops, scales and centers them like the images of a dataset."""

import math
from typing import NamedTuple

import numpy as np
import scipy
from PIL import Image

from mnist_jax.data import paper, ruled_paper

MAX_DRAWN_SIDE = 64  # pixels; an image with a longer side may be a photograph with an uneven background
MIN_CONTRAST = 16  # between the darkest and the lightest of 256 gray levels
# Minimum number of contacts of a pattern with the borders of the image; digits have fewer. After lines were removed,
# the picture shows more than the digit, so the digit touches the borders less.
MANY_CONTACTS, MANY_CONTACTS_RULED = 6, 3
DOT = 0.55  # minimum thickness of a dot, as a fraction of its longest side
MIN_DIGIT_SIDE = 5  # pixels of the longest side of a digit, in the analyzed image
LARGE_PART = 0.15  # minimum size of a large part, as a fraction of the size of all parts together
FAINT = 1 / 8  # pixels that are not brighter than this fraction of the brightest one are background
SPECK = 0.02  # connected parts smaller than this fraction of the largest one are dirt
EDGE_WIDTH = 0.12  # width of the band along the borders in which an edge lies, as a fraction of the shorter side
EDGE_LENGTH = 0.5  # minimum length of an edge, as a fraction of the side that it runs along
# In pixels of the result: strokes thinner than MIN_STROKE are thickened to THICKENED_STROKE.
MIN_STROKE, THICKENED_STROKE = 1.0, 1.6


class Framing(NamedTuple):
    """The size and the position of the objects in the images of a dataset, which are light on dark."""

    box_size: int  # longest side of the object, in pixels
    center_by_mass: bool  # whether its center of mass is in the middle; if not, the center of its bounding box is


class FramedImage(NamedTuple):
    """An image that is framed like those of a dataset, and a description of what was done to it."""

    image: np.ndarray  # uint8 HxWx1
    description: str


def frame_image(grays_HxW: np.ndarray, shape: tuple[int, ...], framing: Framing, max_pixel: int) -> FramedImage:
    """Scales and centers the object in an image, like the images of MNIST (http://yann.lecun.com/exdb/mnist/).

    Scales the longest side of the object to `framing.box_size` pixels and keeps its aspect ratio; pixels that are
    partly covered become gray. An image whose object already has the right size and position is left unchanged,
    or inverted if it is dark on light.

    Args:
      grays_HxW: Gray levels from 0 (black) to 255 (white).
      shape: The shape HxWx1 of the result.
      framing: The framing of the dataset.
      max_pixel: The largest pixel value of the dataset.

    Returns:
      The framed image, light on dark.

    Raises:
      ValueError: the image is blank.
    """
    low, high = float(grays_HxW.min(initial=255)), float(grays_HxW.max(initial=0))
    if high - low < MIN_CONTRAST:
        raise ValueError(f'it is blank: its pixels, from {low:g} to {high:g} of 255, have nearly the same value')
    inverted = np.median(_border_pixels(grays_HxW)) > (low + high) / 2
    ink = 255 - grays_HxW if inverted else grays_HxW
    steps = ['inverted (it was dark on light)'] if inverted else []
    if grays_HxW.shape == shape[:2] and _is_framed(ink, framing):
        return FramedImage(_to_pixels(ink / 255, max_pixel), ', '.join(steps) or 'unchanged')
    drawing, is_patterned, many_contacts = ink, False, MANY_CONTACTS
    if framing.center_by_mass and max(ink.shape) > MAX_DRAWN_SIDE:
        sheet = None if inverted else paper.find_drawing(grays_HxW)
        if sheet is not None:
            steps.append('cropped to the sheet of paper')
        ruled = ruled_paper.remove_lines(*(sheet or (paper.shrink(ink, ruled_paper.MAX_SIDE),)))
        if ruled.removed:
            steps.append(f'{ruled.removed} {"line" if ruled.removed == 1 else "lines"} of ruled paper removed')
        drawing = ruled.ink if ruled.removed or sheet is not None else ink
        is_patterned, many_contacts = ruled.kept > 0, MANY_CONTACTS_RULED if ruled.removed else MANY_CONTACTS
    cropped, has_edges, contacts = _crop_object(paper.shrink(drawing), framing)
    if has_edges:
        steps.append('lines along the edges removed')
    if framing.center_by_mass and (is_patterned or contacts >= many_contacts):
        steps.append('lines or a pattern left (expected plain paper, or regular lines)')
    placed = _place(cropped, shape, framing)
    height, width = grays_HxW.shape
    steps.append(f'scaled and centered from {width} x {height}')
    if framing.center_by_mass and (parts := _count_large_parts(cropped)) > 1:
        steps.append(f'{parts} separate parts (expected one digit per image)')
    if framing.center_by_mass and _is_dot(cropped):
        steps.append('only a dot (expected a digit)')
    return FramedImage(_to_pixels(placed, max_pixel), ', '.join(steps))


def _to_pixels(ink_HxW: np.ndarray, max_pixel: int) -> np.ndarray:
    return np.rint(np.clip(ink_HxW, 0, 1) * max_pixel).astype(np.uint8)[..., None]


def _border_pixels(grays_HxW: np.ndarray) -> np.ndarray:
    width = max(1, min(grays_HxW.shape) // 20)
    inner = np.zeros(grays_HxW.shape, bool)
    inner[width:-width, width:-width] = True
    return grays_HxW[~inner]


def _is_framed(ink_HxW: np.ndarray, framing: Framing) -> bool:
    """Returns whether the object has the size and position of objects in the dataset, within about a pixel."""
    mask = ink_HxW > ink_HxW.max() * FAINT
    ends = np.array([np.flatnonzero(mask.any(axis=1 - axis))[[0, -1]] for axis in (0, 1)])  # first and last pixels
    longest_side = int(np.ptp(ends, axis=1).max()) + 1
    if not framing.center_by_mass:
        offset = ends.mean(1) - (np.array(ink_HxW.shape) - 1) / 2
        return abs(longest_side - framing.box_size) <= 1 and bool(np.abs(offset).max() <= 1)
    offset = np.array(scipy.ndimage.center_of_mass(ink_HxW)) - _target_center_of_mass(ink_HxW.shape)
    return framing.box_size - 2 <= longest_side <= framing.box_size + 1 and bool(np.abs(offset).max() <= 1.5)


def _target_center_of_mass(shape: tuple[int, ...]) -> np.ndarray:
    # MNIST's images have their center of mass half a pixel below and to the right of the middle.
    return np.array(shape[:2]) / 2


def _crop_object(ink_HxW: np.ndarray, framing: Framing) -> tuple[np.ndarray, bool, int]:
    """Crops an image to its object, without specks and, for drawings, without the shadows and edges of a scan.

    Returns:
      The object, from 0 for the background to 1; whether edges were removed; and how often the object meets the
      borders of the image.
    """
    if framing.center_by_mass and max(ink_HxW.shape) > MAX_DRAWN_SIDE:
        ink_HxW = paper.subtract_background(ink_HxW)
    else:
        ink_HxW = np.maximum(ink_HxW - np.median(_border_pixels(ink_HxW)), 0)
    if ink_HxW.max() < MIN_CONTRAST / 2:
        raise ValueError('it is blank: nothing stands out from the background')
    mask = ink_HxW > paper.otsu_threshold(ink_HxW)
    parts, _ = scipy.ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    edges = _find_edges(parts, sizes) if framing.center_by_mass else []
    sizes[edges] = 0
    kept = (sizes >= SPECK * sizes.max())[parts]
    full = np.percentile(ink_HxW[kept], 75)
    # Include the surrounding pixels where strokes fade out.
    object_mask = scipy.ndimage.binary_dilation(kept, np.ones((3, 3)), iterations=3, mask=ink_HxW > FAINT * full)
    scaled = np.where(object_mask, np.clip(ink_HxW / full, 0, 1), 0)
    rows, columns = (np.flatnonzero(object_mask.any(axis=1 - axis)) for axis in (0, 1))
    border = np.concatenate([kept[0], kept[1:, -1], kept[-1, -2::-1], kept[-2:0:-1, 0]])
    contacts = int((border & ~np.roll(border, 1)).sum())
    return scaled[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], len(edges) > 0, contacts


def _find_edges(parts_HxW: np.ndarray, sizes: np.ndarray) -> list[int]:
    """Returns the labels of the parts that form a frame or the edge of a scan, or [] if nothing else would remain."""
    height, width = parts_HxW.shape
    band = max(1, round(EDGE_WIDTH * min(height, width)))
    inner_sizes = np.bincount(parts_HxW[band:-band, band:-band].ravel(), minlength=len(sizes))
    edges = []
    for label, (rows, columns) in enumerate(scipy.ndimage.find_objects(parts_HxW), start=1):
        touches = rows.start == 0 or columns.start == 0 or rows.stop == height or columns.stop == width
        long = rows.stop - rows.start >= EDGE_LENGTH * height or columns.stop - columns.start >= EDGE_LENGTH * width
        if touches and long and inner_sizes[label] < LARGE_PART * sizes[label]:
            edges.append(label)
    largest_other = np.delete(sizes, edges).max(initial=0)
    return edges if largest_other >= SPECK * sizes[edges].sum() else []


def _count_large_parts(object_hxw: np.ndarray) -> int:
    """Returns the number of large parts that do not touch each other."""
    labels, _ = scipy.ndimage.label(object_hxw > 0.5, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    return int((sizes > LARGE_PART * sizes.sum()).sum())


def _is_dot(object_hxw: np.ndarray) -> bool:
    """Returns whether an object is hardly longer than thick, unlike the strokes of a digit, or only a few pixels."""
    mask = np.pad(object_hxw > 0.5, 1)
    longest_side = max(int(mask.any(axis).sum()) for axis in (0, 1))
    thickness = 2 * scipy.ndimage.distance_transform_edt(mask).max() - 1
    return longest_side < MIN_DIGIT_SIDE or thickness > DOT * longest_side


def _place(object_hxw: np.ndarray, shape: tuple[int, ...], framing: Framing) -> np.ndarray:
    """Returns an image of `shape` HxW with the object, scaled and centered."""
    scale = framing.box_size / max(object_hxw.shape)
    if framing.center_by_mass:
        object_hxw = _thicken_strokes(object_hxw, scale)
        scale = framing.box_size / max(object_hxw.shape)
    height, width = (max(1, round(side * scale)) for side in object_hxw.shape)
    resized = Image.fromarray(object_hxw.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    small = np.asarray(resized) / max(np.asarray(resized).max(), 1e-6)
    if framing.center_by_mass:
        center, target = np.array(scipy.ndimage.center_of_mass(small)), _target_center_of_mass(shape)
    else:
        center, target = (np.array(small.shape) - 1) / 2, (np.array(shape[:2]) - 1) / 2
    margin = np.array(shape[:2]) - small.shape
    top, left = np.clip(np.rint(target - center).astype(int), 0, np.maximum(margin, 0))
    placed = np.zeros(shape[:2])
    placed[top : top + height, left : left + width] = small
    return placed


def _thicken_strokes(object_hxw: np.ndarray, scale: float) -> np.ndarray:
    """Thickens strokes that would nearly vanish in the result, which is smaller by the factor `scale`."""
    depth = scipy.ndimage.distance_transform_edt(np.pad(object_hxw > 0.5, 1))
    # In the middle of a stroke, the distance to its edge is half its thickness.
    ridge = depth[(depth == scipy.ndimage.maximum_filter(depth, 3)) & (depth > 0)]
    thickness = (2 * float(np.median(ridge)) - 1) * scale
    if thickness >= MIN_STROKE:
        return object_hxw
    missing = math.ceil((THICKENED_STROKE - thickness) / scale)
    return scipy.ndimage.grey_dilation(np.pad(object_hxw, (missing + 1) // 2), size=(missing + 1, missing + 1))
