"""Checkpoints and config.json: digests, damage, older versions."""

import hashlib
import json
import os
import platform
import shutil

import pytest
from conftest import contents, flip, make_small, results

from mnist_jax import files
from mnist_jax.errors import UserError
from mnist_jax.evaluate import evaluate_workdir
from mnist_jax.train import train
from mnist_jax.training.experiment import make_experiment
from mnist_jax.workdir.snapshot import params_sha256


def test_the_digest_is_that_of_the_leaves_in_order(small):
    state = make_experiment(small()).create_state()
    layers = state.params
    leaves = [layers[layer][name] for layer in ('Dense_0', 'Dense_1') for name in ('bias', 'kernel')]
    by_hand = hashlib.sha256(b''.join(leaf.tobytes() for leaf in leaves)).hexdigest()
    assert params_sha256(state) == by_hand


def test_a_damaged_checkpoint_is_told(small, tmp_path):
    train(small(epochs=0), tmp_path)
    for path in contents(tmp_path / 'checkpoints' / '0'):
        if path.parent.name == 'd':
            path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(UserError, match=r"the checkpoint '.*checkpoints/0' is damaged, or not of this config"):
        evaluate_workdir(tmp_path)


@pytest.fixture(scope='module')
def trained(tmp_path_factory, data_dir):
    """A directory with a run of two epochs, and the results of one of three."""
    directory = tmp_path_factory.mktemp('trained')
    train(make_small(data_dir, epochs=2), directory / 'run')
    train(make_small(data_dir, epochs=3), directory / 'uninterrupted')
    return directory / 'run', results(directory / 'uninterrupted')


@pytest.mark.parametrize('how', ['flip', 'truncate', 'remove', 'empty'])
def test_a_damaged_checkpoint_is_move_to_damaged_for_the_one_before(small, tmp_path, caplog, trained, how):
    shutil.copytree(trained[0], tmp_path / 'run')
    newest = tmp_path / 'run' / 'checkpoints' / '10'
    if how == 'flip':
        flip(newest)
    for path in contents(newest):
        if how == 'truncate':
            path.write_bytes(path.read_bytes()[:20])
        elif how == 'empty' or (how == 'remove' and path.parent.name == 'd'):
            path.unlink()
    with pytest.raises(UserError, match=r"the checkpoint '.*/checkpoints/10' is damaged"):
        evaluate_workdir(tmp_path / 'run')
    train(small(epochs=3), tmp_path / 'run')
    assert "checkpoints/10' is damaged" in caplog.text
    assert results(tmp_path / 'run') == trained[1]
    assert [path.name for path in (tmp_path / 'run' / 'damaged').iterdir()] == ['10-0']
    for step in (10, 15):
        flip(tmp_path / 'run' / 'checkpoints' / str(step))
    with pytest.raises(UserError, match=r'no checkpoint in .* can be used; give another --workdir'):
        train(small(epochs=4), tmp_path / 'run')


def test_a_config_of_an_older_version_gets_the_fields_that_are_new(small, tmp_path):
    train(small(epochs=1), tmp_path / 'run')
    path = tmp_path / 'run' / 'config.json'
    saved = json.loads(path.read_text())
    del saved['steps_per_call'], saved['dataset']['in_memory']
    path.write_text(json.dumps(saved))
    train(small(epochs=2), tmp_path / 'run')
    assert json.loads(path.read_text())['dataset']['in_memory'] is True


@pytest.mark.parametrize(
    ('text', 'told'),
    [
        (None, 'is missing'),
        ('', 'is damaged: Expecting value'),
        ('[]', 'is damaged: it is no JSON object'),
        ('{}', 'is damaged: config.'),
        ('{"seed": NaN}', 'is damaged: config.'),
        ('[' * 100_000, 'is damaged: it is nested too deeply'),
        (' ' * (files.MAX_BYTES + 1), 'is damaged: it is larger than 16,777,216 bytes'),
        ('changed', 'was changed, and is not of the run beside it (sha256)'),
    ],
)
def test_a_run_goes_on_without_config_json_where_its_config_is_given(small, tmp_path, caplog, trained, text, told):
    shutil.copytree(trained[0], tmp_path / 'run')
    path = tmp_path / 'run' / 'config.json'
    whole = path.read_text()
    path.write_text(whole.replace('"batch_size": 64', '"batch_size": 32') if text == 'changed' else text or '')
    if text is None:
        path.unlink()
    damaged = path.read_text() if path.exists() else None
    with pytest.raises(UserError) as refused:
        evaluate_workdir(tmp_path / 'run')
    assert told.removeprefix('is missing') in str(refused.value) and 'config.json' in str(refused.value)
    with pytest.raises(UserError) as refused:
        train(small(seed=7), tmp_path / 'run')
    assert told in str(refused.value) and 'the config that is given is not that of the run' in str(refused.value)
    with pytest.raises(UserError, match=r'config\.epochs=1 is less than the 2 that this run has'):
        train(small(epochs=1), tmp_path / 'run')
    assert damaged == (path.read_text() if path.exists() else None)
    train(small(epochs=3), tmp_path / 'run')
    assert told in caplog.text and 'it is written anew' in caplog.text
    assert path.read_text() == whole.replace('"epochs": 2', '"epochs": 3')
    assert results(tmp_path / 'run') == trained[1]


def test_a_directory_has_one_writer(small, tmp_path, trained):
    run = shutil.copytree(trained[0], tmp_path / 'run')
    held = f"--workdir '{run}' is in use by process {os.getpid()} on {platform.node()}, since 2"
    leftover, own = run / '.mnist_jax-abc', run / '.own.tmp'
    own.touch()
    with files.DirectoryLock(run, '--workdir'):
        leftover.touch()
        with pytest.raises(UserError) as refused:
            train(small(), run)
    assert str(refused.value).startswith(held) and 'wait for its end, or give another' in str(refused.value)
    (run / 'lock').write_text('process 1 on elsewhere')  # As after a crash.
    assert train(small(), run) == json.loads((run / 'eval.json').read_text())
    assert not leftover.exists() and own.exists() and not (run / 'lock').read_text()


def test_what_stands_in_place_of_the_lock_is_left_as_it_is(tmp_path):
    (tmp_path / 'precious').write_text('precious')
    for make in (lambda path: path.symlink_to(tmp_path / 'precious'), os.mkfifo, os.mkdir):
        directory = tmp_path / 'run'
        directory.mkdir()
        make(directory / 'lock')
        with pytest.raises(UserError, match=r"cannot be used: 'lock' in it is no plain file; remove that"):
            files.DirectoryLock(directory, '--workdir').__enter__()
        shutil.rmtree(directory)
    assert (tmp_path / 'precious').read_text() == 'precious'


def test_a_directory_that_was_moved_is_held_anew(tmp_path):
    directory = tmp_path / 'run'
    directory.mkdir()
    with files.DirectoryLock(directory, '--workdir') as hold:
        hold.renew()
        directory.rename(tmp_path / 'elsewhere')
        hold.renew()
        with pytest.raises(UserError, match='is in use by process'):
            files.DirectoryLock(directory, '--workdir').__enter__()
        directory.rename(tmp_path / 'again')
        directory.mkdir()
        with files.DirectoryLock(directory, '--workdir'), pytest.raises(UserError, match='is in use by process'):
            hold.renew()
