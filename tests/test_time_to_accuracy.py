"""The recipe that `benchmarks/time_to_accuracy.py` gives to other programs, without running them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from digit_images import read_mnist_test

from mnist_jax.config import load_config

SCRIPT = ROOT / 'benchmarks' / 'time_to_accuracy.py'


def test_the_others_get_the_learning_rate_of_every_update_and_all_examples(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import keras_results
    import time_to_accuracy

    config = load_config('configs/fast.py')
    path = time_to_accuracy.write_task('fast', tmp_path / 'task')
    task = json.loads(path.read_text())
    count = config.epochs * -(-60_000 // config.batch_size)
    assert len(task['rates']) == count and task['epochs'] == config.epochs and task['shift'] == 0
    # One cycle: from 1/25 of the rate up to the rate after 30% of the updates, and down to nearly 0.
    np.testing.assert_allclose(task['rates'][0], config.optimizer.learning_rate / 25, rtol=1e-5)
    assert np.argmax(task['rates']) in (int(0.3 * count), int(0.3 * count) + 1)
    assert max(task['rates']) <= config.optimizer.learning_rate and task['rates'][-1] < 1e-4 * task['rates'][count // 2]
    image, label = keras_results.read_split(path, 'test')
    images, labels = read_mnist_test()
    assert np.array_equal(label, labels) and np.array_equal(np.rint(255 * image[..., 0]), images)
    task = json.loads(time_to_accuracy.write_task('fast_995', tmp_path / 'shifted').read_text())
    assert task['shift'] == 1 and task['loss']['label_smoothing'] == 0.05


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ('--configs=fastest', "--configs must be names of configs, got 'fastest'"),
        (
            '--configs=fast,mlp',
            "--configs must be a CNN on MNIST with adamw and no more than a schedule and shifts, got 'mlp'",
        ),
        ('--configs=handwriting', '--configs must have no augmentation except a shift by whole pixels, got'),
        ('--configs=mnist_1k', '--configs must have the loss cross_entropy and the activation relu, got'),
        ('--seeds=0', '--seeds must be at least 1, got 0'),
        ('--other-seeds=-1', '--other-seeds must be at least 0, got -1'),
        ('--other-seeds=11', '--other-seeds must be at most --seeds=10, got 11'),
    ],
)
def test_wrong_arguments_are_errors(argument, message):
    process = subprocess.run([sys.executable, str(SCRIPT), argument], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 2 and message in process.stderr.splitlines()[-1]
