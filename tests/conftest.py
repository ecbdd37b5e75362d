"""What the tests share: eight virtual devices, MNIST prepared once, small configs, the program as a process."""

import contextlib
import csv
import functools
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict
from playwright.sync_api import sync_playwright

from mnist_jax import train
from mnist_jax.config import load_config
from mnist_jax.data.source import SOURCES
from mnist_jax.distributed.devices import start_backend
from mnist_jax.training import loop

ROOT = Path(__file__).parent.parent
WITHOUT_TIMES = slice(0, 7)  # columns of metrics.csv

start_backend(8)
jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_addoption(parser):
    parser.addoption('--faults', action='store_true', help='the whole fault suite too, which takes long')


def pytest_collection_modifyitems(config, items):
    if not config.getoption('faults'):
        whole = [item for item in items if item.get_closest_marker('whole')]
        config.hook.pytest_deselected(items=whole)
        items[:] = [item for item in items if item not in whole]


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory) -> str:
    """A TFDS data directory that holds the real MNIST."""
    directory = str(tmp_path_factory.mktemp('data'))
    SOURCES['mnist'](data_dir=directory, raw_dir='', train='train', validation='', test='test').data.prepare()
    return directory


def make_small(data_dir: str, model: str = 'mlp', **overrides) -> ConfigDict:
    """The config of a run of seconds: `make_small(data_dir, 'mlp', epochs=3, model__hidden=(8,))`."""
    config = load_config(str(ROOT / 'configs' / f'{model}.py'))
    config.dataset.data_dir = data_dir
    config.dataset.train = 'train[:300]'
    config.dataset.test = 'test[:200]'
    config.batch_size = 64
    config.epochs = 2
    config.devices = 2
    config.chunks = 2
    config.steps_per_call = 1
    config.model.hidden = (16,)
    if model == 'cnn':
        config.model.stages = ((4,), (8,))
    for name, value in overrides.items():
        *path, last = name.split('__')
        place = config
        for part in path:
            place = place[part]
        place[last] = value
    return config


@pytest.fixture
def small(data_dir):
    """`make_small` with the data directory of the tests."""
    return functools.partial(make_small, data_dir)


def environment(data_dir: str) -> dict[str, str]:
    """Of the program as a process."""
    found = {**os.environ, 'PYTHONPATH': str(ROOT), 'TFDS_DATA_DIR': data_dir}
    found.pop('PJRT_NPROC', None)
    return found


@pytest.fixture(scope='session')
def trained(data_dir, tmp_path_factory):
    """The workdir of a small CNN that has learned something, not to be written to."""
    workdir = tmp_path_factory.mktemp('learned') / 'run'
    splits = {'dataset__train': 'train[:12000]', 'dataset__validation': 'train[12000:12500]'}
    config = make_small(data_dir, 'cnn', **splits, model__stages=((8,), (16,)), model__hidden=(32,), epochs=3)
    train.train(config, workdir)
    return workdir


@pytest.fixture
def program(data_dir, tmp_path):
    """A function that runs the program in an empty current directory and returns the finished process."""

    def run(*arguments: str, check: bool = False) -> subprocess.CompletedProcess:
        command = [sys.executable, '-m', 'mnist_jax.main', *arguments]
        given = {'cwd': tmp_path, 'env': environment(data_dir), 'capture_output': True, 'text': True}
        return subprocess.run(command, **given, check=check)

    return run


@pytest.fixture
def browser():
    """Chromium, without a screen."""
    paths = filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')))
    path = next(paths, None)
    if path is None:
        pytest.skip('Chromium is not installed: apt-get install chromium')
    flags = ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--no-first-run']
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=path, args=flags) as chromium:
        yield chromium


@contextlib.contextmanager
def opened(browser, url: str, **options) -> Iterator:
    """A page, which must not complain."""
    page = browser.new_page(**options)
    complaints = []
    page.on('console', lambda message: complaints.append(message.text))
    page.on('pageerror', lambda error: complaints.append(str(error)))
    page.goto(url)
    yield page
    assert complaints == []
    page.close()


FORKING = """
import json, os, sys
from mnist_jax import main, train
from mnist_jax.inference import export, predict
from mnist_jax.report import explore
from mnist_jax.studies import reproduction
from mnist_jax.workdir import comparison

for line in sys.stdin:
    directory, arguments = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(directory)
        for descriptor, name in ((1, 'stdout'), (2, 'stderr')):
            os.dup2(os.open(f'{directory}.{name}', os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        sys.argv[1:] = arguments
        main.run_program()  # It ends this process.
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope='session')
def _forking(data_dir):
    """A process that has imported everything, and forks for each run of the program."""
    command = [sys.executable, '-c', FORKING]
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
    with subprocess.Popen(command, env=environment(data_dir), **pipes) as process:
        yield process


@pytest.fixture
def forked(_forking, tmp_path):
    """As `program`, without the seconds that imports take: for what ends soon."""

    def run(*arguments: str) -> subprocess.CompletedProcess:
        print(json.dumps([str(tmp_path), arguments]), file=_forking.stdin, flush=True)
        status = int(_forking.stdout.readline())
        said = [tmp_path.with_name(f'{tmp_path.name}.{name}').read_text() for name in ('stdout', 'stderr')]
        return subprocess.CompletedProcess(arguments, status, *said)

    return run


@contextlib.contextmanager
def memory(most: int) -> Iterator[None]:
    """Fail where Python and NumPy take more bytes than this at any time."""
    tracemalloc.start()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= most


def rows(workdir) -> list[list[str]]:
    """The rows of metrics.csv, without the times."""
    with open(workdir / 'metrics.csv', newline='') as file:
        return [row[WITHOUT_TIMES] for row in csv.reader(file)]


def results(workdir) -> tuple:
    """What two equal runs have in common: eval.json and metrics.csv."""
    return json.loads((workdir / 'eval.json').read_text()), rows(workdir)


def contents(directory: Path) -> list[Path]:
    """All files below, the largest first."""
    return sorted((path for path in directory.rglob('*') if path.is_file()), key=lambda path: -path.stat().st_size)


def flip(directory: Path) -> None:
    """Flip a bit of the largest file."""
    path = contents(directory)[0]
    flipped = bytearray(path.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    path.write_bytes(flipped)


def fail_at(monkeypatch, failing_step):
    """Fail as if killed, after so many steps."""
    add = loop.Loop._add

    def fail(self, so_far, sums, done, progress):
        if done == failing_step:
            raise RuntimeError('as if killed')
        return add(self, so_far, sums, done, progress)

    monkeypatch.setattr(loop.Loop, '_add', fail)
