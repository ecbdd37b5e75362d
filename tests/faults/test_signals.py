"""The program killed and asked to stop at random moments: what resumes ends as what was left alone."""

import random
import shutil
import signal
import time

import pytest
from harness import SMALL, STEPS_PER_EPOCH, Program, undisturbed, until

CHAINS = [0, *(pytest.param(seed, marks=pytest.mark.whole) for seed in range(1, 10))]


@pytest.mark.parametrize('seed', CHAINS)
def test_killed_at_random_moments(tmp_path, data_dir, pytestconfig, seed):
    """5 kills a chain; the first chain prepares its data and compiles its programs itself."""
    whole = pytestconfig.getoption('faults')
    model = () if whole else SMALL  # () is that of configs/cnn.py
    expected, seconds = undisturbed(data_dir, model)
    own = whole and seed == 0
    data, cache = (str(tmp_path / 'data'), tmp_path / 'cache') if own else (data_dir, None)
    program, moments = Program(tmp_path, data, cache, model=model), random.Random(seed)
    kills = 0
    while kills < (5 if whole else 1):
        with program.started('--config.checkpoint_every_steps=3') as process:
            time.sleep(moments.uniform(0, seconds * (2 if own else 1)))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
        if process.wait() == 0:  # It had come to its end: another run, from the begin.
            assert program.results() == expected
            shutil.rmtree(program.workdir)
        else:
            assert process.returncode == -signal.SIGKILL, program.said
    assert program.run() == 0, program.said
    assert program.results() == expected
    assert not list(program.workdir.glob('.*')) and not list(program.workdir.glob('checkpoints/*tmp*'))


@pytest.mark.parametrize('seed', CHAINS)
def test_asked_to_stop_at_random_moments(tmp_path, data_dir, pytestconfig, seed):
    """2 signals a chain, SIGTERM and for some of them SIGINT."""
    whole = pytestconfig.getoption('faults')
    model = () if whole else SMALL
    expected, seconds = undisturbed(data_dir, model)
    program, moments = Program(tmp_path, data_dir, model=model), random.Random(100 + seed)
    stops = 0
    while stops < (2 if whole else 1):
        number = signal.SIGTERM if moments.random() < 0.8 else signal.SIGINT
        with program.started() as process:
            # Python itself needs a moment until it can be told.
            time.sleep(moments.uniform(1.0, seconds))
            process.send_signal(number)
            began = time.monotonic()
            status = process.wait(30)
            waited = time.monotonic() - began
        if status == 0:
            assert waited < 1  # It was at its end, and not deaf.
            assert program.results() == expected
            shutil.rmtree(program.workdir)
            continue
        stops += 1
        assert status == 128 + number, program.said
        assert waited < 10
        check_what_is_saved(program)
    assert program.run() == 0, program.said
    assert program.results() == expected


def check_what_is_saved(program):
    """What it says is saved is the newest checkpoint; where it says nothing it had made no step, or saved all."""
    told = [line for line in program.said.splitlines() if 'stopped by SIG' in line and 'after step' in line]
    saved = [int(path.name) for path in program.workdir.glob('checkpoints/*') if path.name.isdecimal()]
    for line in told:
        assert line.split('after step ')[1].split(';')[0].replace(',', '') == str(max(saved))
    if not told and 'epoch ' in program.said:
        epochs = sum('images/s' in line for line in program.said.splitlines())
        assert max(saved) >= STEPS_PER_EPOCH * epochs


def test_a_second_signal_ends_at_once(tmp_path, data_dir):
    program = Program(tmp_path, data_dir)
    with program.started('--config.epochs=50') as process:
        until(lambda: 'epoch  1/50' in program.said, process)
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.001)
        assert process.wait(5) == 143


@pytest.mark.whole
def test_a_signal_while_compiling_ends_at_once(tmp_path, data_dir):
    program = Program(tmp_path, data_dir, tmp_path / 'cache')
    with program.started() as process:
        until(lambda: 'parameters: ' in program.said, process)
        time.sleep(0.5)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143 and time.monotonic() - began < 1
    assert 'stopped by SIGTERM' in program.said


@pytest.fixture
def first_and_second(tmp_path, data_dir):
    """Two programs, of which the second one is to train in the workdir of the first."""
    (tmp_path / 'second').mkdir()
    return Program(tmp_path, data_dir), Program(tmp_path / 'second', data_dir)


def check_refused(first, second, process):
    """The second one is refused, and told which process has the workdir."""
    assert second.run('--config.epochs=30', workdir=first.workdir) == 2
    assert f"--workdir '{first.workdir}' is in use by process {process.pid} on " in second.error()


@pytest.mark.whole
def test_the_second_run_in_a_workdir_is_refused(first_and_second):
    first, second = first_and_second
    with first.started('--config.epochs=30') as process:
        until(lambda: 'epoch  1/30' in first.said, process)
        check_refused(first, second, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert str(process.pid) in (first.workdir / 'lock').read_text()
    assert first.run('--config.epochs=30') == 0, first.said


@pytest.mark.whole
def test_a_run_whose_workdir_was_moved_keeps_others_out_of_the_new_one(tmp_path, first_and_second):
    first, second = first_and_second
    with first.started('--config.epochs=30') as process:
        until(lambda: 'epoch  1/30' in first.said, process)
        first.workdir.rename(tmp_path / 'elsewhere')
        until(lambda: (first.workdir / 'config.json').exists(), process)
        check_refused(first, second, process)
        assert process.wait(60) == 0
