"""Damaged files: error messages, exit statuses, and what the program leaves untouched."""

import gzip
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, contents, environment, flip
from harness import Program, uninterrupted

pytestmark = pytest.mark.slow_faults


@pytest.fixture(scope='module')
def partial_run(tmp_path_factory, data_dir):
    """The workdir of a run after 3 of its 5 epochs, with checkpoints at steps 20 and 30."""
    program = Program(tmp_path_factory.mktemp('partial'), data_dir)
    assert program.run('--config.epochs=3') == 0, program.output
    return program.workdir


@pytest.fixture
def program(tmp_path, data_dir, partial_run):
    """The program, with a copy of the partial run as its workdir."""
    program = Program(tmp_path, data_dir)
    shutil.copytree(partial_run, program.workdir)
    return program


def truncate(checkpoint):
    os.truncate(contents(checkpoint)[0], contents(checkpoint)[0].stat().st_size // 2)


def remove(checkpoint):
    contents(checkpoint)[0].unlink()


def empty(checkpoint):
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


class Payload:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, (f'touch {Path.cwd()}/unpickled',)


def replace_by_fifo(checkpoint):
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
    'damage', [flip, truncate, remove, empty, replace_by_fifo, replace_by_older, replace_by_pickles]
)
def test_run_resumes_from_the_previous_checkpoint_if_the_newest_is_damaged(program, data_dir, damage):
    newest = program.workdir / 'checkpoints' / '30'
    damage(newest)
    assert program.run('--mode=eval') == 2
    assert f"error: checkpoint '{newest}' is damaged" in program.error()
    assert program.run() == 0, program.output
    assert f"checkpoint '{newest}' is damaged" in program.output
    assert 'Resuming from the checkpoint of epoch 2 (step 20)' in program.output
    assert [path.name for path in (program.workdir / 'damaged').iterdir()] == ['30-0']
    assert program.results() == uninterrupted(data_dir)[0]
    assert not Path('unpickled').exists()


def test_run_is_refused_and_left_untouched_if_all_checkpoints_are_damaged(program):
    for checkpoint in (program.workdir / 'checkpoints').iterdir():
        flip(checkpoint)
    before = {path: path.read_bytes() for path in contents(program.workdir / 'checkpoints')}
    assert program.run() == 2
    assert 'no checkpoint in' in program.error() and 'use another --workdir, or delete this one' in program.error()
    assert {path: path.read_bytes() for path in contents(program.workdir / 'checkpoints')} == before


@pytest.mark.parametrize(
    ('change', 'problem'),
    [
        (lambda path: path.unlink(), 'is missing'),
        (lambda path: path.write_text(path.read_text()[:100]), 'is damaged'),
        (lambda path: path.write_text(path.read_text().replace('64', '32')), 'was changed'),
    ],
)
def test_run_resumes_without_a_valid_config_json(program, data_dir, change, problem):
    path = program.workdir / 'config.json'
    change(path)
    damaged = path.read_bytes() if path.exists() else None
    assert program.run('--mode=eval') == 2
    assert 'config.json' in program.error()
    assert program.run('--config.seed=3') == 2
    assert problem in program.error()
    assert 'the config that was passed is not the config of the run' in program.error()
    assert damaged == (path.read_bytes() if path.exists() else None)
    assert program.run() == 0
    assert problem in program.output and 'it will be rewritten' in program.output
    assert program.results() == uninterrupted(data_dir)[0]


def test_untrusted_config_json_cannot_name_code(program):
    path = program.workdir / 'config.json'
    config = json.loads(path.read_text())
    (program.workdir / 'digests.json').unlink()
    for section, name in (('model', 'os.system'), ('optimizer', '__import__'), ('dataset', '../../etc/passwd')):
        path.write_text(json.dumps({**config, section: {**config[section], 'name': name}}))
        assert program.run('--mode=eval') == 2
        assert f'{section}.name must be one of ' in program.error() and f', got {name!r}' in program.error()


def compare(program, data_dir):
    """Compares the run with a copy of itself; returns the completed process."""
    other = shutil.copytree(program.workdir, program.directory / 'other')
    command = [sys.executable, '-m', 'mnist_jax.main', '--mode=compare', f'--run={program.workdir}', f'--run={other}']
    return subprocess.run(command, env=environment(data_dir), cwd=ROOT, capture_output=True, text=True)


def test_untrusted_predictions_are_not_unpickled(program, data_dir):
    with open(program.workdir / 'predictions.npz', 'wb') as file:
        np.savez(file, label=np.array([Payload()]), prediction=np.array([Payload()]))
    compared = compare(program, data_dir)
    assert compared.returncode == 2, compared.stderr
    assert re.fullmatch(r"error: '.*predictions.npz' is missing or damaged .*\n", compared.stderr)
    assert not Path('unpickled').exists()


def test_predictions_that_unpack_to_gigabytes_are_refused(program, data_dir):
    np.savez_compressed(program.workdir / 'predictions.npz', label=np.zeros(10**8), prediction=np.zeros(10**8))
    compared = compare(program, data_dir)
    assert compared.returncode == 2
    assert 'label must have at most 16,096 bytes for 300 examples' in compared.stderr


@pytest.mark.parametrize('split', ['train', 'test'])
def test_truncated_prepared_data_is_refused_before_the_workdir_is_touched(program, data_dir, tmp_path, split):
    copied = shutil.copytree(Path(data_dir), tmp_path / 'data')
    path = next(copied.rglob(f'*{split}.array_record*'))
    os.truncate(path, path.stat().st_size * 2 // 3)
    before = {path: path.read_bytes() for path in contents(program.workdir)}
    assert program.run(f'--config.dataset.data_dir={copied}') == 2
    assert f"error: the prepared dataset mnist is damaged (split '{split}')" in program.error()
    after = {path: path.read_bytes() for path in contents(program.workdir)}
    assert after == before


def test_raw_file_that_unpacks_to_gigabytes_is_refused_in_bounded_memory(tmp_path, data_dir):
    raw = tmp_path / 'raw'
    raw.mkdir()
    with gzip.open(raw / 'train-images-idx3-ubyte.gz', 'wb', compresslevel=1) as file:
        file.write(bytes.fromhex('00000803 0000ea60 0000001c 0000001c'))
        for _ in range(2000):
            file.write(bytes(2**20))
    for name in ('train-labels-idx1-ubyte', 't10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'):
        (raw / name).touch()
    program = Program(tmp_path, str(tmp_path / 'data'))
    with program.started(f'--config.dataset.raw_dir={raw}') as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 2
    assert (
        'must have 47,040,016 bytes, uncompressed, for the shape (60000, 28, 28) in its header, got more'
        in program.error()
    )
    assert usage.ru_maxrss * 1024 < 1.5e9
    assert not program.workdir.exists() and not list((tmp_path / 'data').rglob('*.array_record*'))


def test_damaged_compiled_programs_are_compiled_again(tmp_path, data_dir):
    program = Program(tmp_path, data_dir, tmp_path / 'cache')
    assert program.run('--config.epochs=1') == 0
    cached = contents(tmp_path / 'cache')
    assert len(cached) > 1
    for path in cached:
        os.truncate(path, path.stat().st_size // 2)
    assert program.run() == 0, program.output
    assert program.results() == uninterrupted(data_dir)[0]
    assert 'Traceback' not in program.output


@pytest.mark.parametrize('name', ['with spaces and ünïcödé 数字', '$HOME;\'"&`x`'])
def test_unusual_paths_work(tmp_path, data_dir, name):
    (tmp_path / 'real').mkdir()
    (tmp_path / name).symlink_to(tmp_path / 'real')
    data = shutil.copytree(data_dir, tmp_path / name / 'data')
    program = Program(tmp_path / name, str(data))
    program.workdir = tmp_path / name / 'run' / name
    assert program.run('--config.epochs=3') == 0, program.output
    assert program.run() == 0, program.output
    assert 'Resuming from the checkpoint of epoch 3 (step 30)' in program.output
    assert program.run('--mode=eval') == 0
    assert program.results() == uninterrupted(data_dir)[0]


@pytest.mark.parametrize('name', ['[v2]', 'run*', 'back\\slash', os.fsdecode(b'x\xff'), 'long' * 100])
def test_unusable_paths_are_refused(tmp_path, data_dir, name):
    program = Program(tmp_path, data_dir)
    assert program.run(workdir=tmp_path / name / 'run') == 2
    assert program.error()
    assert not (tmp_path / name[:200]).exists() and not list(tmp_path.rglob('config.json'))


@pytest.mark.parametrize('closed', ['>&-', '2>&-', '<&- >&- 2>&-'])
def test_program_runs_with_closed_standard_streams(tmp_path, data_dir, closed):
    shell = ('sh', '-c', f'exec "$@" {closed}', 'sh')
    program = Program(tmp_path, data_dir, wrapper=shell)
    assert program.run() == 0
    assert program.results() == uninterrupted(data_dir)[0]
