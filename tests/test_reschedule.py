"""Runs that are resumed with another number of epochs, on which their learning rate may depend."""

import math

import jax.numpy as jnp
import pytest
from conftest import ROOT, fail_after, metrics_rows, results
from ml_collections import ConfigDict

from mnist_jax.errors import UserError
from mnist_jax.evaluate import evaluate_workdir
from mnist_jax.learning.schedules import SCHEDULES
from mnist_jax.train import train
from mnist_jax.workdir.provenance import read_epochs


def files_and_contents(directory):
    return {path: path.read_bytes() for path in directory.rglob('*') if path.is_file()}


def cosine(**fields):
    return ConfigDict({'name': 'cosine', 'warmup': 0.0, 'final': 0.0, **fields})


def cosine_rates(epochs, steps):
    """Returns the learning rates, of 5 steps per epoch, as Loshchilov and Hutter (2017) define them."""
    return [0.001 * (1 + math.cos(math.pi * step / (5 * epochs))) / 2 for step in steps]


def test_a_finished_run_is_not_extended_if_its_learning_rate_would_jump(small, tmp_path):
    train(small(schedule=cosine()), tmp_path)
    before = files_and_contents(tmp_path)
    # The last of 10 updates had (1 + cos(0.9 pi)) / 2 = 0.0245 of 0.001. Halfway through 20 updates, it is half of it.
    message = (
        'config.epochs must be 2, as in the run so far, got 4: the schedule depends on the number of epochs, so the '
        'learning rate jumps from 2.45e-05 to 0.0005 at step 10, unlike in a run of 4 epochs; to accept that, add '
        '--reschedule'
    )
    with pytest.raises(UserError) as error:
        train(small(schedule=cosine(), epochs=4), tmp_path)
    assert str(error.value) == message and files_and_contents(tmp_path) == before


def test_an_extended_run_says_so_in_its_log_its_provenance_and_its_result(small, tmp_path, caplog):
    plain = train(small(schedule=cosine()), tmp_path)
    assert plain['reschedules'] == [] and read_epochs(tmp_path) == [(0, 2)]
    extended = small(schedule=cosine(), epochs=4)
    with pytest.raises(RuntimeError, match='as if killed'):
        train(extended, tmp_path, on_step=fail_after(11), reschedule=True)
    # Nothing has been saved since the change, so the run may still end as it was.
    assert train(small(schedule=cosine()), tmp_path) == plain and read_epochs(tmp_path) == [(0, 2)]
    with pytest.raises(RuntimeError, match='as if killed'):
        train(extended, tmp_path, on_step=fail_after(16), reschedule=True)
    assert 'Changing the schedule from 2 to 4 epochs: the learning rate jumps from 2.45e-05 to 0.0005' in caplog.text
    result = train(extended, tmp_path)
    assert result['reschedules'] == [{'step': 10, 'epochs_before': 2, 'epochs_after': 4}]
    assert read_epochs(tmp_path) == [(0, 2), (10, 4)] and evaluate_workdir(tmp_path) == result
    rates = [float(row[8]) for row in metrics_rows(tmp_path)[1:]]
    assert rates == pytest.approx(cosine_rates(2, [4, 9]) + cosine_rates(4, [14, 19]), rel=1e-5)


def test_an_unfinished_run_is_not_shortened_if_its_learning_rate_would_jump(small, tmp_path):
    config = {'schedule': ConfigDict({'name': 'one_cycle', 'rise': 0.5, 'initial': 0.1, 'final': 0.1})}
    with pytest.raises(RuntimeError, match='as if killed'):
        train(small(epochs=4, **config), tmp_path, on_step=fail_after(11))
    # Step 9 of 20 was 0.1 + 0.9 (1 - cos(0.9 pi)) / 2 = 0.978 of the rate; at the end of 10 it is that of step 1.
    rate = 0.001 * (0.1 + 0.9 * (1 - math.cos(0.9 * math.pi)) / 2)
    other = 0.001 * (0.1 + 0.9 * (1 - math.cos(0.2 * math.pi)) / 2)
    with pytest.raises(
        UserError, match=rf'must be 4, .* ends at {rate:.3g} instead of {other:.3g}, unlike in a run of 2'
    ):
        train(small(epochs=2, **config), tmp_path)
    assert train(small(epochs=2, **config), tmp_path, reschedule=True)['reschedules'] == []


def test_a_run_equals_one_of_its_new_length_if_its_learning_rates_so_far_do(small, tmp_path, monkeypatch):
    # Whether a schedule depends on the number of epochs can only be seen from its values.
    monkeypatch.setitem(SCHEDULES, 'own', lambda: cosine_after_two_epochs)
    own = ConfigDict({'name': 'own'})
    train(small(epochs=3, schedule=own), tmp_path / 'uninterrupted')
    with pytest.raises(RuntimeError, match='as if killed'):
        train(small(epochs=4, schedule=own), tmp_path / 'resumed', on_step=fail_after(8))
    train(small(epochs=3, schedule=own), tmp_path / 'resumed')
    assert results(tmp_path / 'resumed') == results(tmp_path / 'uninterrupted')
    with pytest.raises(UserError, match=r'config\.epochs must be 3, as in the run so far, got 4'):
        train(small(epochs=4, schedule=own), tmp_path / 'resumed')


def cosine_after_two_epochs(epoch, epochs):
    return jnp.where(epoch < 2, 1.0, (1 + jnp.cos(jnp.pi * (epoch - 2) / (epochs - 2))) / 2)


def test_a_run_is_not_shortened_to_fewer_epochs_than_it_has_started(small, tmp_path):
    with pytest.raises(RuntimeError, match='as if killed'):
        train(small(epochs=3, checkpoint_every_steps=1), tmp_path, on_step=fail_after(8))
    message = 'config.epochs must be at least 2, the number of epochs that this run has trained or started, got 1'
    with pytest.raises(UserError, match=message):
        train(small(epochs=1), tmp_path)


def test_the_command_line_extends_a_run_with_reschedule(small, forked, tmp_path):
    train(small(epochs=1, schedule=ConfigDict({'name': 'cosine'})), tmp_path / 'run')
    extended = forked(
        f'--config={ROOT}/configs/mlp.py', '--config.schedule.name=cosine', '--config.dataset.train=train[:300]',
        '--config.dataset.test=test[:200]', '--config.batch_size=64', '--config.chunks=2', '--config.steps_per_call=1',
        '--config.model.hidden=(16,)', '--config.epochs=2', '--reschedule', '--noreport', '--workdir=run',
    )  # fmt: skip
    assert extended.returncode == 0, extended.stderr
    assert '\nschedule   changed from that of 1 to that of 2 epochs at step 5\n' in extended.stdout


def test_a_run_whose_provenance_is_damaged_is_resumed_with_a_warning(small, tmp_path, caplog):
    train(small(epochs=1), tmp_path)
    (tmp_path / 'provenance.json').write_text('garbage{')
    train(small(epochs=2), tmp_path)
    assert caplog.text.count('provenance.json does not record the schedule of this run so far') == 1
