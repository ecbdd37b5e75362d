"""The parameters of every config after eight steps have the same bits on every processor and in every version.

If a change of the computation is intended, update the digests, and say in CHANGELOG.md that results change.
"""

import inspect
import subprocess
import sys

import jax
import pytest
from conftest import ROOT, environment

from mnist_jax.config import load_config
from mnist_jax.kernels.build import kernels_available
from mnist_jax.training.experiment import make_experiment
from mnist_jax.workdir.snapshot import params_sha256

# Seen on AMD EPYCs with AVX2 and with AVX-512, with jax 0.10.2. All models are trained on MNIST, except `digits_cnn`.
DIGESTS = {
    'mlp': '721aecbb5feb',
    'cnn': '440bf5614f53',
    'fashion_cnn': '12dfde02129b',
    'convnet_valid': '75e751b15fe5',
    'convnet_same': 'd8d834c98b32',
    'digits_cnn': '9e3a2c224a7c',
    'kaggle_mlp': 'e603389c234d',
    'kaggle_cnn': 'fd8717c38c3e',
    'lenet5': '97baa6d6cc3c',
    'resnet': '04e1f31c324f',
    'depthwise': 'c98c02386646',
    'mixer': '17d5b96ceec2',
    'vit': 'd8471c5c0780',
    'fast': '93a9839e1fb8',
    'fast_995': 'c4e6867995e9',
    'fast_gpu': '9f14dbed9ec9',
    'digits_best': '9d54524dfc98',
    'fashion_best': '5b9d52e714d3',
    'handwriting': 'a47f049dd2df',
    'mnist_best': '86304235d24e',
    'mnist_1k': '5849474e7967',
    'mnist_5k': '3d08a7a3f751',
    'mnist_10k': '9e6a22fd0e69',
    'mnist_50k': '608b81edcf27',
}
# Configs of datasets that have to be downloaded; only their parameter counts are pinned.
DOWNLOADED = {'emnist', 'kmnist', 'kuzushiji49', 'cifar10', 'cifar100', 'svhn_cropped'}


def test_every_config_is_pinned():
    assert (
        DIGESTS.keys()
        == {path.stem for path in (ROOT / 'configs').glob('*.py')} - {'default', 'image_folder'} - DOWNLOADED
    )


@pytest.mark.parametrize('name', DIGESTS)
def test_eight_steps_give_the_published_bits(name, data_dir):
    assert kernels_available()
    assert digest_after_eight_steps(name, data_dir).startswith(DIGESTS[name])


IMPORTS = """import jax
from mnist_jax.config import load_config
from mnist_jax.training.experiment import make_experiment
from mnist_jax.workdir.snapshot import params_sha256
"""


def test_commands_with_more_steps_per_call_give_the_same_bits(data_dir):
    """In a process of its own, which uses all passes of XLA, as a command does and the tests do not."""
    names = ('handwriting', 'mnist_best')  # Together, they have augmentation, label smoothing, AdamW and Muon.
    calls = ', '.join(f'digest_after_eight_steps({name!r}, {data_dir!r}, 4)' for name in names)
    script = f'{IMPORTS}\n{inspect.getsource(digest_after_eight_steps)}\nprint({calls})'
    variables = environment(data_dir)
    variables.pop('XLA_FLAGS', None)
    process = subprocess.run([sys.executable, '-c', script], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert [digest[:12] for digest in process.stdout.split()] == [DIGESTS[name] for name in names], process.stderr


def digest_after_eight_steps(name, data_dir, steps_per_call=1):
    config = load_config(f'configs/{name}.py')
    config.devices, config.steps_per_call = 1, steps_per_call
    if config.dataset.name != 'digits':
        config.dataset.name, config.dataset.data_dir = 'mnist', data_dir
    experiment = make_experiment(config)
    state = experiment.replicas.replicate(experiment.create_state())
    for _, batches in zip(range(8 // steps_per_call), experiment.train_calls(0), strict=False):
        state, _ = experiment.train_steps(state, batches)
    return params_sha256(jax.device_get(state.variables))
