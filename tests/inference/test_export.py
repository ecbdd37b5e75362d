"""Exported models, called by processes that know nothing of this project, as the README beside them says."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from test_images import MNIST

from mnist_jax import train
from mnist_jax.data import idx
from mnist_jax.errors import UserError
from mnist_jax.inference.export import STABLEHLO, export
from mnist_jax.inference.restored import RestoredModel

CALL = """
import sys
import numpy as np

images = np.load('images.npy')
{code}
np.save('found.npy', np.asarray(probabilities))
assert not {{'mnist_jax', 'flax', 'orbax'}} & set(sys.modules)
"""


@pytest.fixture(scope='module')
def images():
    return idx.read(idx.find(MNIST, 't10k-images-idx3-ubyte'), dimensions=3)[:37, ..., None]


def call(place, code, images):
    np.save(place / 'images.npy', images)
    # -P and -I leave this project out of the paths.
    subprocess.run([sys.executable, '-P', '-I', '-c', CALL.format(code=code)], cwd=place, check=True)
    return np.load(place / 'found.npy')


def code_of(place):
    """The pieces of code in the README."""
    pieces = ['']
    for line in (place / 'README.md').read_text().splitlines():
        if line.startswith('    '):
            pieces[-1] += f'{line[4:]}\n'
        elif pieces[-1]:
            pieces.append('')
    return [piece for piece in pieces if piece]


@pytest.mark.parametrize('model', ['mlp', 'batch_norm'])
def test_exported_models_predict_the_same(small, images, tmp_path, model):
    fields = {'model__batch_norm': True, 'model__padding': 'valid'} if model == 'batch_norm' else {}
    train.train(small('mlp' if model == 'mlp' else 'cnn', **fields), tmp_path)
    expected = RestoredModel.load(tmp_path).predict(images)
    place = export(tmp_path, onnx=True)
    assert b'mnist_jax_layer' not in (place / STABLEHLO).read_bytes()
    for code in code_of(place):
        for count in (37, 1):
            np.testing.assert_allclose(call(place, code, images[:count]), expected[:count], atol=1e-5)
    assert len(code_of(place)) == 2 and expected.std() > 0.01
    export(tmp_path)  # Now without ONNX: what lay there may be of another step.
    assert {path.name for path in place.glob('model.*')} == {STABLEHLO}


def test_a_missing_converter_is_told_before_anything_is_written(trained, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r'--onnx needs the converter jax2onnx.*requirements-onnx.txt'):
        export(trained, onnx=True)
    assert not (trained / 'export').exists()


def test_wrong_arguments(trained, forked):
    found = forked('--mode=export', f'--workdir={trained}', '--step=7')
    assert found.returncode == 2 and "--step='7' is not there; the choices are: latest" in found.stderr
    found = forked('--mode=export')
    assert found.returncode == 2 and '--mode=export needs --workdir' in found.stderr
