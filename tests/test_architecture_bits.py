"""The architectures with all kinds of layers have the same bits on any number of devices."""

import jax
import pytest
from ml_collections import ConfigDict
from small_architectures import MODELS

from mnist_jax.training.experiment import make_experiment
from mnist_jax.workdir.snapshot import params_sha256


@pytest.mark.parametrize('name', MODELS)
def test_devices_do_not_change_the_bits(name, small):
    def digest(devices):
        config = small('cnn', devices=devices, chunks=4, dataset__train='train[:200]')
        config.unlock()
        config.model = ConfigDict({'name': name, **MODELS[name]})
        experiment = make_experiment(config.lock())
        state = experiment.replicas.replicate(experiment.create_state())
        for batch in experiment.train_batches(0):
            state, _ = experiment.train_step(state, batch)
        return params_sha256(jax.device_get(state.variables))

    assert digest(1) == digest(4)
