"""The processes of a run, on one host or several: how they meet, agree, and end."""

import hashlib
import os
import re
import socket
import sys
import time

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from mnist_jax.errors import UserError, first_line

MEETING_SECONDS = 300  # in which process 0 must have started


def connect(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Join the other processes of a run, before anything is computed.

    Those that the arguments name, or those that JAX finds: of Slurm, Open MPI, Kubernetes or a TPU pod; none of them
    is a run of one process.

    Args:
      coordinator: host:port of the process 0, for all of them to meet there.
      num_processes: how many there are.
      process_id: which of them this one is, from 0.
    """
    given = {'--coordinator': coordinator, '--num_processes': num_processes, '--process_id': process_id}
    missing = [flag for flag, value in given.items() if value is None]
    if len(missing) == len(given):
        try:
            jax.distributed.initialize()
        except ValueError as error:
            if 'coordinator_address should be defined' not in str(error):
                raise UserError(f'JAX finds other processes, but not all about them: {first_line(error)}') from None
        return
    if missing and num_processes != 1:
        raise UserError(f'{", ".join(missing)} missing: --coordinator, --num_processes and --process_id go together')
    if num_processes == 1:
        return
    if not 0 <= process_id < num_processes:
        raise UserError(f'--process_id={process_id} is wrong: 0 to {num_processes - 1} are the processes of this run')
    if not re.fullmatch(r'.+:\d+', coordinator):
        raise UserError(f'--coordinator={coordinator!r} is wrong: the host and a free port of process 0, host:port')
    _check_reachable(coordinator, process_id)
    logging.info('Process %d of %d meets the others at %s', process_id, num_processes, coordinator)
    jax.distributed.initialize(coordinator, num_processes, process_id, cluster_detection_method='deactivate')


def _check_reachable(coordinator: str, process_id: int) -> None:
    """Raise a UserError where the processes cannot meet: JAX would wait for minutes, and then abort."""
    host, _, port = coordinator.rpartition(':')
    until = time.monotonic() + MEETING_SECONDS
    while True:
        try:
            if process_id == 0:
                socket.create_server(('', int(port))).close()
            else:
                socket.create_connection((host, int(port)), timeout=5).close()
            return
        except (OSError, OverflowError) as error:
            if process_id == 0:
                raise UserError(f'--coordinator={coordinator!r}: this port cannot be used ({error})') from None
            if time.monotonic() > until:
                raise UserError(f'--coordinator={coordinator!r}: process 0 does not answer ({error})') from None
        time.sleep(0.2)


def abandon(status: int) -> None:
    """End this process at once where it is one of several: they wait for it, and it must not wait for them."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def lost_others(error: Exception) -> bool:
    """Whether an exception says that the connection to the other processes broke."""
    return isinstance(error, jax.errors.JaxRuntimeError) and jax.distributed.is_initialized()


def is_main() -> bool:
    """Whether this process is the one that writes and speaks for all; asked after `start`."""
    return jax.process_index() == 0


def check_same(what: str, value: str) -> None:
    """Wait for all processes; raise a UserError unless `value` is the same in all of them."""
    if jax.process_count() == 1:
        return
    own = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.int32)
    if (multihost_utils.process_allgather(own) != own).any():
        raise UserError(f'{what} must be the same in all processes of a run, and differs between them')
