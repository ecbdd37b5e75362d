"""A data set that need not fit in memory: resident memory over an epoch of it, and its speed beside one in memory.

    .venv/bin/python benchmarks/streaming.py --data_dir=/tmp/synthetic       # 2 million examples, made on first use

Trains an MLP for an epoch on the examples as they stay on the disk (`dataset.in_memory=False`), and tells the resident
memory after a tenth of it and at the end; then the CNN of configs/cnn.py, some steps in turns from the disk and from
memory, and tells the median of the ratios of images/s.
"""

import argparse
import functools
import hashlib
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from mnist_jax.config import load_config  # noqa: E402
from mnist_jax.data import source  # noqa: E402
from mnist_jax.data.builder import ArrayBuilder  # noqa: E402
from mnist_jax.training.experiment import Experiment, make_experiment  # noqa: E402

BLOCK = 60_000  # examples


class Synthetic(ArrayBuilder):
    """MNIST's training images over and over, each time shifted and with noise of another seed.

    In several splits, because TFDS asks for TensorFlow where it prepares one of more than 1 GB.
    """

    COUNTS = {**{f'train_{number}': 500_000 for number in range(4)}, 'test': 1_000}

    def _split_generators(self, dl_manager):
        mnist = source.SOURCES['mnist'](data_dir='', raw_dir='', train='train', validation='', test='test')
        mnist.data.prepare()
        return {name: self._examples(name, mnist.split('train'), count) for name, count in self.COUNTS.items()}

    def _examples(self, name: str, mnist, count: int) -> Iterator[tuple[int, dict]]:
        pixels, labels = hashlib.sha256(), []
        for start in range(0, count, BLOCK):
            rng = np.random.default_rng((start, *name.encode()))
            size = min(BLOCK, count - start)
            images = np.roll(mnist.image[:size], rng.integers(-3, 4, 2), axis=(1, 2))
            images = np.where(images == 0, rng.integers(0, 32, images.shape, np.uint8), images)
            pixels.update(images)
            labels.append(mnist.label[:size].astype(np.uint8))
            for place, (image, label) in enumerate(zip(images, labels[-1].tolist(), strict=True)):
                yield start + place, {'image': image, 'label': label}
        pixels.update(np.concatenate(labels))
        self.info.metadata['sha256'][name] = pixels.hexdigest()


def experiment_of(model: str, arguments: argparse.Namespace, in_memory: bool) -> Experiment:
    """The experiment of `configs/MODEL.py` on the synthetic data."""
    config = load_config(str(ROOT / 'configs' / f'{model}.py'))
    config.dataset.name = 'synthetic'
    config.dataset.data_dir = arguments.data_dir
    config.dataset.train = '+'.join(name for name in Synthetic.COUNTS if name != 'test')
    config.dataset.in_memory = in_memory
    return make_experiment(config)


def resident_megabytes() -> float:
    """Of this process."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith('VmRSS')) / 1024


def memory(arguments: argparse.Namespace) -> None:
    """Train an epoch, and tell the resident memory on the way."""
    experiment = experiment_of('mlp', arguments, in_memory=False)
    state = experiment.replicas.replicate(experiment.create_state())
    steps, found, began = experiment.steps_per_epoch, [], time.perf_counter()
    for step, batch in enumerate(experiment.train_batches(0), start=1):
        state, sums = experiment.train_step(state, batch)
        jax.block_until_ready(sums)
        if step % (steps // 10) == 0:
            found.append(resident_megabytes())
            print(f'step {step:>6,}: {found[-1]:,.0f} MB', flush=True)
    images = steps * experiment.config.batch_size / (time.perf_counter() - began)
    print(f'mlp, {images:,.0f} images/s: {found[-1] / found[0] - 1:+.1%} memory from 10 % of an epoch to its end')


def speed(arguments: argparse.Namespace) -> None:
    """Train the CNN in turns from the disk and from memory, and tell the ratio of their speeds."""
    experiments = {name: experiment_of('cnn', arguments, in_memory=name == 'memory') for name in ('disk', 'memory')}
    states = {name: each.replicas.replicate(each.create_state()) for name, each in experiments.items()}
    batches = {name: each.train_batches(0) for name, each in experiments.items()}
    ratios = []
    for number in range(arguments.rounds + 1):
        seconds = {}
        for name, experiment in experiments.items():
            began = time.perf_counter()
            for _ in range(arguments.steps):
                states[name], sums = experiment.train_step(states[name], next(batches[name]))
            jax.block_until_ready(sums)
            seconds[name] = time.perf_counter() - began
        if number:  # The first round compiles.
            ratios.append(seconds['memory'] / seconds['disk'])
            images = {name: arguments.steps * 128 / each for name, each in seconds.items()}
            print(f'disk {images["disk"]:,.0f}, memory {images["memory"]:,.0f} images/s: {ratios[-1]:.3f}', flush=True)
    print(f'cnn, disk against memory: median {statistics.median(ratios):.3f} of {arguments.rounds} rounds')


def main() -> None:
    """Make the data set where it is to do, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data_dir', required=True, help='where the prepared data set lives: 1.7 GB')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--steps', type=int, default=60, help='of the CNN, in each round')
    parser.add_argument('--only', choices=['memory', 'speed', 'prepare'], help='one part of it')
    arguments = parser.parse_args()
    source.SOURCES['synthetic'] = functools.partial(source.Source, 'synthetic', Synthetic)
    if arguments.only == 'prepare':
        source.SOURCES['synthetic'](arguments.data_dir, '', 'train_0', '', 'test').data.prepare()
    if arguments.only in (None, 'memory'):
        memory(arguments)
    if arguments.only in (None, 'speed'):
        speed(arguments)


if __name__ == '__main__':
    main()
