"""Pictures of handwritten and printed digits on ruled paper, for the tests of framing and for a benchmark."""

import numpy as np
from digit_images import font_paths
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

KINDS = ('lined', 'squared', 'dotted', 'millimeter', 'margin', 'thick')
INKS = ((20, 20, 24), (24, 30, 110), (70, 70, 74))
LINE_COLORS = ((120, 150, 225), (150, 150, 150), (110, 190, 150), (225, 150, 110))
MARGIN_COLOR = (214, 60, 70)


def draw_on_paper(kind, digit, rng, digits=None, sides=(280, 640)):
    """Draws a digit on paper; the size, position and pen of the digit, the lines, the light and the noise are random.

    Args:
      kind: One of `KINDS`.
      digit: The class of the digit.
      rng: A NumPy generator.
      digits: Images of the digit in the format of MNIST to choose from; None draws it in a font.
      sides: The range of the height and of the width, in pixels.

    Returns:
      Two pictures in RGB: on paper of this kind, and the same without the lines.
    """
    width, height = rng.integers(*sides, 2)
    side = min(width, height) * rng.uniform(0.35, 0.6)
    stroke_HxW = _place(_glyph(digit, int(side), rng, digits), (height, width), rng)
    plain_HxWx3 = np.full((height, width, 3), rng.uniform(236, 255, 3))
    ink = np.array(INKS[rng.integers(len(INKS))], float)
    ruled_HxWx3 = plain_HxWx3.copy()
    for coverage_HxW, color in _ruling(kind, (height, width), np.deg2rad(rng.uniform(-2, 2)), rng):
        ruled_HxWx3 += coverage_HxW[..., None] * (color - ruled_HxWx3)
    light = 1 - rng.uniform(0, 0.15) * np.linspace(0, 1, width)[None, :, None]
    noise = rng.normal(0, rng.uniform(0, 4), plain_HxWx3.shape)
    blur = rng.uniform(0, 0.7)
    pictures = []
    for paper_HxWx3 in (ruled_HxWx3, plain_HxWx3):
        drawn = paper_HxWx3 + stroke_HxW[..., None] * (np.minimum(ink, paper_HxWx3) - paper_HxWx3)
        pixels = ndimage.gaussian_filter(drawn * light, (blur, blur, 0)) + noise
        pictures.append(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)))
    return tuple(pictures)


def _glyph(digit, side, rng, digits):
    """Returns a digit of about `side` pixels, from 0 to 1."""
    if digits is not None:
        image = Image.fromarray(digits[rng.integers(len(digits))])
        large = image.resize((round(28 * side / 20),) * 2, Image.Resampling.BICUBIC)
        return np.asarray(large) / 255
    font = ImageFont.truetype(font_paths()[rng.integers(4)], round(side * 1.35))
    left, top, right, bottom = font.getbbox(str(digit))
    picture = Image.new('L', (right - left + 4, bottom - top + 4))
    ImageDraw.Draw(picture).text((2 - left, 2 - top), str(digit), fill=255, font=font)
    return np.asarray(picture) / 255


def _place(glyph_hxw, shape, rng):
    """Returns a canvas with a glyph at a random position."""
    canvas = np.zeros(shape)
    top, left = (rng.integers(0, max(1, whole - part)) for whole, part in zip(shape, glyph_hxw.shape, strict=True))
    part = glyph_hxw[: shape[0] - top, : shape[1] - left]
    canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
    return canvas


def _lines(distance_HxW, spacing, thickness):
    """Returns how much of each pixel parallel lines cover, given its distance from an axis."""
    return np.clip(thickness / 2 + 0.5 - _offset(distance_HxW, spacing), 0, 1)


def _offset(distance_HxW, spacing):
    """Returns the distance from the nearest multiple of `spacing`."""
    return np.abs((distance_HxW + spacing / 2) % spacing - spacing / 2)


def _ruling(kind, shape, angle, rng):
    """Yields how much of each pixel lines cover, and their color."""
    y, x = np.indices(shape, float)
    across = y * np.cos(angle) - x * np.sin(angle) + rng.uniform(0, 100)
    along = x * np.cos(angle) + y * np.sin(angle) + rng.uniform(0, 100)
    line_color = np.array(LINE_COLORS[rng.integers(len(LINE_COLORS))], float)
    color = np.maximum(255 - (255 - line_color) * rng.uniform(0.6, 1.7), 0)
    spacing, thickness = rng.uniform(20, 60), rng.uniform(1, 2.5)
    if kind in ('lined', 'margin'):
        yield _lines(across, 1.4 * spacing, thickness), color
    elif kind == 'squared':
        yield np.maximum(_lines(across, spacing, thickness), _lines(along, spacing, thickness)), color
    elif kind == 'dotted':
        distance_HxW = np.hypot(_offset(across, spacing), _offset(along, spacing))
        yield np.clip(rng.uniform(1, 4) + 0.5 - distance_HxW, 0, 1), color
    elif kind == 'millimeter':
        unit = rng.uniform(4.5, 8)
        for factor, width in ((1, 0.7), (5, 1.2), (10, 2)):
            yield np.maximum(_lines(across, factor * unit, width), _lines(along, factor * unit, width)), color
    elif kind == 'thick':
        yield _lines(across, rng.uniform(50, 110), rng.uniform(4, 8)), np.maximum(color - 60, 0)
    if kind == 'margin':
        left = along.min() + np.ptp(along) * rng.uniform(0.08, 0.3)
        yield np.clip(rng.uniform(0.5, 1.5) + 0.5 - np.abs(along - left), 0, 1), np.array(MARGIN_COLOR, float)
