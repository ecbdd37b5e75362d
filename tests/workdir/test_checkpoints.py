"""Checkpoints, config.json and locks: digests, damage, and runs of older versions."""

import errno
import hashlib
import json
import os
import platform
import shutil

import pytest
from conftest import contents, flip, make_small, results

from mnist_jax import files
from mnist_jax.errors import UserError, WriteError
from mnist_jax.evaluate import evaluate_workdir
from mnist_jax.train import train
from mnist_jax.training.experiment import make_experiment
from mnist_jax.workdir.checkpoints import Checkpoints
from mnist_jax.workdir.directory_lock import DirectoryLock
from mnist_jax.workdir.snapshot import params_sha256


@pytest.mark.parametrize('failures', [{2}, {2, 3}, {2, 3, 4}, {2, 3, 4, 5, 6}])
def test_the_best_checkpoint_is_written_as_soon_as_the_disk_allows(small, tmp_path, monkeypatch, failures):
    """The first epoch is the best one; its checkpoint is the second that is written, after that of step 0."""
    config = small(epochs=3, checkpoint_min_seconds=0.0, early_stopping__monitor='train_loss')
    config.early_stopping.mode, config.early_stopping.restore_best = 'max', True
    expected = train(config, tmp_path / 'whole')
    calls = []

    def reserve(directory, size):
        calls.append(size)
        if len(calls) in failures:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, 'reserve', reserve)
    if 6 in failures:  # Not even the attempt at the end of the run succeeds.
        with pytest.raises(WriteError, match='the last checkpoint, at step 15, could not be written'):
            train(config, tmp_path / 'run')
        result = json.loads((tmp_path / 'run' / 'eval.json').read_text())
        assert result['params_sha256'] == expected['params_sha256'] and result['step'] == 5
    result = train(config, tmp_path / 'run')
    assert result['params_sha256'] == expected['params_sha256'] and result['step'] == 5
    assert evaluate_workdir(tmp_path / 'run')['params_sha256'] == expected['params_sha256']


def test_the_best_checkpoint_is_written_again_if_it_was_deleted(small, tmp_path, monkeypatch):
    config = small(epochs=3, checkpoint_min_seconds=0.0, early_stopping__monitor='train_loss')
    config.early_stopping.mode, config.early_stopping.restore_best = 'max', True
    expected = train(config, tmp_path / 'whole')
    best = tmp_path / 'run' / 'checkpoints' / '5'

    def reserve(directory, size):
        if any(directory.glob('5')) and not any(directory.glob('10')):
            shutil.rmtree(best)

    monkeypatch.setattr(files, 'reserve', reserve)
    assert train(config, tmp_path / 'run')['params_sha256'] == expected['params_sha256']
    assert best.is_dir() and evaluate_workdir(tmp_path / 'run')['params_sha256'] == expected['params_sha256']


def test_params_digest_is_the_sha256_of_the_leaves_in_order(small):
    state = make_experiment(small()).create_state()
    layers = state.params
    leaves = [layers[layer][name] for layer in ('Dense_0', 'Dense_1') for name in ('bias', 'kernel')]
    expected = hashlib.sha256(b''.join(leaf.tobytes() for leaf in leaves)).hexdigest()
    assert params_sha256(state.variables) == expected


def test_evaluation_refuses_a_damaged_checkpoint(small, tmp_path):
    train(small(epochs=0), tmp_path)
    for path in contents(tmp_path / 'checkpoints' / '0'):
        if path.parent.name == 'd':
            path.write_bytes(path.read_bytes()[:10])
    message = r"checkpoint '.*checkpoints/0' is damaged: "
    with pytest.raises(UserError, match=message):
        evaluate_workdir(tmp_path)


@pytest.fixture(scope='module')
def trained(tmp_path_factory, data_dir):
    """The workdir of a run of two epochs, and the results of an uninterrupted run of three."""
    directory = tmp_path_factory.mktemp('trained')
    train(make_small(data_dir, epochs=2), directory / 'run')
    train(make_small(data_dir, epochs=3), directory / 'uninterrupted')
    return directory / 'run', results(directory / 'uninterrupted')


@pytest.mark.parametrize('damage', ['flip', 'truncate', 'remove', 'empty'])
def test_run_resumes_from_the_previous_checkpoint_if_the_newest_is_damaged(small, tmp_path, caplog, trained, damage):
    shutil.copytree(trained[0], tmp_path / 'run')
    newest = tmp_path / 'run' / 'checkpoints' / '10'
    if damage == 'flip':
        flip(newest)
    for path in contents(newest):
        if damage == 'truncate':
            path.write_bytes(path.read_bytes()[:20])
        elif damage == 'empty' or (damage == 'remove' and path.parent.name == 'd'):
            path.unlink()
    assert evaluate_workdir(tmp_path / 'run', '5')['step'] == 5  # An intact checkpoint does not need the newest one.
    with pytest.raises(UserError, match=r"checkpoint '.*/checkpoints/10' is damaged"):
        evaluate_workdir(tmp_path / 'run')
    train(small(epochs=3), tmp_path / 'run')
    assert "checkpoints/10' is damaged" in caplog.text
    assert results(tmp_path / 'run') == trained[1]
    assert [path.name for path in (tmp_path / 'run' / 'damaged').iterdir()] == ['10-0']
    checkpoints = Checkpoints(tmp_path / 'run')
    (tmp_path / 'run' / 'damaged' / '10-0').rename(tmp_path / 'run' / 'damaged' / '15-1')
    (tmp_path / 'run' / 'damaged' / '15-2').mkdir()
    checkpoints.move_to_damaged([15])
    assert {path.name for path in (tmp_path / 'run' / 'damaged').iterdir()} == {'15-0', '15-1', '15-2'}
    (tmp_path / 'run' / 'damaged' / '15-0').rename(tmp_path / 'run' / 'checkpoints' / '15')
    for step in (10, 15):
        flip(tmp_path / 'run' / 'checkpoints' / str(step))
    with pytest.raises(UserError, match=r'no checkpoint in .* can be restored; use another --workdir'):
        train(small(epochs=4), tmp_path / 'run')


def test_config_of_an_older_version_gets_the_fields_added_since(small, tmp_path):
    train(small(epochs=1), tmp_path / 'run')
    path = tmp_path / 'run' / 'config.json'
    saved = json.loads(path.read_text())
    del saved['steps_per_call'], saved['dataset']['in_memory']
    path.write_text(json.dumps(saved))
    train(small(epochs=2), tmp_path / 'run')
    assert json.loads(path.read_text())['dataset']['in_memory'] is True


@pytest.mark.parametrize(
    ('text', 'problem'),
    [
        (None, 'is missing'),
        ('', 'is damaged: Expecting value'),
        ('[]', 'is damaged: it must be a JSON object'),
        ('{}', 'is damaged: config.'),
        ('{"seed": NaN}', 'is damaged: config.'),
        ('[' * 100_000, 'is damaged: it is nested too deeply'),
        (' ' * (files.MAX_BYTES + 1), 'is damaged: it is larger than 16,777,216 bytes'),
        ('changed', 'was changed: its SHA-256 does not match digests.json'),
    ],
)
def test_run_resumes_without_a_valid_config_json_if_its_config_is_passed(
    small, tmp_path, caplog, trained, text, problem
):
    shutil.copytree(trained[0], tmp_path / 'run')
    path = tmp_path / 'run' / 'config.json'
    original = path.read_text()
    path.write_text(original.replace('"batch_size": 64', '"batch_size": 32') if text == 'changed' else text or '')
    if text is None:
        path.unlink()
    damaged = path.read_text() if path.exists() else None
    with pytest.raises(UserError) as error:
        evaluate_workdir(tmp_path / 'run')
    assert problem.removeprefix('is missing') in str(error.value) and 'config.json' in str(error.value)
    with pytest.raises(UserError) as error:
        train(small(seed=7), tmp_path / 'run')
    assert problem in str(error.value)
    assert 'the config that was passed is not the config of the run' in str(error.value)
    with pytest.raises(UserError, match=r'config\.epochs must be at least 2, .* got 1'):
        train(small(epochs=1), tmp_path / 'run')
    assert damaged == (path.read_text() if path.exists() else None)
    train(small(epochs=3), tmp_path / 'run')
    assert problem in caplog.text and 'it will be rewritten' in caplog.text
    assert path.read_text() == original.replace('"epochs": 2', '"epochs": 3')
    assert results(tmp_path / 'run') == trained[1]


def test_a_config_of_which_nothing_is_left_cannot_be_checked(small, tmp_path, trained):
    shutil.copytree(trained[0], tmp_path / 'run')
    for name in ('config.json', 'digests.json'):
        (tmp_path / 'run' / name).unlink()
    with pytest.raises(
        UserError, match=r'is missing, and digests.json is missing, so that nothing says what the config'
    ):
        train(small(epochs=3), tmp_path / 'run')


def test_a_run_keeps_the_names_of_its_classes(small, tmp_path, trained):
    shutil.copytree(trained[0], tmp_path / 'run')
    checkpoints = Checkpoints(tmp_path / 'run')
    description = checkpoints.read_description()
    checkpoints.check_class_names(description)
    renamed = description._replace(class_names=[*'abcdefghij'])
    with pytest.raises(UserError, match=r'was started with, 0, 1, 2, .*, got a, b, c,'):
        checkpoints.check_class_names(renamed)
    (tmp_path / 'run' / 'dataset.json').unlink()
    checkpoints.check_class_names(renamed)  # An older version did not write it.


def test_a_directory_whose_name_is_not_that_of_a_step_is_not_a_checkpoint(small, tmp_path, trained):
    shutil.copytree(trained[0], tmp_path / 'run')
    (tmp_path / 'run' / 'checkpoints' / '00999').mkdir()
    train(small(epochs=3), tmp_path / 'run')
    assert results(tmp_path / 'run') == trained[1]


def test_workdir_is_locked_while_a_run_trains_in_it(small, tmp_path, trained):
    run = shutil.copytree(trained[0], tmp_path / 'run')
    message = f"--workdir '{run}' is in use by process {os.getpid()} on {platform.node()}, since 2"
    leftover, unrelated = run / '.mnist_jax-abc', run / '.own.tmp'
    unrelated.touch()
    with DirectoryLock(run, '--workdir'):
        leftover.touch()
        with pytest.raises(UserError) as error:
            train(small(), run)
    assert str(error.value).startswith(message) and 'wait until it ends, or use another' in str(error.value)
    (run / 'lock').write_text('process 1 on elsewhere')  # A stale lock, as after a crash.
    assert train(small(), run) == json.loads((run / 'eval.json').read_text())
    assert not leftover.exists() and unrelated.exists() and not (run / 'lock').read_text()


def test_lock_never_overwrites_what_is_not_a_regular_file(tmp_path):
    (tmp_path / 'precious').write_text('precious')
    for make in (lambda path: path.symlink_to(tmp_path / 'precious'), os.mkfifo, os.mkdir):
        directory = tmp_path / 'run'
        directory.mkdir()
        make(directory / 'lock')
        with pytest.raises(UserError, match=r"cannot be locked: '.*/lock' must be a regular file; remove it"):
            DirectoryLock(directory, '--workdir').__enter__()
        shutil.rmtree(directory)
    assert (tmp_path / 'precious').read_text() == 'precious'


def test_renewed_lock_holds_the_new_directory_after_a_move(tmp_path):
    directory = tmp_path / 'run'
    directory.mkdir()
    with DirectoryLock(directory, '--workdir') as lock:
        lock.renew()
        directory.rename(tmp_path / 'elsewhere')
        lock.renew()
        with pytest.raises(UserError, match='is in use by process'):
            DirectoryLock(directory, '--workdir').__enter__()
        directory.rename(tmp_path / 'again')
        directory.mkdir()
        with DirectoryLock(directory, '--workdir'), pytest.raises(UserError, match='is in use by process'):
            lock.renew()
