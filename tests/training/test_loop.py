"""What happens within the epochs: failures, signals, checkpoints, numbers that are not finite."""

import signal

import numpy as np
import pytest
from conftest import fail_at, make_small, results

from mnist_jax.errors import Interrupted, UserError
from mnist_jax.train import train
from mnist_jax.training import loop
from mnist_jax.training.experiment import make_experiment
from mnist_jax.workdir.checkpoints import Checkpoints


def test_a_run_that_failed_within_an_epoch_goes_on_from_the_last_checkpoint(small, tmp_path, monkeypatch):
    train(small(epochs=3), tmp_path / 'uninterrupted')
    fail_at(monkeypatch, 8)
    with pytest.raises(RuntimeError, match='as if killed'):
        train(small(epochs=3), tmp_path / 'failed')
    monkeypatch.undo()
    # As if it had been killed between the row of the first epoch's end and its checkpoint.
    with open(tmp_path / 'failed' / 'metrics.csv', 'a') as file:
        file.write('2,10,0.1,0.9,,,0.001,1.0,300\n')
    train(small(epochs=3), tmp_path / 'failed')
    assert results(tmp_path / 'failed') == results(tmp_path / 'uninterrupted')


def test_a_loss_that_is_no_number_stops_the_run(small, tmp_path):
    told = r'loss of step 2 is \S+, at the learning rate 1e\+38, for the batch of the training examples (\d+, ){63}\d+;'
    with pytest.raises(FloatingPointError, match=told):
        train(small(optimizer__learning_rate=1e38), tmp_path)
    assert Checkpoints(tmp_path).steps() == [0]


def test_the_examples_of_a_bad_batch_are_named(small):
    experiment = make_experiment(small(batch_size=50))
    for step, batch in enumerate(experiment.train_batches(1)):
        expected = batch['index'][batch['mask'] > 0]
        np.testing.assert_array_equal(experiment.train_indices(1, step), expected)


def test_updates_that_are_not_finite_are_skipped_and_counted(small, tmp_path, caplog):
    with pytest.raises(FloatingPointError, match='the update of step 1 is not finite, at the learning rate inf'):
        train(small(optimizer__learning_rate=float('inf')), tmp_path / 'stops')
    untrained = train(small(epochs=0), tmp_path / 'untrained')
    found = train(small(optimizer__learning_rate=float('inf'), on_nonfinite='skip'), tmp_path / 'skips')
    assert found['skipped_steps'] == found['step'] == 10
    assert '10 updates of this run so far were not finite and were skipped' in caplog.text
    assert found['params_sha256'] == untrained['params_sha256'] and untrained['skipped_steps'] == 0
    with pytest.raises(UserError, match=r"config.on_nonfinite='ask' is unknown.*; the choices are: skip, stop"):
        train(small(on_nonfinite='ask'), tmp_path / 'unknown')


def interrupt_at(monkeypatch, step):
    """As if SIGTERM came when `step` steps were done."""
    add = loop.Loop._add

    def ask(self, so_far, sums, done, progress):
        found = add(self, so_far, sums, done, progress)
        if found[1] == step:
            self._request.ask(signal.SIGTERM)
        return found

    monkeypatch.setattr(loop.Loop, '_add', ask)


STOPPED = {'dataset__validation': 'train[300:400]', 'model__dropout': (0.3,), 'epochs': 2}


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory, data_dir):
    """The results of the run that the next test stops."""
    workdir = tmp_path_factory.mktemp('uninterrupted')
    train(make_small(data_dir, **STOPPED), workdir)
    return results(workdir)


# 5 steps an epoch; after the last one comes the validation.
@pytest.mark.parametrize(('step', 'saved'), [(4, 5), (5, 5), (7, 8), (10, 10)])
def test_a_run_that_is_asked_to_stop_goes_on_as_if_it_had_not(small, tmp_path, monkeypatch, uninterrupted, step, saved):
    with monkeypatch.context() as patched, pytest.raises(Interrupted, match='stopped by SIGTERM') as told:
        interrupt_at(patched, step)
        train(small(**STOPPED), tmp_path / 'run')
    assert told.value.status == 143
    assert Checkpoints(tmp_path / 'run').steps()[-1] == saved
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    train(small(**STOPPED, devices=1), tmp_path / 'run')
    assert results(tmp_path / 'run') == uninterrupted


def test_the_end_of_an_epoch_is_waited_for_even_where_no_step_was_left(small, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        interrupt_at(patched, 5)
        train(small(**STOPPED), tmp_path / 'run')
    unsaved, save = [], loop.Loop._save
    with monkeypatch.context() as patched:
        patched.setattr(
            loop.Loop, '_save', lambda self, found: (unsaved.append(self._request.unsaved), save(self, found))
        )
        train(small(**STOPPED), tmp_path / 'run')
    assert unsaved == [True, True]


def test_checkpoints_within_an_epoch(small, tmp_path, monkeypatch):
    train(small(), tmp_path / 'plain')
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match='as if killed'):
        fail_at(patched, 9)
        train(small(checkpoint_every_steps=2), tmp_path / 'run')
    assert Checkpoints(tmp_path / 'run').steps() == [7, 9]
    train(small(checkpoint_every_minutes=1e-9), tmp_path / 'run')
    assert results(tmp_path / 'run') == results(tmp_path / 'plain')
