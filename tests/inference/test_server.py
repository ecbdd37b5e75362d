"""The page to draw on, in a browser; its endpoint, asked well and badly."""

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

import numpy as np
import psutil
import pytest
from conftest import ROOT, environment, opened
from playwright.sync_api import expect
from test_images import drawn, fonts

from mnist_jax.inference.endpoint import Endpoint
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.inference.server import MAX_ADDRESSES, MAX_BYTES, MAX_REQUESTS, RateLimiter, Server


@pytest.fixture(scope='module')
def server(trained):
    with Server(Endpoint(RestoredModel.load(trained)), '127.0.0.1', 0) as found:
        found.rates = RateLimiter(1e9, 1e9)
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def ask(server, method='POST', path='/predict', body=b'', **headers):
    """The status and the JSON of an answer."""
    connection = http.client.HTTPConnection('127.0.0.1', server.server_address[1], timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, body, {'Content-Type': 'application/json', **headers})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def body(image, **fields):
    return json.dumps({'image': image, **fields}).encode()


def test_a_drawn_digit(server, trained):
    picture = np.asarray(drawn(fonts()[0], 7, 60, dark=True))
    status, found = ask(server, body=body(picture.tolist(), feature_maps=True))
    assert status == 200 and found['class'] == '7'
    image = np.frombuffer(base64.b64decode(found['image']['pixels']), np.uint8).reshape(28, 28, 1)
    probabilities = RestoredModel.load(trained).predict(image[None])[0]
    np.testing.assert_allclose(list(found['probabilities'].values()), probabilities, atol=1e-6)
    assert [layer['layer'] for layer in found['feature_maps']] == ['Conv_0', 'MaxPool_0', 'Conv_1', 'MaxPool_1']
    layer = found['feature_maps'][2]
    maps = np.frombuffer(base64.b64decode(layer['pixels']), np.uint8).reshape(-1, 14, 14)
    assert maps.shape == (16, 14, 14) and layer['channels'] == 16 and maps.max() == 255
    assert ask(server, body=body(picture.tolist()))[1]['feature_maps'] == []


ROW = [0] * 10
WRONG = [
    (b'', 400, 'the request is no JSON'),
    (b'{', 400, 'the request is no JSON'),
    (b'\xff\xfe', 400, 'the request is no JSON'),
    (b'[' * 100_000, 400, 'the request is no JSON'),
    (b'[]', 400, "no object with a field 'image'"),
    (b'{"image": 3}', 400, "'image' is no list of rows"),
    (body([ROW, ROW[1:]]), 400, "'image' does not have 1 to 256 rows"),
    (body([]), 400, "'image' does not have 1 to 256 rows"),
    (body([[0]] * 257), 400, "'image' does not have 1 to 256 rows"),
    (body([[[0]]]), 400, "'image' has '[0]', which is no number from 0 to 255"),
    (body([['5'] * 9]), 400, "'image' has '5', which is no number"),
    (body([[True] * 9]), 400, "'image' has 'True', which is no number"),
    (body([[float('nan')]]), 400, "'image' has 'nan', which is no number"),
    (body([[1e400]]), 400, "'image' has 'inf', which is no number"),
    (b'{"image": [[' + b'9' * 5000 + b']]}', 400, 'the request is no JSON'),
    (body([ROW], colour='red'), 400, "the field 'colour' is unknown"),
    (body([ROW], feature_maps=1), 400, "'feature_maps' must be true or false, got 1"),
    (body([ROW], allow_blank='yes'), 400, "'allow_blank' must be true or false, got yes"),
    (body([ROW] * 10), 422, 'it shows nothing'),
    (b' ' * (MAX_BYTES + 1), 413, 'more than 524,288 bytes are too many'),
]


@pytest.mark.parametrize(('sent', 'status', 'told'), WRONG)
def test_wrong_requests_are_told_what_is_wrong(server, sent, status, told):
    found, answer = ask(server, body=sent)
    assert found == status and told in answer['error'] and list(answer) == ['error']


@pytest.mark.parametrize('grey', [0, 255])
def test_a_blank_image_is_an_error_only_for_programs(server, grey):
    blank = [[grey] * 112] * 112
    assert ask(server, body=body(blank))[0] == 422
    status, answer = ask(server, body=body(blank, allow_blank=True))
    assert (status, answer['class']) == (200, None) and 'shows nothing' in answer['prepared']


def test_wrong_paths_types_and_hosts(server):
    assert ask(server, 'GET', '/nothing')[0] == ask(server, 'POST', '/', b'{}')[0] == 404
    assert ask(server, body=b'{}', **{'Content-Type': 'text/plain'})[0] == 415
    assert ask(server, body=b'{}', Host='example.com')[0] == 403
    for host in ('localhost:80', 'LOCALHOST', '[::1]:8000', '127.0.0.1'):
        assert ask(server, body=b'{}', Host=host)[0] == 400
    assert ask(server, 'PUT')[0] == ask(server, 'OPTIONS')[0] == 405
    status, schema = ask(server, 'GET', '/schema')
    assert status == 200 and schema['properties']['image']['maxItems'] == 256


def test_an_address_asks_so_often_and_no_more():
    rates = RateLimiter(rate=2, burst=3)
    assert [rates.wait('a', 0.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert rates.wait('b', 0.0) == 0
    assert [rates.wait('a', 1.0) for _ in range(3)] == [0, 0, 0.5]
    assert [rates.wait('a', 100.0) for _ in range(4)] == [0, 0, 0, 0.5]
    for number in range(2 * MAX_ADDRESSES):
        rates.wait(str(number), 100.0)
    assert len(rates._buckets) == MAX_ADDRESSES


def test_too_many_requests_are_refused(server):
    before, server.rates = server.rates, RateLimiter(0.001, 2)
    try:
        assert [ask(server, body=b'{}')[0] for _ in range(3)] == [400, 400, 429]
    finally:
        server.rates = before


SERVING = """
import sys
from pathlib import Path
from mnist_jax.inference import server as serve

serve.RATE = serve.BURST = 1e9  # Else nearly all requests would be refused for that.
serve.SECONDS = serve.Handler.timeout = 1.0
serve.serve(Path(sys.argv[1]), '127.0.0.1', 0)
"""


def hostile(port, number):
    """Send one of many kinds of nonsense; whatever comes back is ignored."""
    rng = random.Random(number)
    wrong, *_ = rng.choice(WRONG)
    length = rng.choice([len(wrong)] * 6 + [0, len(wrong) + 1, 10**9, -1, 'x'])
    headers = {'Host': 'localhost', 'Content-Type': 'application/json', 'Content-Length': length}
    head = '\r\n'.join(['POST /predict HTTP/1.1', *(f'{name}: {value}' for name, value in headers.items()), '', ''])
    kinds = [
        head.encode() + wrong,
        head.encode()[: rng.randrange(len(head))],
        rng.randbytes(200),
        b'GET /' + b'a' * 70_000,
        b'GET / HTTP/1.1\r\n' + b'X: y\r\n' * 500,
    ]
    sent = rng.choices(kinds, [20, 1, 2, 1, 1])[0]
    # The peer may close in the middle: that is its right.
    with contextlib.suppress(OSError), socket.create_connection(('127.0.0.1', port), timeout=5) as connection:
        connection.sendall(sent)
        if rng.random() < 0.95:  # The others are gone before the answer.
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1000)


def test_ten_thousand_hostile_requests_leave_it_serving(trained, data_dir):
    command = [sys.executable, '-c', SERVING, str(trained)]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    with subprocess.Popen(command, env=environment(data_dir), cwd=ROOT, **pipes) as process:
        try:
            port = int(re.search(r':(\d+)/', process.stdout.readline())[1])
            with concurrent.futures.ThreadPoolExecutor(16) as threads:
                list(threads.map(lambda number: hostile(port, number), range(1000)))
                before = psutil.Process(process.pid).memory_info().rss
                list(threads.map(lambda number: hostile(port, number), range(1000, 10_000)))
            used = psutil.Process(process.pid)
            assert used.memory_info().rss < before + 50e6 and used.num_threads() < 2 * MAX_REQUESTS
            picture = np.asarray(drawn(fonts()[0], 7, 60, dark=True)).tolist()
            connection = http.client.HTTPConnection('127.0.0.1', port, timeout=20)
            connection.request('POST', '/predict', body(picture), {'Content-Type': 'application/json'})
            assert json.loads(connection.getresponse().read())['class'] == '7'
        finally:
            process.kill()
        assert 'failed' not in process.stderr.read()


def test_a_single_dot_is_drawn_and_recognized(server, browser):
    with opened(browser, server.url) as page:
        box = page.locator('#pad').bounding_box()
        page.mouse.move(box['x'] + 0.4 * box['width'], box['y'] + 0.6 * box['height'])
        page.mouse.down()
        expect(page.locator('#answer')).not_to_be_empty()
        page.mouse.up()
        count = 'pen.getImageData(0, 0, 448, 448).data.filter((value, index) => index % 4 == 0 && value > 127).length'
        ink = page.evaluate(count)
        assert abs(ink - 3.14159 * 16**2) < 50  # a disc as wide as a stroke, 448 / 14 pixels


def test_nothing_that_a_pen_can_do_is_an_error(server, browser):
    with opened(browser, server.url) as page:
        box = page.locator('#pad').bounding_box()
        # At the edge, a dot leaves a few pixels; a canvas that is filled altogether shows nothing either.
        page.mouse.move(box['x'] + 1, box['y'] + 1)
        page.mouse.down()
        page.mouse.move(box['x'] - 200, box['y'] - 200)
        page.mouse.up()
        expect(page.locator('#answer')).not_to_be_empty()
        page.evaluate("pen.fillStyle = '#fff'; pen.fillRect(0, 0, pad.width, pad.height)")
        page.mouse.click(box['x'] + 50, box['y'] + 50)
        expect(page.locator('#told')).to_contain_text('Keep drawing: it shows nothing')


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_a_stroke_drawn_with_the_mouse_gives_a_prediction(server, browser, scheme):
    with opened(browser, server.url, color_scheme=scheme) as page:
        box = page.locator('#pad').bounding_box()

        def move(across, down):
            page.mouse.move(box['x'] + across * box['width'], box['y'] + down * box['height'])

        move(0.5, 0.2)
        page.mouse.down()
        for step in range(13):
            move(0.5, 0.2 + 0.05 * step)
        page.mouse.up()
        expect(page.locator('#answer')).to_have_text('1')
        assert page.locator('#bars output').count() == 10 and page.locator('#layers canvas').count() == 8 + 8 + 16 + 16
        assert float(page.locator('#bars output').nth(1).inner_text().split()[0]) > 30
        page.keyboard.press('c')
        assert page.locator('#answer').inner_text() == ''


@pytest.mark.parametrize(
    ('arguments', 'told'),
    [
        (('--port=70000',), '--port=70000 is wrong: a number from 0 (any that is free) to 65535'),
        (('--port=0', '--host=nowhere.invalid'), "--host='nowhere.invalid' --port=0 cannot be used"),
        (('--port=http',), 'flag --port=http: invalid literal for int()'),
    ],
)
def test_wrong_addresses(forked, trained, arguments, told):
    found = forked('--mode=serve', f'--workdir={trained}', *arguments)
    assert found.returncode == 2 and told in found.stderr and len(found.stderr.splitlines()) == 1


def test_a_port_in_use(forked, trained, server):
    found = forked('--mode=serve', f'--workdir={trained}', f'--port={server.server_address[1]}')
    assert found.returncode == 2 and 'Address already in use' in found.stderr
