"""Corruptions of images at rising strengths, to measure how much of its accuracy a model loses.

Every function takes images NxHxWxC with values from 0 to 1, a strength in its own unit and a NumPy generator, and
returns changed images. What a motion brings into the image is 0.
"""

import io
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from PIL import Image

from mnist_jax.kernels import warping

Corrupt = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


class Corruption(NamedTuple):
    """A corruption.

    Attributes:
      corrupt: The function.
      unit: The unit of its strengths.
      strengths: Five strengths, from weak to strong.
    """

    corrupt: Corrupt
    unit: str
    strengths: tuple[float, ...]


def _signs(count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.choice([-1.0, 1.0], count)


def _move(images_NxHxWxC: np.ndarray, **numbers: np.ndarray | float) -> np.ndarray:
    """Moves the pixels of images by bilinear interpolation; see `warping.Motion`."""
    count = len(images_NxHxWxC)
    unchanged = {name: float(name in ('cosine', 'zoom', 'gain', 'stretch')) for name in warping.Motion._fields}
    arrays = {
        name: jnp.broadcast_to(jnp.asarray(value, jnp.float32), (count,))
        for name, value in {**unchanged, **numbers}.items()
    }
    return np.asarray(warping.warp(jnp.asarray(images_NxHxWxC, jnp.float32), warping.Motion(**arrays)))


def shift(images_NxHxWxC: np.ndarray, pixels: float, rng: np.random.Generator) -> np.ndarray:
    """Moves each image by this distance in a random direction, rounded to whole pixels along each axis."""
    angle = rng.uniform(0, 2 * np.pi, len(images_NxHxWxC))
    return _move(images_NxHxWxC, down=np.rint(pixels * np.sin(angle)), right=np.rint(pixels * np.cos(angle)))


def rotate(images_NxHxWxC: np.ndarray, degrees: float, rng: np.random.Generator) -> np.ndarray:
    """Turns each image by this angle, clockwise or counterclockwise."""
    angle = np.radians(degrees) * _signs(len(images_NxHxWxC), rng)
    return _move(images_NxHxWxC, cosine=np.cos(angle), sine=np.sin(angle))


def shrink(images_NxHxWxC: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Multiplies the size by a factor."""
    return _move(images_NxHxWxC, zoom=1 / factor)


def slant(images_NxHxWxC: np.ndarray, degrees: float, rng: np.random.Generator) -> np.ndarray:
    """Shears each image by this angle to the left or to the right."""
    return _move(images_NxHxWxC, shear=np.tan(np.radians(degrees)) * _signs(len(images_NxHxWxC), rng))


def elastic(images_NxHxWxC: np.ndarray, distance: float, rng: np.random.Generator) -> np.ndarray:
    """Distorts elastically (Simard et al. 2003): noise of this size, smoothed with a standard deviation of 4 pixels."""
    offsets = np.arange(-12, 13)
    gaussian = np.exp(-0.5 * (offsets / 4) ** 2)
    taps = jnp.asarray(gaussian / gaussian.sum() * distance**0.5, jnp.float32)
    count, height, width, _ = images_NxHxWxC.shape
    noise = rng.uniform(-1, 1, (count, 2, height, width)).astype(np.float32)
    return np.asarray(warping.distort(jnp.asarray(images_NxHxWxC, jnp.float32), jnp.asarray(noise), taps))


def add_noise(images_NxHxWxC: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Adds Gaussian noise with this standard deviation."""
    return np.clip(images_NxHxWxC + rng.normal(0, deviation, images_NxHxWxC.shape), 0, 1)


def blur(images_NxHxWxC: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Blurs by a Gaussian with this standard deviation in pixels."""
    return scipy.ndimage.gaussian_filter(images_NxHxWxC, (0, deviation, deviation, 0), mode='constant')


def thicken(images_NxHxWxC: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """Replaces each pixel by the largest in a square of this size."""
    return scipy.ndimage.grey_dilation(images_NxHxWxC, (1, int(size), int(size), 1), mode='constant')


def thin(images_NxHxWxC: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Moves each pixel by this fraction toward the smallest in a square of 3 x 3 pixels."""
    smallest = scipy.ndimage.grey_erosion(images_NxHxWxC, (1, 3, 3, 1), mode='constant')
    return (1 - amount) * images_NxHxWxC + amount * smallest


def lose_contrast(images_NxHxWxC: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Multiplies the distance from medium gray by a factor."""
    return 0.5 + factor * (images_NxHxWxC - 0.5)


def occlude(images_NxHxWxC: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Sets a square with this fraction of the area of the image to medium gray, at a random place."""
    count, height, width, _ = images_NxHxWxC.shape
    rows, columns = round(height * fraction**0.5), round(width * fraction**0.5)
    top, left = rng.integers(0, height - rows + 1, count), rng.integers(0, width - columns + 1, count)
    y_1xHx1, x_1x1xW = np.arange(height)[None, :, None], np.arange(width)[None, None, :]
    top, left = top[:, None, None], left[:, None, None]
    inside = (y_1xHx1 >= top) & (y_1xHx1 < top + rows) & (x_1x1xW >= left) & (x_1x1xW < left + columns)
    return np.where(inside[..., None], 0.5, images_NxHxWxC)


def compress(images_NxHxWxC: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    """Encodes as JPEG of this quality, and decodes again."""
    pixels = np.rint(255 * images_NxHxWxC).astype(np.uint8)

    def through_jpeg(image_HxWxC: np.ndarray) -> np.ndarray:
        if image_HxWxC.shape[-1] not in (1, 3):
            return np.concatenate(
                [through_jpeg(channel) for channel in np.split(image_HxWxC, image_HxWxC.shape[-1], 2)], 2
            )
        encoded = io.BytesIO()
        Image.fromarray(image_HxWxC.squeeze(-1) if image_HxWxC.shape[-1] == 1 else image_HxWxC).save(
            encoded, 'jpeg', quality=int(quality)
        )
        return np.asarray(Image.open(encoded)).reshape(image_HxWxC.shape)

    return np.stack([through_jpeg(image) for image in pixels]) / 255


CORRUPTIONS = {
    'shift': Corruption(shift, 'pixels', (1, 2, 3, 4, 6)),
    'rotation': Corruption(rotate, 'degrees', (10, 20, 30, 45, 60)),
    'smaller': Corruption(shrink, 'times the size', (0.9, 0.8, 0.7, 0.6, 0.5)),
    'slant': Corruption(slant, 'degrees', (10, 20, 30, 40, 50)),
    'elastic': Corruption(elastic, 'pixels before smoothing', (10, 20, 30, 45, 60)),
    'thicker strokes': Corruption(thicken, 'size of the square in pixels', (2, 3, 4, 5, 6)),
    'thinner strokes': Corruption(thin, 'fraction', (0.2, 0.4, 0.6, 0.8, 1.0)),
    'noise': Corruption(add_noise, 'standard deviation', (0.1, 0.2, 0.3, 0.4, 0.5)),
    'blur': Corruption(blur, 'pixels', (0.5, 1.0, 1.5, 2.0, 3.0)),
    'low contrast': Corruption(lose_contrast, 'factor', (0.8, 0.6, 0.4, 0.2, 0.1)),
    'occlusion': Corruption(occlude, 'fraction of the area', (0.05, 0.1, 0.2, 0.3, 0.4)),
    'JPEG': Corruption(compress, 'quality', (50, 30, 20, 10, 5)),
}
