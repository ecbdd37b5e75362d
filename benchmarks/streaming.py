"""Measures training on data that stays on the disk: resident memory over an epoch, and speed against data in memory.

    .venv/bin/python benchmarks/streaming.py --data_dir=/tmp/synthetic

The dataset has 2 million examples (1.7 GB); the first run prepares it in --data_dir. First, the model of
configs/mlp.py trains for an epoch with `dataset.in_memory=False`. Then that of configs/cnn.py trains in rounds, some
steps with the data on the disk and as many with the data in memory.

Prints the resident memory after every tenth of the epoch and how much it has grown since the first; and for each round
the images/s from the disk and from memory, with their ratio, and the median ratio. Runs on Linux only.
"""

import argparse
import functools
import hashlib
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import flags
import jax
import numpy as np

from mnist_jax.config import load_config
from mnist_jax.data import source
from mnist_jax.data.builder import ArrayBuilder
from mnist_jax.data.records import Split
from mnist_jax.training.experiment import Experiment, make_experiment

BLOCK = 60_000  # examples that are generated at a time
REPORTS = 10  # per epoch


class Synthetic(ArrayBuilder):
    """MNIST's training images repeated, with a shift and noise that are drawn again for every repetition.

    Has several splits, because TFDS needs TensorFlow to prepare a split of more than 1 GB.
    """

    COUNTS = {**{f'train_{index}': 500_000 for index in range(4)}, 'test': 1_000}

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
        mnist = make_source('mnist', '')
        mnist.data.prepare()
        train = mnist.split('train')
        assert isinstance(train, Split)
        return {name: self._examples(name, train, count) for name, count in self.COUNTS.items()}

    def _examples(self, name: str, mnist: Split, count: int) -> Iterator[tuple[int, dict]]:
        digest, labels = hashlib.sha256(), []  # The digest is that of `Split`: all pixels, then all labels.
        for start in range(0, count, BLOCK):
            rng = np.random.default_rng((start, *name.encode()))
            size = min(BLOCK, count - start)
            images = np.roll(mnist.image[:size], rng.integers(-3, 4, 2), axis=(1, 2))
            images = np.where(images == 0, rng.integers(0, 32, images.shape, np.uint8), images)
            digest.update(images.data)
            labels.append(mnist.label[:size].astype(np.uint8))
            for offset, (image, label) in enumerate(zip(images, labels[-1].tolist(), strict=True)):
                yield start + offset, {'image': image, 'label': label}
        digest.update(np.concatenate(labels).data)
        self.info.metadata['sha256'][name] = digest.hexdigest()


def make_source(name: str, data_dir: str, train: str = 'train') -> source.Source:
    """Returns a dataset with no validation split."""
    return source.SOURCES[name](data_dir=data_dir, raw_dir='', train=train, validation='', test='test')


def make_synthetic_experiment(model: str, data_dir: str, in_memory: bool) -> Experiment:
    """Returns the experiment of `configs/MODEL.py` on the synthetic data."""
    config = load_config(f'configs/{model}.py')
    config.dataset.name = 'synthetic'
    config.dataset.data_dir = data_dir
    config.dataset.train = '+'.join(name for name in Synthetic.COUNTS if name != 'test')
    config.dataset.in_memory = in_memory
    return make_experiment(config)


def resident_megabytes() -> float:
    """Returns the resident memory of this process."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith('VmRSS')) / 1024


def measure_memory(data_dir: str) -> None:
    """Trains for an epoch from the disk, and prints the resident memory as it goes."""
    experiment = make_synthetic_experiment('mlp', data_dir, in_memory=False)
    state = experiment.replicas.replicate(experiment.create_state())
    reports: list[float] = []
    steps, start = 0, time.perf_counter()
    for group in experiment.train_calls(0):
        state, sums = experiment.train_steps(state, group)
        jax.block_until_ready(sums)
        steps += len(group)
        if steps * REPORTS >= experiment.steps_per_epoch * (len(reports) + 1):
            reports.append(resident_megabytes())
            print(f'step {steps:>6,}: {reports[-1]:,.0f} MB', flush=True)
    speed = steps * experiment.config.batch_size / (time.perf_counter() - start)
    print(f'mlp, {speed:,.0f} images/s; memory from the first tenth to the end: {reports[-1] / reports[0] - 1:+.1%}')


def measure_speed(data_dir: str, rounds: int, steps: int) -> None:
    """Trains from the disk and from memory in turn, and prints the ratio of the speeds."""
    experiments, states, batches = {}, {}, {}
    for name in ('disk', 'memory'):
        experiment = make_synthetic_experiment('cnn', data_dir, in_memory=name == 'memory')
        experiments[name] = experiment
        states[name] = experiment.replicas.replicate(experiment.create_state())
        batches[name] = experiment.train_batches(0)
    ratios = []
    for index in range(rounds + 1):
        speeds = {}
        for name, experiment in sorted(experiments.items(), reverse=bool(index % 2)):
            start = time.perf_counter()
            for _ in range(steps):
                states[name], sums = experiment.train_step(states[name], next(batches[name]))
            jax.block_until_ready(sums)
            speeds[name] = steps * experiment.config.batch_size / (time.perf_counter() - start)
        if index:  # The first round compiles.
            ratios.append(speeds['disk'] / speeds['memory'])
            print(f'disk {speeds["disk"]:,.0f}, memory {speeds["memory"]:,.0f} images/s: {ratios[-1]:.3f}', flush=True)
    print(f'cnn, speed from the disk relative to memory: median {statistics.median(ratios):.3f} of {rounds} rounds')


def main() -> None:
    """Prepares the dataset if it is missing, and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data_dir', required=True, help='the directory of the prepared dataset (1.7 GB)')
    parser.add_argument('--rounds', type=flags.at_least(1), default=7)
    parser.add_argument(
        '--steps',
        type=flags.at_least(1),
        default=960,
        help='training steps of the CNN per round; with few, what is read ahead from the disk counts too little',
    )
    parser.add_argument('--only', choices=['memory', 'speed', 'prepare'], help='do only this part')
    options = parser.parse_args()
    source.SOURCES['synthetic'] = functools.partial(source.Source, 'synthetic', Synthetic)
    if options.only == 'prepare':
        make_source('synthetic', options.data_dir, train='train_0').data.prepare()
    if options.only in (None, 'memory'):
        measure_memory(options.data_dir)
    if options.only in (None, 'speed'):
        measure_speed(options.data_dir, options.rounds, options.steps)


if __name__ == '__main__':
    main()
