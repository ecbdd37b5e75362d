"""What size costs: images/s and peak memory of training for 1, 4 and 16 times the width, the batch and the data set,
and on 1, 2 and 4 devices.

    .venv/bin/python benchmarks/size.py --config=configs/cnn.py

Each in a process of its own, one after the other; the data set is repeated in memory. Sixteen times the width is 256
times the work: `--seconds` bounds each row, beside its first steps.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
ROWS = [
    ('as it is', {}),
    ('4 x width', {'width': 4}),
    ('16 x width', {'width': 16}),
    ('4 x batch', {'batch': 4}),
    ('16 x batch', {'batch': 16}),
    ('4 x data', {'data': 4}),
    ('16 x data', {'data': 16}),
    ('2 devices', {'devices': 2}),
    ('4 devices', {'devices': 4}),
]


def measure(config_path: str, seconds: float, width: int = 1, batch: int = 1, data: int = 1, devices: int = 1) -> dict:
    """Train for about so many seconds, at least two calls after the first."""
    import numpy as np

    from mnist_jax.config import load_config
    from mnist_jax.training.experiment import make_experiment

    config = load_config(config_path)
    for name in ('hidden', 'stages'):
        if name in config.model:
            config.model[name] = wider(config.model[name], width)
    config.batch_size *= batch
    config.devices = devices
    config.dataset.train = '+'.join([config.dataset.train] * data)
    experiment = make_experiment(config)
    state, done, began = experiment.replicas.replicate(experiment.create_state()), 0, 0.0
    for number, one in enumerate(experiment.train_batches(0)):
        state, sums = experiment.train_step(state, one)
        done += np.asarray(sums['loss']).size
        if number == 0:
            done, began = 0, time.perf_counter()
        elif number >= 2 and time.perf_counter() - began > seconds:
            break
    taken = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
    return {'images_per_second': config.batch_size * done / taken, 'peak_bytes': peak}


def wider(widths: tuple, factor: int) -> tuple:
    """Widths, of layers or of stages of layers, times the factor."""
    return tuple(wider(each, factor) if isinstance(each, tuple) else each * factor for each in widths)


def main() -> None:
    """Print a row for each size, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default=str(ROOT / 'configs' / 'cnn.py'))
    parser.add_argument('--seconds', type=float, default=10.0)
    parser.add_argument('--only', type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is not None:
        print(json.dumps(measure(arguments.config, arguments.seconds, **arguments.only)))
        return
    print(f'| `{Path(arguments.config).stem}` | images/s | peak memory |\n|---|---|---|')
    for name, fields in ROWS:
        command = [sys.executable, *sys.argv, f'--only={json.dumps(fields)}']
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        print(f'| {name} | {found["images_per_second"]:,.0f} | {found["peak_bytes"] / 1e6:,.0f} MB |', flush=True)


if __name__ == '__main__':
    main()
