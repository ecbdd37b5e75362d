"""Random changes of training images: each a function of (seed, epoch, index of the example), in the compiled step.

Every constructor returns a function of images with the pixel values of the dataset, and of random keys. A config lists
the steps in their order, each with a probability.

The bits of a result must not depend on the number of devices, but XLA rounds a * b + c once or twice, depending on the
rest of the program. So random amounts are products here, and `ops.warp` adds them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mnist_jax.errors import UserError, check_range
from mnist_jax.factory import Fraction, NonNegative, PositiveInt, Rate, build
from mnist_jax.kernels import ops


class Draw(NamedTuple):
    """What a step may depend on besides the images.

    Attributes:
      keys: A random key per example, B of them, another one in every epoch.
      fixed_keys: A random key per example, B of them, the same in all epochs.
      epoch: The number of the epoch, from 0.
      max_pixel: The pixel value that stands for white.
    """

    keys: jax.Array
    fixed_keys: jax.Array
    epoch: jax.Array
    max_pixel: float

    def uniform(self, count: int) -> list[jax.Array]:
        """Returns `count` arrays of B numbers, uniform in [-1, 1)."""
        draws_BxN = jax.vmap(lambda key: jax.random.uniform(key, (count,), minval=-1.0))(self.keys)
        return list(draws_BxN.T)


Step = Callable[[jax.Array, Draw], jax.Array]
"""Maps images BxHxWxC, float32 with the pixel values of the dataset, to changed ones."""
Augment = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
"""Maps images BxHxWxC, the indices B of the examples, a random key and the epoch to changed images."""


def _motion(count: int, **numbers: jax.Array) -> ops.Motion:
    """Returns a motion of `count` examples with these numbers, and no change otherwise."""
    zeros, ones = jnp.zeros(count), jnp.ones(count)
    unchanged = {'cosine': ones, 'sine': zeros, 'zoom': ones, 'shear': zeros, 'down': zeros, 'right': zeros}
    return ops.Motion(**{**unchanged, 'gain': ones, 'offset': zeros, **numbers})


def shift(pixels: PositiveInt = 2) -> Step:
    """Moves the image by up to `pixels` whole pixels down or up and right or left; what comes in is 0."""

    def step(image_BxHxWxC: jax.Array, draw: Draw) -> jax.Array:
        # In [0, 2 pixels], each with the same probability. Halving and adding 1 are exact, so no rounding is fused.
        down, right = (jnp.floor((0.5 * number + 0.5) * (2 * pixels + 1)) - pixels for number in draw.uniform(2))
        return ops.warp(image_BxHxWxC, _motion(len(image_BxHxWxC), down=down, right=right))

    return step


def affine(rotation: NonNegative = 0.0, scale: Rate = 0.0, shear: NonNegative = 0.0, shift: NonNegative = 0.0) -> Step:
    """Turns, scales, shears and moves the image, all in one bilinear interpolation; what comes in is 0.

    Each amount is drawn uniformly up to its limit, in both directions; that of the scale is uniform in its logarithm.

    Args:
      rotation: The largest angle in degrees.
      scale: The largest change of the size, as a fraction: 0.1 means from 1 / 1.1 to 1.1.
      shear: The largest angle in degrees between a column and the vertical.
      shift: The largest distance in pixels, down or up and right or left.
    """

    def step(image_BxHxWxC: jax.Array, draw: Draw) -> jax.Array:
        turn, zoom, slant, down, right = draw.uniform(5)
        angle = turn * math.radians(rotation)
        motion = _motion(
            len(image_BxHxWxC),
            cosine=jnp.cos(angle),
            sine=jnp.sin(angle),
            zoom=jnp.exp(zoom * math.log1p(scale)),
            shear=jnp.tan(slant * math.radians(shear)),
            down=down * shift,
            right=right * shift,
        )
        return ops.warp(image_BxHxWxC, motion)

    return step


def flip() -> Step:
    """Mirrors every second image, on average, from left to right."""
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
        motion = _motion(len(image_BxHxWxC), offset=change * (amount * draw.max_pixel))
        return jnp.clip(ops.warp(image_BxHxWxC, motion), 0, draw.max_pixel)

    return step


def contrast(amount: Rate = 0.2) -> Step:
    """Multiplies the distance from medium gray by a factor from 1 / (1 + `amount`) to 1 + `amount`, and clips."""

    def step(image_BxHxWxC: jax.Array, draw: Draw) -> jax.Array:
        gain = jnp.exp(draw.uniform(1)[0] * math.log1p(amount))
        motion = _motion(len(image_BxHxWxC), gain=gain, offset=(1 - gain) * (0.5 * draw.max_pixel))
        return jnp.clip(ops.warp(image_BxHxWxC, motion), 0, draw.max_pixel)

    return step


def erase(smallest: Fraction = 0.02, largest: Fraction = 0.2, elongation: NonNegative = 3.0) -> Step:
    """Sets a random rectangle to 0 (Zhong et al. 2020).

    Args:
      smallest, largest: Its area as a fraction of that of the image.
      elongation: The largest ratio of its sides, at least 1.
    """

    def step(image_BxHxWxC: jax.Array, draw: Draw) -> jax.Array:
        _, height, width, _ = image_BxHxWxC.shape
        size, shape, down, right = (0.5 * number + 0.5 for number in draw.uniform(4))
        # All sides and positions are whole numbers, so no rounding decides whether a pixel belongs to the rectangle.
        least = max(smallest, 1e-6)
        area = least * jnp.exp(size * math.log(max(largest, least) / least))
        ratio = jnp.exp((shape - 0.5) * math.log(max(elongation, 1.0)))
        rows = jnp.clip(jnp.round(height * jnp.sqrt(area) * ratio), 1, height)
        columns = jnp.clip(jnp.round(width * jnp.sqrt(area) / ratio), 1, width)
        top, left = jnp.floor(down * (height - rows + 1)), jnp.floor(right * (width - columns + 1))
        y_1xH, x_1xW = jnp.arange(height)[None], jnp.arange(width)[None]
        in_rows_BxH = (y_1xH >= top[:, None]) & (y_1xH < (top + rows)[:, None])
        in_columns_BxW = (x_1xW >= left[:, None]) & (x_1xW < (left + columns)[:, None])
        is_erased_BxHxW = in_rows_BxH[:, :, None] & in_columns_BxW[:, None, :]
        return jnp.where(is_erased_BxHxW[..., None], 0.0, image_BxHxWxC)

    return step


def noise(amount: Fraction = 0.05) -> Step:
    """Sets a fraction of the pixels to black or white, each with the same probability: salt and pepper."""

    def step(image_BxHxWxC: jax.Array, draw: Draw) -> jax.Array:
        shape = image_BxHxWxC.shape[1:3]
        number_BxHxW = jax.vmap(lambda key: jax.random.uniform(key, shape))(draw.keys)[..., None]
        salted = jnp.where(number_BxHxW > 1 - amount / 2, draw.max_pixel, image_BxHxWxC)
        return jnp.where(number_BxHxW < amount / 2, 0.0, salted)

    return step


AUGMENTATIONS: dict[str, Callable[..., Step]] = {
    'shift': shift,
    'affine': affine,
    'flip': flip,
    'alternating_flip': alternating_flip,
    'brightness': brightness,
    'contrast': contrast,
    'erase': erase,
    'noise': noise,
}


def make_augmentation(configs: Sequence[Mapping[str, Any]], max_pixel: float) -> Augment | None:
    """Returns all steps that `config.augmentation` lists as one function; None for no steps.

    Args:
      configs: For each step its name in `AUGMENTATIONS`, its arguments and, by default 1, its `probability`.
      max_pixel: The pixel value that stands for white.

    Raises:
      UserError: a step is invalid.
    """
    steps: list[tuple[Step, float]] = []
    for number, config in enumerate(configs):
        field = f'config.augmentation[{number}]'
        if not isinstance(config, Mapping) or 'name' not in config:
            raise UserError(f"{field} must be a dict such as {{'name': 'shift', 'pixels': 2}}, got {config!r}")
        options = dict(config)
        probability = options.pop('probability', 1.0)
        check_range(f'{field}.probability', probability, 0.0, 1.0)
        steps.append((build(field, AUGMENTATIONS, options), probability))
    if not steps:
        return None

    def augment(image_BxHxWxC: jax.Array, index_B: jax.Array, key: jax.Array, epoch: jax.Array) -> jax.Array:
        for number, (step, probability) in enumerate(steps):
            step_key = jax.random.fold_in(key, number)
            fixed_key_B = jax.vmap(lambda index, step_key=step_key: jax.random.fold_in(step_key, index))(index_B)
            choice_key_B, key_B = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, epoch)))(fixed_key_B).T
            changed_BxHxWxC = step(image_BxHxWxC, Draw(key_B, fixed_key_B, epoch, max_pixel))
            if probability < 1:
                is_changed_B = jax.vmap(jax.random.uniform)(choice_key_B) < probability
                changed_BxHxWxC = jnp.where(is_changed_B[:, None, None, None], changed_BxHxWxC, image_BxHxWxC)
            image_BxHxWxC = changed_BxHxWxC
        return image_BxHxWxC

    return augment
