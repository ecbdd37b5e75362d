"""Short trials: what is reported for configs that learn and for configs that cannot."""

import csv

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax.errors import UserError
from mnist_jax.models.architectures import MODELS
from mnist_jax.studies.trial_steps import check, find_learning_rate, smooth, steepest
from mnist_jax.train import train


def test_a_config_that_learns_passes_all_checks(small, capsys):
    config = small('cnn', devices=1, batch_size=32, model__stages=((8,), (16,)), model__hidden=(32,))
    config.augmentation = ({'name': 'noise', 'amount': 1.0},)  # It is left out.
    assert check(config) == 0
    output = capsys.readouterr().out
    assert output.count('ok  ') == 4 and 'FAILED' not in output
    assert 'parameters: ' in output and 'epoch     10 steps' in output


class BlindModel(nn.Module):
    """A model that ignores the image, with a parameter that nothing depends on."""

    num_classes: int

    @nn.compact
    def __call__(self, image_BxHxWxC, training=None):
        self.param('unused', nn.initializers.ones, (3,))
        bias = self.param('bias', nn.initializers.zeros, (self.num_classes,))
        return jnp.zeros((len(image_BxHxWxC), self.num_classes)) + 100 * bias[None]


def test_a_model_that_cannot_learn_fails_and_names_the_parameter(small, capsys, monkeypatch):
    monkeypatch.setitem(MODELS, 'blind', BlindModel)
    config = small('mlp', devices=1)
    config.unlock()
    config.model = {'name': 'blind'}
    assert check(config.lock()) == 1
    output = capsys.readouterr().out
    assert 'FAILED    the first update does not change unused' in output
    assert 'FAILED    after 200 updates' in output


def test_a_weighted_first_loss_is_not_compared_with_a_guess(small, capsys):
    check(small('mlp', devices=1, dataset__class_weights=(50.0,) * 10))
    assert 'FAILED    the first loss' not in capsys.readouterr().out


def test_updates_that_are_not_finite_are_counted(small, capsys):
    assert check(small('mlp', devices=1, optimizer__learning_rate=1e38)) == 1
    # The first one leads to parameters of 1e38, which are finite.
    assert '199 of 200 updates are not finite' in capsys.readouterr().out


def test_the_search_finds_a_rate_at_which_the_model_learns(small, tmp_path, capsys):
    config = small('mlp', devices=1, dataset__train='train[:2000]', schedule__name='cosine')
    rate = find_learning_rate(config, tmp_path / 'search')
    output = capsys.readouterr().out
    assert 1e-4 < rate < 0.05 and f'learning_rate={rate:.2g}' in output
    assert rate <= float(output.split('about ')[1].split(',')[0]) * 1.1  # The printed number is rounded.
    with open(tmp_path / 'search' / 'find_lr.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]['learning_rate']) == 1e-6 and 100 < len(rows) <= 300
    assert (tmp_path / 'search' / 'find_lr.png').stat().st_size > 10_000


def test_the_steepest_point_by_hand():
    rates = np.exp(np.arange(5.0))
    assert steepest(rates, np.array([3.0, 2.9, 2.0, 1.0, 1.1])) == rates[2]  # slopes -0.1, -0.5, -0.95, -0.45, 0.1
    # A fall from a peak after the minimum does not count.
    assert steepest(rates, np.array([3.0, 2.0, 1.9, 90.0, 2.0])) == rates[0]
    for losses in (np.arange(5.0), np.full(5, 2.0), np.array([2.0, 1.95, 2.0, 3.0, 4.0]), np.array([])):
        with pytest.raises(UserError, match='the loss must fall at some learning rate'):
            steepest(rates[: len(losses)], losses)
    np.testing.assert_allclose(smooth(np.array([4.0, 4.0, 2.0])), [4, 4, 4 - 2 * 0.05 / (1 - 0.95**3)])


def test_parameters_with_the_rate_0_need_not_change(small, capsys):
    for fields in ({'init__rates': (('Dense_0', 0.0),)}, {'init__layer_decay': 0.0}):
        assert check(small('mlp', devices=1, **fields)) in (0, 1)
        assert 'does not change' not in capsys.readouterr().out


def test_what_is_left_out_is_checked_and_named(small, caplog):
    fields = {'optimizer__accumulate': 2, 'schedule__name': 'cosine', 'augmentation': ({'name': 'shift'},)}
    with caplog.at_level('INFO'):
        assert check(small('mlp', devices=1, batch_size=32, model__hidden=(64,), **fields)) == 0
    assert 'without   config.schedule, config.augmentation, config.optimizer.accumulate' in caplog.text
    with pytest.raises(UserError, match=r"config.augmentation\[0\].name must be one of .*, got 'bogus'"):
        check(small('mlp', devices=1, augmentation=({'name': 'bogus'},)))


def test_a_run_that_starts_from_another_is_checked_from_there(small, tmp_path, capsys, caplog):
    train(small('mlp', devices=1, epochs=8, model__hidden=(64,)), tmp_path / 'origin')
    fields = {'init__workdir': str(tmp_path / 'origin'), 'model__hidden': (64,)}
    with caplog.at_level('INFO'):
        assert check(small('mlp', devices=1, **fields)) == 0
    assert 'origin    step 40 of' in caplog.text and 'config.init' not in caplog.text
    assert float(capsys.readouterr().out.split('the first loss is ')[1].split(';')[0]) < 2.0
    with pytest.raises(UserError, match=r'config.init.workdir must be the directory of a run'):
        find_learning_rate(small('mlp', devices=1, init__workdir='nowhere'), tmp_path / 'search')


def test_a_search_without_any_learning_is_an_error(small, tmp_path):
    with pytest.raises(UserError, match='the loss must fall at some learning rate'):
        find_learning_rate(small('mlp', devices=1, init__freeze=('*',)), tmp_path / 'search')
    assert not (tmp_path / 'search').exists()
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match='--workdir must be a directory'):
        find_learning_rate(small('mlp'), tmp_path / 'file')


def test_folds_are_refused(small):
    with pytest.raises(UserError, match=r'config.folds must be 0'):
        check(small(folds=3))
