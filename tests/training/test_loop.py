"""Events within an epoch: failures, signals, checkpoints and non-finite numbers."""

import dataclasses
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import fail_after, make_small, results
from ml_collections import ConfigDict

import mnist_jax
from mnist_jax.errors import Interrupted, NonFiniteError, UserError
from mnist_jax.evaluate import evaluate_workdir
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.learning.losses import LOSSES
from mnist_jax.learning.schedules import SCHEDULES
from mnist_jax.train import train
from mnist_jax.training.experiment import make_experiment
from mnist_jax.workdir.checkpoint_writer import CheckpointWriter
from mnist_jax.workdir.checkpoints import Checkpoints
from mnist_jax.workdir.metrics_log import read_metrics


def test_a_run_that_failed_within_an_epoch_resumes_from_the_last_checkpoint(small, tmp_path):
    train(small(epochs=3), tmp_path / 'uninterrupted')
    with pytest.raises(RuntimeError, match='as if killed'):
        train(small(epochs=3), tmp_path / 'failed', on_step=fail_after(8))
    # As if the process had been killed between writing an epoch's row and saving its checkpoint.
    with open(tmp_path / 'failed' / 'metrics.csv', 'a') as file:
        file.write('2,10,0.1,0.9,,,0.001,1.0,300\n')
    train(small(epochs=3), tmp_path / 'failed')
    assert results(tmp_path / 'failed') == results(tmp_path / 'uninterrupted')


def test_a_nan_loss_stops_the_run(small, tmp_path):
    message = r'loss of step 2 is \S+ \(learning rate 1e\+38, training examples (\d+, ){63}\d+\);'
    with pytest.raises(FloatingPointError, match=message):
        train(small(optimizer__learning_rate=1e38), tmp_path)
    assert Checkpoints(tmp_path).steps() == [0]


# A single step that makes the parameters so large that no loss is finite after it.
DIVERGING = {'batch_size': 300, 'epochs': 1, 'optimizer__learning_rate': 1e38, 'dataset__validation': 'train[300:400]'}


@pytest.mark.parametrize(('learning_rate', 'loss'), [(1e38, 'nan'), (1e17, 'inf')])
def test_a_run_that_diverges_in_its_last_update_ends_with_one_line_and_no_result(
    small, tmp_path, caplog, learning_rate, loss
):
    workdir = tmp_path / 'run'
    config = small(**{**DIVERGING, 'optimizer__learning_rate': learning_rate})
    message = rf"the loss on split 'test\[:200\]' must be finite, got {loss} with the parameters of step 1"
    for _ in range(2):  # The second start resumes the run and reads its metrics.csv.
        with pytest.raises(NonFiniteError, match=message):
            train(config, workdir)
        assert Checkpoints(workdir).steps() == [0, 1]
        assert not (workdir / 'eval.json').exists() and not (workdir / 'predictions.npz').exists()
        (row,) = read_metrics(workdir)
        assert str(row['validation_loss']) == loss and row['step'] == 1
    assert 'damaged' not in caplog.text
    with pytest.raises(NonFiniteError, match=message):
        evaluate_workdir(workdir, 'latest')
    assert not list(workdir.glob('eval*')) and not list(workdir.glob('predictions*'))
    assert evaluate_workdir(workdir, '0')['step'] == 0


def test_second_moments_that_overflow_are_reported(small, tmp_path, caplog, monkeypatch):
    # Gradients of 1e20 have infinite squares, by which Adam divides.
    monkeypatch.setitem(LOSSES, 'steep', lambda: lambda logits, labels: 1e20 * logits[:, 0])
    train(small(loss=ConfigDict({'name': 'steep'}), epochs=1), tmp_path)
    assert 'numbers of the optimizer state are not finite after epoch 1: if the square of a gradient' in caplog.text


def test_the_command_line_says_in_one_line_that_a_run_has_diverged(small, forked, tmp_path):
    with pytest.raises(NonFiniteError):
        train(small(**DIVERGING), tmp_path / 'run')
    evaluation = forked('--mode=eval', f'--workdir={tmp_path}/run')
    assert evaluation.returncode == 1 and evaluation.stdout == ''
    (line,) = evaluation.stderr.splitlines()
    assert line.startswith("error: the loss on split 'test[:200]' must be finite, got nan")
    with pytest.raises(
        NonFiniteError, match='probabilities must be finite, got NaN with the parameters of step 1: the'
    ):
        mnist_jax.load(tmp_path / 'run').predict(np.full((1, 28, 28), 255))


def test_a_nan_validation_loss_is_no_improvement_and_the_report_shows_it(small, tmp_path, caplog, monkeypatch):
    # One step per epoch, the last of which diverges.
    spike = {'name': 'spike'}
    monkeypatch.setitem(SCHEDULES, 'spike', lambda: lambda epoch, epochs: jnp.where(epoch < 2, 1.0, 1e38))
    # The monitored accuracy rises from 0.13 to 0.15 in epoch 2 and is a meaningless number in epoch 3.
    best = {'early_stopping__monitor': 'validation_accuracy', 'early_stopping__restore_best': True}
    config = small(**{**DIVERGING, **best, 'epochs': 3, 'optimizer__learning_rate': 1e-3}, schedule=ConfigDict(spike))
    result = train(config, tmp_path, report=True)
    assert result['step'] == 2 and (tmp_path / 'report' / 'index.html').exists()
    losses = [row['validation_loss'] for row in read_metrics(tmp_path)]
    assert np.isfinite(losses).tolist() == [True, True, False]
    assert 'The validation loss of epoch 3 is not finite.' in (tmp_path / 'report' / 'index.html').read_text()
    assert train(config, tmp_path) == result and 'damaged' not in caplog.text
    reader = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    events = reader.EventAccumulator(str(tmp_path / 'tensorboard')).Reload().Scalars('validation_loss')
    assert np.isfinite([event.value for event in events]).tolist() == [True, True, False]


def test_a_run_whose_validation_loss_is_never_finite_stops_early(small, tmp_path, caplog):
    options = {'early_stopping__monitor': 'validation_loss', 'early_stopping__patience': 1, 'epochs': 2}
    with caplog.at_level('INFO', logger='absl'), pytest.raises(NonFiniteError, match='the loss on split'):
        train(small(**{**DIVERGING, **options}), tmp_path)
    assert 'Stopping early: validation_loss has never been finite' in caplog.text


def test_infinite_batch_statistics_stop_the_run(small):
    experiment = make_experiment(small('cnn', model__batch_norm=True))
    state = experiment.create_state()
    # The variance of the activations overflows, so that the layer divides them all to zero and every loss is finite.
    kernels = jax.tree.map(lambda leaf: leaf * 1e20 if leaf.ndim == 4 else leaf, state.params)
    state = experiment.replicas.replicate(dataclasses.replace(state, params=kernels))
    state, sums = experiment.train_step(state, next(experiment.train_batches(0)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, sums)))
    assert float(sums['nonfinite']) == 1


def test_an_experiment_keeps_its_config(small):
    config = small()
    experiments = []
    for config.seed in (1, 2):
        experiments.append(make_experiment(config))
    assert [experiment.config.seed for experiment in experiments] == [1, 2]
    assert not np.array_equal(*(experiment.train_indices(0, 0) for experiment in experiments))


def test_train_indices_are_those_of_the_batches(small):
    experiment = make_experiment(small(batch_size=50))
    for step, batch in enumerate(experiment.train_batches(1)):
        expected = batch['index'][batch['mask'] > 0]
        np.testing.assert_array_equal(experiment.train_indices(1, step), expected)


def test_batches_without_the_teachers_of_the_config_are_refused(small):
    experiment = make_experiment(small(distillation__workdirs=('teacher',)))
    with pytest.raises(UserError, match=r"must have the probabilities of the teachers .*, got \('teacher',\)"):
        next(experiment.train_batches(0))


def test_nonfinite_updates_are_skipped_and_counted(small, tmp_path, caplog):
    with pytest.raises(FloatingPointError, match=r'the update of step 1 is not finite \(learning rate inf,'):
        train(small(optimizer__learning_rate=1e39), tmp_path / 'stops')
    untrained = train(small(epochs=0), tmp_path / 'untrained')
    skipped = train(small(optimizer__learning_rate=1e39, on_nonfinite='skip'), tmp_path / 'skips')
    assert skipped['skipped_steps'] == skipped['step'] == 10
    assert '10 non-finite updates of this run have been skipped so far' in caplog.text
    assert skipped['params_sha256'] == untrained['params_sha256'] and untrained['skipped_steps'] == 0
    with pytest.raises(UserError, match=r"config.on_nonfinite must be one of skip, stop, got 'ask'"):
        train(small(on_nonfinite='ask'), tmp_path / 'unknown')


def interrupt_after(stopping_step):
    """Returns an `on_step` that acts as if SIGTERM had arrived after a step."""

    def on_step(step, request):
        if step == stopping_step:
            request.receive(signal.SIGTERM)

    return on_step


STOPPED = {'dataset__validation': 'train[300:400]', 'model__dropout': (0.3,), 'epochs': 2}


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory, data_dir):
    """The results of an uninterrupted run with the config of the tests below."""
    workdir = tmp_path_factory.mktemp('uninterrupted')
    train(make_small(data_dir, **STOPPED), workdir)
    return results(workdir)


# Five steps per epoch; validation follows the last one.
@pytest.mark.parametrize(('step', 'saved'), [(4, 5), (5, 5), (7, 8), (10, 10)])
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(
    small, tmp_path, uninterrupted, caplog, step, saved
):
    with pytest.raises(Interrupted, match='stopped by SIGTERM') as error:
        train(small(**STOPPED), tmp_path / 'run', on_step=interrupt_after(step))
    assert error.value.status == 143
    assert Checkpoints(tmp_path / 'run').steps()[-1] == saved
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    RestoredModel.load(tmp_path / 'run')
    assert caplog.messages[-1].endswith(f'is not finished: {(saved - 1) // 5} of 2 epochs are trained')
    train(small(**STOPPED, devices=1), tmp_path / 'run')
    assert results(tmp_path / 'run') == uninterrupted
    caplog.clear()
    RestoredModel.load(tmp_path / 'run')
    assert not caplog.messages


def test_a_stop_after_the_last_step_of_a_run_is_not_lost(small, tmp_path):
    with pytest.raises(Interrupted, match='stopped by SIGTERM after step 10; run the same command again'):
        train(small(), tmp_path / 'stopped', on_step=interrupt_after(10))
    assert not (tmp_path / 'stopped' / 'eval.json').exists()
    train(small(), tmp_path / 'stopped')
    train(small(), tmp_path / 'whole')
    assert results(tmp_path / 'stopped') == results(tmp_path / 'whole')


def test_metrics_that_could_not_be_written_before_a_stop_are_written_then(small, tmp_path, caplog):
    path = tmp_path / 'run' / 'metrics.csv'

    def on_step(step, request):
        if step == 5:
            path.mkdir()  # so that it cannot be written
        if step == 7:
            path.rmdir()
            request.signal = signal.SIGTERM

    with pytest.raises(Interrupted):
        train(small(), tmp_path / 'run', on_step=on_step)
    assert 'metrics.csv cannot be written' in caplog.text
    assert [row['epoch'] for row in read_metrics(tmp_path / 'run')] == [1]


def test_a_stop_is_deferred_to_the_end_of_the_epoch_even_if_no_step_is_left(small, tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        train(small(**STOPPED), tmp_path / 'run', on_step=interrupt_after(5))
    unsaved, save = [], CheckpointWriter.save

    def observed_save(self, snapshot):
        unsaved.append(signal.getsignal(signal.SIGTERM).unsaved)  # the handler is the stop request
        save(self, snapshot)

    monkeypatch.setattr(CheckpointWriter, 'save', observed_save)
    train(small(**STOPPED), tmp_path / 'run')
    assert unsaved == [True, True]


def test_checkpoints_within_an_epoch(small, tmp_path):
    train(small(), tmp_path / 'plain')
    with pytest.raises(RuntimeError, match='as if killed'):
        train(small(checkpoint_every_steps=2), tmp_path / 'run', on_step=fail_after(10))
    assert Checkpoints(tmp_path / 'run').steps() == [7, 9]
    train(small(checkpoint_every_minutes=1e-9), tmp_path / 'run')
    assert results(tmp_path / 'run') == results(tmp_path / 'plain')


def test_short_epochs_share_a_checkpoint_unless_they_are_the_best(small, tmp_path, monkeypatch):
    steps = []
    save = CheckpointWriter.save

    def recording_save(self, snapshot):
        steps.append(int(snapshot.state.step))
        save(self, snapshot)

    monkeypatch.setattr(CheckpointWriter, 'save', recording_save)
    train(small(epochs=4), tmp_path / 'all')
    assert steps == [0, 5, 10, 15, 20]
    steps.clear()
    # One checkpoint at the end of an epoch, where one of those within epochs is due too.
    train(small(epochs=2, checkpoint_every_steps=5, checkpoint_min_seconds=1000.0), tmp_path / 'every')
    assert steps == [0, 5, 10]
    steps.clear()
    options = {'epochs': 4, 'checkpoint_min_seconds': 1000.0}
    with pytest.raises(RuntimeError, match='as if killed'):
        train(small(**options), tmp_path / 'run', on_step=fail_after(18))
    assert steps == [0]
    train(small(**options), tmp_path / 'run')
    assert steps == [0, 20] and results(tmp_path / 'run') == results(tmp_path / 'all')

    steps.clear()
    validation = {'dataset__validation': 'train[300:400]', 'early_stopping__monitor': 'validation_loss'}
    train(small(**options, **validation), tmp_path / 'validated')
    losses = [row['validation_loss'] for row in read_metrics(tmp_path / 'validated')]
    best = [5 * (epoch + 1) for epoch in range(4) if losses[epoch] == min(losses[: epoch + 1])]
    assert steps == [0, *best, *({20} - {*best})]


def test_a_warmup_that_is_as_long_as_the_run_is_reported(small, caplog, monkeypatch):
    monkeypatch.setitem(SCHEDULES, 'own', lambda warmup=1: SCHEDULES['constant']())  # it may count updates
    for name, warmup in (('cosine', 1.9), ('cosine', 2.0), ('own', 100), ('own', (5, 6))):
        make_experiment(small(schedule=ConfigDict({'name': name, 'warmup': warmup}), epochs=2))
    assert caplog.messages == [
        'config.schedule.warmup=2 is at least as long as the run, config.epochs=2: the learning rate only rises'
    ]
