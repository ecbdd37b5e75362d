"""Same, nearly the same, blank and outlying images, worked out by hand or built for the purpose."""

import numpy as np
import pytest

from mnist_jax.data import similarity


def random_images(count, shape=(12, 10, 1), seed=0):
    return np.random.default_rng(seed).integers(20, 200, (count, *shape), np.uint8)


@pytest.mark.parametrize('shape', [(12, 10, 1), (40, 33, 3)])
def test_near_duplicates_are_all_pairs_with_a_high_correlation(shape):
    images = random_images(60, shape)
    images[7] = np.minimum(images[3].astype(int) + 40, 255)  # brighter: a correlation of 1
    images[20] = images[11] // 2  # less contrast
    images[30] = images[31]  # the same: not a near-duplicate
    images[40] = images[41]
    images[40, :2, :2] += 1
    images[50] = 77  # blank
    images[51] = 77
    flat = images.reshape(len(images), -1).astype(float)
    flat = flat[np.ptp(flat, axis=1) > 0]
    correlations = np.corrcoef(flat)
    expected = {tuple(pair) for pair in np.argwhere(np.triu(correlations, 1) >= 0.99).tolist()}
    pairs = similarity.near_duplicates(images)
    assert {tuple(pair) for pair in pairs.indices.tolist()} == expected - {(30, 31)}
    assert expected == {(3, 7), (11, 20), (30, 31), (40, 41)}
    for (first, second), correlation in zip(*pairs, strict=True):
        assert correlation == pytest.approx(np.corrcoef(flat[first], flat[second])[0, 1], abs=1e-6)
    assert (np.diff(pairs.correlation) <= 0).all()


def test_many_random_pairs_are_found_like_by_brute_force():
    rng = np.random.default_rng(1)
    base = rng.integers(0, 256, (40, 8, 8, 1))
    noise = rng.normal(0, 1, (400, 8, 8, 1)) * rng.uniform(2, 14, (400, 1, 1, 1))
    images = np.clip(base[rng.integers(0, 40, 400)] + noise, 0, 255).astype(np.uint8)
    correlations = np.corrcoef(images.reshape(400, -1))
    expected = np.argwhere(np.triu(correlations, 1) >= 0.99)
    assert len(expected) > 100
    found = similarity.near_duplicates(images).indices
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, expected.tolist()))


def test_the_result_does_not_depend_on_how_many_images_are_converted_at_a_time(monkeypatch):
    images = random_images(30)
    images[7] = np.minimum(images[3], 250) + 2
    labels = np.arange(30) % 2
    pairs, scores = similarity.near_duplicates(images), similarity.outlier_scores(images, labels)
    monkeypatch.setattr(similarity, 'CHUNK_PIXELS', 1)
    assert pairs.indices.tolist() == [[3, 7]]
    assert np.array_equal(similarity.near_duplicates(images).indices, pairs.indices)
    assert np.array_equal(similarity.outlier_scores(images, labels), scores)


def test_too_many_similar_images_are_not_searched(monkeypatch):
    monkeypatch.setattr(similarity, 'MAX_CANDIDATES', 10)
    images = np.repeat(random_images(1), 50, axis=0) + np.arange(50, dtype=np.uint8).reshape(-1, 1, 1, 1) % 3
    images[np.arange(50), 0, 0, 0] = np.arange(50)
    assert similarity.near_duplicates(images) is None


def test_same_and_blank_images():
    images = random_images(6, (3, 3, 3))
    images[4] = images[1]
    images[2] = (0, 120, 255)  # Each channel has one value.
    assert similarity.same_images(images).tolist() == [0, 1, 2, 3, 1, 5]
    assert similarity.blank_images(images).tolist() == [2]


def test_an_image_unlike_its_class_is_an_outlier():
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 200, (2, 8, 8, 1))
    labels = np.arange(80) % 2
    images = (patterns[labels] + rng.integers(0, 40, (80, 8, 8, 1))).astype(np.uint8)
    images[11] = images[10]  # an image of class 0 with the label 1
    images[13] = 255 - images[13]
    images[20] = 9
    scores = similarity.outlier_scores(images, labels)
    assert set(np.argsort(-np.nan_to_num(scores))[:2].tolist()) == {11, 13}
    assert scores[11] > 3 and scores[13] > 3
    assert np.isnan(scores).tolist() == [index == 20 for index in range(80)]
    assert np.nanmedian(scores) == pytest.approx(1, abs=0.1)


def test_small_classes_and_few_images_have_no_scores():
    images = random_images(8)
    assert np.isnan(similarity.outlier_scores(images, np.array([0, 0, 0, 0, 1, 1, 1, 1]))).all()
    assert len(similarity.near_duplicates(images[:1]).indices) == 0
    assert len(similarity.near_duplicates(np.zeros((3, 2, 2, 1), np.uint8)).indices) == 0


def test_each_copy_of_an_image_is_paired_with_what_is_nearly_the_same():
    images = random_images(6)
    images[2] = images[5] = images[0]
    images[3] = images[0] // 2
    pairs = similarity.near_duplicates(images)
    assert sorted(map(tuple, pairs.indices.tolist())) == [(0, 3), (2, 3), (3, 5)]
    assert len(set(pairs.correlation.tolist())) == 1


def test_too_many_pairs_of_copies_are_not_a_result(monkeypatch):
    images = random_images(6)
    images[2] = images[5] = images[0]
    images[3] = images[0] // 2
    monkeypatch.setattr(similarity, 'MAX_PAIRS', 2)
    assert similarity.near_duplicates(images) is None
