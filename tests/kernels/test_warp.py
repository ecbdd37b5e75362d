"""The kernel that moves images against SciPy and against its plain form, also with motions that leave the image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from mnist_jax.kernels import warping
from mnist_jax.kernels.build import kernels_available

warp, plain_warp = (
    jax.jit(warping.warp),
    jax.jit(lambda image, motion: warping.plain_warp(image, jnp.stack(motion, axis=-1))),
)


def make_motion(count, **numbers):
    unchanged = {name: float(name in ('cosine', 'zoom', 'gain', 'stretch')) for name in warping.Motion._fields}
    return warping.Motion(
        **{name: jnp.full(count, value, jnp.float32) for name, value in {**unchanged, **numbers}.items()}
    )


def random_images(*shape):
    return np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)


def random_motion(count, seed=1):
    rng = np.random.default_rng(seed)
    angle = rng.uniform(-0.6, 0.6, count)
    return warping.Motion(*map(lambda array: jnp.asarray(array, jnp.float32), (
        np.cos(angle), np.sin(angle), rng.uniform(0.7, 1.4, count), rng.uniform(-0.3, 0.3, count),
        rng.uniform(-4, 4, count), rng.uniform(-4, 4, count), rng.uniform(0.5, 1.5, count), rng.uniform(-9, 9, count),
        rng.uniform(0.6, 1.7, count),
    )))  # fmt: skip


@pytest.mark.parametrize('shape', [(1, 1, 1, 1), (1, 28, 28, 1), (5, 9, 14, 3), (3, 1, 7, 2), (17, 8, 8, 1)])
def test_the_kernel_equals_the_plain_form(shape):
    assert kernels_available()
    images, motion = random_images(*shape), random_motion(shape[0])
    np.testing.assert_allclose(warp(images, motion), plain_warp(images, motion), rtol=1e-5, atol=2e-3)


@pytest.mark.parametrize('shape', [(28, 28), (9, 14)])
def test_motions_equal_those_of_scipy(shape):
    images, motion = random_images(6, *shape, 1), random_motion(6)
    result = np.asarray(warp(images, motion))[..., 0]
    middle = (np.array(shape) - 1) / 2
    for index in range(6):
        cosine, sine, zoom, shear, down, right, gain, offset, stretch = (float(number[index]) for number in motion)
        turn = np.array([[cosine, -sine], [sine, cosine]])
        matrix = np.diag([stretch, 1 / stretch]) @ (zoom * turn) @ np.array([[1, 0], [shear, 1]])
        origin = middle - np.array([down, right]) - matrix @ middle
        expected = scipy.ndimage.affine_transform(images[index, ..., 0], matrix, origin, order=1, mode='grid-constant')
        np.testing.assert_allclose(result[index], gain * expected + offset, rtol=1e-4, atol=5e-3)


def test_no_motion_and_whole_pixels_are_exact():
    images = random_images(2, 5, 7, 3)
    assert np.array_equal(warp(images, make_motion(2)), images)
    moved = np.asarray(warp(images, make_motion(2, down=2, right=-1)))
    assert np.array_equal(moved[:, 2:, :-1], images[:, :-2, 1:])
    assert not moved[:, :2].any() and not moved[:, :, -1].any()
    # A quarter turn clockwise.
    square = random_images(1, 6, 6, 1)
    turned = np.asarray(warp(square, make_motion(1, cosine=0, sine=1)))
    assert np.array_equal(turned[0, ..., 0], np.rot90(square[0, ..., 0], -1))


@pytest.mark.parametrize('number', ['down', 'zoom', 'shear', 'cosine'])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, 1e30])
def test_motions_out_of_the_image_read_nothing(number, value):
    images = random_images(4, 8, 8, 1)
    result = np.asarray(warp(images, make_motion(4, **{number: value})))
    assert np.isfinite(result).all() and result.min() >= 0 and result.max() <= images.max()
    if number == 'down' or np.isnan(value):
        assert not result.any()


def test_not_a_number_in_the_gain_reaches_every_pixel():
    assert np.isnan(warp(random_images(1, 4, 4, 1), make_motion(1, gain=np.nan))).all()


def test_batches_of_batches_and_gradients_are_those_of_the_plain_form():
    images, motion = random_images(2, 3, 6, 6, 1), jax.tree.map(lambda array: array.reshape(2, 3), random_motion(6))
    np.testing.assert_allclose(
        jax.vmap(warp)(images, motion), jax.vmap(plain_warp)(images, motion), rtol=1e-5, atol=2e-3
    )

    def total(function, image):
        return (function(image, random_motion(3)) ** 2).sum()

    gradients = [jax.grad(lambda image, f=f: total(f, image))(images[0]) for f in (warp, plain_warp)]
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize('shape', [(1, 1, 1, 1), (3, 28, 28, 1), (2, 9, 14, 3), (2, 1, 7, 2)])
def test_distortions_equal_those_of_scipy_and_of_the_plain_form(shape):
    images, rng = random_images(*shape), np.random.default_rng(2)
    noise = rng.uniform(-1, 1, (shape[0], 2, *shape[1:3])).astype(np.float32)
    offsets = np.arange(-6, 7)
    taps = np.exp(-0.5 * (offsets / 2) ** 2)
    taps = (taps / taps.sum()).astype(np.float32) * np.float32(4)
    result = np.asarray(jax.jit(warping.distort)(images, noise, taps))
    np.testing.assert_allclose(result, warping.plain_distort(images, noise, jnp.asarray(taps)), rtol=1e-4, atol=5e-3)
    for image, own_noise, distorted in zip(images, noise, result, strict=True):
        fields = [
            16 * scipy.ndimage.gaussian_filter(part.astype(float), 2, mode='constant', radius=6) for part in own_noise
        ]
        positions = np.mgrid[: shape[1], : shape[2]] + fields
        for channel in range(shape[3]):
            expected = scipy.ndimage.map_coordinates(image[..., channel], positions, order=1, mode='grid-constant')
            np.testing.assert_allclose(distorted[..., channel], expected, rtol=1e-3, atol=2e-2)


def test_distances_out_of_the_image_read_nothing():
    noise = np.full((1, 2, 4, 4), np.nan, np.float32)
    noise[0, 0, 0, 0] = 1e30
    assert not np.asarray(warping.distort(random_images(1, 4, 4, 1), noise, np.ones(1, np.float32))).any()
