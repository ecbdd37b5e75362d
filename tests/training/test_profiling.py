"""Traces of training steps, and the tables made of them."""

import gzip
import json

import pytest
from conftest import fail_after

from mnist_jax.errors import UserError
from mnist_jax.train import train
from mnist_jax.training.profiling import WARM_UP_CALLS, Profiler


def rows_of(table):
    """Returns the calls of the operations in a table, by (part, direction, operation)."""
    lines = table.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith('---')) + 1
    return {
        tuple(cells[:3]): int(cells[3].replace(',', '')) for cells in map(str.split, lines[first:]) if len(cells) == 6
    }


def test_a_trace_names_the_layers_and_does_not_change_the_result(small, tmp_path):
    config = small('cnn', model__batch_norm=True, devices=1)
    expected = train(config, tmp_path / 'plain')
    config.profile_steps = 3
    assert train(config, tmp_path / 'run')['params_sha256'] == expected['params_sha256']
    (path,) = (tmp_path / 'run' / 'profile').rglob('*.trace.json.gz')
    assert any(
        event.get('args', {}).get('hlo_op') for event in json.loads(gzip.decompress(path.read_bytes()))['traceEvents']
    )
    table = (tmp_path / 'run' / 'profile' / 'operations.txt').read_text()
    assert table.startswith('Traced 3 training steps\n')
    calls = rows_of(table)
    assert calls.keys() >= {('Conv_1', 'backward', 'kernel_gradient'), ('Conv_1', 'backward', 'input_gradient')}
    assert {calls[row] for row in calls if row[2] == 'kernel_gradient'} == {3 * config.chunks}
    directions = {('BatchNorm_1', 'forward'), ('BatchNorm_1', 'backward'), ('Dense_0', 'forward'), ('update', '-')}
    assert directions <= {row[:2] for row in calls}


def test_steps_in_one_call_are_traced_together(small, tmp_path):  # in calls of 2, 2, 1, 2, 2, ...
    train(small(epochs=4, steps_per_call=2, profile_steps=4), tmp_path)
    assert (tmp_path / 'profile' / 'operations.txt').read_text().startswith('Traced 5 training steps\n')


def test_a_resumed_run_is_traced_too_and_replaces_the_trace(small, tmp_path):
    with pytest.raises(RuntimeError, match='as if killed'):
        train(small(profile_steps=100), tmp_path, on_step=fail_after(5))
    table = tmp_path / 'profile' / 'operations.txt'
    first = table.read_text()
    assert first.startswith('Traced ')
    train(small(profile_steps=2), tmp_path)
    assert table.read_text().startswith('Traced 2 training steps\n') and table.read_text() != first
    assert len(list((tmp_path / 'profile').rglob('*.xplane.pb'))) == 1


def test_a_start_with_too_few_steps_says_so(caplog, tmp_path):
    with Profiler(tmp_path / 'profile', 5) as profiler:
        assert list(profiler.watch([[1]] * WARM_UP_CALLS, lambda: None)) == [[1]] * WARM_UP_CALLS
    assert 'No steps were traced' in caplog.text and not (tmp_path / 'profile').exists()


def test_a_run_goes_on_if_its_trace_cannot_be_written(small, tmp_path, caplog):
    (tmp_path / 'profile').write_text('a file of the user')
    result = train(small(profile_steps=1), tmp_path)
    assert result['count'] == 200 and 'The steps cannot be traced in' in caplog.text
    assert (tmp_path / 'profile').read_text() == 'a file of the user'


def test_profile_steps_must_be_a_count(small, tmp_path):
    with pytest.raises(UserError, match=r'config.profile_steps must be an integer from 0 to 1000, got -1'):
        train(small(profile_steps=-1), tmp_path)
