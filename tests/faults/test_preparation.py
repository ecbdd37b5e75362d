"""Kills the preparation of image files at random moments: it starts over, and the data is what it would have been."""

import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, environment
from raw_data import prepare, write_folder

COUNT, CLASSES = 3000, 10
PREPARE = """
import sys
from mnist_jax.data.source import SOURCES

raw_dir, data_dir = sys.argv[1:]
SOURCES['image_folder'](data_dir, raw_dir, 'train', '', 'test').data.prepare()
"""


@pytest.mark.parametrize('seed', [0, *(pytest.param(seed, marks=pytest.mark.slow_faults) for seed in range(1, 6))])
def test_a_killed_preparation_of_images_starts_over(tmp_path, seed):
    rng = random.Random(seed)
    images = np.random.default_rng(seed).integers(0, 256, (COUNT, 16, 16, 3), np.uint8)
    raw_dir = write_folder(tmp_path / 'raw', images, np.arange(COUNT) % CLASSES)
    start = time.monotonic()
    expected = prepare('image_folder', tmp_path / 'expected', raw_dir).data.digests
    seconds = time.monotonic() - start
    command = [sys.executable, '-c', PREPARE, str(raw_dir), str(tmp_path / 'data')]
    for _ in range(3):
        with subprocess.Popen(command, cwd=ROOT, env=environment(str(tmp_path / 'data'))) as process:
            time.sleep(1 + rng.uniform(0, 1.5 * seconds))  # Imports take about a second.
            process.send_signal(signal.SIGKILL)
    assert subprocess.run(command, cwd=ROOT, env=environment(str(tmp_path / 'data'))).returncode == 0
    prepared = prepare('image_folder', tmp_path / 'data', raw_dir)
    assert prepared.data.digests == expected
    assert not list((tmp_path / 'data').rglob('incomplete.*'))
