"""Explanations of predictions: of a linear model, for which they are known, and their sum rule."""

import jax
import numpy as np
import pytest

from mnist_jax.inference.explain import Explainer
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.report.feature_space import feature_map, neighborhoods, principal_components
from mnist_jax.train import train


@pytest.fixture(scope='module')
def models(data_dir, tmp_path_factory):
    """A linear model, and a CNN."""
    from conftest import make_small

    directory = tmp_path_factory.mktemp('models')
    for name, fields in (('mlp', {'model__hidden': ()}), ('cnn', {})):
        train(make_small(data_dir, name, devices=1, chunks=1, epochs=3, **fields), directory / name)
    return {name: RestoredModel.load(directory / name) for name in ('mlp', 'cnn')}


def image_of(model):
    return model.plan.source.split('test').image[3]


def test_the_gradient_of_a_linear_model(models):
    """That of log p_k is the kernel of k minus the mean of all kernels, weighted by their probabilities."""
    model, label = models['mlp'], 4
    image = image_of(model)
    kernel = model.params['Dense_0']['kernel'] / 255
    mean = kernel @ model.predict(image[None])[0]
    expected = np.abs(kernel[:, label] - mean).reshape(28, 28)
    np.testing.assert_allclose(Explainer(model).gradient(image, label), expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize('name', ['mlp', 'cnn'])
def test_integrated_gradients_add_up(models, name):
    model, label = models[name], 7
    image = image_of(model)
    contributions = Explainer(model).integrated_gradients(image, label)
    log_probabilities = jax.nn.log_softmax(model.logits(np.stack([image, np.zeros_like(image)])))[:, label]
    difference = float(log_probabilities[0] - log_probabilities[1])
    assert abs(contributions.sum() - difference) < 0.02 * abs(difference) + 0.005
    assert not contributions[image[..., 0] == 0].any()


def test_occlusion_is_the_fall_of_the_probability(models):
    model, label = models['cnn'], 2
    image = image_of(model)
    falls = Explainer(model).occlusion(image, label)
    hidden = image.copy()
    hidden[10 - 2 : 10 + 3, 14 - 2 : 14 + 3] = 0  # a square of 28 / 7 = 4 pixels, rounded up to an odd number
    both = model.predict(np.stack([image, hidden]))[:, label]
    np.testing.assert_allclose(falls[10, 14], both[0] - both[1], atol=1e-6)


class BrightLeftHalf:
    """A model whose probability of class 0 is the mean of the left half of an image."""

    largest_batch = 0

    def predict(self, images, *, allow_dark):
        self.largest_batch = max(self.largest_batch, len(images))
        mean_N = images[:, :, : images.shape[2] // 2].mean((1, 2, 3))
        return np.stack([mean_N, 1 - mean_N], axis=1)


def test_occlusion_of_large_images_takes_little_memory_and_few_predictions():
    model = BrightLeftHalf()
    falls = Explainer(model).occlusion(np.ones((200, 130, 1), np.float32), 0)
    # Every fourth pixel is hidden by a square of 29 x 19 pixels of a half of 200 x 65.
    assert falls.shape == (200, 130) and model.largest_batch <= 256
    assert falls[100, 32] == pytest.approx(29 * 19 / (200 * 65), rel=1e-3) and falls[100, 100] == 0
    assert np.array_equal(falls[::4].repeat(4, axis=0), falls)


def test_the_features_that_the_last_layer_gets(models):
    model = models['cnn']
    images = model.plan.source.split('test').image
    features = model.last_features(images)
    assert features.shape == (200, 16)
    layer = model.params['Dense_1']
    np.testing.assert_allclose(features @ layer['kernel'] + layer['bias'], model.logits(images), rtol=1e-3, atol=1e-4)
    assert models['mlp'].last_features(images).shape == (200, 784)


def test_principal_components_equal_those_of_scikit_learn():
    from sklearn.decomposition import PCA

    features = np.random.default_rng(0).normal(size=(50, 6)) * [5, 3, 1, 1, 1, 1]
    ours, theirs = principal_components(features), PCA(2).fit_transform(features)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), rtol=1e-6)
    assert principal_components(features[:, :1]).shape == (50, 2)


def test_neighborhoods_keep_groups_apart_and_are_reproducible():
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(0, 0.1, (20, 5)), rng.normal(3, 0.1, (20, 5))])
    points = neighborhoods(features)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(40)
    assert (distances.argmin(axis=1)[:20] < 20).all() and (distances.argmin(axis=1)[20:] >= 20).all()
    assert np.array_equal(points, neighborhoods(features))


def test_too_few_examples_have_no_map():
    assert feature_map(np.zeros((5, 3)), np.zeros(5, int), np.zeros(5, int), ['a', 'b']) is None
