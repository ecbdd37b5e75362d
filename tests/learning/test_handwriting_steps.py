"""Augmentation of strokes: each step against SciPy, or against images for which the result is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from mnist_jax.errors import UserError
from mnist_jax.learning import handwriting_steps
from mnist_jax.learning.augmentation import make_augmentation
from mnist_jax.learning.augmentation_steps import Draw

COUNT = 400
IMAGES = np.random.default_rng(0).uniform(0, 255, (COUNT, 12, 9, 1)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(1), COUNT)
DRAW = Draw(KEYS, KEYS, jnp.int32(0), 255.0, jnp.ones(COUNT, bool))


def apply(step, images=IMAGES):
    return np.asarray(jax.jit(step)(images, DRAW))


def drawn(count=1):
    return [np.asarray(number) for number in DRAW.uniform(count)]


def test_strokes_move_towards_the_dilated_or_the_eroded_image():
    result = apply(handwriting_steps.stroke(0.8))
    (amount,) = drawn()
    for image, changed, number in zip(IMAGES[..., 0], result[..., 0], 0.8 * amount, strict=True):
        extreme = scipy.ndimage.grey_dilation if number > 0 else scipy.ndimage.grey_erosion
        target = extreme(image, size=(3, 3), mode='constant', cval=0)
        np.testing.assert_allclose(changed, image + abs(number) * (target - image), rtol=1e-5, atol=1e-3)


def test_a_line_becomes_as_much_thicker_as_it_may():
    line = np.zeros((COUNT, 9, 9, 1), np.float32)
    line[:, 4] = 200
    widths = apply(handwriting_steps.stroke(1.0), line)[:, :, 4, 0].sum(-1) / 200
    # From a line of one pixel, the thinned one is between nothing and itself, the thickened one up to three pixels.
    assert 0 <= widths.min() < 0.05 and 2.95 < widths.max() <= 3
    np.testing.assert_allclose(np.where(drawn()[0] > 0, 1 + 2 * drawn()[0], 1 + drawn()[0]), widths, atol=1e-5)


@pytest.mark.parametrize('sigma', [0.0, 0.5, 1.0, 2.0])
def test_a_blurred_point_has_the_variance_of_the_gaussian(sigma):
    point = np.zeros((COUNT, 41, 41, 1), np.float32)
    point[:, 20, 20] = 255
    blurred = apply(handwriting_steps.blur(sigma), point)[..., 0] / 255
    np.testing.assert_allclose(blurred.sum((1, 2)), 1, rtol=1e-5)
    assert blurred.min() >= 0
    expected = (sigma * (0.5 * drawn()[0] + 0.5)) ** 2
    square = (np.arange(41) - 20) ** 2
    for axis in (1, 2):
        np.testing.assert_allclose(blurred.sum(3 - axis) @ square, expected, rtol=1e-4, atol=1e-6)
    if sigma == 2:
        widest = expected.argmax()
        gaussian = scipy.ndimage.gaussian_filter(point[widest, ..., 0] / 255, expected[widest] ** 0.5)
        np.testing.assert_allclose(blurred[widest], gaussian, atol=0.04 * gaussian.max())


def test_pixelated_images_have_blocks_of_their_mean():
    result = apply(handwriting_steps.pixelate(4))[..., 0]
    sides = 2 + np.floor(3 * (0.5 * drawn()[0] + 0.5)).astype(int)
    assert set(sides) == {2, 3, 4}
    for image, changed, side in zip(IMAGES[..., 0], result, sides, strict=True):
        padded = np.pad(image, [(0, -length % side) for length in image.shape])
        means = padded.reshape(padded.shape[0] // side, side, -1, side).mean((1, 3))
        expected = np.kron(means, np.ones((side, side)))[: image.shape[0], : image.shape[1]]
        np.testing.assert_allclose(changed, expected, rtol=1e-5)


def test_binary_images_have_one_threshold_each():
    result = apply(handwriting_steps.binarize(0.2, 0.6))
    assert set(np.unique(result)) == {0, 255}
    thresholds = 255 * (0.2 + 0.4 * (0.5 * drawn()[0] + 0.5))
    assert np.array_equal(result > 0, thresholds[:, None, None, None] < IMAGES)


def test_a_frame_has_lines_along_half_of_the_sides():
    black = np.zeros((COUNT, 15, 11, 1), np.float32)
    result = apply(handwriting_steps.frame(3), black)[..., 0]
    assert not result[:, 3:-3, 3:-3].any()
    sides = np.stack([result[:, :, 5] > 0, result[:, ::-1, 5] > 0])
    sides = [*sides, result[:, 7] > 0, result[:, 7, ::-1] > 0]
    for side in sides:
        thickness = np.where(side[:, :3].all(-1), 3, np.where(side[:, :2].all(-1), 2, side[:, 0]))
        counts = np.bincount(thickness.astype(int), minlength=4) / COUNT
        assert 0.4 < counts[0] < 0.6 and (np.abs(counts[1:] - 1 / 6) < 0.08).all()
    levels = result.max((1, 2))[result.any((1, 2))]
    assert 0.5 * 255 <= levels.min() < 0.6 * 255 and 0.9 * 255 < levels.max() <= 255
    white = np.full_like(black, 255)
    assert np.array_equal(apply(handwriting_steps.frame(3), white), white)


@pytest.mark.parametrize(
    ('step', 'message'),
    [
        ({'name': 'stroke', 'amount': 1.5}, r'config.augmentation\[0\].amount must be a number from 0 to 1, got 1.5'),
        ({'name': 'blur', 'sigma': -1.0}, r'config.augmentation\[0\].sigma must be a number from 0 to 10, got -1'),
        (
            {'name': 'pixelate', 'largest': 1},
            r'config.augmentation\[0\].largest must be an integer from 2 to 16, got 1',
        ),
        ({'name': 'frame', 'pixels': 0}, r'config.augmentation\[0\].pixels must be an integer from 1 to 10000, got 0'),
        (
            {'name': 'binarize', 'lowest': 0.8},
            r'config.augmentation\[0\].lowest must be at most highest=0.75, got 0.8',
        ),
        (
            {'name': 'affine', 'stretch': -0.5},
            r'config.augmentation\[0\].stretch must be a number from 0 to 10, got -0.5',
        ),
    ],
)
def test_wrong_arguments_are_errors(step, message):
    with pytest.raises(UserError, match=message):
        make_augmentation([step], 255)
