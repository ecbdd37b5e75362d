"""The processes of a run, on one host or several: how they connect, agree and disconnect."""

import contextlib
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

from mnist_jax.distributed import peers
from mnist_jax.distributed.peers import Peers
from mnist_jax.distributed.signals import StopRequest
from mnist_jax.errors import UserError, first_line

STEPS_PER_EXCHANGE = 16  # steps between two exchanges of the stop flags
CONNECT_TIMEOUT = 300  # seconds within which all processes must start
HEARTBEAT_TIMEOUT = 60  # seconds of silence after which JAX aborts, where it has found the processes by itself
DISABLED_TIMEOUT = 24 * 3600  # the same where `peers` watches the processes


def connect(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Connects to the other processes of the run; must be called before anything is computed.

    Without arguments, connects to the processes that JAX detects (Slurm, Open MPI, Kubernetes or a TPU pod). If it
    detects none, the run has one process.

    Args:
      coordinator: host:port of process 0, where all processes meet.
      num_processes: The total number of processes.
      process_id: The index of this process, from 0.

    Raises:
      UserError: an argument is missing or wrong, or process 0 cannot be reached.
    """
    # JAX's preemption service would catch SIGTERM, and the program would have to poll for it.
    jax.config.update('jax_enable_preemption_service', False)
    options = {'--coordinator': coordinator, '--num_processes': num_processes, '--process_id': process_id}
    missing = [flag for flag, value in options.items() if value is None]
    if len(missing) == len(options):
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT)
        except ValueError as error:
            if 'coordinator_address should be defined' not in str(error):
                raise UserError(f'JAX detected a cluster, but not all of its settings: {first_line(error)}') from None
        return
    if num_processes is not None and num_processes < 1:
        raise UserError(f'--num_processes must be at least 1, got {num_processes}')
    if num_processes == 1 and not process_id:
        return
    if coordinator is None or num_processes is None or process_id is None:
        raise UserError(
            f'--coordinator, --num_processes and --process_id must be given together; missing: {", ".join(missing)}'
        )
    if not 0 <= process_id < num_processes:
        raise UserError(
            f'--process_id must be from 0 to {num_processes - 1} (--num_processes={num_processes}), got {process_id}'
        )
    host, _, port = coordinator.rpartition(':')
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(
            f'--coordinator must be host:port of process 0, with a port from 1 to 65535, got {coordinator!r}'
        )
    logging.info('Process %d of %d is connecting to %s', process_id, num_processes, coordinator)
    service = _join(host.strip('[]'), int(port), process_id, num_processes)
    jax.distributed.initialize(
        service,
        num_processes,
        process_id,
        cluster_detection_method='deactivate',
        coordinator_bind_address=service,
        heartbeat_timeout_seconds=DISABLED_TIMEOUT,
    )


def _join(host: str, port: int, process_id: int, num_processes: int) -> str:
    """Waits until all processes have started; returns the address of JAX's coordination service in this process."""
    deadline, waiting = time.monotonic() + CONNECT_TIMEOUT, False
    peers.current = Peers(process_id, num_processes, lost_peers)
    while True:
        try:
            if process_id == 0:
                return peers.current.listen(_create_server(port), CONNECT_TIMEOUT)
            return peers.current.join(socket.create_connection((host, port), timeout=5), CONNECT_TIMEOUT)
        except OSError as error:
            if process_id == 0:
                raise UserError(
                    f'--coordinator must name a free port of process 0, got {host}:{port} ({error})'
                ) from None
            if time.monotonic() > deadline:
                raise UserError(
                    f'--coordinator must be the address of process 0, got {host}:{port}: no answer ({error})'
                ) from None
            if not waiting:
                logging.info('Process 0 does not answer yet (%s); waiting for at most %d s', error, CONNECT_TIMEOUT)
                waiting = True
        time.sleep(0.2)


def _create_server(port: int) -> socket.socket:
    """Listens on all addresses, or on that of the environment variable that JAX reads."""
    host = os.environ.get('JAX_COORDINATOR_BIND_ADDRESS', '').rpartition(':')[0].strip('[]')
    if host in ('', '::') and socket.has_dualstack_ipv6():
        return socket.create_server(('', port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server((host, port), family=socket.AF_INET6 if ':' in host else socket.AF_INET)


def disconnect() -> None:
    """Disconnects from the other processes at the end of a run; waits until all of them disconnect."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()
    peers.leave()


def check_host_name() -> None:
    """Raises a UserError if the other hosts cannot connect to the address that the name of this host resolves to.

    Gloo, which exchanges the values of CPU devices, listens there, and JAX has no option for another address. On
    Debian and Ubuntu, the name of the host resolves to a loopback address by default.
    """
    if peers.current is None:
        return
    name, address = socket.gethostname(), peers.current.address
    resolved = _address_of(name)
    if resolved is None or (peers.is_loopback(resolved) and not peers.is_loopback(address)):
        result = 'an unknown name' if resolved is None else f'{resolved}, which only this host can reach'
        raise UserError(
            f'the name of each host must resolve to an address that the other hosts can reach, but {name!r} is '
            f"{result}; put the line '{address} {name}' into /etc/hosts, before or instead of other lines with {name}"
        )


def _address_of(name: str) -> str | None:
    """Returns the address of this host that Gloo selects: the first one of its name that it can listen on."""
    with contextlib.suppress(socket.gaierror):
        for family, kind, protocol, _, address in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as candidate:
                candidate.bind(address)
                return str(address[0])
    return None


def check_connections() -> None:
    """Raises a UserError unless the devices of all processes can exchange values. A barrier, like `check_identical`."""
    if not is_distributed():
        return
    try:
        _gather(np.array(0, np.int32))
    except (RuntimeError, ValueError) as error:
        if 'Gloo context' not in str(error):
            raise
        raise UserError(
            'the name of each host must resolve to an address that the other hosts can reach, but '
            f'{socket.gethostname()!r} cannot connect to another one ({first_line(error)[:200]})'
        ) from None


def lost_peers(error: BaseException) -> bool:
    """Returns whether an exception means that the connection to the other processes was lost."""
    # Some of the errors of JAX's runtime arrive as a ValueError.
    broken = isinstance(error, RuntimeError | ValueError) and jax.distributed.is_initialized()
    return broken and any(word in str(error) for word in ('Gloo', 'NCCL', 'UNAVAILABLE', 'Connection', 'oordination'))


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def is_main() -> bool:
    """Returns whether this is the process that writes and logs for all of them; call it after `start_backend`."""
    return jax.process_index() == 0


def is_distributed() -> bool:
    """Returns whether the run has several processes; call it after `start_backend`."""
    return jax.process_count() > 1


def check_identical(values: Mapping[str, str]) -> None:
    """Raises a UserError unless each of `values`, keyed by its description, is the same in all processes.

    A barrier: returns only after all processes have called it.
    """
    if not is_distributed():
        return
    digests = [hashlib.sha256(value.encode()).digest() for value in values.values()]
    own = np.frombuffer(b''.join(digests), np.int32).reshape(len(values), -1)
    same = (_gather(own) == own).all(axis=(0, 2))
    if not same.all():
        different = ', '.join(description for description, equal in zip(values, same, strict=True) if not equal)
        raise UserError(f'all processes of a run must have the same settings, but they differ in: {different}')


def check_shared_directory(directory: Path) -> None:
    """Raises a UserError unless all processes see the same `directory`. A barrier, like `check_identical`."""
    if not is_distributed():
        return
    token = int(_gather(np.array(secrets.randbelow(2**31), np.int32))[0])
    marker = directory / f'.meeting-{token}'
    if is_main():
        marker.touch()
    _gather(np.array(0, np.int32))
    is_shared = _gather(np.array(marker.exists(), np.int32)).all()
    if is_main():
        marker.unlink()
    if not is_shared:
        raise UserError(f'--workdir must be a directory that all processes of the run share, got {str(directory)!r}')


def agree_on_stop(request: StopRequest, due: bool = False, at_once: bool = False) -> tuple[int, bool]:
    """Returns the signal that asks any process to stop (0 if none does), and whether `due` holds in any process.

    The result is the same in all processes, which must call this the same number of times. Unless `at_once` is true,
    several processes exchange their flags only on every `STEPS_PER_EXCHANGE`-th call; on the other calls the result is
    (0, False).
    """
    if not is_distributed():
        return request.signal, due
    request.polls += 1
    if request.polls % STEPS_PER_EXCHANGE and not at_once:
        return 0, False
    signal_number, any_due = _gather(np.array([request.signal, due], np.int32)).max(axis=0).tolist()
    return signal_number, bool(any_due)


def any_process(condition: bool) -> bool:
    """Returns whether the condition holds in any process. A barrier, like `check_identical`."""
    return bool(_gather(np.array(condition, np.int32)).any()) if is_distributed() else condition


def _gather(value: np.ndarray) -> np.ndarray:
    """Returns the values of all processes, stacked along a new first axis."""
    return np.asarray(multihost_utils.process_allgather(value))
