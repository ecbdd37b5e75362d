"""Reads image files: as gray levels to be framed, or as pixels that are fitted to a size."""

import contextlib
import io
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mnist_jax.errors import UserError, first_line

FORMATS = ('PNG', 'JPEG', 'BMP', 'WEBP', 'TIFF', 'GIF')
FORMAT_NAMES = 'PNG, JPEG, BMP, WebP, TIFF or GIF'
SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.webp', '.tif', '.tiff', '.gif')
HEIC_SUFFIXES = ('.heic', '.heif')
# HEIC and HEIF files have one of these brands in bytes 8 to 12, after the type of their first box.
HEIC_BRANDS = (b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'mif1', b'msf1')
Channels = Literal['auto', 'gray', 'color']
CHANNELS: dict[Channels, int] = {'auto': 0, 'gray': 1, 'color': 3}  # see `read_pixels`
Fit = Literal['resize', 'crop', 'pad']
MAX_PIXELS = 50_000_000
# What the parsers of Pillow and NumPy raise for damaged files.
PARSER_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    SyntaxError,
    EOFError,
    MemoryError,
    struct.error,
)
LOW_CONTRAST = 64  # range of gray levels below which a single color channel is used instead


def read(path: Path) -> np.ndarray:
    """Reads an image file, of an animation the first frame, and of a multi-page file the first page.

    Transparent pixels become a background that contrasts with the opaque pixels.

    Returns:
      The gray levels HxW, float32 from 0 (black) to 255 (white).

    Raises:
      UserError: the file is not a complete file of one of the `FORMATS`, or it has more than `MAX_PIXELS`.
    """
    with _opened(path) as picture:
        return _to_grayscale(picture)


def read_pixels(file: Path | bytes, channels: int = 0, label: str = '') -> np.ndarray:
    """Reads an image file as it is shown: rotated as its EXIF data says, transparent pixels on white.

    Args:
      file: The path of the file, or its contents.
      label: What error messages call it; '' for its path.
      channels: 1 for gray levels, 3 for red, green and blue, 0 for what the file has.

    Returns:
      The pixels HxWxC, uint8. Those with 16 bits are scaled in the same way for all images.

    Raises:
      UserError: as for `read`, or a pixel has more than 16 bits.
    """
    with _opened(file, label) as picture:
        if picture.mode.startswith('I;16'):
            values = np.asarray(picture, np.float32)
            pixels = np.rint(values * (255 / 65535)).astype(np.uint8)
            pixels[values == picture.info.get('transparency')] = 255
            picture = Image.fromarray(pixels)
        elif picture.mode.startswith(('I', 'F')):
            name = label or f'image {str(file)!r}'
            raise UserError(f'{name} must have at most 16 bits per pixel, got 32 (mode {picture.mode!r} of Pillow)')
        if picture.has_transparency_data:
            layers = picture.convert('RGBA')
            picture = Image.alpha_composite(Image.new('RGBA', layers.size, 'white'), layers)
            is_gray = len({band.tobytes() for band in picture.split()[:3]}) == 1
            picture = picture.convert('L' if is_gray else 'RGB')
        elif picture.mode == 'P':
            picture = picture.convert('RGB')
            is_gray = len({band.tobytes() for band in picture.split()}) == 1
            picture = picture.convert('L') if is_gray else picture
        gray = channels == 1 or (channels == 0 and picture.mode in ('1', 'L'))
        pixels = np.asarray(picture.convert('L' if gray else 'RGB'))
        return pixels[..., None] if gray else pixels


def to_grays(rgb_HxWx3: np.ndarray) -> np.ndarray:
    """Returns the gray levels of an image as `read` does, float32 HxW."""
    return _to_grayscale(Image.fromarray(rgb_HxWx3))


def with_channels(rgb_HxWx3: np.ndarray, channels: int) -> np.ndarray:
    """Returns an image with 1 or 3 channels as `read_pixels` does, uint8."""
    return rgb_HxWx3 if channels == 3 else np.asarray(Image.fromarray(rgb_HxWx3).convert('L'))[..., None]


def fit_pixels(pixels_HxWxC: np.ndarray, size: tuple[int, int], fit: str) -> np.ndarray:
    """Fits an image to a height and a width.

    Args:
      pixels_HxWxC: The image, uint8.
      size: Height and width of the result.
      fit: 'resize' changes the aspect ratio; 'crop' fills the result and cuts off what is too long, on
        both sides alike; 'pad' shows everything, on black.

    Returns:
      The result, uint8; the image itself if it has the right size. Sizes are changed by area, with a bilinear filter.
    """
    height, width, channels = pixels_HxWxC.shape
    if (height, width) == size:
        return pixels_HxWxC
    picture = Image.fromarray(pixels_HxWxC[..., 0] if channels == 1 else pixels_HxWxC)
    columns_and_rows = size[::-1]
    if fit == 'crop':
        fitted = ImageOps.fit(picture, columns_and_rows, Image.Resampling.BILINEAR)
    elif fit == 'pad':
        # `ImageOps.pad` would leave nothing of an image that is so thin that less than half a pixel remains of a side.
        if round(height / width * size[1]) == 0:
            picture = picture.resize((size[1], 1), Image.Resampling.BILINEAR)
        elif round(width / height * size[0]) == 0:
            picture = picture.resize((1, size[0]), Image.Resampling.BILINEAR)
        fitted = ImageOps.pad(picture, columns_and_rows, Image.Resampling.BILINEAR)
    else:
        fitted = picture.resize(columns_and_rows, Image.Resampling.BILINEAR)
    return np.asarray(fitted).reshape(*size, channels)


Preparation = Callable[..., np.ndarray]
"""Reads an image file with `read_pixels`, of which it takes `file` and `label`, and fits it to a size."""


def preparation(image_size: Sequence[int], channels: Channels, fit: str) -> Preparation:
    """Returns how images are read that `config.dataset` describes with these fields.

    Raises:
      UserError: `image_size` is not a height and a width.
    """
    if len(image_size) not in (0, 2):
        raise UserError(f'config.dataset.image_size must be (), or height and width, got {tuple(image_size)}')

    def prepare(file: Path | bytes, label: str = '') -> np.ndarray:
        pixels = read_pixels(file, CHANNELS[channels], label)
        return fit_pixels(pixels, (image_size[0], image_size[1]), fit) if image_size else pixels

    return prepare


def without_warnings() -> warnings.catch_warnings:
    """Returns a context for reading images: what Pillow warns of is refused here, or is an error.

    The filters of warnings belong to all threads, so one context must enclose all threads that read images.
    """
    return warnings.catch_warnings(action='ignore')


@contextlib.contextmanager
def _opened(file: Path | bytes, label: str = '') -> Iterator[Image.Image]:
    """Opens an image, rotated as its EXIF data says; errors of Pillow become a UserError."""
    label = label or f'image {str(file)!r}'
    source = io.BytesIO(file) if isinstance(file, bytes) else file
    if isinstance(file, Path) and file.exists() and not file.is_file():  # Reading it could block.
        raise UserError(f'{label} must be a regular file')
    try:
        with Image.open(source, formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                size = f'{picture.width} x {picture.height}'
                raise UserError(f'{label} must have at most {MAX_PIXELS:,} pixels, got {size}')
            upright = ImageOps.exif_transpose(picture)
            yield upright.convert('RGB') if upright.mode == 'LAB' else upright  # Pillow does not convert it to gray.
    except UnidentifiedImageError:
        raise UserError(f'{label} must be a {FORMAT_NAMES} file, got {_describe_format(file)}') from None
    except Image.DecompressionBombError:
        raise UserError(f'{label} must have at most {MAX_PIXELS:,} pixels, got more') from None
    except PARSER_ERRORS as error:
        raise UserError(f'{label} cannot be read: {first_line(error)}') from None


def _describe_format(file: Path | bytes) -> str:
    """Returns what a file is that Pillow does not recognize."""
    with io.BytesIO(file) if isinstance(file, bytes) else open(file, 'rb') as opened:
        start = opened.read(12)
    if start[4:8] == b'ftyp' and start[8:12] in HEIC_BRANDS:
        return 'a HEIC file; convert it to PNG or JPEG first'
    return 'another format or a damaged file' if start else 'an empty file'


def _to_grayscale(picture: Image.Image) -> np.ndarray:
    if picture.mode.startswith(('I', 'F')):  # more than 8 bits per pixel
        pixels = np.asarray(picture.convert('F'), np.float32)
        bits = max(8, int(pixels.max(initial=0)).bit_length())  # A camera may use 10 or 12 of 16 bits.
        return np.clip(pixels, 0, None) * (255 / (2**bits - 1))
    if not picture.has_transparency_data:
        gray = np.asarray(picture.convert('L'), np.float32)
        if np.ptp(gray) >= LOW_CONTRAST:
            return gray
        # Colors of the same brightness differ in at least one channel.
        return max(np.moveaxis(np.asarray(picture.convert('RGB'), np.float32), -1, 0), key=np.ptp)
    gray, alpha = (np.asarray(band, np.float32) for band in picture.convert('LA').split())
    opaque = alpha > 127
    dark = not opaque.any() or gray[opaque].mean() < 128
    return gray * alpha / 255 + (255 - alpha) * dark
