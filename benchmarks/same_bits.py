"""Whether a config gives the same bits on other numbers of devices, on this machine.

    .venv/bin/python benchmarks/same_bits.py --config=configs/fashion_cnn.py --steps=50 --devices=1,2,4,8
    .venv/bin/python benchmarks/same_bits.py --set=batch_size=100 --set=model.dropout='(0.5,0.5)'

Trains some steps on each number of devices, each in a process of its own, and prints images/s, the last loss and the
digest of the parameters; exits with 1 where digests differ.
"""

import argparse
import ast
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


def train(arguments: argparse.Namespace, devices: int) -> dict:
    """Train some steps; the loss of each, images/s after the first two, the digest of the parameters."""
    from mnist_jax.config import load_config
    from mnist_jax.training.experiment import make_experiment
    from mnist_jax.workdir.snapshot import params_sha256

    config = load_config(arguments.config)
    config.devices = devices
    config.steps_per_call = 1  # so that each step's loss is seen by itself
    for override in arguments.set:
        name, _, text = override.partition('=')
        *sections, field = name.split('.')
        place = config
        for section in sections:
            place = place[section]
        place[field] = ast.literal_eval(text)
    experiment = make_experiment(config)
    state, losses, began = experiment.replicas.replicate(experiment.create_state()), [], 0.0
    for batch in experiment.train_batches(0):
        state, sums = experiment.train_step(state, batch)
        losses.append(float(sums['loss'] / sums['count']))
        if len(losses) == 2:
            began = time.perf_counter()
        if len(losses) == arguments.steps:
            break
    speed = config.batch_size * (len(losses) - 2) / (time.perf_counter() - began)
    return {'losses': losses, 'images_per_second': speed, 'params_sha256': params_sha256(state)}


def main() -> int:
    """Train on each number of devices, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default=str(ROOT / 'configs' / 'cnn.py'))
    parser.add_argument('--set', action='append', default=[], metavar='FIELD=VALUE', help='of the config, in Python')
    parser.add_argument('--steps', type=int, default=50, help='at most those of an epoch, at least 3')
    parser.add_argument('--devices', default='1,2,4,8')
    parser.add_argument('--only', type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(train(arguments, arguments.only)))
        return 0
    found = {}
    for devices in map(int, arguments.devices.split(',')):
        command = [sys.executable, *sys.argv, f'--only={devices}']
        found[devices] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        losses, first = found[devices]['losses'], next(iter(found.values()))['losses']
        apart = max(abs(loss - other) for loss, other in zip(losses, first, strict=True))
        print(
            f'{devices} devices: {found[devices]["images_per_second"]:,.0f} images/s, loss {losses[-1]:.6f} after '
            f'{len(losses)} steps (at most {apart:.1e} apart), params_sha256 {found[devices]["params_sha256"]}',
            flush=True,
        )
    same = len({each['params_sha256'] for each in found.values()}) == 1
    print('the same bits' if same else 'other bits')
    return 0 if same else 1


if __name__ == '__main__':
    sys.exit(main())
