"""Kills and stops the program at random moments: a resumed run has the results of an uninterrupted one."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from harness import (
    EPOCHS,
    SMALL,
    STEPS_PER_EPOCH,
    TIMEOUT_SECONDS,
    Program,
    epochs_done,
    resume,
    uninterrupted,
    wait_until,
    wait_until_paused,
)

from mnist_jax.distributed.signals import REPEAT_SECONDS

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow_faults) for seed in range(1, 10))]


@pytest.mark.parametrize('seed', SEEDS)
def test_killed_run_resumes_to_the_results_of_an_uninterrupted_run(tmp_path, data_dir, pytestconfig, seed):
    """With --faults, kills the run 5 times; the run of seed 0 also prepares its data and compiles its programs."""
    faults = pytestconfig.getoption('faults')
    model = () if faults else SMALL  # () is the model of configs/cnn.py.
    expected, seconds = uninterrupted(data_dir, model)
    cold = faults and seed == 0
    data, cache = (str(tmp_path / 'data'), tmp_path / 'cache') if cold else (data_dir, None)
    program, rng = Program(tmp_path, data, cache, model=model), random.Random(seed)
    kills = 0
    while kills < (5 if faults else 1):
        with program.started('--config.checkpoint_every_steps=3') as process:
            time.sleep(rng.uniform(0, seconds * (2 if cold else 1)))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
        if process.wait() == 0:  # It had already finished: start over.
            assert program.results() == expected
            shutil.rmtree(program.workdir)
        else:
            assert process.returncode == -signal.SIGKILL, program.output
    assert program.run() == 0, program.output
    assert program.results() == expected
    assert not list(program.workdir.glob('.*')) and not list(program.workdir.glob('checkpoints/*tmp*'))


@pytest.mark.parametrize('seed', SEEDS)
def test_stopped_run_resumes_to_the_results_of_an_uninterrupted_run(tmp_path, data_dir, pytestconfig, seed):
    """Stops the run with SIGTERM or, less often, SIGINT; with --faults, twice."""
    faults = pytestconfig.getoption('faults')
    model = () if faults else SMALL
    expected, seconds = uninterrupted(data_dir, model)
    program, rng = Program(tmp_path, data_dir, model=model), random.Random(100 + seed)
    stops = 0
    while stops < (2 if faults else 1):
        number = signal.SIGTERM if rng.random() < 0.8 else signal.SIGINT
        with program.started() as process:
            wait_until(lambda pid=process.pid: catches(pid, signal.SIGTERM), process)
            time.sleep(rng.uniform(0, seconds))
            process.send_signal(number)
            epochs = epochs_done(program.workdir)
            status = process.wait(TIMEOUT_SECONDS)
        if status == 0:
            assert epochs >= EPOCHS - 1  # It was about to finish; it did not ignore the signal.
            assert program.results() == expected
            shutil.rmtree(program.workdir)
            continue
        stops += 1
        assert status == 128 + number, program.output
        assert epochs_done(program.workdir) <= epochs + 1  # It did not start another epoch.
        check_reported_step(program)
    assert program.run() == 0, program.output
    assert program.results() == expected


def catches(pid, number):
    """Returns whether a process handles a signal; Python needs a moment to set that up. Always True except on Linux."""
    path = Path(f'/proc/{pid}/status')
    if not path.exists():
        return True
    (mask,) = [line.split()[1] for line in path.read_text().splitlines() if line.startswith('SigCgt:')]
    return bool(int(mask, 16) >> (number - 1) & 1)


def check_reported_step(program):
    """Checks that a stopped run reports the step of its newest checkpoint, or reports none if all was saved already."""
    lines = [line for line in program.output.splitlines() if 'stopped by SIG' in line and 'after step' in line]
    saved = [int(path.name) for path in program.workdir.glob('checkpoints/*') if path.name.isdecimal()]
    for line in lines:
        assert line.split('after step ')[1].split(';')[0].replace(',', '') == str(max(saved))
    if not lines and 'epoch ' in program.output:
        epochs = sum('images/s' in line for line in program.output.splitlines())
        assert max(saved) >= STEPS_PER_EPOCH * epochs


def test_a_second_signal_ends_the_program_without_waiting_for_the_step(tmp_path, data_dir):
    program = Program(tmp_path, data_dir)
    with program.started(pause_after=(14,), hang_after=15) as process:
        wait_until_paused(process)
        process.send_signal(signal.SIGTERM)
        resume(process)
        wait_until(lambda: 'SIGTERM: saving and stopping' in program.output, process)
        time.sleep(REPEAT_SECONDS)
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_SECONDS) == 143
    assert 'after step 15' not in program.output


@pytest.mark.slow_faults
def test_a_signal_while_compiling_ends_the_program_without_waiting_for_a_step(tmp_path, data_dir):
    program = Program(tmp_path, data_dir, tmp_path / 'cache')
    with program.started() as process:
        wait_until(lambda: 'parameters: ' in program.output, process)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_SECONDS) == 143
    assert 'stopped by SIGTERM' in program.output and 'after step' not in program.output


@pytest.fixture
def two_programs(tmp_path, data_dir):
    """Two programs, the second of which will try to train in the workdir of the first."""
    (tmp_path / 'second').mkdir()
    return Program(tmp_path, data_dir), Program(tmp_path / 'second', data_dir)


def check_refused(first, second, process):
    """Checks that the second program is refused, with an error that names the process that uses the workdir."""
    assert second.run(workdir=first.workdir) == 2
    assert f"--workdir '{first.workdir}' is in use by process {process.pid} on " in second.error()


@pytest.mark.slow_faults
def test_a_second_run_in_the_same_workdir_is_refused(two_programs):
    first, second = two_programs
    with first.started(hang_after=15) as process:
        wait_until(lambda: 'epoch 1/5' in first.output, process)
        check_refused(first, second, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert str(process.pid) in (first.workdir / 'lock').read_text()
    assert first.run() == 0, first.output


@pytest.mark.slow_faults
def test_a_run_whose_workdir_was_moved_locks_the_new_one(tmp_path, two_programs):
    first, second = two_programs
    with first.started(pause_after=(15, 35)) as process:
        wait_until_paused(process)
        first.workdir.rename(tmp_path / 'elsewhere')
        resume(process)
        wait_until_paused(process)
        assert (first.workdir / 'config.json').exists()
        check_refused(first, second, process)
        resume(process)
        assert process.wait(TIMEOUT_SECONDS) == 0
