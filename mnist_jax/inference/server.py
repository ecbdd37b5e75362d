"""Serves a page to draw on or to open images with, and its endpoint; by default, only to this machine."""

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

from absl import logging

from mnist_jax import files
from mnist_jax.errors import NonFiniteError, UserError
from mnist_jax.inference import packaged
from mnist_jax.inference.endpoint import SCHEMA, Endpoint, RequestError
from mnist_jax.inference.ensemble import load_model

PAGE = Path(__file__).with_name('draw.html')
MAX_BYTES = 2**21  # maximum size of a request body; a color image of 256 x 256 as JSON has up to 1.2 MB
MAX_DISCARDED = 4 * MAX_BYTES  # maximum number of bytes of a refused request that are read and discarded
MAX_REQUESTS = 32  # maximum number of concurrent requests; further requests get status 503
TIMEOUT_SECONDS = 10.0  # time limit for sending a request and receiving its response
REQUESTS_PER_SECOND, BURST = 50.0, 100.0  # rate limit per client address: on average, and at once
MAX_ADDRESSES = 1024  # maximum number of client addresses that are tracked

Request = socket.socket | tuple[bytes, socket.socket]
"""A connection, as `socketserver` declares it; that of a TCP server is a socket."""
ClientAddress = tuple[str, int] | tuple[str, int, int, int]


def serve(workdir: Path, host: str, port: int, step: str | None = None) -> None:
    """Serves the page and the endpoint of a run until a signal ends the process.

    Args:
      workdir: The directory of the run.
      host: The name or address to listen on.
      port: The port to listen on; 0 for any free port.
      step: The checkpoint; see `restore_snapshot`.
    """
    if not 0 <= port <= 65535:
        raise UserError(f'--port must be from 0 (any free port) to 65535, got {port}')
    about = packaged.describe(Path(workdir))
    endpoint = Endpoint(load_model(workdir, step))
    # Compile the model, with the feature maps that the page requests, before the first request.
    stroke = {'image': [[0] * 20 + [255] * 3 + [0] * 20] * 40, 'feature_maps': True}
    try:
        endpoint.answer(json.dumps(stroke).encode())
    except RequestError as error:  # The run has diverged.
        raise NonFiniteError(str(error)) from None
    try:
        server = Server(endpoint, host, port)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(
            f'--host and --port must be an address to listen on, got {host!r} and {port} ({error}); '
            '--port=0 picks any free port'
        ) from None
    with server:
        if about:
            print(about, file=sys.stderr, flush=True)
        print(f'Draw or open an image at {server.url} (press Ctrl-C to stop)', flush=True)
        server.serve_forever()


class RateLimiter:
    """A token bucket per client address: it gains `rate` tokens per second up to `burst`, and a request takes one."""

    def __init__(self, rate: float, burst: float):
        self._rate, self._burst = rate, burst
        self._buckets: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()
        self._lock = threading.Lock()

    @property
    def address_count(self) -> int:
        """The number of addresses with a bucket."""
        return len(self._buckets)

    def take(self, address: str, timestamp: float) -> float:
        """Takes a token and returns 0, or returns the seconds until there is one."""
        with self._lock:
            tokens, last_timestamp = self._buckets.pop(address, (self._burst, timestamp))
            tokens = min(self._burst, tokens + (timestamp - last_timestamp) * self._rate)
            allowed = tokens >= 1
            self._buckets[address] = (tokens - allowed, timestamp)
            while len(self._buckets) > MAX_ADDRESSES:
                self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) / self._rate


class Server(ThreadingHTTPServer):
    """Handles each request in a thread, and at most `MAX_REQUESTS` at a time."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, endpoint: Endpoint, host: str, port: int):
        self.endpoint, self.rate_limiter = endpoint, RateLimiter(REQUESTS_PER_SECOND, BURST)
        # The page puts transparent pixels on what `image_files.read` or `read_pixels` puts them on.
        framed = b' data-framed' if endpoint.frames else b''
        self.page = files.read_bytes(PAGE).replace(b'<html lang="en"', b'<html lang="en"' + framed)
        self._free_slots = threading.BoundedSemaphore(MAX_REQUESTS)
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self.address_family = family
        self.is_loopback = _is_loopback(str(address[0]))
        super().__init__((str(address[0]), int(address[1])), RequestHandler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer would look up the name of the host, which may be slow.
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    @property
    def url(self) -> str:
        """The URL of the page for a browser on this machine."""
        host = self.server_name
        if ipaddress.ip_address(host).is_unspecified:
            host = socket.gethostname()
        return f'http://[{host}]:{self.server_port}/' if ':' in host else f'http://{host}:{self.server_port}/'

    def process_request(self, request: Request, client_address: ClientAddress) -> None:
        if not self._free_slots.acquire(blocking=False):
            assert isinstance(request, socket.socket)
            with contextlib.suppress(OSError):
                request.settimeout(0)
                request.send(b'HTTP/1.0 503 Service Unavailable\r\nRetry-After: 10\r\nContent-Length: 0\r\n\r\n')
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free_slots.release()
            raise

    def process_request_thread(self, request: Request, client_address: ClientAddress) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free_slots.release()

    def handle_error(self, request: Request, client_address: ClientAddress) -> None:
        """Logs an error, but ignores clients that disconnect in the middle of a request."""
        if not isinstance(error := sys.exception(), OSError):
            logging.error('a request from %s failed: %r', client_address[0], error)


class RequestHandler(BaseHTTPRequestHandler):
    """Handles one request."""

    server: Server
    timeout = TIMEOUT_SECONDS
    server_version, sys_version = 'mnist_jax', ''
    _body_was_read = False

    def do_GET(self) -> None:
        """Sends the page, or the JSON schema of the endpoint."""
        self._respond(self._get)

    def do_POST(self) -> None:
        """Sends the response of the endpoint."""
        self._respond(self._post)

    do_HEAD = do_GET  # noqa: N815

    def do_PUT(self) -> None:
        """Refuses all other methods."""
        self._respond(self._refuse_method)

    do_DELETE = do_OPTIONS = do_PATCH = do_PUT  # noqa: N815

    def setup(self) -> None:
        super().setup()
        self._start_deadline()

    def finish(self) -> None:
        self._deadline.cancel()
        super().finish()

    def _start_deadline(self) -> None:
        """Limits the time until the request is read, or the response sent: a slow client must not keep its slot.

        `timeout` limits only each call that reads.
        """
        self._deadline = threading.Timer(TIMEOUT_SECONDS, self._disconnect)
        self._deadline.daemon = True
        self._deadline.start()

    def _disconnect(self) -> None:
        with contextlib.suppress(OSError):  # It may be closed already.
            self.connection.shutdown(socket.SHUT_RDWR)

    def _get(self) -> tuple[str, bytes]:
        path = self.path.partition('?')[0]
        if path == '/':
            return 'text/html; charset=utf-8', self.server.page
        if path == '/schema':
            return 'application/schema+json', json.dumps(SCHEMA, indent=2).encode()
        raise RequestError(http.HTTPStatus.NOT_FOUND, f'the path of a GET must be / or /schema, got {path[:60]!r}')

    def _post(self) -> tuple[str, bytes]:
        path = self.path.partition('?')[0]
        if path != '/predict':
            raise RequestError(http.HTTPStatus.NOT_FOUND, f'the path of a POST must be /predict, got {path[:60]!r}')
        if self.headers.get_content_type() != 'application/json':
            raise RequestError(
                http.HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                f'Content-Type must be application/json, got {self.headers.get("Content-Type", "none")[:60]}',
            )
        length = self._content_length()
        if not (length.isascii() and length.isdigit()) or self.headers.get('Transfer-Encoding'):
            raise RequestError(
                http.HTTPStatus.LENGTH_REQUIRED, 'a request must have a Content-Length and no Transfer-Encoding'
            )
        if len(length) > 12 or int(length) > MAX_BYTES:
            raise RequestError(
                http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f'the request body must be at most {MAX_BYTES:,} bytes, got {length[:40]}',
            )
        self._body_was_read = True
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise RequestError(
                http.HTTPStatus.BAD_REQUEST,
                f'the request body must be as long as Content-Length, got {len(body)} bytes',
            )
        self._deadline.cancel()  # Other requests may come first, and some models take seconds.
        try:
            return 'application/json', json.dumps(self.server.endpoint.answer(body)).encode()
        finally:
            self._start_deadline()

    def _content_length(self) -> str:
        return self.headers.get('Content-Length', '').strip()

    def _refuse_method(self) -> tuple[str, bytes]:
        raise RequestError(http.HTTPStatus.METHOD_NOT_ALLOWED, self._wrong_method())

    def _wrong_method(self) -> str:
        return f'the method must be GET, HEAD or POST, got {self.command}'

    def _respond(self, method: Callable[[], tuple[str, bytes]]) -> None:
        """Sends the content type and the body that `method` returns, or the error that it raises."""
        headers = {}
        try:
            self._check_host()
            seconds = self.server.rate_limiter.take(self.client_address[0], time.monotonic())
            if seconds:
                headers['Retry-After'] = str(math.ceil(seconds))
                raise RequestError(
                    http.HTTPStatus.TOO_MANY_REQUESTS,
                    f'a client may send at most {REQUESTS_PER_SECOND:.0f} requests per second',
                )
            status, (content_type, body) = http.HTTPStatus.OK, method()
        except RequestError as error:
            status, content_type = error.status, 'application/json'
            body = json.dumps({'error': str(error)}).encode()
        self._send(status, content_type, body, headers)
        self._discard_body()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Sends an error that the base class found, such as an unknown method, in the form of all other errors."""
        status = http.HTTPStatus(code)
        text = message or status.phrase
        if code == 501:  # not implemented: there is no function for this method
            status, text = http.HTTPStatus.METHOD_NOT_ALLOWED, self._wrong_method()
        self.close_connection = True
        self.request_version = 'HTTP/1.0'  # A malformed request line leaves HTTP/0.9, which has no status and headers.
        self._send(status, 'application/json', json.dumps({'error': text}).encode(), {'Connection': 'close'})

    def _send(self, status: http.HTTPStatus, content_type: str, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        headers = headers | {
            'Content-Type': content_type,
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

    def _check_host(self) -> None:
        """Refuses requests from pages of another site whose name resolves to this machine (DNS rebinding)."""
        hosts = self.headers.get_all('Host')
        if hosts is None:  # Browsers always send it.
            return
        name = re.sub(r':\d*$', '', hosts[0].strip()).strip('[]').removesuffix('.').lower()
        if self.server.is_loopback and (len(hosts) > 1 or not (name == 'localhost' or _is_loopback(name))):
            raise RequestError(
                http.HTTPStatus.FORBIDDEN,
                f'Host must be localhost or a loopback address, got {", ".join(hosts)[:60]!r}',
            )

    def _discard_body(self) -> None:
        """Reads the body of a refused request; otherwise its client would not see the response."""
        length = self._content_length()
        if self._body_was_read or not (length.isascii() and length.isdigit() and len(length) < 12):
            return
        self.wfile.flush()
        remaining = min(int(length), MAX_DISCARDED)
        while remaining > 0 and (piece := self.rfile.read1(remaining)):
            remaining -= len(piece)

    def log_message(self, *arguments: object) -> None:
        """Logs nothing."""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # It is a name.
        return False
