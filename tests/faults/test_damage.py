"""Damaged files: what is said, how the program ends, and what is left."""

import gzip
import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import contents, environment, flip
from harness import Program, undisturbed

pytestmark = pytest.mark.whole


@pytest.fixture(scope='module')
def half(tmp_path_factory, data_dir):
    """The workdir of the run after 3 of its 5 epochs; its checkpoints are those of the steps 20 and 30."""
    program = Program(tmp_path_factory.mktemp('half'), data_dir)
    assert program.run('--config.epochs=3') == 0, program.said
    return program.workdir


@pytest.fixture
def program(tmp_path, data_dir, half):
    """The program, with a copy of that workdir."""
    found = Program(tmp_path, data_dir)
    shutil.copytree(half, found.workdir)
    return found


def truncate(checkpoint):
    os.truncate(contents(checkpoint)[0], contents(checkpoint)[0].stat().st_size // 2)


def remove(checkpoint):
    contents(checkpoint)[0].unlink()


def empty(checkpoint):
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


class Payload:
    """What runs a command where it is unpickled."""

    def __reduce__(self):
        return os.system, (f'touch {Path.cwd()}/unpickled',)


def replace_by_pipe(checkpoint):
    path = contents(checkpoint)[0]
    path.unlink()
    os.mkfifo(path)


def replace_by_older(checkpoint):
    shutil.rmtree(checkpoint)
    shutil.copytree(checkpoint.with_name('20'), checkpoint)


def replace_by_pickles(checkpoint):
    for path in contents(checkpoint):
        path.write_bytes(pickle.dumps(Payload()))


@pytest.mark.parametrize(
    'damage', [flip, truncate, remove, empty, replace_by_pipe, replace_by_older, replace_by_pickles]
)
def test_a_damaged_checkpoint(program, data_dir, damage):
    newest = program.workdir / 'checkpoints' / '30'
    damage(newest)
    assert program.run('--mode=eval') == 2
    assert f"error: the checkpoint '{newest}' is damaged" in program.error()
    assert program.run() == 0, program.said
    assert f"the checkpoint '{newest}' is damaged" in program.said
    assert 'Going on from the checkpoint of epoch 2 (step 20)' in program.said
    assert [path.name for path in (program.workdir / 'damaged').iterdir()] == ['30-0']
    assert program.results() == undisturbed(data_dir)[0]
    assert not Path('unpickled').exists()


def test_checkpoints_that_are_all_damaged(program):
    for checkpoint in (program.workdir / 'checkpoints').iterdir():
        flip(checkpoint)
    before = {path: path.read_bytes() for path in contents(program.workdir / 'checkpoints')}
    assert program.run() == 2
    assert 'no checkpoint in' in program.error() and 'give another --workdir, or remove this one' in program.error()
    assert {path: path.read_bytes() for path in contents(program.workdir / 'checkpoints')} == before


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (lambda path: path.unlink(), 'is missing'),
        (lambda path: path.write_text(path.read_text()[:100]), 'is damaged'),
        (lambda path: path.write_text(path.read_text().replace('64', '32')), 'was changed'),
    ],
)
def test_a_damaged_config_json(program, data_dir, change, told):
    path = program.workdir / 'config.json'
    change(path)
    damaged = path.read_bytes() if path.exists() else None
    assert program.run('--mode=eval') == 2
    assert 'config.json' in program.error()
    assert program.run('--config.seed=3') == 2
    assert told in program.error() and 'the config that is given is not that of the run' in program.error()
    assert damaged == (path.read_bytes() if path.exists() else None)
    assert program.run() == 0
    assert told in program.said and 'it is written anew' in program.said
    assert program.results() == undisturbed(data_dir)[0]


def test_a_config_json_of_somebody_else_names_no_code(program):
    path = program.workdir / 'config.json'
    config = json.loads(path.read_text())
    (program.workdir / 'digests.json').unlink()
    for section, name in (('model', 'os.system'), ('optimizer', '__import__'), ('dataset', '../../etc/passwd')):
        path.write_text(json.dumps({**config, section: {**config[section], 'name': name}}))
        assert program.run('--mode=eval') == 2
        assert f'{section}.name={name!r} is unknown' in program.error() and 'the choices are: ' in program.error()


def compared(program, data_dir):
    """The comparison of the run with a copy of itself, as it ended."""
    other = shutil.copytree(program.workdir, program.directory / 'other')
    command = [sys.executable, '-m', 'mnist_jax.main', '--mode=compare', f'--run={program.workdir}', f'--run={other}']
    return subprocess.run(command, env=environment(data_dir), capture_output=True, text=True)


def test_predictions_of_somebody_else_are_not_unpickled(program, data_dir):
    with open(program.workdir / 'predictions.npz', 'wb') as file:
        np.savez(file, label=np.array([Payload()]), prediction=np.array([Payload()]))
    found = compared(program, data_dir)
    assert found.returncode == 2, found.stderr
    assert re.fullmatch(r"error: '.*predictions.npz' is missing or damaged .*\n", found.stderr)
    assert not Path('unpickled').exists()


def test_predictions_that_unpack_to_gigabytes_are_refused(program, data_dir):
    np.savez_compressed(program.workdir / 'predictions.npz', label=np.zeros(10**8), prediction=np.zeros(10**8))
    found = compared(program, data_dir)
    assert found.returncode == 2
    assert 'label is larger than the results of 300 examples' in found.stderr


@pytest.mark.parametrize('split', ['train', 'test'])
def test_prepared_data_that_is_truncated(program, data_dir, tmp_path, split):
    copied = shutil.copytree(Path(data_dir), tmp_path / 'data')
    path = next(copied.rglob(f'*{split}.array_record*'))
    os.truncate(path, path.stat().st_size * 2 // 3)
    before = {path: path.read_bytes() for path in contents(program.workdir)}
    assert program.run(f'--config.dataset.data_dir={copied}') == 2
    assert f"error: the prepared mnist is damaged, split '{split}'" in program.error()
    after = {path: path.read_bytes() for path in contents(program.workdir)}
    assert after == before


def test_a_raw_file_that_unpacks_to_gigabytes(tmp_path, data_dir):
    raw = tmp_path / 'raw'
    raw.mkdir()
    with gzip.open(raw / 'train-images-idx3-ubyte.gz', 'wb', compresslevel=1) as file:
        file.write(bytes.fromhex('00000803 0000ea60 0000001c 0000001c'))
        for _ in range(2000):
            file.write(bytes(2**20))
    for name in ('train-labels-idx1-ubyte', 't10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'):
        (raw / name).touch()
    program = Program(tmp_path, str(tmp_path / 'data'))
    assert program.run(f'--config.dataset.raw_dir={raw}') == 2
    assert 'is too long, and its header (60000, 28, 28) asks for 47,040,016' in program.error()
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < 1.5e9
    assert not program.workdir.exists() and not list((tmp_path / 'data').rglob('*.array_record*'))


def test_compiled_programs_that_are_damaged(tmp_path, data_dir):
    program = Program(tmp_path, data_dir, tmp_path / 'cache')
    assert program.run('--config.epochs=1') == 0
    kept = contents(tmp_path / 'cache')
    assert len(kept) > 1
    for path in kept:
        os.truncate(path, path.stat().st_size // 2)
    assert program.run() == 0, program.said
    assert program.results() == undisturbed(data_dir)[0]
    assert 'Traceback' not in program.said


@pytest.mark.parametrize('name', ['with spaces and ünïcödé 数字', '$HOME;\'"&`x`'])
def test_unusual_paths(tmp_path, data_dir, name):
    (tmp_path / 'real').mkdir()
    (tmp_path / name).symlink_to(tmp_path / 'real')
    data = shutil.copytree(data_dir, tmp_path / name / 'data')
    program = Program(tmp_path / name, str(data))
    program.workdir = tmp_path / name / 'run' / name
    assert program.run('--config.epochs=3') == 0, program.said
    assert program.run() == 0, program.said
    assert 'Going on from the checkpoint of epoch 3 (step 30)' in program.said
    assert program.run('--mode=eval') == 0
    assert program.results() == undisturbed(data_dir)[0]


@pytest.mark.parametrize('name', ['[v2]', 'back\\slash', os.fsdecode(b'x\xff'), 'long' * 100])
def test_impossible_paths(tmp_path, data_dir, name):
    program = Program(tmp_path, data_dir)
    assert program.run(workdir=tmp_path / name / 'run') == 2
    assert program.error()
    assert not list(tmp_path.rglob('config.json'))


@pytest.mark.parametrize('closed', ['>&-', '2>&-', '<&- >&- 2>&-'])
def test_closed_streams(tmp_path, data_dir, closed):
    shell = ('sh', '-c', f'exec "$@" {closed}', 'sh')
    program = Program(tmp_path, data_dir, enter=shell)
    assert program.run() == 0
    assert program.results() == undisturbed(data_dir)[0]
