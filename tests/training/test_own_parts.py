"""Whole runs with models and losses that a user adds."""

import contextlib
import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

import mnist_jax
from mnist_jax.errors import UserError
from mnist_jax.learning import metrics
from mnist_jax.learning.augmentation import AUGMENTATIONS
from mnist_jax.learning.averaging import AVERAGES
from mnist_jax.learning.losses import LOSSES
from mnist_jax.learning.optimizers import OPTIMIZERS
from mnist_jax.models.architectures import MODELS, is_own_model
from mnist_jax.models.layers import Dense, Flatten
from mnist_jax.train import train
from mnist_jax.training.evaluation import evaluate_split
from mnist_jax.training.experiment import make_experiment
from mnist_jax.workdir.finished_runs import read_run
from mnist_jax.workdir.recipes import group_runs
from mnist_jax.workdir.results import caveats


class Centered(nn.Module):
    """A linear model of the image minus the mean image of the batch; it has no batch statistics."""

    num_classes: int

    @nn.compact
    def __call__(self, image_BxHxWxC, training=None):
        x_BxF = Flatten()(image_BxHxWxC)
        if training is not None:
            total_F, count = training.batch_sum(((x_BxF * training.mask[:, None]).sum(0), training.mask.sum()))
            x_BxF = x_BxF - (total_F / count)[None, :]
        return Dense(self.num_classes)(x_BxF)


def make_scaled_loss(scale):
    def scaled_loss():
        return lambda logits_BxK, label_B: scale * optax.softmax_cross_entropy_with_integer_labels(logits_BxK, label_B)

    return scaled_loss


def test_other_code_of_an_own_part_is_noticed(small, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(LOSSES, 'own', make_scaled_loss(1.0))
    monkeypatch.setitem(MODELS, 'own', Centered)
    config = small(devices=1)
    config.loss = config.model = ConfigDict({'name': 'own'})

    def run(name, epochs):
        config.epochs = epochs
        return train(config, tmp_path / name)

    first = run('run', 1)
    assert set(first['own_code']) == {'config.loss.name=own', 'config.model.name=own'}
    again = run('run', 2)
    assert again['own_code'] == first['own_code'] and again['changed_code'] == first['changed_code'] == []
    assert 'code' not in caplog.text
    monkeypatch.setitem(LOSSES, 'own', make_scaled_loss(2.0))
    changed = run('run', 3)
    assert 'code      that of config.loss.name=own has changed since this run was started' in caplog.text
    assert changed['changed_code'] == ['config.loss.name=own'] and changed['own_code'] != first['own_code']
    assert caveats(changed) == {'code': 'that of config.loss.name=own has changed since the run was started'}
    caplog.clear()
    mnist_jax.load(tmp_path / 'run')
    assert 'The code of config.loss.name=own has changed since the run in ' in caplog.text
    run('other', 3)
    recipes = group_runs([read_run(tmp_path / name, name) for name in ('run', 'other')])
    assert [recipe.name for recipe in recipes] == ['run', 'other']


class UnitNorm(nn.Module):
    """A linear model of the image divided by its norm, which is undefined for a black image."""

    num_classes: int

    @nn.compact
    def __call__(self, image_BxHxWxC, training=None):
        x_BxF = Flatten()(image_BxHxWxC)
        return Dense(self.num_classes)(x_BxF / jnp.linalg.norm(x_BxF, axis=-1, keepdims=True))


class Mixing(nn.Module):
    """A model that mixes the examples of a batch."""

    num_classes: int

    @nn.compact
    def __call__(self, image_BxHxWxC, training=None):
        x_BxF = Flatten()(image_BxHxWxC)
        return Dense(self.num_classes)(x_BxF - x_BxF.mean(0, keepdims=True))


@pytest.fixture
def own(small, monkeypatch):
    """A function that returns the config of a small run with one of the models above."""
    for model in (Centered, UnitNorm, Mixing):
        monkeypatch.setitem(MODELS, model.__name__, model)

    def make(name, **fields):
        config = small(epochs=1, **fields)
        config.model = ConfigDict({'name': name})
        return config

    return make


def test_a_model_without_batch_statistics_may_need_sums_over_the_batch(own, tmp_path):
    results = [
        train(own('Centered', devices=devices, chunks=chunks), tmp_path / f'{devices}-{chunks}')
        for devices, chunks in ((1, 4), (2, 4), (1, 1))
    ]
    assert results[0]['params_sha256'] == results[1]['params_sha256']
    assert results[2]['loss'] == pytest.approx(results[0]['loss'], rel=1e-5)


@pytest.mark.parametrize('on_device', ['on', 'off'])
def test_padding_does_not_divide_by_zero(own, tmp_path, on_device):
    config = own('UnitNorm', batch_size=64, dataset__train='train[:130]', dataset__on_device=on_device)
    assert np.isfinite(train(config, tmp_path)['loss'])


def test_a_model_that_is_added_to_the_package_is_checked_like_any_other(own, tmp_path, monkeypatch):
    monkeypatch.setattr(Mixing, '__module__', 'mnist_jax.models.architectures')
    with pytest.raises(UserError, match='the model must not mix the examples of a batch'):
        train(own('Mixing'), tmp_path / 'run')
    assert not (tmp_path / 'run').exists() and is_own_model(Mixing(10)) and not is_own_model(MODELS['mlp'](10))


@pytest.mark.parametrize(('of_examples', 'shape'), [(jnp.mean, 'shape=()'), (lambda x_B: x_B[:, None], 'shape=(7, 1)')])
def test_a_loss_must_be_one_number_per_example(small, monkeypatch, tmp_path, of_examples, shape):
    def loss(logits_BxK, label_B):
        return of_examples(optax.softmax_cross_entropy_with_integer_labels(logits_BxK, label_B))

    monkeypatch.setitem(LOSSES, 'own', lambda: loss)
    with pytest.raises(UserError) as error:
        train(small(loss=ConfigDict({'name': 'own'})), tmp_path / 'run')
    assert "config.loss.name='own' must select a loss that returns one number per example" in str(error.value)
    assert shape in str(error.value) and not (tmp_path / 'run').exists()


def test_an_experiment_is_evaluated_with_the_parts_that_replace_its_own(small):
    experiment = make_experiment(small(dataset__test='test[:50]'))
    parts = dataclasses.replace(
        experiment.parts, loss=lambda logits_BxK, label_B: jnp.full(len(label_B), 3.0), schedule=lambda updates: 0.5
    )
    other = dataclasses.replace(experiment, parts=parts)
    variables = other.replicas.replicate(other.create_state().variables)
    totals, _ = evaluate_split(other, variables, other.source.split('test'))
    assert metrics.means(totals)['loss'] == 3
    assert other.learning_rate(7) == pytest.approx(0.5 * experiment.base_learning_rate)


@pytest.mark.parametrize(
    ('table', 'own', 'fields'),
    [
        (AUGMENTATIONS, lambda probability=1.0: None, {'augmentation': ({'name': 'own', 'probability': 0.5},)}),
        (OPTIMIZERS, lambda clip_norm=0.0: None, {'optimizer': ConfigDict({'name': 'own', 'learning_rate': 0.1})}),
        (AVERAGES, lambda evaluated='average': None, {'average': ConfigDict({'name': 'own', 'evaluated': 'last'})}),
    ],
)
def test_an_argument_that_would_never_get_its_value_is_refused(small, monkeypatch, table, own, fields):
    monkeypatch.setitem(table, 'own', own)
    with pytest.raises(UserError, match="the arguments of 'own' must not be called"):
        make_experiment(small(**fields))


def centered(logits_BxK, label_B):
    return optax.softmax_cross_entropy_with_integer_labels(logits_BxK - logits_BxK.mean(0, keepdims=True), label_B)


def balanced(logits_BxK, label_B):
    count_B = (label_B[:, None] == label_B[None]).sum(0)
    return optax.softmax_cross_entropy_with_integer_labels(logits_BxK, label_B) / count_B


def mean_of_chunk(logits_BxK, label_B):
    return optax.softmax_cross_entropy_with_integer_labels(logits_BxK, label_B) / len(label_B)


def scaled(logits_BxK, label_B):
    return 1000 + optax.softmax_cross_entropy_with_integer_labels(logits_BxK, label_B)


@pytest.mark.parametrize(
    ('loss', 'refused'), [(centered, True), (balanced, True), (mean_of_chunk, True), (scaled, False)]
)
def test_a_loss_that_mixes_the_examples_of_a_batch_is_refused(small, monkeypatch, loss, refused):
    monkeypatch.setitem(LOSSES, 'own', lambda: loss)
    expected = pytest.raises(UserError, match='must not depend on the other') if refused else contextlib.nullcontext()
    with expected:
        make_experiment(small(loss=ConfigDict({'name': 'own'})))
