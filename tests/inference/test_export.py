"""Exported models, called with the code from their README, by processes that do not use this project."""

import importlib.util
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from digit_images import read_mnist_test
from ml_collections import ConfigDict
from small_architectures import MODELS

from mnist_jax import train
from mnist_jax.errors import UserError
from mnist_jax.inference.export import STABLEHLO, export, to_onnx, to_stablehlo
from mnist_jax.inference.restored import RestoredModel

CALL = """
import sys
import numpy as np

images = np.load('images.npy')
{code}
np.save('probabilities.npy', np.asarray(probabilities))
assert not {{'mnist_jax', 'flax', 'orbax'}} & set(sys.modules)
"""


@pytest.fixture(scope='module')
def images():
    return read_mnist_test(37)[0][..., None]


def call(directory, code, images):
    """Runs code from the README in a new process; returns the probabilities."""
    np.save(directory / 'images.npy', images)
    # -P and -I keep this project out of sys.path.
    subprocess.run([sys.executable, '-P', '-I', '-c', CALL.format(code=code)], cwd=directory, check=True)
    return np.load(directory / 'probabilities.npy')


def code_blocks(directory):
    """Returns the indented code blocks of the README."""
    blocks = ['']
    for line in (directory / 'README.md').read_text().splitlines():
        if line.startswith('    '):
            blocks[-1] += f'{line[4:]}\n'
        elif blocks[-1]:
            blocks.append('')
    return [block for block in blocks if block]


@pytest.mark.parametrize('model', ['mlp', 'batch_norm'])
def test_exported_models_predict_the_same_probabilities(small, images, tmp_path, model):
    fields = {'model__batch_norm': True, 'model__padding': 'valid'} if model == 'batch_norm' else {}
    train.train(small('mlp' if model == 'mlp' else 'cnn', **fields), tmp_path)
    expected = RestoredModel.load(tmp_path).predict(images)
    directory = export(tmp_path, onnx=True)
    assert b'mnist_jax_layer' not in (directory / STABLEHLO).read_bytes()
    for code in code_blocks(directory):
        for count in (37, 1):
            np.testing.assert_allclose(call(directory, code, images[:count]), expected[:count], atol=1e-5)
    assert len(code_blocks(directory)) == 2 and expected.std() > 0.01
    export(tmp_path)  # Without ONNX, the old file must be deleted: it may be from another step.
    assert {path.name for path in directory.glob('model.*')} == {STABLEHLO}


@pytest.mark.parametrize('name', MODELS)
def test_all_architectures_can_be_exported(name, small, images, tmp_path):
    config = small(epochs=0)
    config.model = ConfigDict({'name': name, **MODELS[name]})
    train.train(config, tmp_path, report=False)
    model = RestoredModel.load(tmp_path)
    expected = model.predict(images)
    exported = jax.export.deserialize(bytearray(to_stablehlo(model)))
    session = onnxruntime.InferenceSession(to_onnx(model))
    for count in (37, 1):
        np.testing.assert_allclose(exported.call(images[:count]), expected[:count], atol=1e-6)
        (probabilities,) = session.run(None, {'image': images[:count].astype(np.float32)})
        np.testing.assert_allclose(probabilities, expected[:count], atol=1e-6)
    assert expected.std(0).max() > 1e-3


def test_a_model_that_cannot_be_converted_is_one_line(trained, monkeypatch):
    monkeypatch.setattr(RestoredModel, 'inference_function', lambda model: jnp.fft.fft2)
    with pytest.raises(UserError, match=r'--onnx must not be used for this model, which jax2onnx cannot convert: \w'):
        to_onnx(RestoredModel.load(trained))


def test_a_missing_dependency_of_the_converter_is_one_line(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, 'jax2onnx', None)
    with pytest.raises(UserError, match='--onnx needs what jax2onnx imports: import of jax2onnx halted'):
        to_onnx(RestoredModel.load(trained))


def test_onnx_is_refused_for_bfloat16(trained, monkeypatch):
    model = RestoredModel.load(trained)
    with model.plan.config.unlocked():
        model.plan.config.dtype = 'bfloat16'
    monkeypatch.setattr('mnist_jax.inference.export.load_model', lambda workdir, step: model)
    with pytest.raises(UserError, match=r'--onnx needs a model whose config.dtype is float32, got bfloat16'):
        export(trained, onnx=True)


def test_a_missing_converter_is_reported_before_anything_is_written(trained, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r'--onnx needs the converter jax2onnx.*requirements-onnx.txt'):
        export(trained, onnx=True)
    assert not (trained / 'export').exists()


def test_wrong_arguments_are_errors(trained, forked):
    process = forked('--mode=export', f'--workdir={trained}', '--step=7')
    assert process.returncode == 2 and '--step must be one of latest, ' in process.stderr
    assert "got '7'" in process.stderr
    process = forked('--mode=export')
    assert process.returncode == 2 and '--mode=export needs --workdir' in process.stderr
