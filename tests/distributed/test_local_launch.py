"""Several processes of the program: they give the same bits as one process, and all end if one does."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import ROOT, environment

from mnist_jax.distributed import local_launch
from mnist_jax.distributed.signals import REPEAT_SECONDS

TIMEOUT = 120  # seconds; a test that takes longer is hanging
CONFIG = (
    f'--config={ROOT}/configs/cnn.py',
    '--config.dataset.train=train[:301]',
    '--config.dataset.validation=train[301:400]',
    '--config.dataset.test=test[:203]',
    '--config.batch_size=50',
    '--config.chunks=4',
    '--config.epochs=2',
    '--config.model.stages=((4,), (8,))',
    '--config.model.hidden=(16,)',
    '--config.model.dropout=(0.5,)',
)
RUN = ('--noreport', *CONFIG)


@pytest.fixture(scope='module')
def one_process(tmp_path_factory, data_dir):
    """The result and the metrics of the run in a single process with one device."""
    workdir = tmp_path_factory.mktemp('one_process')
    command = [sys.executable, '-m', 'mnist_jax.main', *RUN, '--config.devices=1', f'--workdir={workdir}']
    subprocess.run(command, env=environment(data_dir), check=True, capture_output=True)
    return read_result(workdir)


def read_result(workdir):
    rows = [line.split(',')[:7] for line in (workdir / 'metrics.csv').read_text().splitlines()]
    return json.loads((workdir / 'eval.json').read_text()), rows


def test_two_processes_are_bit_identical_to_one_and_log_once(program, tmp_path, one_process):
    process = program(*RUN, '--report', '--config.devices=2', '--processes=2', '--workdir=run', check=True)
    assert (tmp_path / 'run' / 'report' / 'index.html').exists()
    assert read_result(tmp_path / 'run') == one_process
    lines = [line.split(' ', 1)[1] for line in process.stderr.splitlines() if 'Gloo' not in line]
    assert lines[0].startswith('Process 0 of 2 is connecting to 127.0.0.1:')
    assert lines[1] == 'devices   4 (CPU, virtual), 2 in each of 2 processes'
    assert [line.split('  ')[0] for line in lines if line.startswith('epoch')] == ['epoch 1/2', 'epoch 2/2']
    evaluation = program('--mode=eval', '--workdir=run', '--processes=2', '--step=latest', check=True)
    assert evaluation.stdout.count('accuracy   ') == 1
    latest = json.loads((tmp_path / 'run' / 'eval-step14.json').read_text())
    assert latest == one_process[0]


def test_a_run_can_be_resumed_on_another_number_of_processes(program, tmp_path, one_process):
    program(*RUN, '--config.epochs=1', '--config.devices=2', '--workdir=run', check=True)
    program(*RUN, '--config.devices=1', '--processes=2', '--workdir=run', check=True)
    assert read_result(tmp_path / 'run') == one_process


def test_a_killed_process_ends_its_peers_and_the_run_can_be_resumed(tmp_path, data_dir, program, one_process):
    command = [sys.executable, '-m', 'mnist_jax.main', *RUN, '--config.devices=1', '--processes=2', '--workdir=run']
    options = {'cwd': tmp_path, 'env': environment(data_dir), 'stderr': subprocess.PIPE, 'text': True}
    with subprocess.Popen(command, **options) as launcher:
        children = []
        while not (tmp_path / 'run' / 'checkpoints').exists():
            assert launcher.poll() is None
            children = [child.pid for child in psutil.Process(launcher.pid).children()]
            time.sleep(0.1)
        os.kill(children[1], signal.SIGKILL)
        _, stderr = launcher.communicate(timeout=TIMEOUT)
    assert launcher.returncode == 1
    assert (
        'error: process 1 of 2 was killed (SIGKILL), so the run stops; run the same command again to resume from the '
        'last checkpoint'
    ) in stderr
    assert 'Traceback' not in stderr
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
    program(*RUN, '--config.devices=4', '--workdir=run', check=True)
    assert read_result(tmp_path / 'run') == one_process


def test_a_user_error_in_all_processes_is_printed_once(program, tmp_path):
    process = program(*RUN, '--config.batch_size=1000', '--processes=2')
    assert process.returncode == 2
    assert process.stderr.count('error: ') == 1
    assert 'config.batch_size must be at most the number of training examples, 301' in process.stderr
    assert 'Traceback' not in process.stderr and not (tmp_path / 'runs').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--processes=0',), '--processes must be from 1 to 64, got 0'),
        (
            ('--num_processes=2',),
            '--coordinator, --num_processes and --process_id must be given together; missing: --coordinator, '
            '--process_id',
        ),
        (
            ('--coordinator=here', '--num_processes=2', '--process_id=1'),
            "--coordinator must be host:port of process 0, with a port from 1 to 65535, got 'here'",
        ),
        (
            ('--coordinator=a:1', '--num_processes=2', '--process_id=2'),
            '--process_id must be from 0 to 1 (--num_processes=2), got 2',
        ),
        (
            ('--coordinator=here:99999', '--num_processes=2', '--process_id=1'),
            "--coordinator must be host:port of process 0, with a port from 1 to 65535, got 'here:99999'",
        ),
        (
            ('--coordinator=a:1', '--num_processes=0', '--process_id=0'),
            '--num_processes must be at least 1, got 0',
        ),
        (
            ('--processes=2', '--process_id=0'),
            '--processes starts all processes itself and must not be combined with --process_id',
        ),
        (('--mode=summary', '--processes=2'), '--processes is not used by --mode=summary'),
    ],
)
def test_wrong_flags_are_errors_that_say_what_they_must_be(forked, arguments, message):
    process = forked(*CONFIG, *arguments)
    assert process.returncode == 2
    assert process.stderr.startswith('error: ') and process.stderr.count('\n') == 1
    assert message in process.stderr


LAUNCH = """
import sys
from mnist_jax.distributed import local_launch
local_launch.GRACE_SECONDS = 2.0
sys.exit(local_launch.launch_processes([], {num_processes}, [sys.executable, 'script.py']))
"""
CHILD = """
import os, signal, sys, time
from mnist_jax.distributed import local_launch
local_launch.prepare_child()
number = int(sys.argv[-1][-1])
"""


@pytest.fixture
def launch_script(tmp_path):
    """A function that launches a script in several processes, instead of the program; `number` is the process index."""

    def launch(num_processes, script):
        (tmp_path / 'script.py').write_text(CHILD + script)
        options = {'env': {**os.environ, 'PYTHONPATH': str(ROOT)}, 'stderr': subprocess.PIPE, 'text': True}
        code = LAUNCH.format(num_processes=num_processes)
        return subprocess.Popen([sys.executable, '-c', code], cwd=tmp_path, **options)

    return launch


def test_the_output_of_a_failed_process_is_shown(launch_script):
    with launch_script(3, "if number == 2: sys.exit('no such thing')\ntime.sleep(600)") as launcher:
        assert launcher.communicate(timeout=TIMEOUT)[1] == 'no such thing\n(process 2 of 3)\n'
        assert launcher.returncode == 1


def test_a_process_that_ignores_sigterm_is_killed(launch_script):
    script = 'signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(1 + 600 * number)\nsys.exit(3)'
    with launch_script(2, script) as launcher:
        assert launcher.wait(TIMEOUT) == 3


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_to_the_launcher_ends_all_processes(launch_script, tmp_path, number):
    script = 'os.mkdir(f"{os.getpid()}.pid")\ntry:\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    sys.exit(130)'
    with launch_script(2, script) as launcher:
        while len(list(tmp_path.glob('*.pid'))) < 2:
            assert launcher.poll() is None
            time.sleep(0.05)
        launcher.send_signal(number)
        assert launcher.wait(TIMEOUT) == (-number if number == signal.SIGKILL else 128 + number)
    deadline = time.monotonic() + TIMEOUT
    for path in tmp_path.glob('*.pid'):
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.kill(int(path.stem), 0)
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_a_second_signal_kills_all_processes(launch_script, tmp_path):
    script = 'signal.signal(signal.SIGINT, signal.SIG_IGN)\nos.mkdir(f"{os.getpid()}.pid")\ntime.sleep(600)'
    with launch_script(2, script) as launcher:
        while len(list(tmp_path.glob('*.pid'))) < 2:
            time.sleep(0.05)
        launcher.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            launcher.wait(REPEAT_SECONDS)
        deadline = time.monotonic() + TIMEOUT
        while launcher.poll() is None and time.monotonic() < deadline:
            launcher.send_signal(signal.SIGINT)
            time.sleep(0.5)
        assert launcher.wait(TIMEOUT) == 130


def test_a_process_that_fails_while_it_stops_is_reported(launch_script, tmp_path):
    # Process 0 was stopped by another signal than the launcher, which a supervisor sends to every process.
    script = 'signal.signal(signal.SIGTERM, lambda *_: sys.exit("the disk is full" if number else 129))\n'
    script += 'os.mkdir(f"{os.getpid()}.pid")\ntime.sleep(600)'
    with launch_script(2, script) as launcher:
        while len(list(tmp_path.glob('*.pid'))) < 2:
            time.sleep(0.05)
        launcher.send_signal(signal.SIGTERM)
        assert launcher.communicate(timeout=TIMEOUT)[1] == 'the disk is full\n(process 1 of 2)\n'
        assert launcher.returncode == 1


def test_each_process_gets_an_equal_share_of_the_cores(monkeypatch):
    monkeypatch.setattr('os.sched_getaffinity', lambda process: {3, 4, 5, 6, 8}, raising=False)
    assert [local_launch.cores_for_process(number, 2) for number in (0, 1)] == [[3, 4], [5, 6]]
    assert [local_launch.cores_for_process(number, 7) for number in (0, 4, 5, 6)] == [[3], [8], [3], [4]]
