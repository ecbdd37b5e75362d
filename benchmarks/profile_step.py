"""Where the time of a training step goes on a CPU: each kernel with its shapes and GFLOP/s, and what XLA does beside.

    .venv/bin/python benchmarks/profile_step.py --config=configs/fashion_cnn.py

Traces some steps with JAX's profiler and prints milliseconds a step, the longest first. Kernels that do not depend on
each other run at the same time and share the cores, so the sum can be more than a step takes.
"""

import argparse
import collections
import gzip
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
LAYERS = ('layer', 'layer_relu', 'input_gradient', 'kernel_gradient')
CALL = re.compile(
    r'%(ffi_call[.\d]*) = (.*?) custom-call.*target="mnist_jax_(\w+)", operand_layout_constraints=\{(.*?)\}, api'
)
SHAPE = re.compile(r'[a-z]\w*\[([\d,]*)\]')


def trace(config_path: str, steps: int, directory: Path) -> float:
    """Train some steps, one a call, and trace them into the directory; the milliseconds of one, not traced."""
    import jax

    from mnist_jax.config import load_config
    from mnist_jax.training.experiment import make_experiment

    config = load_config(config_path)
    config.steps_per_call = 1
    experiment = make_experiment(config)
    state, batches = experiment.replicas.replicate(experiment.create_state()), experiment.train_batches(0)

    def train() -> None:
        nonlocal state
        for _, batch in zip(range(steps), batches, strict=False):
            state, sums = experiment.train_step(state, batch)
            float(sums['loss'])

    train()
    began = time.perf_counter()
    train()
    taken = 1e3 * (time.perf_counter() - began) / steps
    with jax.profiler.trace(str(directory)):
        train()
    return taken


def kernels(directory: Path) -> dict[str, tuple[str, str, int]]:
    """Of each call of a kernel in the program of the step: its target, its shapes and its multiply-adds."""
    programs = [path.read_text() for path in directory.glob('*after_optimizations.txt')]
    program = next(text for text in programs if 'mnist_jax_kernel_gradient' in text)
    found = {}
    for name, results, target, operands in CALL.findall(program):
        shapes = [[int(size) for size in shape.split(',') if size] for shape in SHAPE.findall(f'{results} {operands}')]
        multiply_adds = 0
        if target in LAYERS:
            # Results and operands: (output, x, kernel, ...), (x, output, kernel, ...), (kernel, bias, x, output, ...).
            output, kernel = {'input_gradient': (1, 2), 'kernel_gradient': (3, 0)}.get(target, (0, 2))
            multiply_adds = math.prod(shapes[output]) * math.prod(shapes[kernel][:-1])
        told = ', '.join('x'.join(map(str, shape)) for shape in shapes[: 4 if target == 'kernel_gradient' else 3])
        found[name] = (target, told, multiply_adds)
    return found


def durations(directory: Path) -> tuple[dict[str, float], dict[str, int]]:
    """Of each traced operation of XLA's: milliseconds in all, and how many there were."""
    path = next(directory.glob('**/*.trace.json.gz'))
    total, count = collections.Counter(), collections.Counter()
    for event in json.loads(gzip.decompress(path.read_bytes()))['traceEvents']:
        if event.get('ph') == 'X' and 'hlo_op' in event.get('args', {}):
            total[event['name']] += event['dur'] / 1e3
            count[event['name']] += 1
    return total, count


def main() -> None:
    """Print the table, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default=str(ROOT / 'configs' / 'cnn.py'))
    parser.add_argument('--steps', type=int, default=10)
    parser.add_argument('--directory', type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.directory:
        print(trace(arguments.config, arguments.steps, arguments.directory))
        return
    with tempfile.TemporaryDirectory() as directory:
        environment = {**os.environ, 'JAX_ENABLE_COMPILATION_CACHE': 'false'}
        environment['XLA_FLAGS'] = f'--xla_dump_to={directory} --xla_dump_hlo_as_text'
        command = [sys.executable, *sys.argv, f'--directory={directory}']
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        calls, (total, count) = kernels(Path(directory)), durations(Path(directory))
    rows = collections.defaultdict(lambda: [0.0, 0.0, 0])
    for name, milliseconds in total.items():
        target, shapes, multiply_adds = calls.get(name, (re.sub(r'[.\d]+$', '', name), '', 0))
        for i, value in enumerate((milliseconds, count[name], multiply_adds * count[name])):
            rows[target, shapes][i] += value / arguments.steps
    print(f'{float(done.stdout.split()[-1]):.1f} ms a step (not traced)\n')
    print('| operation | shapes | calls | ms | GFLOP/s |\n|---|---|---|---|---|')
    for (target, shapes), (milliseconds, each, multiply_adds) in sorted(rows.items(), key=lambda row: -row[1][0]):
        speed = f'{2 * multiply_adds / milliseconds / 1e6:.0f}' if multiply_adds else ''
        if milliseconds >= 0.05:
            print(f'| {target} | {shapes} | {each:.0f} | {milliseconds:.2f} | {speed} |')


if __name__ == '__main__':
    main()
