"""The connections between the processes of a run: heartbeats, the errors that end a process, and JAX's own messages.

Process 0 listens at the coordinator's address, and every other process connects to it. A process that fails tells the
others why, and a process that is silent for `SILENCE_SECONDS` is presumed dead; the others then end with one line.
JAX's coordination service would abort them instead, with pages of output. So its messages travel over connections of
this module as well, which JAX never sees closed.
"""

import contextlib
import ipaddress
import platform
import socket
import threading
import time
from collections.abc import Callable
from typing import BinaryIO

from mnist_jax.errors import Interrupted, PeerError, UserError, end_process, first_line

HEARTBEAT_SECONDS = 2.0  # seconds between two heartbeats
SILENCE_SECONDS = 30.0  # seconds without a heartbeat after which a process is presumed dead
SETTLE_SECONDS = 3.0  # time for this process to report an error of its own, which may be the cause
CHUNK_BYTES = 2**16

current: 'Peers | None' = None  # the other processes of the run of this process, while it is connected to them


def leave(error: BaseException | None = None) -> BaseException | None:
    """Calls `Peers.leave` of `current`; without other processes, returns `error`."""
    global current
    connected, current = current, None
    return error if connected is None else connected.leave(error)


class Peers:
    """The other processes of a run, which this process watches."""

    def __init__(self, process_id: int, num_processes: int, lost_connection: Callable[[BaseException], bool]):
        """`lost_connection` returns whether an exception means that JAX has lost the connection to another process."""
        self._process_id, self._num_processes = process_id, num_processes
        self._lost_connection = lost_connection
        self._connections: dict[int, socket.socket] = {}  # by process; of process 0 alone, except in process 0
        self._held: list[socket.socket] = []  # JAX's connections, which must stay open
        self._changed = threading.Condition()  # guards the following fields
        self._started = False  # whether all processes have joined
        self._sends_heartbeats = False
        self._refusal: str | None = None  # why this process cannot join, or another one cannot
        self._busy: str | None = None  # why this process cannot join yet
        self._busy_since = 0.0
        self._loss: str | None = None  # which process is gone, and why
        self._reported = False  # whether this process has begun to report how it ends
        self.address = '127.0.0.1'  # the address of this host in the connection to another process

    def listen(self, server: socket.socket, timeout: float) -> str:
        """Waits in process 0 until all processes have joined; returns the address for JAX's coordination service.

        Raises:
          UserError: a process is missing after `timeout` seconds, or has other settings.
        """
        with socket.create_server(('127.0.0.1', 0)) as unused:
            service = unused.getsockname()[:2]
        _start_thread(self._accept, server, service)
        self._start_heartbeats()
        with self._changed:
            self._changed.wait_for(lambda: self._is_complete() or self._refusal is not None, timeout)
            if self._refusal is not None:
                raise UserError(self._refusal)
            if not self._is_complete():
                missing = sorted({*range(1, self._num_processes)} - {*self._connections})
                raise UserError(
                    f'all {self._num_processes} processes must be started within {timeout:.0f} seconds; missing: '
                    f'--process_id={", ".join(map(str, missing))}'
                )
            self._started = True
        self._send('start')
        return f'{service[0]}:{service[1]}'

    def join(self, connection: socket.socket, timeout: float) -> str:
        """Waits until all processes have joined process 0; returns the address for JAX's coordination service.

        Raises:
          UserError: process 0 refuses this process, or some process is missing after `timeout` seconds.
          ConnectionError: process 0 has ended before the start, or the run that this process replaces one of has not
            ended yet; this process can join again.
        """
        remote = connection.getpeername()
        self._busy = None
        # Before the heartbeats that an earlier attempt has started.
        connection.sendall(f'join {self._process_id} {self._num_processes} {platform.node()}\n'.encode())
        self.address, self._connections[0] = _address(connection), connection
        connection.settimeout(SILENCE_SECONDS)
        _start_thread(self._receive, 0, f'process 0 of {self._num_processes}', connection.makefile('rb'))
        self._start_heartbeats()
        with self._changed:
            joined = self._changed.wait_for(
                lambda: self._started or self._refusal is not None or not self._connections, timeout
            )
            if self._refusal is None and not self._connections:
                self._check_busy()
                raise ConnectionError(self._busy or 'it has ended the connection')
            if not joined or self._refusal is not None:
                raise UserError(self._refusal or f'process 0 did not start the run within {timeout:.0f} seconds')
        server = socket.create_server(('127.0.0.1', 0))
        _start_thread(self._relay, server, remote)
        return f'127.0.0.1:{server.getsockname()[1]}'

    def _check_busy(self) -> None:
        """Raises a UserError if another process has kept this one out for longer than it needs to end."""
        now = time.monotonic()
        self._busy_since = self._busy_since if self._busy and self._busy_since else now
        if now - self._busy_since > SILENCE_SECONDS + 2 * SETTLE_SECONDS:
            raise UserError(self._busy)

    def leave(self, error: BaseException | None = None) -> BaseException | None:
        """Tells the other processes that this one ends, and why.

        Returns:
          The error to report: `error`, or a PeerError that names the process that is gone if that is the cause.
        """
        reason = None
        if error is not None and self._lost_connection(error):
            with self._changed:
                self._changed.wait_for(lambda: self._loss is not None, SILENCE_SECONDS + SETTLE_SECONDS)
                reason = self._loss
        if not self._claim():  # Another thread is ending this process.
            threading.Event().wait()
        if reason is not None:
            error = PeerError(reason)
        elif error is None or isinstance(error, Interrupted):
            self._send('done')
        else:
            is_expected = isinstance(error, UserError | FloatingPointError | OSError)
            text = str(error) if is_expected else f'{type(error).__name__}: {first_line(error)}'
            self._send(f'failed {" ".join(text.split())}')
        return error

    def _is_complete(self) -> bool:
        return len(self._connections) == self._num_processes - 1

    def _accept(self, server: socket.socket, service: tuple[str, int]) -> None:
        """Accepts connections in process 0: from the other processes, and those that carry JAX's messages."""
        while True:
            connection, _ = server.accept()
            _start_thread(self._admit, connection, service)

    def _admit(self, connection: socket.socket, service: tuple[str, int]) -> None:
        connection.settimeout(SILENCE_SECONDS)
        messages = connection.makefile('rb')
        with contextlib.suppress(OSError):  # Not a process of this run.
            kind, *arguments = messages.readline(CHUNK_BYTES).decode(errors='replace').split() or ['']
            if kind == 'relay':
                connection.settimeout(None)
                local = _connect_when_ready(service)
                _start_thread(_copy, local.makefile('rb'), connection)
                _copy(messages, local)
            elif kind == 'join' and len(arguments) == 3 and arguments[0].isdecimal():
                process_id, name = int(arguments[0]), f'process {arguments[0]} of {arguments[1]} (on {arguments[2]})'
                refusal = self._refuse(process_id, arguments[1], name)
                if refusal is None:
                    with self._changed:
                        self.address = max(self.address, _address(connection), key=lambda text: not is_loopback(text))
                        self._connections[process_id] = connection
                        self._changed.notify_all()
                    self._receive(process_id, name, messages)
                else:
                    # Perhaps it replaces a process that is gone, and this run is about to end.
                    kind = 'busy' if self._started else 'refuse'
                    connection.sendall(f'{kind} {refusal}\n'.encode())
                    with self._changed:  # Not before it is sent: process 0 ends when it sees this.
                        if arguments[1] != str(self._num_processes) and not self._started:
                            self._refusal = refusal
                            self._changed.notify_all()
                    messages.read()  # Closing a connection with unread messages could discard the refusal.

    def _refuse(self, process_id: int, num_processes: str, name: str) -> str | None:
        """Returns why a process cannot join, or None if it can."""
        if num_processes != str(self._num_processes) and not self._started:
            return (
                f'--num_processes must be the same in all processes, got {self._num_processes} in process 0 '
                f'and {num_processes} in {name}'
            )
        if not 0 < process_id < self._num_processes or process_id in self._connections:
            return f'--process_id must be different in each process, but {process_id} is already in use'
        return None

    def _receive(self, process_id: int, name: str, messages: BinaryIO) -> None:
        """Handles the messages of another process until it ends."""
        is_done, problem = False, 'is gone'
        try:
            for line in messages:
                kind, _, text = line.decode(errors='replace').strip().partition(' ')
                if kind == 'start':
                    self._set('_started', True)
                elif kind == 'refuse':
                    self._set('_refusal', text)
                elif kind == 'busy':
                    self._set('_busy', text)
                    break
                elif kind == 'done':
                    is_done = True
                elif kind == 'failed':
                    self._lose(f'{name} failed: {text}')
                elif kind == 'lost':
                    self._lose(text)
        except TimeoutError:
            problem = f'has not answered for {SILENCE_SECONDS:.0f} seconds'
        except OSError:
            pass
        with self._changed:
            if not self._started:  # It can be started again.
                del self._connections[process_id]
                self._changed.notify_all()
                return
        if not is_done and self._refusal is None:
            self._lose(f'{name} {problem}; run the same command again to resume from the last checkpoint')

    def _set(self, field: str, value: object) -> None:
        with self._changed:
            setattr(self, field, value)
            self._changed.notify_all()

    def _lose(self, loss: str) -> None:
        """Ends this process because another one is gone, unless it ends by itself; tells the others."""
        with self._changed:
            if self._loss is not None:
                return
            self._loss = loss
            self._changed.notify_all()
        if self._process_id == 0:
            self._send(f'lost {loss}')
        time.sleep(SETTLE_SECONDS)
        if self._claim():
            end_process(1, f'error: {loss}')

    def _claim(self) -> bool:
        """Returns whether the caller, and not another thread, is to report how this process ends."""
        with self._changed:
            claimed, self._reported = not self._reported, True
            return claimed

    def _start_heartbeats(self) -> None:
        if not self._sends_heartbeats:
            self._sends_heartbeats = True
            _start_thread(self._send_heartbeats)

    def _send_heartbeats(self) -> None:
        while True:
            self._send('alive')
            time.sleep(HEARTBEAT_SECONDS)

    def _send(self, message: str) -> None:
        """Sends a message to all processes that this one is connected to."""
        with self._changed:
            for connection in self._connections.values():
                with contextlib.suppress(OSError):  # The thread that receives from it reports it.
                    connection.sendall(f'{message}\n'.encode())

    def _relay(self, server: socket.socket, remote: tuple) -> None:
        """Connects JAX in this process to its service in process 0."""
        while True:
            local, _ = server.accept()
            self._held.append(local)
            with contextlib.suppress(OSError):
                connection = socket.create_connection(remote[:2], timeout=SILENCE_SECONDS)
                connection.settimeout(None)
                connection.sendall(b'relay\n')
                self._held.append(connection)
                _start_thread(_copy, local.makefile('rb'), connection)
                _start_thread(_copy, connection.makefile('rb'), local, False)


def is_loopback(address: str) -> bool:
    """Returns whether an IP address, possibly an IPv4 address written as IPv6, is reachable on its own host only."""
    return ipaddress.ip_address(address).is_loopback


def _address(connection: socket.socket) -> str:
    """Returns the IP address of this host in a connection."""
    return connection.getsockname()[0].removeprefix('::ffff:').partition('%')[0]


def _connect_when_ready(service: tuple[str, int]) -> socket.socket:
    deadline = time.monotonic() + SILENCE_SECONDS
    while True:
        try:
            return socket.create_connection(service)
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def _copy(source: BinaryIO, sink: socket.socket, close: bool = True) -> None:
    """Copies the bytes of a connection to another one until it ends; then closes the other one if `close`."""
    with contextlib.suppress(OSError):
        while data := source.read1(CHUNK_BYTES):  # type: ignore[attr-defined]
            sink.sendall(data)
    if close:
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


def _start_thread(function: Callable, *arguments: object) -> None:
    threading.Thread(target=function, args=arguments, daemon=True).start()
