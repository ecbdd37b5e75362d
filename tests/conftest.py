"""Shared fixtures and helpers: eight virtual devices, MNIST prepared once, small configs, the program as a process."""

import contextlib
import csv
import fcntl
import functools
import gc
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from mnist_jax.config import load_config
from mnist_jax.data.normalization import Normalization
from mnist_jax.data.source import SOURCES
from mnist_jax.distributed.devices import start_backend
from mnist_jax.distributed.signals import StopRequest
from mnist_jax.learning import losses
from mnist_jax.learning.optimizers import sgd
from mnist_jax.learning.step import RunNumbers, StepParts
from mnist_jax.train import train

ROOT = Path(__file__).parent.parent
MAX_MAPPINGS = 20_000
REPRODUCIBLE_COLUMNS = slice(0, 9)  # the columns of metrics.csv that do not depend on the machine

# Before `start_backend` adds the flags of own models; the workers of a test run inherit it from its first process.
XLA_FLAGS = os.environ.setdefault('TESTS_XLA_FLAGS', os.environ.get('XLA_FLAGS', ''))
start_backend(8, xla_products=True, own_model=True)
jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_addoption(parser):
    parser.addoption('--faults', action='store_true', help='run the slow fault tests as well')


def pytest_collection_modifyitems(config, items):
    if not config.getoption('faults'):
        slow = [item for item in items if item.get_closest_marker('slow_faults')]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


@contextlib.contextmanager
def shared_directory(tmp_path_factory, name: str) -> Iterator[Path]:
    """Locks and yields a directory that all workers of a test run share."""
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base) / name
    path.mkdir(exist_ok=True)
    with open(path / 'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory) -> str:
    """A TFDS data directory that holds the real MNIST; read-only. The workers of a test run prepare it once."""
    with shared_directory(tmp_path_factory, 'data') as directory:
        source = SOURCES['mnist'](data_dir=str(directory), raw_dir='', train='train', validation='', test='test')
        source.data.prepare()
        return str(directory)


def make_small(data_dir: str, model: str = 'mlp', **overrides) -> ConfigDict:
    """Returns the config of a run that takes seconds: `make_small(data_dir, 'mlp', epochs=3, model__hidden=(8,))`."""
    config = load_config(str(ROOT / 'configs' / f'{model}.py'))
    config.dataset.data_dir = data_dir
    config.dataset.train = 'train[:300]'
    config.dataset.test = 'test[:200]'
    config.batch_size = 64
    config.epochs = 2
    config.devices = 2
    config.chunks = 2
    config.steps_per_call = 1
    config.checkpoint_min_seconds = 0.0  # the same checkpoints on any machine
    config.model.hidden = (16,)
    if model == 'cnn':
        config.model.stages = ((4,), (8,))
    for name, value in overrides.items():
        *sections, field = name.split('__')
        functools.reduce(lambda section, part: section[part], sections, config)[field] = value
    return config


def make_numbers(seed) -> RunNumbers:
    """Returns the numbers of a run with the parts of `make_parts`."""
    return RunNumbers(seed, 1.0)


def make_parts(model: nn.Module, chunk_size: int, learning_rate: float) -> StepParts:
    """Returns the parts of a float32 step with SGD and the cross-entropy, for `make_numbers`."""
    return StepParts(
        model=model,
        loss=losses.cross_entropy(),
        optimizer=sgd(),
        schedule=lambda updates: learning_rate,
        normalization=Normalization(255),
        dtype=jnp.dtype('float32'),
        skip_nonfinite=False,
        chunk_size=chunk_size,
    )


@pytest.fixture(scope='module', autouse=True)
def _few_memory_mappings():
    """Forgets compiled programs before their memory mappings reach the limit of Linux, 65,530 per process."""
    yield
    mappings = Path('/proc/self/maps')
    if mappings.exists() and mappings.read_text().count('\n') > MAX_MAPPINGS:
        gc.collect()
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def small(data_dir):
    """`make_small`, bound to the data directory of the tests."""
    return functools.partial(make_small, data_dir)


def environment(data_dir: str) -> dict[str, str]:
    """Returns the environment variables for running the program as a process, as a user would."""
    variables = {**os.environ, 'TFDS_DATA_DIR': data_dir}
    variables.pop('PJRT_NPROC', None)
    return {**variables, 'XLA_FLAGS': XLA_FLAGS}


@pytest.fixture(scope='session')
def trained(data_dir, tmp_path_factory):
    """The workdir of a small CNN that has learned something; read-only. The workers of a test run train it once."""
    own = tmp_path_factory.mktemp('trained') / 'run'
    with shared_directory(tmp_path_factory, 'shared') as directory:
        if not (directory / 'run' / 'eval.json').exists():
            splits = {'dataset__train': 'train[:12000]', 'dataset__validation': 'train[12000:12500]'}
            model = {'model__stages': ((8,), (16,)), 'model__hidden': (32,)}
            train(make_small(data_dir, 'cnn', **splits, **model, epochs=3), directory / 'run')
    shutil.copytree(directory / 'run', own)
    return own


@pytest.fixture
def program(data_dir, tmp_path):
    """A function that runs the program in an empty current directory and returns the finished process."""

    def run(*arguments: str, check: bool = False) -> subprocess.CompletedProcess:
        command = [sys.executable, '-m', 'mnist_jax.main', *arguments]
        options = {'cwd': tmp_path, 'env': environment(data_dir), 'capture_output': True, 'text': True}
        return subprocess.run(command, **options, check=check)

    return run


@pytest.fixture
def browser():
    """Headless Chromium; skips the test if it is not installed."""
    paths = filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')))
    path = next(paths, None)
    if path is None:
        pytest.skip('Chromium is not installed: apt-get install chromium')
    from playwright.sync_api import sync_playwright  # Only the tests of the HTML pages need it.

    flags = ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--no-first-run']
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=path, args=flags) as chromium:
        yield chromium


@contextlib.contextmanager
def open_page(browser, url: str, **options) -> Iterator:
    """Opens a page; fails the test if the page writes anything to the console."""
    page = browser.new_page(**options)
    messages = []
    page.on('console', lambda message: messages.append(message.text))
    page.on('pageerror', lambda error: messages.append(str(error)))
    page.goto(url)
    yield page
    assert messages == []
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
        sys.argv = [main.__file__, *arguments]
        main.main()  # Exits this process.
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope='session')
def _forking(data_dir):
    """A process that has imported everything, and forks for each run of the program."""
    command = [sys.executable, '-c', FORKING]
    options = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True, 'cwd': ROOT}
    with subprocess.Popen(command, env=environment(data_dir), **options) as process:
        yield process


@pytest.fixture
def forked(_forking, tmp_path):
    """Like `program`, but forks a process that has already imported everything, which saves seconds for short runs."""

    def run(*arguments: str) -> subprocess.CompletedProcess:
        print(json.dumps([str(tmp_path), arguments]), file=_forking.stdin, flush=True)
        status = int(_forking.stdout.readline())
        output = [tmp_path.with_name(f'{tmp_path.name}.{name}').read_text() for name in ('stdout', 'stderr')]
        return subprocess.CompletedProcess(arguments, status, *output)

    return run


@contextlib.contextmanager
def memory_limit(limit: int) -> Iterator[None]:
    """Fails if Python and NumPy ever hold more than this many bytes."""
    tracemalloc.start()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= limit


def metrics_rows(workdir) -> list[list[str]]:
    """Returns the rows of metrics.csv, without the times."""
    with open(workdir / 'metrics.csv', newline='') as file:
        return [row[REPRODUCIBLE_COLUMNS] for row in csv.reader(file)]


def results(workdir) -> tuple:
    """Returns what equal runs have in common: the contents of eval.json and metrics.csv."""
    return json.loads((workdir / 'eval.json').read_text()), metrics_rows(workdir)


def contents(directory: Path) -> list[Path]:
    """Returns all files below a directory, the largest first."""
    return sorted((path for path in directory.rglob('*') if path.is_file()), key=lambda path: -path.stat().st_size)


def flip(directory: Path) -> None:
    """Flips a bit of the largest file in a directory."""
    path = contents(directory)[0]
    flipped = bytearray(path.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    path.write_bytes(flipped)


def fail_after(failing_step: int) -> Callable[[int, StopRequest], None]:
    """Returns an `on_step` that raises after a step, as if the process had been killed."""

    def on_step(step: int, request: StopRequest) -> None:
        if step == failing_step:
            raise RuntimeError('as if killed')

    return on_step
