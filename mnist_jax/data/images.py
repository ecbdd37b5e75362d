"""Image files of any size, drawn or photographed, made into what the images of a data set are."""

import math
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from mnist_jax.data import sheet
from mnist_jax.errors import UserError, first_line

FORMATS = ('PNG', 'JPEG', 'BMP')
SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp')
MAX_PIXELS = 50_000_000
PHOTOGRAPH = 64  # pixels of the longer side; a smaller image is drawn, and its ground is even
MIN_CONTRAST, LOW_CONTRAST = 16, 64  # between the darkest and the lightest of 256 greys
LARGE_PART = 0.15  # of all that is shown
FAINT = 1 / 8  # of the brightest pixel; what is not brighter is no part of what is shown
SPECK = 0.02  # of the largest connected part's size; smaller ones are dirt
EDGE, LONG = 0.12, 0.5  # shares of the shorter side from the border, and of the side along which an edge runs
HAIR, THIN = 1.0, 1.6  # pixels of the final image: strokes thinner than a hair are drawn as thick as a thin one


class Framing(NamedTuple):
    """How the images of a data set lie in their frame, light on a dark ground."""

    box: int  # longest side of what is shown, pixels
    by_mass: bool  # whether its centre of mass is in the middle, or else that of its bounding box


class Framed(NamedTuple):
    """An image as a data set has them, and what was done to make it so."""

    image: np.ndarray  # uint8 HxWx1
    done: str


def read(path: Path) -> np.ndarray:
    """The greys HxW, float32 from 0 to 255, of an image file; transparent parts are as the contrary of what is shown.

    Raises:
      UserError: it is no whole PNG, JPEG or BMP file, or one of more than `MAX_PIXELS`.
    """
    where = f'image {str(path)!r}'
    try:
        with warnings.catch_warnings(action='ignore', category=Image.DecompressionBombWarning):
            opened = Image.open(path, formats=FORMATS)
        with opened as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise UserError(f'{where} is too large: {picture.width} x {picture.height}, more than {MAX_PIXELS:,}')
            return _greys(ImageOps.exif_transpose(picture))
    except UnidentifiedImageError:
        raise UserError(f'{where} is no image that can be read; PNG, JPEG and BMP can') from None
    except Image.DecompressionBombError:
        raise UserError(f'{where} is too large: more than {MAX_PIXELS:,} pixels') from None
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:  # Pillow's parsers raise all of these.
        raise UserError(f'{where} cannot be read: {first_line(error)}') from None


def _greys(picture: Image.Image) -> np.ndarray:
    if picture.mode.startswith(('I', 'F')):  # 16 bits, of which the first eight will do
        deep = np.asarray(picture.convert('F'), np.float32)
        bits = max(8, int(deep.max(initial=0)).bit_length())  # Of 16, a camera may use 10 or 12.
        return np.clip(deep, 0, None) * (255 / (2**bits - 1))
    if 'A' not in picture.getbands() and 'transparency' not in picture.info:
        grey = np.asarray(picture.convert('L'), np.float32)
        if np.ptp(grey) >= LOW_CONTRAST:
            return grey
        # Colours as bright as each other differ in one of these.
        return max(np.moveaxis(np.asarray(picture.convert('RGB'), np.float32), -1, 0), key=np.ptp)
    grey, alpha = (np.asarray(band, np.float32) for band in picture.convert('LA').split())
    shown = alpha > 127
    dark = not shown.any() or grey[shown].mean() < 128
    return grey * alpha / 255 + (255 - alpha) * dark


def framed(greys_HxW: np.ndarray, shape: tuple[int, ...], framing: Framing, max_pixel: int) -> Framed:
    """The image of `shape` HxWx1, pixels 0 to `max_pixel`, light on dark, of what is shown in `greys_HxW` (0 to 255).

    It is size-normalised and centred as MNIST's images were (http://yann.lecun.com/exdb/mnist/): its longest side is
    scaled to `framing.box` pixels, its proportions kept, with grey levels where pixels are partly covered. What
    already lies like that is left as it is, but for dark on light.

    Raises:
      ValueError: nothing is shown.
    """
    low, high = float(greys_HxW.min(initial=255)), float(greys_HxW.max(initial=0))
    if high - low < MIN_CONTRAST:
        raise ValueError('it shows nothing: all its pixels are nearly the same')
    inverted = np.median(_border(greys_HxW)) > (low + high) / 2
    ink = 255 - greys_HxW if inverted else greys_HxW
    done = ['inverted (it was dark on light)'] if inverted else []
    if greys_HxW.shape == shape[:2] and _lies_well(ink, framing):
        return Framed(_pixels(ink / 255, max_pixel), ', '.join(done) or 'as it was')
    photographed = framing.by_mass and not inverted and max(greys_HxW.shape) > PHOTOGRAPH
    drawn_on_sheet = sheet.shown_on(greys_HxW) if photographed else None
    if drawn_on_sheet is not None:
        done.append('cut out of the sheet it is on')
    found, edged = _cut_out(sheet.shrunk(ink) if drawn_on_sheet is None else drawn_on_sheet, framing)
    if edged:
        done.append('without what runs along its edges')
    drawn = _placed(found, shape, framing)
    height, width = greys_HxW.shape
    done.append(f'scaled and centred, from {width} x {height}')
    if framing.by_mass and (parts := _parts(found)) > 1:
        done.append(f'{parts} separate parts (one digit an image is wanted)')
    return Framed(_pixels(drawn, max_pixel), ', '.join(done))


def _pixels(ink_HxW: np.ndarray, max_pixel: int) -> np.ndarray:
    return np.rint(np.clip(ink_HxW, 0, 1) * max_pixel).astype(np.uint8)[..., None]


def _border(greys_HxW: np.ndarray) -> np.ndarray:
    width = max(1, min(greys_HxW.shape) // 20)
    inner = np.zeros(greys_HxW.shape, bool)
    inner[width:-width, width:-width] = True
    return greys_HxW[~inner]


def _lies_well(ink_HxW: np.ndarray, framing: Framing) -> bool:
    """Whether what is shown has the size and the place that the data set's images have, give or take a pixel."""
    mask = ink_HxW > ink_HxW.max() * FAINT
    sides = [np.ptp(np.flatnonzero(mask.any(axis=1 - axis))) + 1 for axis in (0, 1)]
    if not framing.by_mass:
        return abs(max(sides) - framing.box) <= 1
    off = np.array(ndimage.center_of_mass(ink_HxW)) - _middle(ink_HxW.shape)
    return framing.box - 2 <= max(sides) <= framing.box + 1 and np.abs(off).max() <= 1.5


def _middle(shape: tuple[int, ...]) -> np.ndarray:
    # Half a pixel down and to the right of the frame's: there MNIST's images have their centre of mass.
    return np.array(shape[:2]) / 2


def _cut_out(ink_HxW: np.ndarray, framing: Framing) -> tuple[np.ndarray, bool]:
    """What is shown, cropped, from 0 for the ground to 1, and whether there was something else along the image's edges.

    It is without specks and, of strokes, without shadows behind.
    """
    if framing.by_mass and max(ink_HxW.shape) > PHOTOGRAPH:
        # Strokes are narrower than this; what is wider is paper, lit unevenly.
        size = max(3, max(ink_HxW.shape) // 3)
        ground = ndimage.grey_opening(ndimage.gaussian_filter(ink_HxW, 1), size=(size, size))
        ink_HxW = np.maximum(ink_HxW - ndimage.gaussian_filter(ground, size / 8), 0)
    else:
        ink_HxW = np.maximum(ink_HxW - np.median(_border(ink_HxW)), 0)
    if ink_HxW.max() < MIN_CONTRAST / 2:
        raise ValueError('it shows nothing that stands out from its ground')
    mask = ink_HxW > sheet.threshold(ink_HxW)
    parts, _ = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    edges = _edges(parts, sizes) if framing.by_mass else []
    sizes[edges] = 0
    kept = (sizes >= SPECK * sizes.max())[parts]
    full = np.percentile(ink_HxW[kept], 75)
    # With the pixels around in which strokes fade out.
    faded = ndimage.binary_dilation(kept, np.ones((3, 3)), iterations=3, mask=ink_HxW > FAINT * full)
    shown = np.where(faded, np.clip(ink_HxW / full, 0, 1), 0)
    rows, columns = (np.flatnonzero(faded.any(axis=1 - axis)) for axis in (0, 1))
    return shown[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], len(edges) > 0


def _edges(parts_HxW: np.ndarray, sizes: np.ndarray) -> list[int]:
    """The parts that are a frame or the edge of a scan; none where nothing would be left."""
    height, width = parts_HxW.shape
    band = max(1, round(EDGE * min(height, width)))
    inner_sizes = np.bincount(parts_HxW[band:-band, band:-band].ravel(), minlength=len(sizes))
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(parts_HxW), start=1):
        touches = rows.start == 0 or columns.start == 0 or rows.stop == height or columns.stop == width
        long = rows.stop - rows.start >= LONG * height or columns.stop - columns.start >= LONG * width
        if touches and long and inner_sizes[number] < LARGE_PART * sizes[number]:
            found.append(number)
    left = np.delete(sizes, found).max(initial=0)
    return found if left >= SPECK * sizes[found].sum() else []


def _parts(shown_hxw: np.ndarray) -> int:
    """How many large parts that do not touch there are."""
    labels, _ = ndimage.label(shown_hxw > 0.5, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    return int((sizes > LARGE_PART * sizes.sum()).sum())


def _placed(shown_hxw: np.ndarray, shape: tuple[int, ...], framing: Framing) -> np.ndarray:
    scale = framing.box / max(shown_hxw.shape)
    if framing.by_mass:
        shown_hxw = _thickened(shown_hxw, scale)
        scale = framing.box / max(shown_hxw.shape)
    height, width = (max(1, round(side * scale)) for side in shown_hxw.shape)
    picture = Image.fromarray(shown_hxw.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    small = np.asarray(picture) / max(np.asarray(picture).max(), 1e-6)
    centre = np.array(ndimage.center_of_mass(small)) if framing.by_mass else (np.array(small.shape) - 1) / 2
    middle = _middle(shape) if framing.by_mass else (np.array(shape[:2]) - 1) / 2
    room = np.array(shape[:2]) - small.shape
    top, left = np.clip(np.rint(middle - centre).astype(int), 0, np.maximum(room, 0))
    drawn = np.zeros(shape[:2])
    drawn[top : top + height, left : left + width] = small
    return drawn


def _thickened(shown_hxw: np.ndarray, scale: float) -> np.ndarray:
    """The same, with its strokes drawn thicker where little would be left of them in the final image."""
    depth = ndimage.distance_transform_edt(np.pad(shown_hxw > 0.5, 1))
    # Along the middle of a stroke, its depth is half its thickness.
    ridge = depth[(depth == ndimage.maximum_filter(depth, 3)) & (depth > 0)]
    thickness = (2 * float(np.median(ridge)) - 1) * scale
    if thickness >= HAIR:
        return shown_hxw
    missing = math.ceil((THIN - thickness) / scale)
    return ndimage.grey_dilation(np.pad(shown_hxw, (missing + 1) // 2), size=(missing + 1, missing + 1))
