"""Signals in a process that is not the program's own; what they do to the program is in tests/faults."""

import os
import signal
import time

import pytest

from mnist_jax.distributed.signals import SIGNALS, handling, stop_on_signals


@pytest.mark.parametrize('number', SIGNALS)
def test_a_notebook_is_interrupted_and_not_ended(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), stop_on_signals():
        os.kill(os.getpid(), number)
        time.sleep(10)
    assert signal.getsignal(number) is before


def test_what_is_unsaved_is_waited_for(capsys):
    with stop_on_signals() as request:
        request.unsaved = True
        os.kill(os.getpid(), signal.SIGTERM)
        until = time.monotonic() + 10
        while not request.signal:
            assert time.monotonic() < until
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
    assert request.signal == signal.SIGTERM
    assert 'to be stopped by SIGTERM at the next step' in capsys.readouterr().err


def test_the_inner_listener_hears_and_then_the_outer_one():
    heard = []
    with handling(heard.append, (signal.SIGUSR1,)):
        with handling(lambda number: heard.append(-number), (signal.SIGUSR1,)):
            os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
    assert heard == [-signal.SIGUSR1, signal.SIGUSR1]
