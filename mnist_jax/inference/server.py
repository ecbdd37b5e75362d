"""A page to draw a digit on, and the endpoint behind it: a small server, by default for this machine alone."""

import collections
import contextlib
import http
import ipaddress
import json
import math
import re
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from absl import logging

from mnist_jax import files
from mnist_jax.errors import UserError
from mnist_jax.inference.endpoint import SCHEMA, Endpoint, RequestError
from mnist_jax.inference.restored import RestoredModel

PAGE = Path(__file__).with_name('draw.html')
MAX_BYTES = 2**19  # of a request
MAX_DISCARDED = 4 * MAX_BYTES  # of a request that is refused
MAX_REQUESTS = 32  # at the same time; more are sent away
TIMEOUT_SECONDS = 10.0  # to send a request, and to take its answer
REQUESTS_PER_SECOND, BURST = 50.0, 100.0  # requests a second of one address, in the long run and at once
MAX_ADDRESSES = 1024  # whose requests are counted


def serve(workdir: Path, host: str, port: int, step: str | None = None) -> None:
    """Serve the page and the endpoint of a run until a signal ends the process."""
    if not 0 <= port <= 65535:
        raise UserError(f'--port={port} is wrong: a number from 0 (any that is free) to 65535 is wanted')
    service = Endpoint(RestoredModel.load(workdir, step))
    service.answer(json.dumps({'image': [[0] * 20 + [255] * 3 + [0] * 20] * 40}).encode())  # Compiles it.
    try:
        server = Server(service, host, port)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(f'--host={host!r} --port={port} cannot be used ({error}); give others, or --port=0') from None
    with server:
        print(f'Draw at {server.url} (Ctrl-C ends)', flush=True)
        server.serve_forever()


class RateLimiter:
    """How often each address may ask: as a bucket that fills with `rate` requests a second up to `burst`."""

    def __init__(self, rate: float, burst: float):
        self._rate, self._burst = rate, burst
        self._buckets: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def wait(self, address: str, now: float) -> float:
        """The seconds that this address must wait; 0 where it may ask, which then counts."""
        with self._lock:
            level, before = self._buckets.pop(address, (self._burst, now))
            level = min(self._burst, level + (now - before) * self._rate)
            allowed = level >= 1
            self._buckets[address] = (level - allowed, now)
            while len(self._buckets) > MAX_ADDRESSES:
                self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - level) / self._rate


class Server(ThreadingHTTPServer):
    """Answers at most `MAX_REQUESTS` requests at a time, each in a thread."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, service: Endpoint, host: str, port: int):
        self.service, self.rates = service, RateLimiter(REQUESTS_PER_SECOND, BURST)
        self.page = files.read_bytes(PAGE)
        self._free = threading.BoundedSemaphore(MAX_REQUESTS)
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self.address_family = address[0]
        self.loopback = _is_loopback(address[4][0])
        super().__init__(address[4][:2], Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's asks for the name of the host, which may take long.
        self.server_name, self.server_port = self.server_address[:2]

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it."""
        host, port = self.server_address[:2]
        if ipaddress.ip_address(host).is_unspecified:
            host = socket.gethostname()
        return f'http://[{host}]:{port}/' if ':' in host else f'http://{host}:{port}/'

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.settimeout(0)
                request.send(b'HTTP/1.0 503 Service Unavailable\r\nRetry-After: 10\r\nContent-Length: 0\r\n\r\n')
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """That someone goes away in the middle is no concern of the server's; any other error is."""
        if not isinstance(error := sys.exception(), OSError):
            logging.error('A request of %s failed: %r', client_address[0], error)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    timeout = TIMEOUT_SECONDS
    _read = False  # whether the body was
    server_version, sys_version = 'mnist_jax', ''

    def do_GET(self) -> None:
        """The page, and the schema of the endpoint."""
        self._respond(self._found)

    def do_POST(self) -> None:
        """The endpoint."""
        self._respond(self._predicted)

    do_HEAD = do_GET  # noqa: N815

    def do_PUT(self) -> None:
        """No other method."""
        self._respond(self._no_method)

    do_DELETE = do_OPTIONS = do_PATCH = do_PUT  # noqa: N815

    def _no_method(self) -> tuple[str, bytes]:
        raise RequestError(http.HTTPStatus.METHOD_NOT_ALLOWED, f'{self.command} is not for here; GET and POST are')

    def setup(self) -> None:
        super().setup()
        # Beside the time limit of each read: however slowly the bytes come, the place is free again after so long.
        self._deadline = threading.Timer(TIMEOUT_SECONDS, self._give_up)
        self._deadline.daemon = True
        self._deadline.start()

    def finish(self) -> None:
        self._deadline.cancel()
        super().finish()

    def _give_up(self) -> None:
        with contextlib.suppress(OSError):  # It may be closed by now.
            self.connection.shutdown(socket.SHUT_RDWR)

    def _found(self) -> tuple[str, bytes]:
        path = self.path.partition('?')[0]
        if path == '/':
            return 'text/html; charset=utf-8', self.server.page
        if path == '/schema':
            return 'application/schema+json', json.dumps(SCHEMA, indent=2).encode()
        raise RequestError(http.HTTPStatus.NOT_FOUND, 'there is nothing here; GET / and GET /schema are')

    def _predicted(self) -> tuple[str, bytes]:
        if self.path.partition('?')[0] != '/predict':
            raise RequestError(http.HTTPStatus.NOT_FOUND, 'there is nothing here; POST /predict is')
        if self.headers.get_content_type() != 'application/json':
            raise RequestError(http.HTTPStatus.UNSUPPORTED_MEDIA_TYPE, 'Content-Type: application/json is wanted')
        length = self.headers.get('Content-Length', '')
        if not (length.isascii() and length.isdigit()) or self.headers.get('Transfer-Encoding'):
            raise RequestError(http.HTTPStatus.LENGTH_REQUIRED, 'a Content-Length is wanted')
        if len(length) > 12 or int(length) > MAX_BYTES:
            raise RequestError(http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f'more than {MAX_BYTES:,} bytes are too many')
        self._read = True
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise RequestError(http.HTTPStatus.BAD_REQUEST, 'the request ended before its Content-Length')
        return 'application/json', json.dumps(self.server.service.answer(body)).encode()

    def _respond(self, found: Callable[[], tuple[str, bytes]]) -> None:
        headers = {}
        try:
            self._check_host()
            seconds = self.server.rates.wait(self.client_address[0], time.monotonic())
            if seconds:
                headers['Retry-After'] = str(math.ceil(seconds))
                raise RequestError(
                    http.HTTPStatus.TOO_MANY_REQUESTS, f'more than {REQUESTS_PER_SECOND:.0f} requests a second'
                )
            status, (kind, body) = http.HTTPStatus.OK, found()
        except RequestError as error:
            status, kind, body = error.status, 'application/json', json.dumps({'error': str(error)}).encode()
        self.send_response(status)
        headers |= {
            'Content-Type': kind,
            'Content-Length': str(len(body)),
            'Cache-Control': 'no-store',
            'X-Content-Type-Options': 'nosniff',
            'Content-Security-Policy': "default-src 'self' 'unsafe-inline' data:",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)
        self._discard()

    def _discard(self) -> None:
        """Read what is unread of a request that was refused: else its sender would see no answer."""
        length = self.headers.get('Content-Length', '')
        if self._read or not (length.isascii() and length.isdigit() and len(length) < 12):
            return
        self.wfile.flush()
        left = min(int(length), MAX_DISCARDED)
        while left > 0 and (piece := self.rfile.read1(left)):
            left -= len(piece)

    def _check_host(self) -> None:
        """Refuse a page of another site whose name was made to lead here."""
        asked = self.headers.get_all('Host', [''])
        host = re.sub(r':\d+$', '', asked[0]).strip('[]').lower()
        if self.server.loopback and (len(asked) > 1 or not (host == 'localhost' or _is_loopback(host))):
            raise RequestError(http.HTTPStatus.FORBIDDEN, f'Host: {", ".join(asked)[:60]!r} is not this machine')

    def log_message(self, *arguments: Any) -> None:
        """Silent."""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # A name.
        return False
