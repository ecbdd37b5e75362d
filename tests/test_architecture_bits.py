"""The architectures with all kinds of layers have the same bits on any number of devices."""

import jax
import pytest
from ml_collections import ConfigDict

from mnist_jax.training.experiment import make_experiment
from mnist_jax.workdir.snapshot import params_sha256

MODELS = {
    'cnn': {
        'stages': ((5,), (8,)),
        'hidden': (9,),
        'normalization': 'group',
        'activation': 'silu',
        'global_pool': True,
    },
    'lenet5': {'features': (3, 5), 'hidden': (9,)},
    'resnet': {
        'widths': (4, 8),
        'blocks': 1,
        'activation': 'leaky_relu',
        'squeeze_excitation': 2,
        'stochastic_depth': 0.4,
        'dropout': 0.1,
    },
    'depthwise': {'stem': 4, 'widths': (8, 19), 'strides': (1, 2), 'activation': 'gelu', 'normalization': 'layer'},
    'mixer': {'width': 12, 'depth': 1, 'token_hidden': 7, 'feature_hidden': 20, 'dropout': 0.2},
    'vit': {'width': 12, 'depth': 1, 'heads': 3, 'hidden': 20, 'dropout': 0.2},
}


@pytest.mark.parametrize('name', MODELS)
def test_devices_do_not_change_the_bits(name, small):
    def digest(devices):
        config = small('cnn', devices=devices, chunks=8, dataset__train='train[:800]')
        config.unlock()
        config.model = ConfigDict({'name': name, **MODELS[name]})
        experiment = make_experiment(config.lock())
        state = experiment.replicas.replicate(experiment.create_state())
        for batch in experiment.train_batches(0):
            state, _ = experiment.train_step(state, batch)
        return params_sha256(jax.device_get(state.variables))

    assert digest(1) == digest(8)
