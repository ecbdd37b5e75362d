"""Tests whether a config gives bit-identical results on different numbers of devices, on this machine.

    .venv/bin/python benchmarks/same_bits.py --config=configs/fashion_cnn.py --steps=50 --devices=1,2,4,8
    .venv/bin/python benchmarks/same_bits.py --set=batch_size=100 --set=model.dropout='(0.5,0.5)'

Trains the same steps on each number of devices, one process after the other.

Prints, for each number of devices, the images/s, the last loss, the largest difference between a step's loss and that
of the first process, and the SHA-256 of the parameters; then whether the digests are identical. Exits with 1 if they
are not.
"""

import argparse
import ast
import json
import subprocess
import sys
import time
from typing import TypedDict

import flags


class Result(TypedDict):
    """The result on one number of devices; the first two steps do not count in `images_per_second`."""

    losses: list[float]
    images_per_second: float
    params_sha256: str


def train(config_path: str, overrides: list[str], steps: int, devices: int) -> Result:
    """Trains the first steps of a config."""
    from mnist_jax.config import load_config
    from mnist_jax.training.experiment import make_experiment
    from mnist_jax.workdir.snapshot import params_sha256

    config = load_config(config_path)
    config.devices = devices
    config.steps_per_call = 1  # so that every step reports its own loss
    for override in overrides:
        name, _, text = override.partition('=')
        config.update_from_flattened_dict({name: ast.literal_eval(text)})
    experiment = make_experiment(config)
    state = experiment.replicas.replicate(experiment.create_state())
    losses, start = [], 0.0
    for batch in experiment.train_batches(0):
        state, sums = experiment.train_step(state, batch)
        losses.append(float(sums['loss'] / sums['count']))
        if len(losses) == 2:
            start = time.perf_counter()
        if len(losses) == steps:
            break
    speed = config.batch_size * (len(losses) - 2) / (time.perf_counter() - start)
    return {'losses': losses, 'images_per_second': speed, 'params_sha256': params_sha256(state.variables)}


def main() -> int:
    """Trains on each number of devices, compares, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', type=flags.config_path, default='configs/cnn.py')
    parser.add_argument(
        '--set',
        action='append',
        default=[],
        metavar='FIELD=VALUE',
        help='a config field; its value is a Python literal',
    )
    parser.add_argument('--steps', type=flags.at_least(3), default=50, help='from 3 to the number of steps in an epoch')
    numbers = [str(number) for number in range(1, 65)]
    parser.add_argument('--devices', type=flags.names(numbers), default=('1', '2', '4', '8'), help='comma-separated')
    parser.add_argument('--only', type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(train(options.config, options.set, options.steps, options.only)))
        return 0
    results: list[Result] = []
    for devices in map(int, options.devices):
        command = [sys.executable, *sys.argv, f'--only={devices}']
        process = subprocess.run(command, stdout=subprocess.PIPE)
        if process.returncode:
            return 2
        result = json.loads(process.stdout)
        results.append(result)
        losses = result['losses']
        difference = max(abs(loss - other) for loss, other in zip(losses, results[0]['losses'], strict=True))
        print(
            f'{devices} device{"s" if devices > 1 else ""}: {result["images_per_second"]:,.0f} images/s, '
            f'loss {losses[-1]:.6f} after {len(losses)} steps (largest difference {difference:.1e}), '
            f'params_sha256 {result["params_sha256"]}',
            flush=True,
        )
    identical = len({result['params_sha256'] for result in results}) == 1
    if len(results) > 1:
        print('bit-identical' if identical else 'not bit-identical')
    return 0 if identical else 1


if __name__ == '__main__':
    sys.exit(main())
