"""Reads image files as gray levels."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mnist_jax.errors import UserError, first_line

FORMATS = ('PNG', 'JPEG', 'BMP')
SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp')
MAX_PIXELS = 50_000_000
LOW_CONTRAST = 64  # range of gray levels below which a single color channel is used instead


def read(path: Path) -> np.ndarray:
    """Reads an image file; transparent pixels become a background that contrasts with the opaque pixels.

    Returns:
      The gray levels HxW, float32 from 0 (black) to 255 (white).

    Raises:
      UserError: the file is not a complete PNG, JPEG or BMP file, or it has more than `MAX_PIXELS`.
    """
    label = f'image {str(path)!r}'
    try:
        with warnings.catch_warnings(action='ignore', category=Image.DecompressionBombWarning):
            opened = Image.open(path, formats=FORMATS)
        with opened as picture:
            if picture.width * picture.height > MAX_PIXELS:
                size = f'{picture.width} x {picture.height}'
                raise UserError(f'{label} must have at most {MAX_PIXELS:,} pixels, got {size}')
            return _to_grayscale(ImageOps.exif_transpose(picture))
    except UnidentifiedImageError:
        raise UserError(f'{label} must be a PNG, JPEG or BMP file, got another format or a damaged file') from None
    except Image.DecompressionBombError:
        raise UserError(f'{label} must have at most {MAX_PIXELS:,} pixels, got more') from None
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:  # Pillow's parsers raise all of these.
        raise UserError(f'{label} cannot be read: {first_line(error)}') from None


def _to_grayscale(picture: Image.Image) -> np.ndarray:
    if picture.mode.startswith(('I', 'F')):  # more than 8 bits per pixel
        pixels = np.asarray(picture.convert('F'), np.float32)
        bits = max(8, int(pixels.max(initial=0)).bit_length())  # A camera may use 10 or 12 of 16 bits.
        return np.clip(pixels, 0, None) * (255 / (2**bits - 1))
    if 'A' not in picture.getbands() and 'transparency' not in picture.info:
        gray = np.asarray(picture.convert('L'), np.float32)
        if np.ptp(gray) >= LOW_CONTRAST:
            return gray
        # Colors of the same brightness differ in at least one channel.
        return max(np.moveaxis(np.asarray(picture.convert('RGB'), np.float32), -1, 0), key=np.ptp)
    gray, alpha = (np.asarray(band, np.float32) for band in picture.convert('LA').split())
    opaque = alpha > 127
    dark = not opaque.any() or gray[opaque].mean() < 128
    return gray * alpha / 255 + (255 - alpha) * dark
