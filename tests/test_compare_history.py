"""The comparison of benchmark runs: ratios to other programs in the same run, not images/s."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT


def line(commit, ours, torch, keras=None, processor='x', model='cnn'):
    programs = {'ours': ours, 'torch': torch, **({'keras': keras} if keras else {})}
    return {
        'commit': commit,
        'processor': processor,
        'model': model,
        'programs': {name: {'train': speeds, 'eval': [100.0] * len(speeds)} for name, speeds in programs.items()},
    }


@pytest.fixture
def compare(tmp_path):
    """A function that writes a history and compares its runs; returns the exit status and both outputs."""

    def run(lines, *flags):
        path = tmp_path / 'history.jsonl'
        path.write_text(''.join(f'{json.dumps(item)}\n' for item in lines))
        command = [sys.executable, 'benchmarks/compare_history.py', f'--history={path}', *flags]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return process.returncode, process.stdout, process.stderr

    return run


def test_a_slower_machine_is_not_a_slower_program(compare):
    before, after = line('a', [200.0, 220.0], [100.0, 110.0]), line('b', [100.0, 90.0], [50.0, 45.0])
    status, output, _ = compare([before, after])
    assert status == 0 and '| `cnn` | training | x | a | b | 1.00 |' in output


def test_a_fall_of_the_median_ratio_is_reported(compare):
    # The ratios to PyTorch fall from 2 to 1.5, those to Keras from 4 to 2: changes of 0.75 and 0.5.
    before, after = line('a', [200.0], [100.0], [50.0]), line('b', [150.0], [100.0], [75.0])
    other = line('b', [1.0], [100.0], processor='y')
    status, output, _ = compare([before, other, after])
    assert status == 1 and '| `cnn` | training | x | a | b | 0.62 slower |' in output
    assert '| `cnn` | evaluation | x | a | b | 1.00 |' in output and output.count('\n') == 4
    assert compare([before, after], '--tolerance=0.5')[0] == 0


def test_the_commit_to_compare_with_can_be_chosen(compare):
    runs = [line('a', [200.0], [100.0]), line('b', [300.0], [100.0]), line('c', [200.0], [100.0])]
    assert 'a | c | 1.00 |' in compare(runs, '--since=a')[1] and 'b | c | 0.67 slower' in compare(runs)[1]


@pytest.mark.parametrize(
    ('lines', 'flags', 'message'),
    [
        ([], [], '--history must have runs of two commits on one processor, got the commits none'),
        ([line('a', [1.0], [1.0])], [], 'got the commits a'),
        ([line('a', [1.0], [1.0])], ['--history=nothing'], '--history must be a file of JSON lines'),
    ],
)
def test_too_few_runs_are_an_error_of_one_line(compare, lines, flags, message):
    status, _, errors = compare(lines, *flags)
    assert status == 2 and message in errors.splitlines()[-1]
