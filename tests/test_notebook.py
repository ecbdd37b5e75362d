"""A run as notebooks load it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_images import drawn, fonts

import mnist_jax
from mnist_jax.errors import UserError


def test_what_a_run_offers(trained, tmp_path):
    run = mnist_jax.load(trained)
    result = json.loads((trained / 'eval.json').read_text())
    assert run.result == result and f'accuracy   {result["accuracy"]:.4f}' in run.table()
    assert [row['epoch'] for row in run.metrics] == [1, 2, 3] and run.config.model.name == 'cnn'
    assert repr(run) == f"<run '{trained}': cnn, step 564>"
    drawn(fonts()[0], 7, 60, True).save(tmp_path / 'seven.png')
    image = run.image(tmp_path / 'seven.png')
    assert image.shape == (28, 28, 1) and run.predict([image]).argmax() == 7
    assert run.feature_maps(image)['Conv_1'].shape == (14, 14, 16)
    assert set(run.figures()) >= {'learning_curves', 'confusion_matrix', 'mistakes'}
    assert mnist_jax.load(str(trained), step='best').snapshot.state.step <= 564


def test_what_is_wrong_is_told(trained, tmp_path):
    with pytest.raises(UserError, match='does not exist'):
        mnist_jax.load(tmp_path / 'nothing')
    Image.new('L', (9, 9)).save(tmp_path / 'blank.png')
    with pytest.raises(UserError, match=r"blank.png': it shows nothing"):
        mnist_jax.load(trained).image(tmp_path / 'blank.png')
    with pytest.raises(UserError, match='are wrong: numbers of the shape'):
        mnist_jax.load(trained).predict(np.zeros(3))
    with pytest.raises(UserError, match='the images differ in shape'):
        mnist_jax.load(trained).predict([np.zeros((28, 28)), np.zeros((28, 27))])
    with pytest.raises(UserError, match=r'pixels from 0 to 0.5 seem to be scaled: 0 to 255 are wanted'):
        mnist_jax.load(trained).predict(np.eye(28)[None] / 2)


def test_importing_the_package_loads_nothing():
    code = "import sys, mnist_jax; assert not {'jax', 'numpy', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)
