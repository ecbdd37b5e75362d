"""The steps of augmentation that vary strokes the way they vary between writers, pens and scanners.

They expect light strokes on a dark background. For rotation, slant and proportions, see `augmentation_steps.affine`.
"""

import functools
import math
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp

from mnist_jax.factory import Fraction, Range, WholePixels
from mnist_jax.kernels import ops
from mnist_jax.learning.augmentation_steps import Draw, Step

BlockSide = Annotated[int, Range(2, 16)]
Sigma = Annotated[float, Range(0.0, 10.0)]
LARGEST_TAP = 0.25  # of a neighbor in one pass of `blur`; a pass has a variance of twice that


def stroke(amount: Fraction = 1.0) -> Step:
    """Thickens or thins strokes: moves each pixel toward the largest or the smallest of the 3 x 3 pixels around it.

    Args:
      amount: The largest fraction of that distance, in both directions; 1 changes a width by up to two pixels.
    """

    def step(image_BxHxWxC: jax.Array, draw: Draw) -> jax.Array:
        change_B = amount * draw.uniform(1)[0]
        thick, thin = (_over_neighbors(image_BxHxWxC, choose) for choose in (jnp.maximum, jnp.minimum))
        change = change_B[:, None, None, None]
        distance = jnp.where(change > 0, thick - image_BxHxWxC, image_BxHxWxC - thin)
        return image_BxHxWxC + ops.separate(change * distance)

    return step


def _over_neighbors(image_BxHxWxC: jax.Array, choose: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """Returns the largest or smallest of the 3 x 3 pixels around each one; outside of the image, pixels are 0."""
    for axis in (1, 2):
        image_BxHxWxC = functools.reduce(choose, (*_neighbors(image_BxHxWxC, axis), image_BxHxWxC))
    return image_BxHxWxC


def _neighbors(image_BxHxWxC: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Returns for each pixel the one before it and the one after it, along an axis; outside of the image, 0."""
    size = image_BxHxWxC.shape[axis]
    padded = jnp.pad(image_BxHxWxC, [(1, 1) if number == axis else (0, 0) for number in range(4)])
    before, after = (jax.lax.slice_in_dim(padded, start, start + size, axis=axis) for start in (0, 2))
    return before, after


def blur(sigma: Sigma = 1.0) -> Step:
    """Smooths the image by a filter that is close to a Gaussian; the pixels outside of the image are 0.

    Args:
      sigma: The largest standard deviation, in pixels; that of each image is uniform from 0.
    """
    passes = max(1, math.ceil(sigma**2 / (2 * LARGEST_TAP)))

    def step(image_BxHxWxC: jax.Array, draw: Draw) -> jax.Array:
        drawn_B = sigma * (0.5 * draw.uniform(1)[0] + 0.5)
        tap = (drawn_B * drawn_B / (2 * passes))[:, None, None, None]  # Variances of passes add up.

        def smooth(image_BxHxWxC: jax.Array, _: None) -> tuple[jax.Array, None]:
            for axis in (1, 2):
                before, after = _neighbors(image_BxHxWxC, axis)
                change = before - image_BxHxWxC + (after - image_BxHxWxC)
                image_BxHxWxC = image_BxHxWxC + ops.separate(tap * change)
            return image_BxHxWxC, None

        return jax.lax.scan(smooth, image_BxHxWxC, length=passes)[0]

    return step


def pixelate(largest: BlockSide = 3) -> Step:
    """Lowers the resolution: replaces all pixels of a square block by their mean; all blocks have the same size.

    A block that reaches beyond the bottom or the right side takes the pixels there as 0. The time grows with the number
    of sizes.

    Args:
      largest: The largest side of a block in pixels; that of each image is drawn from 2 to this.
    """

    def step(image_BxHxWxC: jax.Array, draw: Draw) -> jax.Array:
        _, height, width, _ = image_BxHxWxC.shape
        position_B = 0.5 * draw.uniform(1)[0] + 0.5
        side_B = jnp.floor((largest - 1) * position_B)[:, None, None, None]
        result_BxHxWxC = image_BxHxWxC
        for number, side in enumerate(range(2, largest + 1)):
            filling = [(0, 0), (0, -height % side), (0, -width % side), (0, 0)]
            padded = jnp.pad(image_BxHxWxC, filling)
            # The sum in a fixed order, so that all programs round it in the same way.
            pixels = (padded[:, i::side, j::side] for i in range(side) for j in range(side))
            mean_Bxhxwx1 = functools.reduce(jnp.add, pixels) / side**2
            coarse = jnp.repeat(jnp.repeat(mean_Bxhxwx1, side, axis=1), side, axis=2)[:, :height, :width]
            result_BxHxWxC = jnp.where(side_B == number, coarse, result_BxHxWxC)
        return result_BxHxWxC

    return step


def binarize(lowest: Fraction = 0.25, highest: Fraction = 0.75) -> Step:
    """Makes every pixel black or white: white above a threshold, which is the same for all pixels of an image.

    Args:
      lowest, highest: The range of the threshold, as a fraction of white.
    """
    if lowest > highest:
        raise ValueError(f'lowest must be at most highest={highest:g}, got {lowest:g}')

    def step(image_BxHxWxC: jax.Array, draw: Draw) -> jax.Array:
        position_B = 0.5 * draw.uniform(1)[0] + 0.5
        threshold_B = draw.max_pixel * (lowest + ops.separate((highest - lowest) * position_B))
        return jnp.where(image_BxHxWxC > threshold_B[:, None, None, None], draw.max_pixel, 0.0)

    return step


def frame(pixels: WholePixels = 2) -> Step:
    """Draws parts of a frame: along each side of the image, with a probability of 1/2, a gray or white line.

    Args:
      pixels: The largest thickness of a line.
    """

    def step(image_BxHxWxC: jax.Array, draw: Draw) -> jax.Array:
        _, height, width, _ = image_BxHxWxC.shape
        row_1xHx1, column_1x1xW = jnp.arange(height)[None, :, None], jnp.arange(width)[None, None, :]
        distances = (row_1xHx1, height - 1 - row_1xHx1, column_1x1xW, width - 1 - column_1x1xW)
        level_B, *sides = draw.uniform(5)
        # A side's number is in [-1, 1); where it is negative, there is no line.
        thickness = (jnp.ceil(side_B * pixels)[:, None, None] for side_B in sides)
        is_line = functools.reduce(
            jnp.logical_or, (distance < size for distance, size in zip(distances, thickness, strict=True))
        )
        level = draw.max_pixel * (0.25 * level_B + 0.75)[:, None, None, None]
        return jnp.where(is_line[..., None], jnp.maximum(level, image_BxHxWxC), image_BxHxWxC)

    return step
