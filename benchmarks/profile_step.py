"""Profiles a training step on a CPU: the time and the GFLOP/s of each kernel, and the time of XLA's own operations.

    .venv/bin/python benchmarks/profile_step.py --config=configs/fashion_cnn.py

Trains some steps under JAX's profiler, in a separate process. Kernels that do not depend on each other run at the
same time and share the cores, so their sum can exceed the time of a step.

Prints the milliseconds of a step without the profiler, and then a Markdown table with one row per operation and shape,
the longest first: calls and milliseconds per step, and GFLOP/s. Rows below 0.05 ms are left out.
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
from typing import NamedTuple

import flags

# The kernels that compute a product or a convolution; see kernels/ops.py.
LAYER_KERNELS = ('layer', 'layer_relu', 'input_gradient', 'kernel_gradient')
CUSTOM_CALL = re.compile(
    r'%(ffi_call[.\d]*) = (.*?) custom-call.*target="mnist_jax_(\w+)", operand_layout_constraints=\{(.*?)\}, api'
)
SHAPE = re.compile(r'[a-z]\w*\[([\d,]*)\]')
MIN_MILLISECONDS = 0.05


class KernelCall(NamedTuple):
    """A call of a kernel in the compiled step."""

    kernel: str
    shapes: str  # for the table: 128x28x28x32, 3x3x32x32
    multiply_adds: int  # 0 for a kernel that is not in `LAYER_KERNELS`


def trace(config_path: str, steps: int, directory: Path) -> float:
    """Writes a trace of training steps to `directory`; returns the milliseconds of a step that is not traced."""
    import jax

    from mnist_jax.config import load_config
    from mnist_jax.training.experiment import make_experiment

    config = load_config(config_path)
    config.steps_per_call = 1
    experiment = make_experiment(config)
    if 3 * steps > experiment.steps_per_epoch:
        sys.exit(f'--steps must be at most a third of the {experiment.steps_per_epoch} of an epoch, got {steps}')
    state, batches = experiment.replicas.replicate(experiment.create_state()), experiment.train_batches(0)

    def train() -> None:
        nonlocal state
        for _, batch in zip(range(steps), batches, strict=False):
            state, sums = experiment.train_step(state, batch)
            float(sums['loss'])

    train()
    start = time.perf_counter()
    train()
    milliseconds = 1e3 * (time.perf_counter() - start) / steps
    with jax.profiler.trace(str(directory)):
        train()
    return milliseconds


def kernel_calls(directory: Path) -> dict[str, KernelCall]:
    """Returns the calls of kernels in the compiled step, by the name of XLA's operation."""
    programs = [path.read_text() for path in directory.glob('*after_optimizations.txt')]
    program = next(text for text in programs if 'mnist_jax_kernel_gradient' in text)
    calls = {}
    for operation, results, kernel, operands in CUSTOM_CALL.findall(program):
        shapes = [[int(size) for size in shape.split(',') if size] for shape in SHAPE.findall(f'{results} {operands}')]
        multiply_adds = 0
        if kernel in LAYER_KERNELS:
            # Results and operands: (output, x, kernel, ...), (x, output, kernel, ...), (kernel, bias, x, output, ...).
            output_index, kernel_index = {'input_gradient': (1, 2), 'kernel_gradient': (3, 0)}.get(kernel, (0, 2))
            multiply_adds = math.prod(shapes[output_index]) * math.prod(shapes[kernel_index][:-1])
        table_shapes = shapes[: 4 if kernel == 'kernel_gradient' else 3]
        text = ', '.join('x'.join(map(str, shape)) for shape in table_shapes)
        calls[operation] = KernelCall(kernel, text, multiply_adds)
    return calls


def traced_operations(directory: Path) -> tuple[dict[str, float], dict[str, int]]:
    """Returns the total milliseconds and the number of runs of each of XLA's operations in the trace."""
    path = next(directory.glob('**/*.trace.json.gz'))
    milliseconds: dict[str, float] = collections.defaultdict(float)
    count: dict[str, int] = collections.Counter()
    for event in json.loads(gzip.decompress(path.read_bytes()))['traceEvents']:
        if event.get('ph') == 'X' and 'hlo_op' in event.get('args', {}):
            milliseconds[event['name']] += event['dur'] / 1e3
            count[event['name']] += 1
    return milliseconds, count


def format_table(directory: Path, steps: int) -> str:
    """Returns the time per step of each operation and shape, in Markdown; `directory` has the trace and the program."""
    calls, (total, count) = kernel_calls(directory), traced_operations(directory)
    milliseconds: dict[tuple[str, str], float] = collections.defaultdict(float)
    runs: dict[tuple[str, str], float] = collections.defaultdict(float)
    multiply_adds: dict[tuple[str, str], float] = collections.defaultdict(float)
    for operation in total:
        # XLA numbers its operations: fusion.12 is a fusion.
        call = calls.get(operation, KernelCall(re.sub(r'[.\d]+$', '', operation), '', 0))
        key = call.kernel, call.shapes
        milliseconds[key] += total[operation] / steps
        runs[key] += count[operation] / steps
        multiply_adds[key] += call.multiply_adds * count[operation] / steps
    lines = ['| operation | shapes | calls | ms | GFLOP/s |', '|---|---|---|---|---|']
    for key in sorted(milliseconds, key=milliseconds.__getitem__, reverse=True):
        if milliseconds[key] >= MIN_MILLISECONDS:
            speed = f'{2 * multiply_adds[key] / milliseconds[key] / 1e6:.0f}' if multiply_adds[key] else ''
            lines.append(f'| {key[0]} | {key[1]} | {runs[key]:.0f} | {milliseconds[key]:.2f} | {speed} |')
    return '\n'.join(lines)


def main() -> None:
    """Profiles in a separate process, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', type=flags.config_path, default='configs/cnn.py')
    parser.add_argument('--steps', type=flags.at_least(1), default=10, help='the number of steps to trace')
    parser.add_argument('--directory', type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.directory:
        print(trace(options.config, options.steps, options.directory))
        return
    with tempfile.TemporaryDirectory() as directory:
        # XLA dumps the program of the step only when it compiles it.
        environment = {**os.environ, 'JAX_ENABLE_COMPILATION_CACHE': 'false'}
        own = os.environ.get('XLA_FLAGS', '')
        environment['XLA_FLAGS'] = f'{own} --xla_dump_to={directory} --xla_dump_hlo_as_text'.strip()
        command = [sys.executable, *sys.argv, f'--directory={directory}']
        process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        print(f'{float(process.stdout.split()[-1]):.1f} ms per step (without the profiler)\n')
        print(format_table(Path(directory), options.steps))


if __name__ == '__main__':
    main()
