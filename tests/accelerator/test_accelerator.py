"""What needs an accelerator: `benchmarks/accelerator.py` runs these tests; elsewhere, they are skipped."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnist_jax.config import load_config
from mnist_jax.learning.augmentation import AUGMENTATIONS, make_augmentation
from mnist_jax.models.architectures import MODELS
from mnist_jax.models.layers import SHARED_STREAM, Training
from mnist_jax.training.plan import make_model

ROOT = Path(__file__).parents[2]
SELECTED = os.environ.get('ACCELERATOR_TESTS', '')
CONFIGS = (
    *('mlp', 'cnn', 'fashion_cnn', 'convnet_valid', 'convnet_same', 'digits_cnn', 'kaggle_mlp', 'kaggle_cnn'),
    *('lenet5', 'resnet', 'depthwise', 'mixer', 'vit'),
)
RUN_CONFIG = 'mlp' if SELECTED == 'quick' else 'fashion_cnn'
BATCH = 32

pytestmark = pytest.mark.skipif(
    not SELECTED and jax.default_backend() == 'cpu', reason='needs an accelerator, or ACCELERATOR_TESTS=quick'
)
not_quick = pytest.mark.skipif(SELECTED == 'quick', reason='shows nothing new if the accelerator is the CPU itself')


@pytest.mark.parametrize('name', CONFIGS[:1] if SELECTED == 'quick' else CONFIGS)
def test_losses_and_gradients_are_those_of_float64_on_the_cpu(name):
    config = load_config(str(ROOT / 'configs' / f'{name}.py'))
    model = make_model(config.model, 10)
    size = 8 if config.dataset.name == 'digits' else 28
    rng = np.random.default_rng(0)
    image, label = rng.random((BATCH, size, size, 1)), rng.integers(0, 10, BATCH)
    key = jax.random.key_data(jax.random.key(1))
    variables = jax.tree.map(np.asarray, model.init(jax.random.key(0), jnp.zeros((1, size, size, 1))))

    def loss(params, dtype):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
        training = Training(jnp.ones(BATCH), jnp.arange(BATCH, dtype=jnp.int32), lambda tree: tree)
        rngs = {SHARED_STREAM: jax.random.wrap_key_data(jnp.asarray(key))}
        logits, _ = model.apply(
            {**variables, 'params': params}, jnp.asarray(image, dtype), training, rngs=rngs, mutable=['batch_stats']
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

    # The CPU kernels compute in float32 only.
    with jax.enable_x64(True), jax.default_device(jax.devices('cpu')[0]):
        expected_loss, expected = jax.tree.map(np.asarray, jax.value_and_grad(loss)(variables['params'], 'float64'))
    with jax.default_matmul_precision('highest'):
        our_loss, ours = jax.jit(jax.value_and_grad(loss), static_argnums=1)(variables['params'], 'float32')
    np.testing.assert_allclose(our_loss, expected_loss, rtol=1e-5)
    # A ReLU or a maximum near a tie may fall on the other side, so a few gradients may differ by more than rounding.
    ours, expected = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (ours, expected))
    assert np.linalg.norm(ours - expected) <= 3e-3 * np.linalg.norm(expected)


def augment(step, images):
    chunk = {
        'image': jnp.asarray(images),
        'label': jnp.zeros(len(images), jnp.int32),
        'mask': jnp.ones(len(images)),
        'index': jnp.arange(len(images)),
    }
    return np.asarray(jax.jit(make_augmentation([step], 255))(chunk, jax.random.key(0), jnp.int32(0))['image'])


@pytest.mark.parametrize('name', ['affine'] if SELECTED == 'quick' else AUGMENTATIONS)
def test_augmentation_is_that_of_the_cpu_within_rounding(name):
    step = {'name': name, **({'rotation': 9, 'scale': 0.1, 'shear': 5, 'shift': 2} if name == 'affine' else {})}
    images = np.random.default_rng(0).uniform(0, 255, (200, 28, 28, 1)).astype(np.float32)
    ours = augment(step, images)
    with jax.default_device(jax.devices('cpu')[0]):
        expected = augment(step, images)
    assert not np.array_equal(ours, images)
    # A side of a rectangle that is nearly halfway between two whole numbers may round to the other one.
    assert np.mean(np.abs(ours - expected) > 0.05) < 2e-3


def command(workdir, epochs, *flags):
    fields = {
        'dataset.name': 'mnist',
        'dataset.train': 'train[:2048]',
        'dataset.validation': '',
        'dataset.validation_fraction': '0.0',
        'dataset.test': 'test[:500]',
        'epochs': epochs,
        'early_stopping.patience': 0,
        'early_stopping.restore_best': False,
        'reduce_lr.patience': 0,
    }
    return [
        *(sys.executable, '-m', 'mnist_jax.main', f'--config=configs/{RUN_CONFIG}.py', '--noreport'),
        *(f'--workdir={workdir}', *(f'--config.{name}={value}' for name, value in fields.items()), *flags),
    ]


def run(arguments, cache, **environment):
    """Runs the program with a directory of compiled programs; returns the contents of eval.json."""
    variables = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(cache), **environment}
    process = subprocess.run(arguments, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    workdir = next(flag.removeprefix('--workdir=') for flag in arguments if flag.startswith('--workdir='))
    return json.loads(Path(workdir, 'eval.json').read_text())


@pytest.fixture(scope='session')
def cold(tmp_path_factory):
    """A finished run, started with an empty cache, and that cache."""
    directory = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:  # The processes that run the tests share the run.
        directory = directory.parent
    with (directory / 'lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        arguments = command(directory / 'run', 2)
        finished = directory / 'run' / 'eval.json'
        result = json.loads(finished.read_text()) if finished.exists() else run(arguments, directory / 'cache')
    return directory / 'run', directory / 'cache', result


def test_a_second_start_with_a_warm_cache_gives_the_same_bits(cold, tmp_path):
    result = run(command(tmp_path / 'run', 2), cold[1])
    assert result['params_sha256'] == cold[2]['params_sha256'] and result['loss'] == cold[2]['loss']


@not_quick  # tests/faults kills runs on the CPU
def test_a_killed_run_resumes_to_the_same_bits(cold, tmp_path):
    arguments = command(tmp_path / 'run', 2, '--config.checkpoint_every_steps=4')
    variables = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(cold[1])}
    process = subprocess.Popen(arguments, cwd=ROOT, env=variables, stderr=subprocess.DEVNULL)
    checkpoints = tmp_path / 'run' / 'checkpoints'
    deadline = time.monotonic() + 120
    while not any(path.name != '0' for path in checkpoints.glob('[0-9]*')):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    result = run(arguments, cold[1])
    assert result['params_sha256'] == cold[2]['params_sha256']


@not_quick
def test_examples_on_the_host_and_on_the_device_agree_within_rounding(cold, tmp_path):
    result = run(command(tmp_path / 'run', 2, '--config.dataset.on_device=off'), cold[1])
    np.testing.assert_allclose(result['loss'], cold[2]['loss'], rtol=1e-4)


@not_quick
def test_the_cpu_evaluates_a_checkpoint_of_the_accelerator_within_rounding(cold, tmp_path):
    finished, cache, expected = cold
    workdir = shutil.copytree(finished, tmp_path / 'run')
    arguments = [sys.executable, '-m', 'mnist_jax.main', '--mode=eval', f'--workdir={workdir}']
    result = run(arguments, cache, JAX_PLATFORMS='cpu')
    assert result['params_sha256'] == expected['params_sha256']
    np.testing.assert_allclose(result['loss'], expected['loss'], rtol=1e-5)
    assert abs(result['correct'] - expected['correct']) <= 1


@not_quick
def test_a_run_moves_from_the_accelerator_to_the_cpu_and_back(cold, tmp_path):
    on_accelerator = run(command(tmp_path / 'run', 1), cold[1])
    on_cpu = run(command(tmp_path / 'run', 2), cold[1], JAX_PLATFORMS='cpu')
    back = run(command(tmp_path / 'run', 3), cold[1])
    assert [result['step'] for result in (on_accelerator, on_cpu, back)] == [16, 32, 48]
    np.testing.assert_allclose(on_cpu['loss'], cold[2]['loss'], rtol=1e-2)


def test_every_architecture_has_a_config_here():
    assert {load_config(str(ROOT / 'configs' / f'{name}.py')).model.name for name in CONFIGS} == set(MODELS)
