"""Small but complete runs, compared exactly."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import fail_after, metrics_rows, results
from ml_collections import ConfigDict

from mnist_jax import files
from mnist_jax.data import kaggle
from mnist_jax.data.builder import Description
from mnist_jax.distributed import processes
from mnist_jax.errors import UserError
from mnist_jax.evaluate import evaluate_workdir
from mnist_jax.train import train
from mnist_jax.workdir.checkpoints import Checkpoints
from mnist_jax.workdir.metrics_log import read_metrics
from mnist_jax.workdir.results import format_result


def test_runs_of_the_same_config_are_identical(small, tmp_path):
    for name in ('a', 'b'):
        train(small(), tmp_path / name)
    assert (tmp_path / 'a' / 'eval.json').read_bytes() == (tmp_path / 'b' / 'eval.json').read_bytes()
    assert metrics_rows(tmp_path / 'a') == metrics_rows(tmp_path / 'b')
    train(small(seed=1), tmp_path / 'c')
    assert results(tmp_path / 'c')[0]['params_sha256'] != results(tmp_path / 'a')[0]['params_sha256']


@pytest.mark.parametrize('model', ['mlp', 'cnn'])
def test_a_resumed_run_equals_an_uninterrupted_one(small, tmp_path, model):
    config = {'dataset__validation': 'train[300:400]', 'model__dropout': (0.3,)}
    if model == 'cnn':
        config['optimizer'] = ConfigDict({'name': 'adamw', 'learning_rate': 0.002})
        config['schedule'] = ConfigDict({'name': 'step_decay', 'every': 1.0, 'factor': 0.5})
    train(small(model, epochs=3, **config), tmp_path / 'uninterrupted')
    train(small(model, epochs=1, **config), tmp_path / 'resumed')
    train(small(model, epochs=3, devices=1, **config), tmp_path / 'resumed')
    assert results(tmp_path / 'resumed') == results(tmp_path / 'uninterrupted')
    validated = [
        (float(accuracy), -int(step)) for _, step, _, _, _, accuracy, *_ in metrics_rows(tmp_path / 'resumed')[1:]
    ]
    kept = {path.name for path in (tmp_path / 'resumed' / 'checkpoints').iterdir()}
    assert kept == {'10', '15', str(-max(validated)[1])}


def test_a_damaged_metrics_csv_is_reported_and_does_not_stop_the_run(small, tmp_path, caplog):
    train(small(epochs=1), tmp_path)
    good = (tmp_path / 'metrics.csv').read_text()
    assert [row['epoch'] for row in read_metrics(tmp_path)] == [1]
    for text in (
        '',
        'hello\nworld\n',
        good.replace('epoch,', 'epohc,'),
        good.replace('1,5,', '1,nan,'),
        good.replace('0.001', ''),
        good[:-20],
        good.replace(',,', ',x,'),
    ):
        (tmp_path / 'metrics.csv').write_text(text)
        with pytest.raises(UserError, match=r"metrics.csv' is damaged"):
            read_metrics(tmp_path)
    train(small(epochs=2), tmp_path)
    assert 'metrics.damaged.csv, and kept the rows of these epochs: none' in caplog.text
    assert (tmp_path / 'metrics.damaged.csv').read_text() == good.replace(',,', ',x,')
    assert [row[0] for row in metrics_rows(tmp_path)] == ['epoch', '2']


@pytest.mark.parametrize('name', ['metrics.csv', 'provenance.json'])
def test_a_file_that_cannot_be_read_is_not_taken_for_damaged(small, tmp_path, monkeypatch, name):
    train(small(epochs=1), tmp_path)
    path = tmp_path / name
    before, read_bytes = path.read_bytes(), files.read_bytes

    def fail(requested):
        if requested == path:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return read_bytes(requested)

    monkeypatch.setattr(files, 'read_bytes', fail)
    with pytest.raises(OSError, match='Stale file handle'):
        train(small(epochs=2), tmp_path)
    assert path.read_bytes() == before and not list(tmp_path.glob('*damaged*'))


def test_metrics_csv_has_one_row_per_epoch(small, tmp_path):
    train(small(dataset__validation='train[300:400]'), tmp_path)
    header, *epochs = metrics_rows(tmp_path)
    assert header == list(
        ('epoch', 'step', 'train_loss', 'train_accuracy', 'validation_loss', 'validation_accuracy',
         'validation_balanced_accuracy', 'validation_macro_f1', 'learning_rate')
    )  # fmt: skip
    assert [row[:2] for row in epochs] == [['1', '5'], ['2', '10']]
    assert all(0 < float(row[2]) < 3 and 0 <= float(row[5]) <= 1 and float(row[8]) == 0.001 for row in epochs)
    assert float(epochs[1][2]) < float(epochs[0][2])
    for row in epochs:
        assert 0 < float(row[6]) < 1 and 0 < float(row[7]) < 1


def test_a_finished_run_keeps_the_rows_of_a_damaged_metrics_csv(small, tmp_path):
    train(small(epochs=2), tmp_path)
    path = tmp_path / 'metrics.csv'
    header, first, second = path.read_text().splitlines(keepends=True)
    path.write_text(header + first + second.replace('0.001', 'x'))
    train(small(epochs=2), tmp_path)
    assert path.read_text() == header + first


def test_the_learning_rate_follows_the_schedule(small, tmp_path):
    train(small(schedule=ConfigDict({'name': 'step_decay', 'every': 1.0, 'factor': 0.5})), tmp_path)
    assert [row[8] for row in metrics_rows(tmp_path)] == ['learning_rate', '0.001', '0.0005']


def test_overlapping_splits_are_named_at_the_start_and_in_the_result(small, tmp_path, caplog):
    # 150 of the 300 training examples are validation examples, and the first 60 are test examples.
    splits = {'dataset__validation': 'train[150:300]', 'dataset__test': 'train[:60]'}
    result = train(small(epochs=1, **splits), tmp_path)
    text = 'train and validation share 150 examples; train and test share 60 examples'
    assert caplog.text.count(f'overlap   {text}') == 1
    assert result['overlaps'] == [
        {'first': 'train', 'second': 'validation', 'examples': 150},
        {'first': 'train', 'second': 'test', 'examples': 60},
    ]
    assert f'\noverlap    {text}\n' in format_result(result)


# No epoch after the first improves on it by 100.
CALLBACKS = {
    'dataset__validation_fraction': 0.25,
    'early_stopping__min_delta': 100.0,
    'early_stopping__patience': 3,
    'early_stopping__restore_best': True,
    'reduce_lr__min_delta': 100.0,
    'reduce_lr__patience': 1,
    'reduce_lr__factor': 0.5,
}


def test_a_run_stops_early_restores_the_best_epoch_and_reduces_the_learning_rate(small, tmp_path, caplog):
    with caplog.at_level('INFO', logger='absl'):
        result = train(small(epochs=9, **CALLBACKS), tmp_path)
    assert [row[8] for row in metrics_rows(tmp_path)[1:]] == ['0.001', '0.001', '0.0005', '0.00025']
    # 225 examples in batches of 64.
    assert result['step'] == 4 and {path.name for path in (tmp_path / 'checkpoints').iterdir()} == {'4', '12', '16'}
    assert 'Stopping early: validation_accuracy has not improved on' in caplog.text
    first = train(small(epochs=1, **CALLBACKS), tmp_path / 'first')
    assert first == result
    written = (tmp_path / 'eval.json').read_bytes()
    assert evaluate_workdir(tmp_path, 'latest')['step'] == 16
    assert evaluate_workdir(tmp_path, '16')['step'] == 16
    assert evaluate_workdir(tmp_path, 'best') == evaluate_workdir(tmp_path) == result
    # A specific step is written to separate files.
    assert (tmp_path / 'eval.json').read_bytes() == (tmp_path / 'eval-step4.json').read_bytes() == written
    assert json.loads((tmp_path / 'eval-step16.json').read_text())['step'] == 16
    validated = evaluate_workdir(tmp_path, split='validation')
    assert validated['count'] == 75 and f'{validated["accuracy"]}' == metrics_rows(tmp_path)[1][5]
    with pytest.raises(UserError, match=r"--step must be one of latest, 4, 12, 16, best, got '8'"):
        evaluate_workdir(tmp_path, '8')
    caplog.clear()
    with caplog.at_level('INFO', logger='absl'):
        assert train(small(epochs=9, **CALLBACKS), tmp_path) == result
    assert 'This run is finished: it stopped early after 4 of 9 epochs' in caplog.text


@pytest.mark.parametrize('failing_step', [3, 14])
def test_a_resumed_run_stops_early_at_the_same_epoch(small, tmp_path, failing_step):
    config = {**CALLBACKS, 'early_stopping__restore_best': False}
    train(small(epochs=9, **config), tmp_path / 'uninterrupted')
    with pytest.raises(RuntimeError, match='as if killed'):
        train(small(epochs=9, **config), tmp_path / 'failed', on_step=fail_after(failing_step))
    train(small(epochs=9, **config), tmp_path / 'failed')
    assert results(tmp_path / 'failed') == results(tmp_path / 'uninterrupted')
    assert results(tmp_path / 'failed')[0]['step'] == 16


@pytest.mark.parametrize(
    'changed',
    [{'devices': 2}, {'checkpoint_every_steps': 3}, {'dataset__on_device': 'off'}, {'seed': 1}, {'epochs': 1}],
)
def test_processes_compare_what_decides_when_they_exchange_data(small, tmp_path, monkeypatch, changed):
    compared = []
    monkeypatch.setattr(processes, 'check_identical', compared.append)
    for number, fields in enumerate(({}, changed)):
        train(small(**{'epochs': 0, **fields}), tmp_path / str(number), until=0, evaluate=False)
    assert compared[0] != compared[1]


def test_a_run_without_validation_has_no_best_epoch(small, tmp_path):
    train(small(epochs=0), tmp_path)
    with pytest.raises(UserError, match="got 'best': no epoch of this run was validated"):
        evaluate_workdir(tmp_path, 'best')
    with pytest.raises(UserError, match=r"--step must be one of latest, 0, got 'worst'"):
        evaluate_workdir(tmp_path, 'worst')
    with pytest.raises(UserError, match='--split must be a split of the dataset for a run without validation examples'):
        evaluate_workdir(tmp_path, split='validation')
    with pytest.raises(UserError, match=r'config.early_stopping.monitor=.* needs validation examples'):
        train(small(early_stopping__patience=1), tmp_path / 'new')
    schedule = ConfigDict({'name': 'cosine'})
    with pytest.raises(UserError, match=r"config.schedule.name must be 'constant' if .*, got 'cosine'"):
        train(small(**CALLBACKS, schedule=schedule), tmp_path / 'new')
    assert not (tmp_path / 'new').exists()


def test_a_finished_run_is_evaluated_again(small, tmp_path, caplog):
    expected = train(small(), tmp_path)
    (tmp_path / 'eval.json').unlink()
    with caplog.at_level('INFO', logger='absl'):
        assert train(small(), tmp_path) == expected
    assert results(tmp_path)[0] == expected
    assert 'This run is finished: all 2 epochs are trained' in caplog.text


def test_zero_epochs_evaluate_the_initial_parameters(small, tmp_path):
    result = train(small(epochs=0), tmp_path)
    assert (result['step'], result['count']) == (0, 200)
    assert result['params_sha256'] == evaluate_workdir(tmp_path)['params_sha256']


def test_a_changed_config_field_is_an_error_and_leaves_the_workdir_untouched(small, tmp_path):
    train(small(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    with pytest.raises(UserError, match=r'different config: batch_size \(was 64, is 32\); model.hidden \(was \(16,\)'):
        train(small(batch_size=32, model__hidden=(8,)), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before


def test_damaged_data_leaves_no_workdir(small, data_dir, tmp_path):
    shutil.copytree(Path(data_dir) / 'mnist_idx', tmp_path / 'data' / 'mnist_idx')
    path = next((tmp_path / 'data').rglob('*train.array_record*'))
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(UserError, match=r"the prepared dataset mnist is damaged \(split 'train'\)"):
        train(small(dataset__data_dir=str(tmp_path / 'data')), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_a_run_without_a_checkpoint_may_change_its_config(small, tmp_path):
    Checkpoints(tmp_path).write_config(small(seed=5), {}, Description((28, 28, 1), '0123456789'))
    train(small(epochs=0), tmp_path)
    assert json.loads((tmp_path / 'config.json').read_text())['seed'] == 0


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('learning_rate', -1.0, 'config.optimizer.learning_rate must be a finite number from 0, got -1.0'),
        ('learning_rate', float('nan'), 'config.optimizer.learning_rate must be a finite number from 0, got nan'),
        ('rho', 5.0, 'config.optimizer.rho must be a number from 0 to 1, got 5.0'),
        ('epsilon', -1.0, 'config.optimizer.epsilon must be a finite number from 0, got -1.0'),
    ],
)
def test_an_optimizer_field_out_of_range_is_an_error(small, tmp_path, field, value, message):
    with pytest.raises(UserError) as error:
        train(small(**{f'optimizer__{field}': value}), tmp_path / 'run')
    assert str(error.value) == message and not (tmp_path / 'run').exists()


def test_a_run_does_not_resume_with_different_data(small, tmp_path):
    raw = tmp_path / 'raw'
    raw.mkdir()
    rows = [f'{i % 10},' + ','.join(['0'] * i + ['255'] * (784 - i)) for i in range(300)]
    (raw / 'train.csv').write_text('\n'.join([','.join(kaggle.HEADER), *rows]))
    fields = {
        'dataset__name': 'kaggle_digits',
        'dataset__raw_dir': str(raw),
        'dataset__data_dir': str(tmp_path / 'data'),
    }
    config = small(**fields, dataset__train='train', dataset__test='test')
    expected = train(config, tmp_path / 'run')
    assert expected['count'] == 50 and evaluate_workdir(tmp_path / 'run') == expected
    (raw / 'train.csv').write_text((raw / 'train.csv').read_text().replace(',255,', ',254,'))
    for again in (lambda: train(config, tmp_path / 'run'), lambda: evaluate_workdir(tmp_path / 'run')):
        with pytest.raises(UserError, match=r"the dataset must be the one that the run in '.*/run' was started with"):
            again()


def test_a_dataset_on_disk_gives_the_same_run(small, tmp_path):
    fields = {'dataset__validation_fraction': 0.1, 'model__dropout': (0.5,)}
    for name, in_memory in (('memory', True), ('disk', False)):
        train(small(dataset__in_memory=in_memory, **fields), tmp_path / name)
    memory, disk = ((tmp_path / name / 'eval.json').read_bytes() for name in ('memory', 'disk'))
    assert memory == disk
