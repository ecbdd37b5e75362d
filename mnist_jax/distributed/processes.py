"""The processes of a run, on one host or several: how they meet, agree, and end."""

import hashlib
import os
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from mnist_jax.distributed.signals import StopRequest
from mnist_jax.errors import UserError, first_line

EXCHANGE_EVERY = 16  # steps between two talks of the processes about whether to stop
MEETING_SECONDS = 300  # in which process 0 must have started
HEARTBEAT_SECONDS = 60  # after which a process that is not heard of is taken for dead, and the others end


def connect(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Join the other processes of a run, before anything is computed.

    Those that the arguments name, or those that JAX finds: of Slurm, Open MPI, Kubernetes or a TPU pod; none of them
    is a run of one process.

    Args:
      coordinator: host:port of the process 0, for all of them to meet there.
      num_processes: how many there are.
      process_id: which of them this one is, from 0.
    """
    # It would catch SIGTERM, and leave it to the program to ask whether there was one.
    jax.config.update('jax_enable_preemption_service', False)
    given = {'--coordinator': coordinator, '--num_processes': num_processes, '--process_id': process_id}
    missing = [flag for flag, value in given.items() if value is None]
    if len(missing) == len(given):
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
        except ValueError as error:
            if 'coordinator_address should be defined' not in str(error):
                raise UserError(f'JAX finds other processes, but not all about them: {first_line(error)}') from None
        return
    if num_processes is not None and num_processes < 1:
        raise UserError(f'--num_processes={num_processes} is wrong: at least 1 is wanted')
    if num_processes == 1 and not process_id:
        return
    if missing:
        raise UserError(f'{", ".join(missing)} missing: --coordinator, --num_processes and --process_id go together')
    if not 0 <= process_id < num_processes:
        raise UserError(f'--process_id={process_id} is wrong: 0 to {num_processes - 1} are the processes of this run')
    host, _, port = coordinator.rpartition(':')
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f'--coordinator={coordinator!r} is wrong: the host and a free port of process 0, host:port')
    logging.info('Process %d of %d meets the others at %s', process_id, num_processes, coordinator)
    _check_reachable(host.strip('[]'), int(port), process_id)
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        cluster_detection_method='deactivate',
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )


def _check_reachable(host: str, port: int, process_id: int) -> None:
    """Raise a UserError where the processes cannot meet: JAX would wait for minutes, and then abort."""
    until = time.monotonic() + MEETING_SECONDS
    while True:
        try:
            if process_id == 0:
                socket.create_server(('', port)).close()
            else:
                socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if process_id == 0:
                raise UserError(f'--coordinator={host}:{port}: this port cannot be used ({error})') from None
            if time.monotonic() > until:
                raise UserError(f'--coordinator={host}:{port}: process 0 does not answer ({error})') from None
        time.sleep(0.2)


def disconnect() -> None:
    """Part from the other processes at the end of a run, when all are there."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def lost_peers(error: Exception) -> bool:
    """Whether an exception says that the connection to the other processes broke."""
    broken = isinstance(error, jax.errors.JaxRuntimeError) and jax.distributed.is_initialized()
    return broken and any(word in str(error) for word in ('Gloo', 'NCCL', 'UNAVAILABLE', 'Connection', 'oordination'))


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def is_main() -> bool:
    """Whether this process is the one that writes and speaks for all; asked after `start`."""
    return jax.process_index() == 0


def check_identical(values: Mapping[str, str]) -> None:
    """Wait for all processes; raise a UserError unless each value, by what it is, is the same in all of them."""
    if not is_distributed():
        return
    digests = [hashlib.sha256(value.encode()).digest() for value in values.values()]
    own = np.frombuffer(b''.join(digests), np.int32).reshape(len(values), -1)
    same = (_gather(own) == own).all(axis=(0, 2))
    if not same.all():
        different = ', '.join(what for what, equal in zip(values, same, strict=True) if not equal)
        raise UserError(f'the processes of a run must agree on everything, and they differ in: {different}')


def check_shared_directory(directory: Path) -> None:
    """Raise a UserError unless `directory` is one and the same for all processes, which wait for each other."""
    if not is_distributed():
        return
    name = int(_gather(np.array(secrets.randbelow(2**31), np.int32))[0])
    mark = directory / f'.meeting-{name}'
    if is_main():
        mark.touch()
    _gather(np.array(0, np.int32))
    seen = _gather(np.array(mark.exists(), np.int32)).all()
    if is_main():
        mark.unlink()
    if not seen:
        raise UserError(f'--workdir {str(directory)!r} must be a directory that all processes of the run share')


def _gather(value: np.ndarray) -> np.ndarray:
    """The values of all processes, along a first axis."""
    return np.asarray(multihost_utils.process_allgather(value))


def is_distributed() -> bool:
    """Whether this process is one of several; asked after `start`."""
    return jax.process_count() > 1


def agree_on_stop(request: StopRequest, due: bool = False) -> tuple[int, bool]:
    """(the signal that asks to stop, or 0; `due`), the same in all processes; each of them must ask equally often.

    Several processes talk to each other about it now and then only.
    """
    if not is_distributed():
        return request.signal, due
    request.asked += 1
    if request.asked % EXCHANGE_EVERY:
        return 0, False
    signal, due = _gather(np.array([request.signal, due], np.int32)).max(axis=0).tolist()
    return signal, bool(due)


def any_process(found: bool) -> bool:
    """Whether this holds in any of the processes, which wait for each other."""
    return bool(_gather(np.array(found, np.int32)).any()) if is_distributed() else found
