"""Signals in a process that the program does not own, such as a notebook; tests/faults covers one that it owns."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from mnist_jax.distributed.signals import SIGNALS, handle_signals, stop_on_signals

TIMEOUT = 60  # seconds


@pytest.mark.parametrize('number', SIGNALS)
def test_a_signal_interrupts_a_notebook_and_does_not_end_it(number):
    previous = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), stop_on_signals():
        os.kill(os.getpid(), number)
        time.sleep(TIMEOUT)
    assert signal.getsignal(number) is previous


def test_unsaved_work_defers_the_stop(capsys):
    with stop_on_signals() as request:
        request.unsaved = True
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + TIMEOUT
        while not request.signal:
            assert time.monotonic() < deadline
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(TIMEOUT)
    assert request.signal == signal.SIGTERM
    assert 'SIGTERM: saving and stopping; send again to stop immediately' in capsys.readouterr().err


TWICE = """
import os, signal, sys, time
from mnist_jax.distributed import signals
signals.REPEAT_SECONDS = 4.0
with signals.stop_on_signals(owns_process=True) as request:
    request.unsaved = True
    first, second = map(int, sys.argv[1:])
    os.kill(os.getpid(), first)
    while not request.signal:
        time.sleep(0.01)
    os.kill(os.getpid(), second)
    time.sleep(signals.REPEAT_SECONDS + 0.5)
    os.kill(os.getpid(), signal.SIGHUP)
    time.sleep(0.5)
    print('saved', flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    'signals',
    [
        (signal.SIGTERM, signal.SIGTERM),  # from a supervisor and from the launcher
        (signal.SIGTERM, signal.SIGHUP),  # at the end of a session
        (signal.SIGHUP, signal.SIGTERM),
    ],
)
def test_a_signal_that_arrives_twice_is_one_request(signals):
    command = [sys.executable, '-c', TWICE, *(str(int(number)) for number in signals)]
    process = subprocess.run(command, cwd=ROOT, timeout=TIMEOUT, capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (128 + signal.SIGTERM, 'saved\n')


def test_a_process_that_ignores_a_closed_terminal_still_does():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
    try:
        with stop_on_signals() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)
        assert request.signal == 0 and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


WITHOUT_A_READER = """
import os, signal, sys, time
from mnist_jax.distributed.signals import stop_on_signals
reading, writing = os.pipe()
os.dup2(writing, 2)
os.close(reading)
with stop_on_signals(owns_process=True) as request:
    request.unsaved = True
    os.kill(os.getpid(), signal.SIGTERM)
    while not request.signal:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""


def test_signals_stop_a_process_whose_standard_error_cannot_be_written():
    status = subprocess.run([sys.executable, '-c', WITHOUT_A_READER], cwd=ROOT, timeout=TIMEOUT).returncode
    assert status == 128 + signal.SIGINT


def test_signals_go_to_the_inner_callback_and_afterwards_to_the_outer_one_again():
    received = []
    with handle_signals(received.append, (signal.SIGUSR1,)):
        with handle_signals(lambda number: received.append(-number), (signal.SIGUSR1,)):
            os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
    assert received == [-signal.SIGUSR1, signal.SIGUSR1]
