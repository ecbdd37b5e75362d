"""Several processes of the program, as one process or more would be: the same bits, and one end for all."""

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

CONFIG = (
    f'--config={ROOT}/configs/cnn.py',
    '--config.dataset.train=train[:301]',
    '--config.dataset.validation=train[301:400]',
    '--config.dataset.test=test[:203]',
    '--config.batch_size=50',
    '--config.epochs=2',
    '--config.model.stages=((4,), (8,))',
    '--config.model.hidden=(16,)',
    '--config.model.dropout=(0.5,)',
)
RUN = ('--noreport', *CONFIG)


@pytest.fixture(scope='module')
def alone(tmp_path_factory, data_dir):
    """The result and the metrics of the run in one process of one device."""
    workdir = tmp_path_factory.mktemp('alone')
    command = [sys.executable, '-m', 'mnist_jax.main', *RUN, '--config.devices=1', f'--workdir={workdir}']
    subprocess.run(command, env=environment(data_dir), check=True, capture_output=True)
    return result(workdir)


def result(workdir):
    rows = [line.split(',')[:7] for line in (workdir / 'metrics.csv').read_text().splitlines()]
    return json.loads((workdir / 'eval.json').read_text()), rows


def test_two_processes_give_the_bits_of_one_and_speak_once(program, tmp_path, alone):
    found = program(*RUN, '--report', '--config.devices=2', '--processes=2', '--workdir=run', check=True)
    assert (tmp_path / 'run' / 'report' / 'index.html').exists()
    assert result(tmp_path / 'run') == alone
    lines = [line.split(' ', 1)[1] for line in found.stderr.splitlines() if 'Gloo' not in line]
    assert lines[0].startswith('Process 0 of 2 meets the others at 127.0.0.1:')
    assert lines[1] == 'devices   4 (CPU, virtual), 2 in each of 2 processes'
    assert [line.split('  ')[0] for line in lines if line.startswith('epoch')] == ['epoch 1/2', 'epoch 2/2']
    evaluated = program('--mode=eval', '--workdir=run', '--processes=2', '--step=latest', check=True)
    assert evaluated.stdout.count('accuracy   ') == 1
    step = json.loads((tmp_path / 'run' / 'eval-step14.json').read_text())
    assert step == alone[0]


def test_a_run_moves_from_devices_to_processes(program, tmp_path, alone):
    program(*RUN, '--config.epochs=1', '--config.devices=2', '--workdir=run', check=True)
    program(*RUN, '--config.devices=1', '--processes=2', '--workdir=run', check=True)
    assert result(tmp_path / 'run') == alone


def test_one_killed_process_ends_the_others_and_the_next_start_goes_on(tmp_path, data_dir, program, alone):
    command = [sys.executable, '-m', 'mnist_jax.main', *RUN, '--config.devices=1', '--processes=2', '--workdir=run']
    given = {'cwd': tmp_path, 'env': environment(data_dir), 'stderr': subprocess.PIPE, 'text': True}
    with subprocess.Popen(command, **given) as launcher:
        children = []
        while not (tmp_path / 'run' / 'checkpoints').exists():
            assert launcher.poll() is None
            children = [child.pid for child in psutil.Process(launcher.pid).children()]
            time.sleep(0.1)
        os.kill(children[1], signal.SIGKILL)
        began = time.monotonic()
        _, told = launcher.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert launcher.returncode == 1
    assert 'error: process 1 of 2 was killed (SIGKILL), so the run ends; the same command goes on' in told
    assert 'Traceback' not in told
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
    program(*RUN, '--config.devices=4', '--workdir=run', check=True)
    assert result(tmp_path / 'run') == alone


def test_what_the_user_got_wrong_is_told_once(program, tmp_path):
    found = program(*RUN, '--config.batch_size=1000', '--processes=2')
    assert found.returncode == 2
    assert found.stderr.count('error: ') == 1 and 'batch_size=1000 is larger than' in found.stderr
    assert 'Traceback' not in found.stderr and not (tmp_path / 'runs').exists()


@pytest.mark.parametrize(
    ('arguments', 'told'),
    [
        (('--processes=0',), '--processes=0 is wrong: 1 to 64 are wanted'),
        (('--num_processes=2',), '--coordinator, --process_id missing: --coordinator, --num_processes and'),
        (('--coordinator=here', '--num_processes=2', '--process_id=1'), "--coordinator='here' is wrong: the host and"),
        (('--coordinator=a:1', '--num_processes=2', '--process_id=2'), '--process_id=2 is wrong: 0 to 1 are the'),
        (
            ('--coordinator=here:99999', '--num_processes=2', '--process_id=1'),
            "--coordinator='here:99999' is wrong: the",
        ),
        (('--coordinator=a:1', '--num_processes=0', '--process_id=0'), '--num_processes=0 is wrong: at least 1'),
        (('--processes=2', '--process_id=0'), '--processes and --process_id exclude each other'),
        (('--mode=summary', '--processes=2'), '--processes is not for --mode=summary'),
    ],
)
def test_wrong_flags_are_told(forked, arguments, told):
    found = forked(*CONFIG, *arguments)
    assert found.returncode == 2
    assert found.stderr.startswith('error: ') and found.stderr.count('\n') == 1
    assert told in found.stderr


LAUNCH = """
import sys
from mnist_jax.distributed import local_launch as launch
launch.GRACE = 2.0
sys.exit(launch.launch([], {processes}, [sys.executable, 'script.py']))
"""


@pytest.fixture
def stand_ins(tmp_path):
    """A function that launches so many processes of a script, which is given its number, instead of the program."""

    def start(processes, script):
        begin = 'import os, signal, sys, time\nfrom mnist_jax import launch\nlaunch.prepare()\n'
        (tmp_path / 'script.py').write_text(f'{begin}number = int(sys.argv[-1][-1])\n{script}')
        code = LAUNCH.format(processes=processes)
        given = {'env': {**os.environ, 'PYTHONPATH': str(ROOT)}, 'stderr': subprocess.PIPE, 'text': True}
        return subprocess.Popen([sys.executable, '-c', code], cwd=tmp_path, **given)

    return start


def test_the_failed_process_is_heard(stand_ins):
    with stand_ins(3, "if number == 2: sys.exit('no such thing')\ntime.sleep(60)") as launcher:
        assert launcher.communicate(timeout=20)[1] == 'no such thing\n(process 2 of 3)\n'
        assert launcher.returncode == 1


def test_a_process_that_ignores_sigterm_is_killed(stand_ins):
    script = 'signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(1 + 60 * number)\nsys.exit(3)'
    with stand_ins(2, script) as launcher:
        assert launcher.wait(20) == 3


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_ends_all(stand_ins, tmp_path, number):
    script = 'os.mkdir(f"{os.getpid()}.pid")\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    sys.exit(130)'
    with stand_ins(2, script) as launcher:
        while len(list(tmp_path.glob('*.pid'))) < 2:
            assert launcher.poll() is None
            time.sleep(0.05)
        launcher.send_signal(number)
        assert launcher.wait(20) == (-number if number == signal.SIGKILL else 128 + number)
    until = time.monotonic() + 10
    for path in tmp_path.glob('*.pid'):
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.kill(int(path.stem), 0)
                assert time.monotonic() < until
                time.sleep(0.05)


def test_a_second_signal_kills(stand_ins, tmp_path):
    script = 'signal.signal(signal.SIGINT, signal.SIG_IGN)\nos.mkdir(f"{os.getpid()}.pid")\ntime.sleep(60)'
    with stand_ins(2, script) as launcher:
        while len(list(tmp_path.glob('*.pid'))) < 2:
            time.sleep(0.05)
        launcher.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            launcher.wait(1)
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(20) == 130


def test_cores_are_shared(monkeypatch):
    monkeypatch.setattr('os.sched_getaffinity', lambda process: {3, 4, 5, 6, 8}, raising=False)
    assert [local_launch._share_of_cores(number, 2) for number in (0, 1)] == [[3, 4], [5, 6]]
    assert [local_launch._share_of_cores(number, 7) for number in (0, 4, 5, 6)] == [[3], [8], [3], [4]]
