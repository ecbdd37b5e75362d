"""The steps of augmentation that suit images of any kind.

Every constructor returns a function of images with the pixel values of the dataset, and of random keys. Most steps
change each image by itself. Some mix it with another one, its partner: the example at the mirrored position of the
chunk.

The bits of a result must not depend on the number of devices, but XLA rounds a * b + c once or twice, depending on the
rest of the program. So random amounts are products here, and `warping.warp` adds them, or `ops.separate` is between.
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from mnist_jax.factory import AtLeastOne, Degrees, Fraction, Pixels, Positive, Range, Rate, WholePixels
from mnist_jax.kernels import ops, warping


class Draw(NamedTuple):
    """What a step may depend on besides the images.

    Attributes:
      keys: A random key per example, B of them, another one in every epoch.
      fixed_keys: A random key per example, B of them, the same in all epochs.
      epoch: The number of the epoch, from 0.
      max_pixel: The pixel value that stands for white.
      is_paired: B booleans: whether neither the example nor its partner is padding.
    """

    keys: jax.Array
    fixed_keys: jax.Array
    epoch: jax.Array
    max_pixel: float
    is_paired: jax.Array

    def uniform(self, count: int) -> list[jax.Array]:
        """Returns `count` arrays of B numbers, uniform in [-1, 1).

        Every call returns the same numbers, so draw all of them in one call.
        """
        draws_BxN = jax.vmap(lambda key: jax.random.uniform(key, (count,), minval=-1.0))(self.keys)
        return list(draws_BxN.T)


class Mixed(NamedTuple):
    """Images BxHxWxC, each mixed with its partner, and the weights B of their own labels; the partner has the rest."""

    image: jax.Array
    own_weight: jax.Array


Smoothness = Annotated[float, Range(0.1, 100.0)]
Elongation = Annotated[float, Range(0.0, 10.0)]
Slant = Annotated[float, Range(0.0, 80.0)]  # The tangent of 90 degrees is infinite.
Step = Callable[[jax.Array, Draw], jax.Array | Mixed]
"""Maps images BxHxWxC, float32 with the pixel values of the dataset, to changed ones."""


def motion_of(count: int, **numbers: jax.Array) -> warping.Motion:
    """Returns a motion of `count` examples with these numbers, and no change otherwise."""
    zeros, ones = jnp.zeros(count), jnp.ones(count)
    unchanged = {'cosine': ones, 'sine': zeros, 'zoom': ones, 'shear': zeros, 'down': zeros, 'right': zeros}
    return warping.Motion(**{**unchanged, 'gain': ones, 'offset': zeros, 'stretch': ones, **numbers})


def shift(pixels: WholePixels = 2, fill: Literal['zero', 'edge', 'reflect'] = 'zero') -> Step:
    """Moves the image by up to `pixels` whole pixels down or up and right or left: a random crop of the padded image.

    Args:
      pixels: The largest distance.
      fill: What comes in: 0, the nearest pixel, or the image reflected at the middle of its outermost pixels.
    """

    def source(moved_B: jax.Array, size: int) -> jax.Array:
        """Returns for each of `size` positions the one that its pixel comes from, BxS."""
        position_BxS = jnp.arange(size)[None] - moved_B.astype(jnp.int32)[:, None]
        if fill == 'edge':
            return jnp.clip(position_BxS, 0, size - 1)
        period = max(2 * (size - 1), 1)
        return jnp.minimum(position_BxS % period, period - position_BxS % period) if size > 1 else 0 * position_BxS

    def step(image_BxHxWxC: jax.Array, draw: Draw) -> jax.Array:
        # In [0, 2 pixels], each with the same probability. Halving and adding 1 are exact, so no rounding is fused.
        down, right = (jnp.floor((0.5 * number + 0.5) * (2 * pixels + 1)) - pixels for number in draw.uniform(2))
        if fill == 'zero':
            return warping.warp(image_BxHxWxC, motion_of(len(image_BxHxWxC), down=down, right=right))
        rows, columns = source(down, image_BxHxWxC.shape[1]), source(right, image_BxHxWxC.shape[2])
        moved = jnp.take_along_axis(image_BxHxWxC, rows[:, :, None, None], axis=1)
        return jnp.take_along_axis(moved, columns[:, None, :, None], axis=2)

    return step


def elastic(distance: Pixels = 34.0, smoothness: Smoothness = 4.0) -> Step:
    """Moves each pixel by a smooth random field, bilinearly interpolated (Simard et al. 2003); what comes in is 0.

    Args:
      distance: The largest distance in pixels before smoothing, in each direction; their alpha.
      smoothness: The standard deviation of the Gaussian that smooths the field, in pixels; their sigma. It is cut off
        at three standard deviations.
    """
    radius = max(1, round(3 * smoothness))
    gaussian = np.exp(-0.5 * (np.arange(-radius, radius + 1) / smoothness) ** 2)
    taps = np.asarray(gaussian / gaussian.sum() * math.sqrt(distance), np.float32)  # It is applied along two axes.

    def step(image_BxHxWxC: jax.Array, draw: Draw) -> jax.Array:
        noise = ops.random_numbers(jax.vmap(jax.random.key_data)(draw.keys), (2, *image_BxHxWxC.shape[1:3]))
        return warping.distort(image_BxHxWxC, noise, jnp.asarray(taps))

    return step


def affine(
    rotation: Degrees = 0.0, scale: Rate = 0.0, shear: Slant = 0.0, shift: Pixels = 0.0, stretch: Elongation = 0.0
) -> Step:
    """Rotates, scales, shears, stretches and shifts the image in one bilinear interpolation; vacated pixels are 0.

    Each amount is drawn uniformly up to its limit, in both directions; scale and stretch are uniform in the logarithm.

    Args:
      rotation: The largest angle in degrees.
      scale: The largest change of the size, as a fraction: 0.1 means a factor from 1 / 1.1 to 1.1.
      shear: The largest angle in degrees between a column and the vertical.
      shift: The largest distance in pixels, down or up and right or left. The image is moved first, so that scaling and
        stretching it change this distance too.
      stretch: The largest change of width divided by height, as a fraction like that of the scale; the area is
        unchanged.
    """

    def step(image_BxHxWxC: jax.Array, draw: Draw) -> jax.Array:
        turn, zoom, slant, down, right, *widening = draw.uniform(6 if stretch else 5)
        angle = turn * math.radians(rotation)
        motion = motion_of(
            len(image_BxHxWxC),
            cosine=jnp.cos(angle),
            sine=jnp.sin(angle),
            zoom=jnp.exp(zoom * math.log1p(scale)),
            shear=jnp.tan(slant * math.radians(shear)),
            down=down * shift,
            right=right * shift,
            **({'stretch': jnp.exp(widening[0] * (0.5 * math.log1p(stretch)))} if stretch else {}),
        )
        return warping.warp(image_BxHxWxC, motion)

    return step


def flip() -> Step:
    """Mirrors each image from left to right with a probability of 1/2."""
    return lambda image_BxHxWxC, draw: _flip_where(draw.uniform(1)[0] < 0, image_BxHxWxC)


def alternating_flip() -> Step:
    """Mirrors a random half of the images in the first epoch, the other half in the next, and so on (Jordan 2024)."""

    def step(image_BxHxWxC: jax.Array, draw: Draw) -> jax.Array:
        is_first_half_B = jax.vmap(jax.random.bernoulli)(draw.fixed_keys)
        return _flip_where(is_first_half_B == (draw.epoch % 2 == 0), image_BxHxWxC)

    return step


def _flip_where(condition_B: jax.Array, image_BxHxWxC: jax.Array) -> jax.Array:
    return jnp.where(condition_B[:, None, None, None], image_BxHxWxC[:, :, ::-1], image_BxHxWxC)


def brightness(amount: Fraction = 0.2) -> Step:
    """Adds up to `amount` of the largest pixel value to all pixels, or subtracts it, and clips."""

    def step(image_BxHxWxC: jax.Array, draw: Draw) -> jax.Array:
        (change,) = draw.uniform(1)
        motion = motion_of(len(image_BxHxWxC), offset=change * (amount * draw.max_pixel))
        return jnp.clip(warping.warp(image_BxHxWxC, motion), 0, draw.max_pixel)

    return step


def contrast(amount: Rate = 0.2) -> Step:
    """Multiplies the distance from medium gray by a factor from 1 / (1 + `amount`) to 1 + `amount`, and clips."""

    def step(image_BxHxWxC: jax.Array, draw: Draw) -> jax.Array:
        gain = jnp.exp(draw.uniform(1)[0] * math.log1p(amount))
        motion = motion_of(len(image_BxHxWxC), gain=gain, offset=(1 - gain) * (0.5 * draw.max_pixel))
        return jnp.clip(warping.warp(image_BxHxWxC, motion), 0, draw.max_pixel)

    return step


def erase(smallest: Fraction = 0.02, largest: Fraction = 0.2, elongation: AtLeastOne = 3.0) -> Step:
    """Sets a random rectangle to 0 (Zhong et al. 2020).

    Args:
      smallest, largest: Its area as a fraction of that of the image. It is smaller if one of its sides would be longer
        than the image.
      elongation: The largest ratio of its sides, at least 1; both are measured as fractions of those of the image.
    """
    if smallest > largest:
        raise ValueError(f'smallest must be at most largest={largest:g}, got {smallest:g}')

    def step(image_BxHxWxC: jax.Array, draw: Draw) -> jax.Array:
        _, height, width, _ = image_BxHxWxC.shape
        size, shape, down, right = (0.5 * number + 0.5 for number in draw.uniform(4))
        # All sides and positions are whole numbers, so no rounding decides whether a pixel belongs to the rectangle.
        least = max(smallest, 1e-6)
        area = least * jnp.exp(size * math.log(max(largest, least) / least))
        ratio = jnp.exp((shape - 0.5) * math.log(max(elongation, 1.0)))
        rows = jnp.clip(jnp.round(height * jnp.sqrt(area) * ratio), 1, height)
        columns = jnp.clip(jnp.round(width * jnp.sqrt(area) / ratio), 1, width)
        return jnp.where(_rectangle((height, width), rows, columns, down, right), 0.0, image_BxHxWxC)

    return step


def _rectangle(
    size: tuple[int, int], rows_B: jax.Array, columns_B: jax.Array, down_B: jax.Array, right_B: jax.Array
) -> jax.Array:
    """Returns BxHxWx1 booleans, True in a rectangle anywhere in the image, for `down_B` and `right_B` in [0, 1)."""
    height, width = size
    top, left = jnp.floor(down_B * (height - rows_B + 1)), jnp.floor(right_B * (width - columns_B + 1))
    y_1xH, x_1xW = jnp.arange(height)[None], jnp.arange(width)[None]
    in_rows_BxH = (y_1xH >= top[:, None]) & (y_1xH < (top + rows_B)[:, None])
    in_columns_BxW = (x_1xW >= left[:, None]) & (x_1xW < (left + columns_B)[:, None])
    return (in_rows_BxH[:, :, None] & in_columns_BxW[:, None, :])[..., None]


def noise(amount: Fraction = 0.05) -> Step:
    """Sets a fraction of the pixels to black or white, each with the same probability: salt and pepper."""

    def step(image_BxHxWxC: jax.Array, draw: Draw) -> jax.Array:
        shape = image_BxHxWxC.shape[1:3]
        number_BxHxW = jax.vmap(lambda key: jax.random.uniform(key, shape))(draw.keys)[..., None]
        salted = jnp.where(number_BxHxW > 1 - amount / 2, draw.max_pixel, image_BxHxWxC)
        return jnp.where(number_BxHxW < amount / 2, 0.0, salted)

    return step


QUANTILES = 4096  # of a beta distribution, from which a weight is drawn


def _beta(alpha: float) -> Callable[[jax.Array], jax.Array]:
    """Returns a function from uniform numbers in [-1, 1) to numbers that are distributed as Beta(alpha, alpha).

    A table has the same bits in every program; the rejection sampling of `jax.random.beta` is also slow.
    """
    quantiles = scipy.special.betaincinv(alpha, alpha, (np.arange(QUANTILES) + 0.5) / QUANTILES).astype(np.float32)
    return lambda number_B: jnp.asarray(quantiles)[((0.5 * number_B + 0.5) * QUANTILES).astype(jnp.int32)]


def mixup(alpha: Positive = 0.2) -> Step:
    """Adds image and partner, and their labels, with weights drawn from Beta(alpha, alpha) (Zhang et al. 2018)."""
    quantile = _beta(alpha)

    def step(image_BxHxWxC: jax.Array, draw: Draw) -> Mixed:
        own_weight_B = jnp.where(draw.is_paired, quantile(draw.uniform(1)[0]), 1.0)
        return Mixed(mix(image_BxHxWxC, own_weight_B), own_weight_B)

    return step


def mix(array: jax.Array, own_weight_B: jax.Array) -> jax.Array:
    """Returns the weighted sum of the array of each example and that of its partner."""
    weight = own_weight_B.reshape(-1, *(1,) * (array.ndim - 1))
    return ops.separate(weight * array) + ops.separate((1 - weight) * array[::-1])


def cutmix(alpha: Positive = 1.0) -> Step:
    """Replaces a rectangle with that of the partner (Yun et al. 2019); the labels are weighted by the areas.

    The fraction of the image that stays is drawn from Beta(alpha, alpha). The rectangle has the image's proportions.
    """
    quantile = _beta(alpha)

    def step(image_BxHxWxC: jax.Array, draw: Draw) -> Mixed:
        _, height, width, _ = image_BxHxWxC.shape
        stays, down, right = draw.uniform(3)
        side_B = jnp.where(draw.is_paired, jnp.sqrt(1 - quantile(stays)), 0.0)
        rows_B, columns_B = jnp.round(height * side_B), jnp.round(width * side_B)
        is_partner = _rectangle((height, width), rows_B, columns_B, 0.5 * down + 0.5, 0.5 * right + 0.5)
        mixed_BxHxWxC = jnp.where(is_partner, image_BxHxWxC[::-1], image_BxHxWxC)
        return Mixed(mixed_BxHxWxC, (height * width - rows_B * columns_B) / (height * width))

    return step
