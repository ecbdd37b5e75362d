"""Compares training from scratch with training that starts from a run on other classes.

    .venv/bin/python benchmarks/fine_tuning.py --seeds=10

Trains the `cnn` on MNIST's digits 0 to 4, and then, for each seed, two runs on 500 examples of the digits 5 to 9: one
from scratch, one that starts from the first run. Prints the test accuracies of the pairs, and the mean of their
differences with its standard deviation.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from absl import logging

from mnist_jax.config import load_config
from mnist_jax.data.source import SOURCES
from mnist_jax.train import train

EXAMPLES = 500


def write_digits(path: Path, classes: range, examples: int | None = None) -> None:
    """Writes the images of some of MNIST's classes, the first `examples` for training, as a .npz file."""
    source = SOURCES['mnist'](data_dir='', raw_dir='', train='train', validation='', test='test')
    source.data.prepare()
    arrays = {}
    for split in ('train', 'test'):
        images, labels = source.split(split)
        chosen = np.flatnonzero(np.isin(labels, classes))[: examples if split == 'train' else None]
        arrays |= {f'x_{split}': images[chosen], f'y_{split}': labels[chosen]}
    np.savez(path, **arrays)


def test_accuracy(data: Path, workdir: Path, epochs: int, seed: int = 0, origin: Path | None = None) -> float:
    """Trains the `cnn` on the images of a .npz file; returns its test accuracy."""
    config = load_config('configs/cnn.py')
    config.seed, config.epochs = seed, epochs
    config.dataset.name, config.dataset.raw_dir = 'npz', str(data)
    config.init.workdir = '' if origin is None else str(origin)
    return train(config, workdir)['accuracy']


def main() -> None:
    """Trains the runs, and prints their test accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=10)
    parser.add_argument('--epochs', type=int, default=10, help='of the runs on 500 examples')
    options = parser.parse_args()
    logging.set_verbosity(logging.WARNING)
    differences = []
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        write_digits(root / 'low.npz', range(5))
        write_digits(root / 'high.npz', range(5, 10), EXAMPLES)
        accuracy = test_accuracy(root / 'low.npz', root / 'low', epochs=2)
        lines = [f'digits 0 to 4: {accuracy:.4f}']
        for seed in range(options.seeds):
            scratch = test_accuracy(root / 'high.npz', root / f'scratch{seed}', options.epochs, seed)
            started = test_accuracy(root / 'high.npz', root / f'started{seed}', options.epochs, seed, root / 'low')
            differences.append(started - scratch)
            lines.append(f'digits 5 to 9, seed {seed}: from scratch {scratch:.4f}, from the run {started:.4f}')
    print('\n'.join(lines))
    print(f'difference: {np.mean(differences):.4f} ± {np.std(differences, ddof=1):.4f} over {options.seeds} seeds')


if __name__ == '__main__':
    main()
