"""Trained runs, as `mnist_jax.load` returns them."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from digit_images import draw_digit, font_paths
from PIL import Image

import mnist_jax
from mnist_jax.errors import UserError


def test_a_run_offers_its_results_predictions_and_figures(trained, tmp_path):
    run = mnist_jax.load(trained)
    result = json.loads((trained / 'eval.json').read_text())
    assert run.result == result and f'accuracy   {result["accuracy"]:.4f}' in run.table()
    assert [row['epoch'] for row in run.metrics] == [1, 2, 3] and run.config.model.name == 'cnn'
    assert repr(run) == f"<Run '{trained}': cnn, step 564>"
    draw_digit(font_paths()[0], 7, 60, True).save(tmp_path / 'seven.png')
    image = run.image(tmp_path / 'seven.png')
    assert image.shape == (28, 28, 1) and run.predict([image]).argmax() == 7
    assert run.feature_maps(image)['Conv_1'].shape == (14, 14, 16)
    assert set(run.figures()) >= {'learning_curves', 'confusion_matrix', 'mistakes'}
    assert mnist_jax.load(str(trained), step='best').snapshot.state.step <= 564


def test_logits_are_those_of_the_step_and_can_be_jitted_and_differentiated(trained):
    run = mnist_jax.load(trained)
    image = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    logits = run.logits(image)
    assert logits.shape == (3, 10) and logits.dtype == jnp.float32
    np.testing.assert_allclose(jax.nn.softmax(logits), run.predict(image), atol=1e-6)
    np.testing.assert_array_equal(run.logits(image[..., 0]), logits)
    np.testing.assert_allclose(jax.jit(run.logits)(image), logits, rtol=1e-5, atol=1e-5)

    def reference(image):
        """The model of the run in plain JAX."""
        params, x = run.params, image / 255
        for name in ('Conv_0', 'Conv_1'):
            dimensions = ('NHWC', 'HWIO', 'NHWC')
            x = jax.lax.conv_general_dilated(x, params[name]['kernel'], (1, 1), 'SAME', dimension_numbers=dimensions)
            x = jax.nn.relu(x + params[name]['bias'].reshape(1, 1, 1, -1))
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'SAME')
        x = x.reshape(len(x), -1)
        x = jax.nn.relu(x @ params['Dense_0']['kernel'] + params['Dense_0']['bias'][None])
        return x @ params['Dense_1']['kernel'] + params['Dense_1']['bias'][None]

    np.testing.assert_allclose(logits, reference(image.astype(np.float32)), rtol=1e-4, atol=1e-4)
    pixels = image.astype(np.float32)
    saliency = jax.jit(jax.grad(lambda pixels: run.logits(pixels)[:, 7].sum()))(pixels)
    expected = jax.grad(lambda pixels: reference(pixels)[:, 7].sum())(pixels)
    assert saliency.shape == pixels.shape and np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(saliency, expected, rtol=1e-3, atol=1e-6)


def test_logits_refuse_scaled_pixels_and_wrong_shapes(trained):
    run = mnist_jax.load(trained)
    with pytest.raises(UserError, match=r'got 0 to 0.5, which seem to be scaled already'):
        run.logits(np.eye(28)[None] / 2)
    with pytest.raises(UserError, match='pixels must be from 0 to 255, got nan to nan'):
        run.logits(np.full((1, 28, 28), np.nan))
    for function in (run.logits, jax.jit(run.logits)):
        with pytest.raises(UserError, match=r'of shape N x 28 x 28 x 1, got shape \(2, 27, 28, 1\) and type float32'):
            function(np.zeros((2, 27, 28, 1), np.float32))
        with pytest.raises(UserError, match=r'images must be numeric, .* and type bool'):
            function(np.zeros((2, 28, 28, 1), bool))


def test_wrong_arguments_are_errors_that_say_what_is_expected(trained, tmp_path):
    with pytest.raises(UserError, match='does not exist'):
        mnist_jax.load(tmp_path / 'nothing')
    run = mnist_jax.load(trained)
    Image.new('L', (9, 9)).save(tmp_path / 'blank.png')
    with pytest.raises(UserError, match=r"blank.png': it is blank"):
        run.image(tmp_path / 'blank.png')
    with pytest.raises(UserError, match=r'images must be numeric, of shape N x 28 x 28 x 1, got shape \(3,\)'):
        run.predict(np.zeros(3))
    with pytest.raises(UserError, match='images must all be 28 x 28 x 1, got different shapes'):
        run.predict([np.zeros((28, 28)), np.zeros((28, 27))])
    with pytest.raises(UserError, match=r'pixels must be from 0 to 255, got 0 to 0.5, which seem to be scaled already'):
        run.predict(np.eye(28)[None] / 2)
    with pytest.raises(UserError, match='must be the result of the restored checkpoint, with the step 376, got 564;'):
        mnist_jax.load(trained, step=376).result  # noqa: B018


def test_importing_the_package_imports_neither_jax_nor_numpy():
    code = "import sys, mnist_jax; assert not {'jax', 'numpy', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)
