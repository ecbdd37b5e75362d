"""The processes of a run watch each other: small scripts instead of the program, connected as the program is."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from conftest import ROOT

TIMEOUT = 60  # seconds; a test that takes longer is hanging
SCRIPT = """
import os, socket, sys, threading, time
from mnist_jax import main
from mnist_jax.distributed import peers
from mnist_jax.distributed.peers import Peers
from mnist_jax.errors import UserError

number, port, num_processes, timeout = map(int, sys.argv[1:5])
peers.HEARTBEAT_SECONDS = 0.2
peers.SILENCE_SECONDS, peers.SETTLE_SECONDS = map(float, sys.argv[5:])


def end(error):
    os._exit(main._report(peers.leave(error)))


begin = time.monotonic()
peers.current = Peers(number, num_processes, lambda error: isinstance(error, EOFError))
try:
    if number == 0:
        service = peers.current.listen(socket.create_server(('127.0.0.1', port)), timeout)
    else:
        while True:
            try:
                service = peers.current.join(socket.create_connection(('127.0.0.1', port)), timeout)
                break
            except ConnectionError as error:
                if 'in use' in str(error):
                    print('busy', flush=True)
                if time.monotonic() > begin + timeout:
                    raise
                time.sleep(0.05)
except UserError as error:
    end(error)
host, service_port = service.split(':')
print('connected', flush=True)
"""
FOREVER = 'time.sleep(600)'
RESUME = '; run the same command again to resume from the last checkpoint'


@pytest.fixture
def start():
    """A function that starts one process per script; each script continues after all are connected."""
    with socket.create_server(('127.0.0.1', 0)) as unused:
        port = unused.getsockname()[1]
    started = []

    def start_all(*scripts, numbers=None, num_processes=None, wait=True, timeout=60, silence=60, settle=0.5):
        for index, script in enumerate(scripts):
            number = numbers[index] if numbers else index
            count = num_processes[index] if num_processes else len(scripts)
            command = [
                sys.executable,
                '-c',
                SCRIPT + script,
                *map(str, (number, port, count, timeout, silence, settle)),
            ]
            options = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
            started.append(subprocess.Popen(command, env={**os.environ, 'PYTHONPATH': str(ROOT)}, **options))
        for process in started if wait else ():
            assert process.stdout.readline() == 'connected\n'
        return started

    yield start_all
    for process in started:
        process.kill()
        process.communicate()


def ended(process):
    """Returns the exit status and the standard error of a process."""
    _, stderr = process.communicate(timeout=TIMEOUT)
    return process.returncode, stderr


def on(process_id, num_processes):
    return f'process {process_id} of {num_processes} (on {os.uname().nodename})'


def test_a_process_that_fails_tells_the_others_why(start):
    fail = "end(UserError('config.epochs must be at least 1,\\ngot 0'))"
    processes = start(FOREVER, fail, FOREVER)
    message = f'error: {on(1, 3)} failed: config.epochs must be at least 1, got 0\n'
    assert ended(processes[0]) == ended(processes[2]) == (1, message)
    assert ended(processes[1])[0] == 2


def test_an_error_of_process_0_reaches_the_others(start):
    processes = start("end(ValueError('shapes differ'))", FOREVER, FOREVER)
    message = 'error: process 0 of 3 failed: ValueError: shapes differ\n'
    assert ended(processes[1]) == ended(processes[2]) == (1, message)
    assert ended(processes[0]) == (1, 'ValueError: shapes differ\n')


def test_each_process_reports_an_error_that_all_have_by_itself(start):
    processes = start("time.sleep(0.5)\nend(UserError('the same'))", "end(UserError('the same'))", settle=60)
    assert [ended(process) for process in processes] == [(2, 'error: the same\n')] * 2


@pytest.mark.parametrize('number', [0, 1])
def test_a_killed_process_ends_the_others(start, number):
    processes = start(FOREVER, FOREVER, FOREVER)
    processes[number].kill()
    name = on(1, 3) if number else 'process 0 of 3'
    expected = (1, f'error: {name} is gone{RESUME}\n')
    assert [ended(process) for process in processes if process is not processes[number]] == [expected] * 2


@pytest.mark.parametrize('number', [0, 1])
def test_a_suspended_process_ends_the_others_and_itself_when_it_continues(start, number):
    processes = start(FOREVER, FOREVER, silence=3)
    processes[number].send_signal(signal.SIGSTOP)
    name = on(1, 2) if number else 'process 0 of 2'
    assert ended(processes[1 - number]) == (1, f'error: {name} has not answered for 3 seconds{RESUME}\n')
    processes[number].send_signal(signal.SIGCONT)
    status, stderr = ended(processes[number])
    assert status == 1 and stderr.startswith('error: process ') and stderr.count('\n') == 1


def test_a_broken_connection_is_reported_as_the_process_that_is_gone(start):
    processes = start("end(EOFError('Gloo: connection closed by peer'))", 'os._exit(0)', settle=60)
    assert ended(processes[0]) == (1, f'error: {on(1, 2)} is gone{RESUME}\n')


def test_processes_that_leave_without_an_error_do_not_end_the_others(start):
    leave = 'peers.leave()\nos._exit(0)'
    processes = start(f'time.sleep(2)\n{leave}', leave, f'time.sleep(2)\n{leave}')
    assert [ended(process) for process in processes] == [(0, '')] * 3


def test_a_different_number_of_processes_is_an_error_in_all_of_them(start):
    processes = start('', '', num_processes=(2, 3), wait=False)
    message = f'--num_processes must be the same in all processes, got 2 in process 0 and 3 in {on(1, 3)}'
    assert [ended(process) for process in processes] == [(2, f'error: {message}\n')] * 2


def test_two_processes_with_the_same_index_are_an_error_of_the_second(start):
    processes = start(FOREVER, FOREVER)
    start('', numbers=(1,), num_processes=(2,), wait=False, silence=1)
    message = '--process_id must be different in each process, but 1 is already in use'
    assert ended(processes[-1]) == (2, f'error: {message}\n')
    assert [process.poll() for process in processes[:2]] == [None, None]


def test_a_process_that_replaces_one_joins_the_next_run(start):
    first = start(FOREVER, FOREVER, settle=TIMEOUT)
    first[1].kill()
    start('', numbers=(1,), num_processes=(2,), wait=False)
    replacement = first[2]
    assert replacement.stdout.readline() == 'busy\n'
    first[0].kill()
    first[0].wait(TIMEOUT)
    following = start('', numbers=(0,), num_processes=(2,), wait=False)[3]
    assert following.stdout.readline() == 'connected\n'
    assert next(line for line in replacement.stdout if line != 'busy\n') == 'connected\n'


def test_missing_processes_are_named(start):
    (process,) = start('', num_processes=(3,), timeout=1, wait=False)
    message = 'all 3 processes must be started within 1 seconds; missing: --process_id=1, 2'
    assert ended(process) == (2, f'error: {message}\n')


ECHO = """
with socket.create_server((host, int(service_port))) as server:
    connection, _ = server.accept()
    connection.sendall(connection.recv(100).upper())
    print('echoed', flush=True)
    time.sleep(600)
"""
CALL = """
connection = socket.create_connection((host, int(service_port)))
connection.sendall(b'hello')
print(connection.recv(100), flush=True)
connection.settimeout(2)
try:
    print(connection.recv(100))
except TimeoutError:
    print('still open', flush=True)
"""


def test_jax_does_not_notice_that_process_0_is_gone(start):
    """JAX would abort the process, with pages of output."""
    processes = start(ECHO, CALL, settle=60)
    assert processes[1].stdout.readline() == "b'HELLO'\n"
    processes[0].kill()
    assert processes[1].stdout.readline() == 'still open\n'
