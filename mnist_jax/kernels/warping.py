"""Motions of the pixels of images, with bilinear interpolation; see `ops.py` for kernels and plain forms.

Shapes: B examples, H x W pixels, C channels.
"""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnist_jax.kernels.primitive import Operation


class Motion(NamedTuple):
    """How `warp` changes images; arrays with one number per example.

    Attributes:
      cosine, sine: Of the angle by which an image is turned, clockwise.
      zoom: Source pixels per pixel of the result: 0.5 doubles the size of everything.
      shear: By how many columns a row below the middle is shifted, per row.
      down, right: By how many pixels of the image everything is moved, before all other motions.
      gain, offset: Factor of the pixel values, and what is added to them then.
      stretch: The width is multiplied by this factor and the height divided by it, so the area is unchanged; after the
        move, and before everything else.
    """

    cosine: jax.Array
    sine: jax.Array
    zoom: jax.Array
    shear: jax.Array
    down: jax.Array
    right: jax.Array
    gain: jax.Array
    offset: jax.Array
    stretch: jax.Array


def warp(image_BxHxWxC: jax.Array, motion: Motion) -> jax.Array:
    """Moves the pixels of images by bilinear interpolation, and changes their values; pixels from outside are 0."""
    numbers = (jnp.broadcast_to(number_B, image_BxHxWxC.shape[:1]) for number_B in motion)
    return _warp(image_BxHxWxC, jnp.stack(list(numbers), axis=-1))


def plain_warp(image_BxHxWxC: jax.Array, motion_Bx9: jax.Array) -> jax.Array:
    """Specifies `warp`: the pixel (y, x) of the result is taken from (row, column) of the image."""
    _, height, width, _ = image_BxHxWxC.shape
    motion = Motion(*(number_B[:, None, None] for number_B in motion_Bx9.T))
    y_1xHx1 = jnp.arange(height)[None, :, None] - (height - 1) / 2
    x_1x1xW = jnp.arange(width)[None, None, :] - (width - 1) / 2
    cosine, sine = motion.cosine * motion.zoom, motion.sine * motion.zoom
    down_BxHxW = (cosine - sine * motion.shear) * y_1xHx1 - sine * x_1x1xW
    right_BxHxW = (sine + cosine * motion.shear) * y_1xHx1 + cosine * x_1x1xW
    row_BxHxW = motion.stretch * down_BxHxW + (height - 1) / 2 - motion.down
    column_BxHxW = right_BxHxW / motion.stretch + (width - 1) / 2 - motion.right
    value_BxHxWxC = _sample(image_BxHxWxC, row_BxHxW, column_BxHxW)
    return motion.gain[..., None] * value_BxHxWxC + motion.offset[..., None]


_warp = Operation('warp', plain_warp, by_example=(0, 1))


def distort(image_BxHxWxC: jax.Array, noise_Bx2xHxW: jax.Array, taps_T: jax.Array) -> jax.Array:
    """Moves each pixel by its own distance: the noise, smoothed by a separable filter.

    Args:
      image_BxHxWxC: The images; pixels from outside are 0.
      noise_Bx2xHxW: For each pixel of the result, how far down and right its source is, before smoothing.
      taps_T: The filter along each of both axes, an odd number of weights; outside of the image, the noise is 0.
    """
    batch, height, width, _ = image_BxHxWxC.shape
    return _distort(image_BxHxWxC, jnp.broadcast_to(noise_Bx2xHxW, (batch, 2, height, width)), taps_T)


def plain_distort(image_BxHxWxC: jax.Array, noise_Bx2xHxW: jax.Array, taps_T: jax.Array) -> jax.Array:
    """Specifies `distort`."""
    radius = len(taps_T) // 2
    field = noise_Bx2xHxW
    for axis in (2, 3):
        padded = jnp.pad(field, [(0, 0)] * axis + [(radius, radius)] + [(0, 0)] * (3 - axis))
        size = field.shape[axis]
        shifted = [
            tap * jax.lax.slice_in_dim(padded, start, start + size, axis=axis) for start, tap in enumerate(taps_T)
        ]
        field = functools.reduce(operator.add, shifted)
    _, height, width, _ = image_BxHxWxC.shape
    row_BxHxW = jnp.arange(height)[None, :, None] + field[:, 0]
    column_BxHxW = jnp.arange(width)[None, None, :] + field[:, 1]
    return _sample(image_BxHxWxC, row_BxHxW, column_BxHxW)


_distort = Operation('distort', plain_distort)


def _sample(image_BxHxWxC: jax.Array, row_BxHxW: jax.Array, column_BxHxW: jax.Array) -> jax.Array:
    """Returns the values of images at these positions, which need not be whole numbers."""
    _, height, width, _ = image_BxHxWxC.shape
    i_BxHxW, j_BxHxW = jnp.floor(row_BxHxW), jnp.floor(column_BxHxW)
    u, v = (row_BxHxW - i_BxHxW)[..., None], (column_BxHxW - j_BxHxW)[..., None]

    def pixels(i_BxHxW: jax.Array, j_BxHxW: jax.Array) -> jax.Array:
        is_inside = (i_BxHxW >= 0) & (i_BxHxW < height) & (j_BxHxW >= 0) & (j_BxHxW < width)
        i, j = (jnp.where(is_inside, index, 0).astype(jnp.int32) for index in (i_BxHxW, j_BxHxW))
        example = jnp.arange(len(image_BxHxWxC))[:, None, None]
        return jnp.where(is_inside[..., None], image_BxHxWxC[example, i, j], 0)

    top, bottom = ((1 - v) * pixels(i, j_BxHxW) + v * pixels(i, j_BxHxW + 1) for i in (i_BxHxW, i_BxHxW + 1))
    return (1 - u) * top + u * bottom
