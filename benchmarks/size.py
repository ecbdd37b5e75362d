"""Measures how throughput and peak memory of training scale with the width, the batch, the dataset and the devices.

    .venv/bin/python benchmarks/size.py --config=configs/cnn.py

Trains with 1, 4 and 16 times the width, the batch and the dataset, and on 1, 2 and 4 devices, one process after the
other; a larger dataset is the training split repeated in memory. Sixteen times the width is 256 times the work, so
`--seconds` limits every measurement, but each makes at least three calls.

Prints a Markdown table: images/s and peak memory for every size.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TypedDict

import flags
from programs import peak_memory

SIZES: dict[str, dict[str, int]] = {
    'baseline': {},
    '4 x width': {'width': 4},
    '16 x width': {'width': 16},
    '4 x batch': {'batch': 4},
    '16 x batch': {'batch': 16},
    '4 x data': {'data': 4},
    '16 x data': {'data': 16},
    '2 devices': {'devices': 2},
    '4 devices': {'devices': 4},
}

MIN_CALLS = 2  # after the first call


class Result(TypedDict):
    """The measurements of one size."""

    images_per_second: float
    peak_bytes: int


def measure(
    config_path: str, seconds: float, width: int = 1, batch: int = 1, data: int = 1, devices: int = 1
) -> Result:
    """Trains for about this many seconds after the first call, and makes at least two calls.

    Args:
      config_path: The config that is scaled.
      seconds: How long to train.
      width, batch, data: Factors of the width of every layer, the batch size and the number of training examples.
      devices: The number of devices.
    """
    import jax

    from mnist_jax.config import load_config
    from mnist_jax.training.experiment import make_experiment

    config = load_config(config_path)
    for name in ('hidden', 'stages'):
        if name in config.model:
            config.model[name] = widened(config.model[name], width)
    config.batch_size *= batch
    config.devices = devices
    config.dataset.train = '+'.join([config.dataset.train] * data)
    experiment = make_experiment(config)
    state = experiment.replicas.replicate(experiment.create_state())
    groups = itertools.chain.from_iterable(map(experiment.train_calls, itertools.count()))
    first_group = next(groups)
    state, sums = experiment.train_steps(state, first_group)  # Compiles.
    jax.block_until_ready(sums)
    calls, steps, start = 0, 0, time.perf_counter()
    while calls < MIN_CALLS or time.perf_counter() - start <= seconds:
        group = next(groups)
        if len(group) == len(first_group):  # A shorter group at the end of an epoch would be compiled separately.
            state, sums = experiment.train_steps(state, group)
            jax.block_until_ready(sums)
            calls += 1
            steps += len(group)
    elapsed = time.perf_counter() - start
    return {'images_per_second': config.batch_size * steps / elapsed, 'peak_bytes': peak_memory()}


def widened(widths: tuple, factor: int) -> tuple:
    """Returns the widths of layers, or of stages of layers, times `factor`."""
    return tuple(widened(width, factor) if isinstance(width, tuple) else width * factor for width in widths)


def main() -> None:
    """Measures every size, and prints one row of the table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', type=flags.config_path, default='configs/cnn.py')
    parser.add_argument('--seconds', type=float, default=10.0, help='per size')
    parser.add_argument('--only', type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    from mnist_jax.config import load_config

    if not {'hidden', 'stages'} & set(load_config(options.config).model):
        parser.error(f"--config must select a model with the field 'hidden' or 'stages', got {options.config}")
    if options.only is not None:
        print(json.dumps(measure(options.config, options.seconds, **options.only)))
        return
    print(f'| `{Path(options.config).stem}` | images/s | peak memory |\n|---|---|---|')
    for name, factors in SIZES.items():
        command = [sys.executable, *sys.argv, f'--only={json.dumps(factors)}']
        result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        print(f'| {name} | {result["images_per_second"]:,.0f} | {result["peak_bytes"] / 1e6:,.0f} MB |', flush=True)


if __name__ == '__main__':
    main()
