"""Whole runs on classes of unequal sizes: balanced losses and balanced sampling."""

import jax
import numpy as np
import pytest

from mnist_jax.errors import Interrupted, UserError
from mnist_jax.train import train
from mnist_jax.training.experiment import make_experiment


def digest(config, workdir, **options):
    return train(config, workdir, report=False, **options)['params_sha256']


@pytest.mark.parametrize('balance', ['loss', 'sampling'])
def test_the_number_of_devices_and_interruptions_do_not_change_the_bits(small, tmp_path, balance):
    fields = {'dataset__balance': balance, 'dataset__class_weights': (1.5,) * 5 + (0.7,) * 5}
    once = digest(small(**fields, devices=1), tmp_path / 'once')
    assert digest(small(**fields, devices=2), tmp_path / 'two') == once
    assert digest(small(devices=1), tmp_path / 'plain') != once

    def stop(step, request):
        if step == 7:
            request.signal = 15

    with pytest.raises(Interrupted):
        digest(small(**fields, devices=1), tmp_path / 'stopped', on_step=stop)
    assert digest(small(**fields, devices=1), tmp_path / 'stopped') == once


def test_weights_may_be_integers(small):
    weights, balanced = (
        make_experiment(small(dataset__class_weights=values, dataset__balance='loss')).source.class_weights
        for values in (tuple(range(1, 11)), ())
    )
    np.testing.assert_allclose(weights, balanced * np.arange(1, 11), rtol=1e-6)


def test_the_mean_loss_is_that_of_the_weighted_examples(small):
    weights = np.arange(10) / 3
    weighted, plain = (
        make_experiment(small(dataset__class_weights=values, devices=1)) for values in (tuple(weights.tolist()), ())
    )
    sums = []
    for experiment in (weighted, plain):
        state = experiment.create_state()
        batch = next(experiment.train_batches(0))
        logits = experiment.model.apply({'params': state.params}, batch['image'][0] / np.float32(255))
        losses = -jax.nn.log_softmax(logits)[np.arange(len(logits)), batch['label'][0]] * batch['mask'][0]
        sums.append((float((losses * weights[batch['label'][0]]).sum()), float(losses.sum())))
        _, measured = experiment.train_step(experiment.replicas.replicate(state), batch)
        expected = sums[-1][0 if experiment is weighted else 1]
        assert float(measured['loss']) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'dataset__balance': 'yes'}, "config.dataset.balance must be one of loss, none, sampling, got 'yes'"),
        (
            {'dataset__class_weights': (1.0, 2.0)},
            'config.dataset.class_weights must have one number for each of the 10 classes, or be (), got 2',
        ),
        (
            {'dataset__class_weights': (-1.0,) * 10},
            'config.dataset.class_weights[0] must be a number from 0 to 1e+30, got -1.0',
        ),
        ({'dataset__class_weights': (0.0,) * 10}, 'config.dataset.class_weights must not all be 0'),
    ],
)
def test_wrong_fields_are_refused(small, tmp_path, fields, message):
    with pytest.raises(UserError) as error:
        train(small(**fields), tmp_path / 'run')
    assert str(error.value).startswith(message)
    assert not (tmp_path / 'run').exists()
