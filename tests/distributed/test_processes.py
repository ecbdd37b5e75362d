"""How the processes of a run connect; test_local_launch.py covers what they compute together."""

import socket

import jax
import pytest

from mnist_jax.distributed import processes
from mnist_jax.errors import UserError


def test_processes_that_cannot_connect_are_an_error(monkeypatch):
    monkeypatch.setattr(processes, 'CONNECT_TIMEOUT', 0.5)
    with socket.create_server(('', 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=r'--coordinator must name a free port.*, got localhost:\d+ \(.*in use'):
            processes.connect(f'localhost:{port}', 2, 0)
    message = r'--coordinator must be the address of process 0, got 127.0.0.1:\d+: no answer \(.*refused'
    with pytest.raises(UserError, match=message):
        processes.connect(f'127.0.0.1:{port}', 2, 1)


def test_without_flags_the_cluster_that_jax_detects_is_used(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, 'initialize', lambda *arguments, **options: calls.append(arguments))
    processes.connect(None, None, None)
    processes.connect(None, 1, None)
    assert calls == [()]

    def fail(**options):
        raise ValueError('Number of processes must be defined.')

    monkeypatch.setattr(jax.distributed, 'initialize', fail)
    with pytest.raises(UserError, match='JAX detected a cluster, but not all of its settings: Number of processes'):
        processes.connect(None, None, None)
