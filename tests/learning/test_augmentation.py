"""Augmentation: each step on images for which the result is known, and what it depends on."""

import ast
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from mnist_jax.errors import UserError
from mnist_jax.learning.augmentation import AUGMENTATIONS, make_augmentation

KEY = jax.random.key(0)
COUNT = 200


@functools.cache
def _compiled(steps, max_pixel):
    return jax.jit(make_augmentation(ast.literal_eval(steps), max_pixel))


def augment_chunk(steps, images, epoch=0, index=None, max_pixel=255, label=None, mask=None, occurrence=None):
    count = len(images)
    chunk = {
        'image': jnp.asarray(images, jnp.float32),
        'label': jnp.zeros(count, jnp.int32) if label is None else jnp.asarray(label),
        'mask': jnp.ones(count) if mask is None else jnp.asarray(mask, jnp.float32),
        'index': jnp.arange(count) if index is None else jnp.asarray(index),
    }
    if occurrence is not None:
        chunk['occurrence'] = jnp.asarray(occurrence, jnp.int32)
    return jax.tree.map(np.asarray, _compiled(repr(steps), max_pixel)(chunk, KEY, jnp.int32(epoch)))


def augment(steps, images, **options):
    return augment_chunk(steps, images, **options)['image']


def images_like(image):
    return np.broadcast_to(np.asarray(image, np.float32), (COUNT, *np.shape(image)))


MIXING = {'mixup', 'cutmix'}
RANDOM = np.random.default_rng(0).uniform(0, 255, (COUNT, 9, 8, 3)).astype(np.float32)


@pytest.mark.parametrize('name', sorted(set(AUGMENTATIONS) - MIXING))
def test_a_step_depends_on_seed_epoch_and_index_only(name):
    steps = [{'name': name, **({'rotation': 9, 'scale': 0.1, 'shift': 2, 'stretch': 0.5} if name == 'affine' else {})}]
    whole = augment(steps, RANDOM)
    order = np.random.default_rng(1).integers(0, COUNT, COUNT)
    assert np.array_equal(augment(steps, RANDOM[order], index=order), whole[order])
    assert not np.array_equal(augment(steps, RANDOM, epoch=1), whole)
    assert np.array_equal(augment(steps, RANDOM, epoch=0), whole)
    assert whole.min() >= 0 and whole.max() <= 255.001
    changed = (whole != RANDOM).any(axis=(1, 2, 3)).mean()
    assert 0.3 < changed <= 1


def test_an_example_that_is_drawn_again_looks_different():
    images, steps = images_like(RANDOM[0])[:6], [{'name': 'noise', 'amount': 0.2}]
    index = [4, 4, 4, 7, 7, 9]
    once = augment(steps, images, index=index)
    assert np.array_equal(once[0], once[1])
    again = augment(steps, images, index=index, occurrence=[0, 1, 2, 0, 1, 0])
    assert all(np.array_equal(again[row], once[row]) for row in (0, 3, 5))
    assert len({image.tobytes() for image in again}) == 6


def test_the_same_step_twice_draws_other_numbers():
    twice = augment([{'name': 'flip'}] * 2, RANDOM)
    once = augment([{'name': 'flip'}], RANDOM)
    assert not np.array_equal(twice, RANDOM) and not np.array_equal(twice, once)


def test_shifts_are_by_whole_pixels_each_as_often():
    dot = np.zeros((7, 7, 1))
    dot[3, 3] = 100
    moved = augment([{'name': 'shift', 'pixels': 1}], np.broadcast_to(dot, (1800, 7, 7, 1)))
    assert set(np.unique(moved)) == {0, 100}
    counts = (moved[..., 0] > 0).sum(axis=0)
    assert counts.sum() == 1800 and (counts[2:5, 2:5] > 0).all() and counts[2:5, 2:5].sum() == 1800
    assert np.abs(counts[2:5, 2:5] - 200).max() < 60  # four standard deviations


def test_rotation_scale_and_shear_stay_within_their_limits():
    line = np.zeros((41, 41, 1))
    line[20, 20:39] = 255  # from the middle to the right
    turned = augment([{'name': 'affine', 'rotation': 30.0}], images_like(line))[..., 0]
    rows, columns = np.mgrid[:41, :41] - 20
    weights = turned.sum(axis=(1, 2))
    angles = np.degrees(np.arctan2(-(turned * rows).sum((1, 2)) / weights, (turned * columns).sum((1, 2)) / weights))
    assert -30.5 < angles.min() < -25 and 25 < angles.max() < 30.5
    disc = 255.0 * (rows**2 + columns**2 < 100)[..., None]
    areas = augment([{'name': 'affine', 'scale': 0.2}], images_like(disc)).sum(axis=(1, 2, 3)) / disc.sum()
    assert 1 / 1.46 < areas.min() < 0.75 and 1.35 < areas.max() < 1.46  # from 1 / 1.2^2 to 1.2^2
    assert np.array_equal(augment([{'name': 'affine'}], RANDOM), RANDOM)


def test_flips_mirror_about_half_of_the_images():
    flipped = augment([{'name': 'flip'}], RANDOM)
    is_mirrored = (flipped == RANDOM[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (is_mirrored | (flipped == RANDOM).all(axis=(1, 2, 3))).all()
    assert 60 < is_mirrored.sum() < 140


def test_alternating_flips_mirror_each_image_in_every_second_epoch():
    steps = [{'name': 'alternating_flip'}]
    epochs = [augment(steps, RANDOM, epoch=epoch) for epoch in range(3)]
    assert np.array_equal(epochs[0], epochs[2])
    assert np.array_equal(epochs[1], epochs[0][:, :, ::-1])
    is_mirrored = (epochs[0] == RANDOM[:, :, ::-1]).all(axis=(1, 2, 3))
    assert 60 < is_mirrored.sum() < 140


def test_brightness_adds_and_contrast_scales_about_medium_gray():
    gray = images_like(np.array([50.0, 127.5, 200.0]).reshape(1, 3, 1))
    brighter = augment([{'name': 'brightness', 'amount': 0.1}], gray)[:, 0, :, 0]
    changes = brighter - [50, 127.5, 200]
    np.testing.assert_allclose(changes, changes[:, :1] * np.ones(3), atol=1e-4)
    assert -25.5 <= changes.min() < -20 and 20 < changes.max() <= 25.5
    contrasted = augment([{'name': 'contrast', 'amount': 0.5}], gray)[:, 0, :, 0]
    factors = (contrasted[:, 2] - contrasted[:, 0]) / 150
    np.testing.assert_allclose(contrasted[:, 1], 127.5, atol=1e-4)
    assert 1 / 1.5 <= factors.min() < 0.72 and 1.4 < factors.max() <= 1.5001
    assert augment([{'name': 'brightness', 'amount': 1.0}], gray).max() == 255  # It is clipped.


def test_erasing_sets_a_rectangle_to_zero():
    erased = augment(
        [{'name': 'erase', 'smallest': 0.1, 'largest': 0.3, 'elongation': 2.0}], images_like(np.ones((20, 30, 1)))
    )
    for image in erased[..., 0]:
        rows, columns = np.flatnonzero((image == 0).any(1)), np.flatnonzero((image == 0).any(0))
        assert (image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 0).all()
        assert (image == 0).sum() == len(rows) * len(columns)
        assert 0.08 < (image == 0).mean() < 0.33
        assert 0.45 < (len(rows) / 20) / (len(columns) / 30) < 2.2


def test_noise_sets_a_fraction_of_the_pixels_to_black_or_white():
    noisy = augment([{'name': 'noise', 'amount': 0.2}], images_like(np.full((20, 20, 3), 99.0)))
    assert np.array_equal(noisy[..., 0], noisy[..., 2])
    assert (noisy == 0).mean() == pytest.approx(0.1, abs=0.01)
    assert (noisy == 255).mean() == pytest.approx(0.1, abs=0.01)
    assert set(np.unique(noisy)) == {0, 99, 255}


def test_a_step_with_a_probability_changes_that_share_of_the_images():
    changed = augment(
        [{'name': 'brightness', 'amount': 0.1, 'probability': 0.25}], images_like(np.full((2, 2, 1), 99.0))
    )
    assert (changed[:, 0, 0, 0] != 99).mean() == pytest.approx(0.25, abs=0.1)


def test_no_steps_are_no_augmentation():
    assert make_augmentation((), 255) is None


@pytest.mark.parametrize(
    ('steps', 'message'),
    [
        (({'name': 'shfit'},), 'config.augmentation[0].name must be one of affine, alternating_flip, binarize, '),
        (('shift',), "config.augmentation[0] must be a dict such as {'name': 'shift', 'pixels': 2}, got 'shift'"),
        (({'pixels': 2},), 'config.augmentation[0] must be a dict such as'),
        (({'name': 'flip'}, {'name': 'shift', 'pixels': 0}), 'config.augmentation[1].pixels must be an integer from 1'),
        (({'name': 'shift', 'pixel': 2},), "config.augmentation[0].pixel is not a field for 'shift' (did you mean"),
        (({'name': 'flip', 'probability': 1.5},), 'config.augmentation[0].probability must be a number from 0 to 1'),
        (({'name': 'affine', 'scale': 1.0},), 'config.augmentation[0].scale must be at least 0 and less than 1'),
    ],
)  # fmt: skip
def test_wrong_steps_are_refused(steps, message):
    with pytest.raises(UserError) as error:
        make_augmentation(steps, 255)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(('fill', 'expected'), [('edge', '0012 1233 3333'), ('reflect', '1012 1232 3210')])
def test_what_comes_in_with_a_shift(fill, expected):
    ramp = np.arange(4.0).reshape(1, 4, 1)
    limit = 3 if expected.endswith('3210') or expected.endswith('3333') else 1
    moved = augment([{'name': 'shift', 'pixels': limit, 'fill': fill}], images_like(ramp))[:, 0, :, 0]
    rows = {''.join(str(int(value)) for value in row) for row in moved}
    assert set(expected.split()) <= rows
    # The image has one row, so moving it down or up shows the same row.
    padded = np.pad(np.arange(4), 3, mode=fill)
    assert rows == {''.join(map(str, padded[start : start + 4])) for start in range(7)}
    assert np.array_equal(augment([{'name': 'shift', 'fill': fill}], np.ones((3, 1, 1, 1))), np.ones((3, 1, 1, 1)))


def test_elastic_distances_have_the_deviation_worked_out_by_hand():
    """A ramp shows by how much each pixel moved: noise of variance 1/3, times the sum of the squared weights."""
    ramp = np.broadcast_to(np.arange(41.0).reshape(1, 41, 1), (41, 41, 1))
    moved = augment([{'name': 'elastic', 'distance': 20.0, 'smoothness': 3.0}], images_like(ramp))[:, 14:27, 14:27, 0]
    distances = moved - ramp[14:27, 14:27, 0]
    deviation = 20 * (1 / 3) ** 0.5 / (2 * 3 * np.pi**0.5)
    assert abs(distances.std() / deviation - 1) < 0.05 and abs(distances.mean()) < 0.1
    # Neighbors move alike: the correlation of a Gaussian filter at a distance of one pixel is exp(-1 / (4 sigma^2)).
    correlation = np.corrcoef(distances[:, :, 1:].ravel(), distances[:, :, :-1].ravel())[0, 1]
    assert abs(correlation - np.exp(-1 / 36)) < 0.01


def mixed(name, count, **options):
    """Returns one-pixel images that hold their label, mixed, with their labels and weights."""
    label = np.arange(count)
    size = options.pop('size', 1)
    images = np.broadcast_to(label.reshape(-1, 1, 1, 1), (count, size, size, 1))
    return augment_chunk([{'name': name, **options.pop('step', {})}], images, label=label, **options)


@pytest.mark.parametrize('name', sorted(MIXING))
def test_mixed_images_have_the_labels_of_both_with_the_weights_of_both(name):
    chunk = mixed(name, 200, size=8, step={'alpha': 1.0})
    assert np.array_equal(chunk['labels'], np.stack([np.arange(200), np.arange(199, -1, -1)], axis=1))
    assert chunk['label_weights'].min() >= 0
    np.testing.assert_allclose(chunk['label_weights'].sum(-1), 1, rtol=1e-6)
    # Each pixel holds a label, so the mean pixel is the mean label.
    expected = (chunk['label_weights'] * chunk['labels']).sum(-1)
    np.testing.assert_allclose(chunk['image'].mean(axis=(1, 2, 3)), expected, rtol=1e-5)
    assert np.array_equal(chunk['label'], np.arange(200))
    if name == 'cutmix':
        assert np.isin(chunk['image'], np.arange(200)).all()
        is_partner = chunk['image'][:50] > 100  # Those of the first examples have labels above 100.
        for rectangle in is_partner[..., 0]:
            rows, columns = np.flatnonzero(rectangle.any(1)), np.flatnonzero(rectangle.any(0))
            assert rectangle.sum() == len(rows) * len(columns)


def test_the_weights_have_a_beta_distribution():
    own = np.concatenate([mixed('mixup', 2000, step={'alpha': 0.3}, epoch=e)['label_weights'][:, 0] for e in range(3)])
    assert scipy.stats.kstest(own, scipy.stats.beta(0.3, 0.3).cdf).pvalue > 1e-3


@pytest.mark.parametrize('name', sorted(MIXING))
def test_padding_is_mixed_into_nothing(name):
    chunk = mixed(name, 7, size=4, mask=[1, 1, 1, 1, 1, 0, 0])
    assert np.array_equal(chunk['label_weights'][:2], [[1, 0], [1, 0]])
    assert np.array_equal(chunk['image'][:2, 0, 0, 0], [0, 1])
    assert not np.array_equal(chunk['label_weights'][2], [1, 0])


def test_two_mixtures_have_four_labels_and_a_probability_leaves_examples_alone():
    images = np.arange(100.0).reshape(-1, 1, 1, 1)
    steps = [{'name': 'mixup', 'alpha': 1.0, 'probability': 0.5}, {'name': 'mixup', 'alpha': 1.0}]
    chunk = augment_chunk(steps, images, label=np.arange(100))
    assert chunk['labels'].shape == (100, 4)
    expected = (chunk['label_weights'] * chunk['labels']).sum(-1)
    np.testing.assert_allclose(chunk['image'].ravel(), expected, rtol=1e-5)
    once = augment_chunk(steps[:1], images, label=np.arange(100))
    assert 25 < (once['label_weights'][:, 0] == 1).sum() < 75
