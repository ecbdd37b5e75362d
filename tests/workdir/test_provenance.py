"""Provenance: what a workdir records about each start of its run."""

import importlib.metadata
import json
import sys
from types import SimpleNamespace

import pytest
from absl import flags
from conftest import make_small

from mnist_jax.studies.workers import share_work
from mnist_jax.train import train
from mnist_jax.workdir.provenance import (
    FIELDS,
    MAX_STARTS,
    changed_code,
    program,
    read_epochs,
    read_provenance,
    record_start,
    training_start,
)


def test_each_start_is_recorded(data_dir, tmp_path):
    train(make_small(data_dir, epochs=1), tmp_path)
    train(make_small(data_dir, epochs=2), tmp_path)
    first, second = read_provenance(tmp_path)
    assert (first['step'], second['step']) == (0, 5) and first['began'] <= second['began']
    assert first['devices'] == '2 (CPU, virtual)' and first['command'].endswith(', from Python')
    assert first['versions']['jax'] == importlib.metadata.version('jax')
    assert first['commit'] == 'unknown' or len(first['commit'].split()[0]) == 40


@pytest.mark.parametrize('script', ['/x/main.py', 'own.py'])
def test_own_scripts_are_started_again_with_their_name(monkeypatch, script):
    monkeypatch.setattr('sys.argv', [script, '--mode=sweep'])
    monkeypatch.setattr(flags, 'FLAGS', SimpleNamespace(is_parsed=lambda: True))
    assert program() == ['python', script]
    started = []
    monkeypatch.setattr('mnist_jax.studies.workers.launch_workers', lambda *call: started.append(call) or 0)
    assert share_work(lambda: None, 2, sys.argv[1:]) == 0
    assert started == [(['--mode=sweep', '--workers=0'], 2, [sys.executable, script])]


@pytest.mark.parametrize('program', ['/x/mnist_jax/main.py', '/x/bin/mnist-jax'])
def test_recorded_command_is_quoted_for_the_shell(monkeypatch, tmp_path, program):
    monkeypatch.setattr('sys.argv', [program, '--config=a b.py', '--config.model.hidden=(8,)'])
    record_start(tmp_path, 0, 'none')
    (start,) = read_provenance(tmp_path)
    command = "python -m mnist_jax.main '--config=a b.py' '--config.model.hidden=(8,)'"
    assert start['command'] == command
    for own in (['--processes=0', '--coordinator=127.0.0.1:1', '--num_processes=2', '--process_id=0'], ['--workers=0']):
        monkeypatch.setattr('sys.argv', [program, '--config=a b.py', '--config.model.hidden=(8,)', *own])
        record_start(tmp_path, 0, 'none')
        assert read_provenance(tmp_path)[-1]['command'] == command


def test_a_result_is_that_of_the_last_start_before_its_step():
    starts = [make_start(step) for step in (0, 5, 10, 10)]
    assert [training_start(starts, step) for step in (0, 5, 6, 10, 11)] == [0, 0, 1, 1, 3]


def test_only_code_that_has_trained_the_parameters_counts(tmp_path):
    starts = [make_start(step) | {'own_code': {'config.loss.name=own': code}} for step, code in ((0, 'a'), (5, 'b'))]
    (tmp_path / 'provenance.json').write_text(json.dumps([*starts, make_start(9)]))

    def changed(code, step):
        return changed_code(tmp_path, {'config.loss.name=own': code}, step)

    assert changed('a', 5) == changed('a', 0) == changed('b', 0) == []
    assert changed('b', 5) == changed('a', 6) == changed('b', 6) == ['config.loss.name=own']
    # A new run in the same directory.
    (tmp_path / 'provenance.json').write_text(json.dumps([*starts, starts[0] | {'own_code': {}}]))
    assert changed('b', 6) == []


def test_damaged_starts_are_ignored_and_old_ones_dropped(tmp_path):
    assert read_provenance(tmp_path) == []
    for text in ('', '[', '{}', '[1]', '[{"began": 1}]', '[' * 100_000):
        (tmp_path / 'provenance.json').write_text(text)
        assert read_provenance(tmp_path) == []
    record_start(tmp_path, 0, 'none')
    assert len(read_provenance(tmp_path)) == 1
    assert (tmp_path / 'provenance.damaged.json').read_text() == text
    (tmp_path / 'provenance.json').write_text('damaged again')
    record_start(tmp_path, 0, 'none')
    assert (tmp_path / 'provenance.damaged.json').read_text() == text
    assert (tmp_path / 'provenance.damaged-1.json').read_text() == 'damaged again'
    for step in range(MAX_STARTS + 5):
        starts = [*read_provenance(tmp_path)[1 - MAX_STARTS :]]
        (tmp_path / 'provenance.json').write_text(json.dumps([*starts, make_start(step)]))
    record_start(tmp_path, 7, 'none')
    steps = [start['step'] for start in read_provenance(tmp_path)]
    assert len(steps) == MAX_STARTS and steps[-2:] == [MAX_STARTS + 4, 7]


def test_the_history_of_the_number_of_epochs_is_that_of_the_last_start(tmp_path):
    assert read_epochs(tmp_path) == ()
    record_start(tmp_path, 0, 'none', [(0, 3)])
    record_start(tmp_path, 15, 'none', [(0, 3), (15, 5)])
    assert read_epochs(tmp_path) == [(0, 3), (15, 5)]
    for epochs in (None, 3, [3], [[0]], [['0', 3]], [[0, -1]], [[5, 3]], [[0, 3], [5, 4], [2, 3]], [[0, 0.5]], []):
        (tmp_path / 'provenance.json').write_text(json.dumps([{**make_start(1), 'epochs': epochs}]))
        assert read_epochs(tmp_path) == ()
    (tmp_path / 'provenance.json').write_text(json.dumps([make_start(1)]))  # as an older version wrote it
    assert read_epochs(tmp_path) == ()


def make_start(step):
    return {**dict.fromkeys(FIELDS, ''), 'step': step, 'versions': {}}
