"""Trained runs, as `mnist_jax.load` returns them."""

import json
import subprocess
import sys

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
    with pytest.raises(UserError, match='must be the result of step 376, which was loaded, got the result of step 564'):
        mnist_jax.load(trained, step=376).result  # noqa: B018


def test_importing_the_package_imports_neither_jax_nor_numpy():
    code = "import sys, mnist_jax; assert not {'jax', 'numpy', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)
