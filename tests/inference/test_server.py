"""The drawing page in a browser, and its endpoint with valid, invalid and hostile requests."""

import base64
import concurrent.futures
import contextlib
import http.client
import json
import random
import re
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
from conftest import ROOT, environment, open_page
from digit_images import draw_digit, font_paths
from PIL import Image

from mnist_jax.errors import NonFiniteError
from mnist_jax.inference.endpoint import Endpoint, RequestError
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.inference.server import MAX_ADDRESSES, MAX_BYTES, MAX_REQUESTS, RateLimiter, Server, serve


@pytest.fixture(scope='module')
def server(trained):
    with Server(Endpoint(RestoredModel.load(trained)), '127.0.0.1', 0) as running:
        running.rate_limiter = RateLimiter(1e9, 1e9)
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def send(server, method='POST', path='/predict', body=b'', **headers):
    """Sends a request; returns the status and the JSON of the response."""
    connection = http.client.HTTPConnection('127.0.0.1', server.server_address[1], timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, body, {'Content-Type': 'application/json', **headers})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def to_json(image, **fields):
    """Returns the body of a request."""
    return json.dumps({'image': image, **fields}).encode()


def test_a_drawn_digit_is_answered_with_its_class_the_model_input_and_feature_maps(server, trained):
    picture = np.asarray(draw_digit(font_paths()[0], 7, 60, dark=True))
    status, answer = send(server, body=to_json(picture.tolist(), feature_maps=True))
    assert status == 200 and answer['class'] == '7'
    image = np.frombuffer(base64.b64decode(answer['image']['pixels']), np.uint8).reshape(28, 28, 1)
    probabilities = RestoredModel.load(trained).predict(image[None])[0]
    np.testing.assert_allclose(list(answer['probabilities'].values()), probabilities, atol=1e-6)
    assert [layer['layer'] for layer in answer['feature_maps']] == ['Conv_0', 'MaxPool_0', 'Conv_1', 'MaxPool_1']
    layer = answer['feature_maps'][2]
    maps = np.frombuffer(base64.b64decode(layer['pixels']), np.uint8).reshape(-1, 14, 14)
    assert maps.shape == (16, 14, 14) and layer['channels'] == 16 and maps.max() == 255
    assert send(server, body=to_json(picture.tolist()))[1]['feature_maps'] == []


def test_the_gray_levels_of_a_colored_image_are_classified(server):
    picture = np.asarray(draw_digit(font_paths()[0], 7, 60, dark=True))
    _, expected = send(server, body=to_json(picture.tolist()))
    status, answer = send(server, body=to_json(np.repeat(picture[..., None], 3, axis=-1).tolist()))
    assert status == 200 and answer == expected


ROW = [0] * 10
INVALID = [
    (b'', 400, 'the request body must be JSON'),
    (b'{', 400, 'the request body must be JSON'),
    (b'\xff\xfe', 400, 'the request body must be JSON'),
    (b'[' * 100_000, 400, 'the request body must be JSON'),
    (b'[]', 400, "must be a JSON object with a field 'image'"),
    (b'{"image": 3}', 400, "'image' must be a list of rows of numbers, got 3"),
    (to_json([ROW, ROW[1:]]), 400, "'image' must have rows of the same length, got 9 to 10 numbers"),
    (to_json([]), 400, "'image' must have 1 to 256 rows, got 0"),
    (to_json([[0]] * 257), 400, "'image' must have 1 to 256 rows, got 257"),
    (to_json([[]]), 400, "'image' must have rows of 1 to 256 numbers, got 0"),
    (to_json([[0] * 257]), 400, "'image' must have rows of 1 to 256 numbers, got 257"),
    (to_json([[[0]]]), 400, "'image' must contain numbers only, or [red, green, blue] only, got [0] after [0]"),
    (to_json([[[0, 1, 2], 3]]), 400, 'or [red, green, blue] only, got 3 after [0, 1, 2]'),
    (to_json([[3, [0, 1, 2]]]), 400, 'or [red, green, blue] only, got [0, 1, 2] after 3'),
    (to_json([[[0, 1, 256]]]), 400, "'image' must contain numbers from 0 to 255, got '256'"),
    (to_json([[[0, 1, [2]]]]), 400, "'image' must contain numbers from 0 to 255, got '[2]'"),
    (to_json([['5'] * 9]), 400, "'image' must contain numbers from 0 to 255, got '5'"),
    (to_json([[True] * 9]), 400, "'image' must contain numbers from 0 to 255, got 'True'"),
    (to_json([[float('nan')]]), 400, "'image' must contain numbers from 0 to 255, got 'nan'"),
    (to_json([[1e400]]), 400, "'image' must contain numbers from 0 to 255, got 'inf'"),
    (b'{"image": [[' + b'9' * 5000 + b']]}', 400, 'the request body must be JSON'),
    (to_json([ROW], colour='red'), 400, "'colour' is not a field; the fields are: allow_blank, feature_maps, image"),
    (to_json([ROW], feature_maps=1), 400, "'feature_maps' must be true or false, got 1"),
    (to_json([ROW], allow_blank='yes'), 400, "'allow_blank' must be true or false, got yes"),
    (to_json([ROW] * 10), 422, 'it is blank'),
    (b' ' * (MAX_BYTES + 1), 413, 'the request body must be at most 2,097,152 bytes, got 2097153'),
]


@pytest.mark.parametrize(('body', 'status', 'message'), INVALID)
def test_invalid_requests_are_answered_with_the_reason(server, body, status, message):
    actual_status, answer = send(server, body=body)
    assert actual_status == status and message in answer['error'] and list(answer) == ['error']


@pytest.mark.parametrize('gray', [0, 255])
def test_a_blank_image_is_an_error_unless_allow_blank_is_set(server, gray):
    blank = [[gray] * 112] * 112
    assert send(server, body=to_json(blank))[0] == 422
    status, answer = send(server, body=to_json(blank, allow_blank=True))
    assert (status, answer['class']) == (200, None) and 'it is blank' in answer['prepared']


def test_wrong_paths_content_types_hosts_and_methods_are_refused(server):
    assert send(server, 'GET', '/nothing')[0] == send(server, 'POST', '/', b'{}')[0] == 404
    assert send(server, body=b'{}', **{'Content-Type': 'text/plain'})[0] == 415
    assert send(server, body=b'{}', Host='example.com')[0] == 403
    for host in ('localhost:80', 'LOCALHOST', '[::1]:8000', '127.0.0.1', '127.0.0.1:', 'localhost.'):
        assert send(server, body=b'{}', Host=host)[0] == 400
    assert send(server, 'PUT')[0] == send(server, 'OPTIONS')[0] == 405
    assert send(server, 'TRACE') == (405, {'error': 'the method must be GET, HEAD or POST, got TRACE'})
    status, answer = send(server, 'GET', '/' + 70_000 * 'x')
    assert status == 414 and list(answer) == ['error'] and 'Too Long' in answer['error']
    status, schema = send(server, 'GET', '/schema')
    assert status == 200 and schema['properties']['image']['maxItems'] == 256


@pytest.mark.parametrize(
    ('request_line', 'status'),
    [(b'GET / HTTP/2.0', 505), (b'GET / HTTP/x', 400), (b'a b c d', 400), (b'DELETE /', 400)],
)
def test_malformed_request_lines_are_answered_with_a_status_and_headers(server, request_line, status):
    with socket.create_connection(('127.0.0.1', server.server_address[1]), timeout=20) as connection:
        connection.sendall(request_line + b'\r\n\r\n')
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == status and list(json.loads(response.read())) == ['error']


@pytest.mark.parametrize(
    ('start', 'status'),
    [
        (b'POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length:  2 \r\n', 400),
        (b'GET /schema HTTP/1.0\r\n', 200),
    ],
)
def test_spaces_around_a_header_and_requests_without_a_host_are_valid(server, start, status):
    with socket.create_connection(('127.0.0.1', server.server_address[1]), timeout=20) as connection:
        connection.sendall(start + b'Content-Type: application/json\r\n\r\n{}')
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == status and json.loads(response.read())


def test_a_slow_model_answers_and_a_slow_client_does_not_keep_its_slot(trained, monkeypatch):
    monkeypatch.setattr('mnist_jax.inference.server.TIMEOUT_SECONDS', 2.0)
    endpoint = Endpoint(RestoredModel.load(trained))
    monkeypatch.setattr(endpoint, 'answer', lambda body: time.sleep(3) or {'class': '7'})
    with Server(endpoint, '127.0.0.1', 0) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        with socket.create_connection(('127.0.0.1', running.server_address[1]), timeout=20) as slow:
            slow.sendall(b'POST /predict HTTP/1.1\r\n')
            assert send(running, body=b'{}') == (200, {'class': '7'})
            assert slow.recv(1) == b''
        running.shutdown()
        thread.join()


def test_a_missing_content_type_is_reported_as_such(server):
    connection = http.client.HTTPConnection('127.0.0.1', server.server_address[1], timeout=20)
    with contextlib.closing(connection):
        connection.request('POST', '/predict', b'{}')
        error = json.loads(connection.getresponse().read())['error']
    assert error == 'Content-Type must be application/json, got none'


def test_the_warm_up_compiles_the_feature_maps_for_the_page(trained, monkeypatch):
    requests = []

    def answer(_, body):
        requests.append(json.loads(body))
        raise RequestError(http.HTTPStatus.INTERNAL_SERVER_ERROR, 'the end of this test')

    monkeypatch.setattr(Endpoint, 'answer', answer)
    with pytest.raises(NonFiniteError, match='the end of this test'):
        serve(trained, '127.0.0.1', 0)
    assert [request['feature_maps'] for request in requests] == [True]


def test_the_rate_limiter_refills_at_its_rate_up_to_its_burst():
    limiter = RateLimiter(rate=2, burst=3)
    assert [limiter.take('a', 0.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert limiter.take('b', 0.0) == 0
    assert [limiter.take('a', 1.0) for _ in range(3)] == [0, 0, 0.5]
    assert [limiter.take('a', 100.0) for _ in range(4)] == [0, 0, 0, 0.5]
    for number in range(2 * MAX_ADDRESSES):
        limiter.take(str(number), 100.0)
    assert limiter.address_count == MAX_ADDRESSES


def test_requests_above_the_rate_limit_get_status_429(server):
    unlimited, server.rate_limiter = server.rate_limiter, RateLimiter(0.001, 2)
    try:
        assert [send(server, body=b'{}')[0] for _ in range(3)] == [400, 400, 429]
    finally:
        server.rate_limiter = unlimited


SERVE = """
import sys
from pathlib import Path
from mnist_jax.inference import server

server.BURST = 1e9  # Otherwise, nearly all requests would be refused by the rate limit.
server.RequestHandler.timeout = 1.0
server.serve(Path(sys.argv[1]), '127.0.0.1', 0)
"""


def send_hostile_request(port, seed):
    """Sends one of several kinds of invalid request, and ignores the response."""
    rng = random.Random(seed)
    body, *_ = rng.choice(INVALID)
    length = rng.choice([len(body)] * 6 + [0, len(body) + 1, 10**9, -1, 'x'])
    headers = {'Host': 'localhost', 'Content-Type': 'application/json', 'Content-Length': length}
    head = '\r\n'.join(['POST /predict HTTP/1.1', *(f'{name}: {value}' for name, value in headers.items()), '', ''])
    kinds = [
        head.encode() + body,
        head.encode()[: rng.randrange(len(head))],
        rng.randbytes(200),
        b'GET /' + b'a' * 70_000,
        b'GET / HTTP/1.1\r\n' + b'X: y\r\n' * 500,
    ]
    request = rng.choices(kinds, [20, 1, 2, 1, 1])[0]
    # The server may close the connection before it has read everything.
    with contextlib.suppress(OSError), socket.create_connection(('127.0.0.1', port), timeout=5) as connection:
        connection.sendall(request)
        if rng.random() < 0.95:  # The rest disconnect before the response.
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1000)


def test_the_server_survives_thousands_of_hostile_requests(trained, data_dir):
    command = [sys.executable, '-c', SERVE, str(trained)]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    with subprocess.Popen(command, env=environment(data_dir), cwd=ROOT, **pipes) as process:
        try:
            port = int(re.search(r':(\d+)/', process.stdout.readline())[1])
            with concurrent.futures.ThreadPoolExecutor(16) as threads:
                list(threads.map(lambda seed: send_hostile_request(port, seed), range(1000)))
                memory_before = psutil.Process(process.pid).memory_info().rss
                list(threads.map(lambda seed: send_hostile_request(port, seed), range(1000, 5000)))
            usage = psutil.Process(process.pid)
            assert usage.memory_info().rss < memory_before + 50e6 and usage.num_threads() < 2 * MAX_REQUESTS
            picture = np.asarray(draw_digit(font_paths()[0], 7, 60, dark=True)).tolist()
            connection = http.client.HTTPConnection('127.0.0.1', port, timeout=20)
            connection.request('POST', '/predict', to_json(picture), {'Content-Type': 'application/json'})
            assert json.loads(connection.getresponse().read())['class'] == '7'
        finally:
            process.kill()
        assert 'failed' not in process.stderr.read()


def test_a_single_dot_is_drawn_as_a_disc_and_classified(server, browser):
    from playwright.sync_api import expect

    with open_page(browser, server.url) as page:
        box = page.locator('#pad').bounding_box()
        page.mouse.move(box['x'] + 0.4 * box['width'], box['y'] + 0.6 * box['height'])
        page.mouse.down()
        expect(page.locator('#prediction')).not_to_be_empty()
        page.mouse.up()
        pixels = 'padContext.getImageData(0, 0, 448, 448).data'
        ink = page.evaluate(f'{pixels}.filter((value, index) => index % 4 == 0 && value > 127).length')
        assert abs(ink - 3.14159 * 16**2) < 50  # a disc as wide as a stroke, 448 / 14 pixels


def test_strokes_at_the_edge_and_a_filled_pad_are_not_errors(server, browser):
    from playwright.sync_api import expect

    with open_page(browser, server.url) as page:
        box = page.locator('#pad').bounding_box()
        # A dot at the edge leaves only a few pixels.
        page.mouse.move(box['x'] + 1, box['y'] + 1)
        page.mouse.down()
        page.mouse.move(box['x'] - 200, box['y'] - 200)
        page.mouse.up()
        expect(page.locator('#prediction')).not_to_be_empty()
        # A pad that is filled completely is as blank as an empty one.
        page.evaluate("padContext.fillStyle = '#fff'; padContext.fillRect(0, 0, pad.width, pad.height)")
        page.mouse.click(box['x'] + 50, box['y'] + 50)
        expect(page.locator('#message')).to_contain_text('Keep drawing (it is blank')


def test_an_image_is_opened_instead_of_drawn(server, browser, tmp_path):
    from playwright.sync_api import expect

    draw_digit(font_paths()[0], 7, 60, dark=True).convert('RGB').resize((300, 200)).save(tmp_path / 'seven.png')
    alpha = draw_digit(font_paths()[0], 4, 40, dark=False)
    Image.merge('LA', (alpha.point(lambda _: 255), alpha)).convert('RGBA').save(tmp_path / 'light.png')
    (tmp_path / 'text.png').write_text('not an image')
    with open_page(browser, server.url) as page:
        with page.expect_request('**/predict') as request:
            page.locator('#file').set_input_files(tmp_path / 'seven.png')
        rows = request.value.post_data_json['image']
        assert (len(rows), len(rows[0])) == (171, 256)
        expect(page.locator('#prediction')).to_have_text('7')
        # Of a light digit on transparency, as the command line reads it, and not enlarged.
        with page.expect_request('**/predict') as request:
            page.locator('#file').set_input_files(tmp_path / 'light.png')
        rows = request.value.post_data_json['image']
        assert (len(rows), len(rows[0])) == (80, 120) and rows[0][0] == [0, 0, 0]
        expect(page.locator('#prediction')).to_have_text('4')
        page.locator('#file').set_input_files(tmp_path / 'text.png')
        expect(page.locator('#message')).to_have_text('text.png is not an image that this browser can read.')
        # A stroke replaces the image.
        box = page.locator('#pad').bounding_box()
        page.mouse.move(box['x'] + 0.5 * box['width'], box['y'] + 0.2 * box['height'])
        page.mouse.down()
        page.mouse.move(box['x'] + 0.5 * box['width'], box['y'] + 0.8 * box['height'], steps=8)
        page.mouse.up()
        expect(page.locator('#prediction')).to_have_text('1')


@pytest.mark.parametrize('color_scheme', ['light', 'dark'])
def test_a_stroke_drawn_with_the_mouse_shows_a_prediction(server, browser, color_scheme):
    from playwright.sync_api import expect

    with open_page(browser, server.url, color_scheme=color_scheme) as page:
        box = page.locator('#pad').bounding_box()

        def move(across, down):
            page.mouse.move(box['x'] + across * box['width'], box['y'] + down * box['height'])

        move(0.5, 0.2)
        page.mouse.down()
        for step in range(13):
            move(0.5, 0.2 + 0.05 * step)
        page.mouse.up()
        expect(page.locator('#prediction')).to_have_text('1')
        expect(page.locator('#probabilities output')).to_have_count(10)
        expect(page.locator('#layers canvas')).to_have_count(8 + 8 + 16 + 16)
        # Wait for a probability of more than 30 %: the first answers may be for a part of the stroke.
        above_30 = re.compile(r'^(30\.[1-9]|3[1-9]\.\d|[4-9]\d\.\d|100\.0) %$')
        expect(page.locator('#probabilities output').nth(1)).to_have_text(above_30)
        page.keyboard.press('c')
        expect(page.locator('#prediction')).to_be_empty()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--port=70000',), '--port must be from 0 (any free port) to 65535, got 70000'),
        (('--port=0', '--host=nowhere.invalid'), "must be an address to listen on, got 'nowhere.invalid' and 0"),
        (('--port=http',), "--port must be of type int, got 'http'"),
    ],
)
def test_wrong_addresses_are_one_line_errors(forked, trained, arguments, message):
    process = forked('--mode=serve', f'--workdir={trained}', *arguments)
    assert process.returncode == 2 and message in process.stderr and len(process.stderr.splitlines()) == 1


def test_a_port_in_use_is_an_error(forked, trained, server):
    process = forked('--mode=serve', f'--workdir={trained}', f'--port={server.server_address[1]}')
    assert process.returncode == 2 and 'Address already in use' in process.stderr
