"""How the processes of a run meet; what they compute together is in test_launch.py."""

import socket

import jax
import pytest

from mnist_jax.distributed import processes
from mnist_jax.errors import UserError


def test_processes_that_cannot_meet_are_told(monkeypatch):
    monkeypatch.setattr(processes, 'MEETING_SECONDS', 0.5)
    with socket.create_server(('', 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=r'--coordinator=localhost:\d+: this port cannot be used \(.*in use'):
            processes.connect(f'localhost:{port}', 2, 0)
    with pytest.raises(UserError, match=r'--coordinator=127.0.0.1:\d+: process 0 does not answer \(.*refused'):
        processes.connect(f'127.0.0.1:{port}', 2, 1)


def test_what_jax_finds_of_a_cluster_is_used(monkeypatch):
    def find(*arguments, **fields):
        found.append(arguments)

    found = []
    monkeypatch.setattr(jax.distributed, 'initialize', find)
    processes.connect(None, None, None)
    processes.connect(None, 1, None)
    assert found == [()]

    def fail(**fields):
        raise ValueError('Number of processes must be defined.')

    monkeypatch.setattr(jax.distributed, 'initialize', fail)
    with pytest.raises(UserError, match='JAX finds other processes, but not all about them: Number of processes'):
        processes.connect(None, None, None)
