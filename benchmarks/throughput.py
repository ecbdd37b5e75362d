"""Compares the throughput with Keras and PyTorch and, for evaluation, with ONNX Runtime and OpenVINO, on a CPU.

All programs have the same models, recipes and batches.

    .venv/bin/python benchmarks/throughput.py                                # all eight models, about 50 minutes
    .venv/bin/python benchmarks/throughput.py --models=cnn,mlp --rounds=5    # some of them

The first run installs the other programs into benchmarks/.venv. For each model, all programs stay alive, but only one
works at a time: in every round, each program trains for some seconds, in an order that rotates from round to round;
rounds of evaluation follow. The result is the median, over the rounds, of the ratio of mnist_jax to the fastest other
program in the same round. (Rounds matter because the speed of a shared machine varies over time.)

Prints, in Markdown, the images/s of each program and the ratios with their range, for training and for evaluation, and
then the geometric means of the training ratios, the time to the first step and the peak memory of training. Appends one
line of JSON per model to benchmarks/history.jsonl.
"""

import argparse
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import flags
import numpy as np
from programs import EVALUATION_ONLY, MODELS, NEWER_MODELS, Task

from mnist_jax.config import load_config
from mnist_jax.data.source import SOURCES
from mnist_jax.factory import build, defaults
from mnist_jax.models.architectures import MODELS as ARCHITECTURES

HERE = Path(__file__).parent
# The programs of programs.py, and their titles in the tables.
PROGRAMS = {
    'ours': 'mnist_jax',
    'keras': 'Keras',
    'keras.jax': 'Keras on JAX',
    'torch': 'PyTorch',
    'torch.compile': 'PyTorch compiled',
    'onnxruntime': 'ONNX Runtime',
    'openvino': 'OpenVINO',
}
OWN_FIELDS = ('clip_norm', 'clip_value', 'sam_radius', 'accumulate')
CALIBRATION_STEPS = 8  # initial number of steps when measuring how many fit into a round


class Measurement(TypedDict):
    """The measurements of one program on one model; `train` and `eval` are images/s, one number per round."""

    train: list[float]
    eval: list[float]
    version: str
    first_step_seconds: float
    peak_bytes: int


Measurements = dict[str, Measurement]
"""The measurements of a model, by the name of the program."""


class ProgramProcess:
    """A process that runs one of `PROGRAMS`; see `programs.py`.

    Attributes:
      name: The name in `PROGRAMS`.
      version: The versions of its libraries; None if the program failed to start.
      first_step_seconds: The time from the start of the process to the end of the first training step.
      peak_bytes: Its peak memory, as of the last request.
    """

    def __init__(self, name: str, task_path: Path, python: str = '', hide_gpus: bool = True):
        """Starts the program `name`, and waits for its first training step.

        Args:
          name: One of `PROGRAMS` of programs.py.
          task_path: A file with the fields of `Task`.
          python: The interpreter; by default, that of the environment that has the program.
          hide_gpus: Whether the program must run on the CPU.
        """
        self.name = name
        self.version: str | None = None
        self.peak_bytes = 0
        python = python or (sys.executable if name == 'ours' else other_python())
        environment = {**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '2', **({'CUDA_VISIBLE_DEVICES': ''} if hide_gpus else {})}
        log_path = task_path.parent / f'{name}.log'
        start = time.perf_counter()
        with log_path.open('w') as log:
            self._process = subprocess.Popen(
                [python, str(HERE / 'programs.py'), name, str(task_path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        reply = self._read_reply()
        self.first_step_seconds = time.perf_counter() - start
        if reply is None:
            last_line = log_path.read_text().strip().splitlines()[-1:]
            print(f'{name} cannot run this model: {" ".join(last_line)[:300]}', file=sys.stderr)
        else:
            self.version = reply['version']

    def _read_reply(self) -> dict | None:
        """Returns the next line of JSON that the process prints; None if it ends first."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith('{'):
                return json.loads(line)
        return None

    def seconds(self, phase: str, count: int) -> float:
        """Returns how long `count` steps of `phase`, 'train' or 'eval', take."""
        assert self._process.stdin is not None
        self._process.stdin.write(f'{phase} {count}\n')
        self._process.stdin.flush()
        reply = self._read_reply()
        if reply is None:
            raise SystemExit(f'error: {self.name} ended unexpectedly')
        self.peak_bytes = reply['peak_bytes']
        return reply['seconds']

    def steps_for(self, phase: str, seconds: float) -> int:
        """Measures about how many steps of `phase` take `seconds`."""
        count = CALIBRATION_STEPS
        while (elapsed := self.seconds(phase, count)) < seconds / 8:
            count *= 2
        return max(1, round(count * seconds / elapsed))

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def other_python() -> str:
    """Returns the interpreter of an environment with Keras and PyTorch; creates the environment if it is missing."""
    venv = Path(os.environ.get('BENCHMARK_VENV', HERE / '.venv'))
    python = venv / 'bin' / 'python'
    if not (venv / 'installed').exists():
        print(f'Installing benchmarks/requirements.txt into {venv} (once)', file=sys.stderr)
        subprocess.run([sys.executable, '-m', 'venv', str(venv)], check=True)
        requirements = str(HERE / 'requirements.txt')
        subprocess.run([str(python), '-m', 'pip', 'install', '--quiet', '--requirement', requirements], check=True)
        (venv / 'installed').touch()
    return str(python)


def write_task(model: str, directory: Path) -> tuple[Path, Task]:
    """Writes the task of a model and its images for `programs.py`; returns the path of the task, and the task.

    All models for 28x28 images get the images of MNIST.
    """
    config = load_config(f'configs/{model}.py')
    config.dataset.name = 'digits' if config.dataset.name == 'digits' else 'mnist'
    config.dataset.validation_fraction = 0.0
    source = build('dataset', SOURCES, config.dataset, fold=None)
    source.data.prepare()
    split = source.read_slice('train')
    examples = split.take(np.arange(split.size))
    data_path = directory / 'data.npz'
    np.savez(data_path, image=examples.image, label=examples.label)
    task: Task = {
        'config': f'configs/{model}.py',
        'dataset': config.dataset.name,
        'model': {**defaults(ARCHITECTURES[config.model.name]), **config.model.to_dict()},
        # No measured config uses these fields, and the other programs call them by other names.
        'optimizer': {field: value for field, value in config.optimizer.items() if field not in OWN_FIELDS},
        'loss': config.loss.to_dict(),
        'batch_size': config.batch_size,
        'eval_batch_size': config.eval_batch_size,
        'chunks': config.chunks,
        'image_shape': source.image_shape,
        'data': str(data_path),
    }
    path = directory / 'task.json'
    path.write_text(json.dumps(task))
    return path, task


def measure(model: str, names: Sequence[str], rounds: int, seconds: float, warm_up: float) -> Measurements:
    """Measures the programs of these names on a model; leaves out those that cannot run it."""
    results: Measurements = {}
    with tempfile.TemporaryDirectory() as directory:
        task_path, task = write_task(model, Path(directory))
        programs = []
        for name in names:
            program = ProgramProcess(name, task_path)
            if program.version is not None:
                programs.append(program)
                results[name] = {
                    'train': [],
                    'eval': [],
                    'peak_bytes': 0,
                    'version': program.version,
                    'first_step_seconds': program.first_step_seconds,
                }
        training = [program for program in programs if program.name not in EVALUATION_ONLY]
        train_speeds = measure_rounds('train', task['batch_size'], training, rounds, seconds, warm_up)
        for program in training:  # Read before evaluation, which may need more memory.
            results[program.name]['train'] = train_speeds[program.name]
            results[program.name]['peak_bytes'] = program.peak_bytes
        eval_speeds = measure_rounds('eval', task['eval_batch_size'], programs, rounds, seconds, warm_up)
        for program in programs:
            results[program.name]['eval'] = eval_speeds[program.name]
            program.close()
    return results


def measure_rounds(
    phase: str, batch_size: int, programs: list[ProgramProcess], rounds: int, seconds: float, warm_up: float
) -> dict[str, list[float]]:
    """Returns the images/s of each program in each round of `phase`, 'train' or 'eval'."""
    counts = {}
    for program in programs:
        program.seconds(phase, program.steps_for(phase, warm_up))
        counts[program.name] = program.steps_for(phase, seconds)
    speeds: dict[str, list[float]] = {program.name: [] for program in programs}
    for index in range(rounds):
        first = index % len(programs)
        for program in programs[first:] + programs[:first]:
            count = counts[program.name]
            speeds[program.name].append(batch_size * count / program.seconds(phase, count))
    return speeds


def speeds_of(measurement: Measurement, phase: str) -> list[float]:
    """Returns the images/s of a program in each round of `phase`, 'train' or 'eval'."""
    return measurement['train'] if phase == 'train' else measurement['eval']


def ratios(measurements: Measurements, phase: str) -> list[float]:
    """Returns, for each round, the images/s of mnist_jax divided by those of the fastest other program."""
    ours = speeds_of(measurements['ours'], phase)
    others = [
        speeds
        for name, measurement in measurements.items()
        if name != 'ours' and (speeds := speeds_of(measurement, phase))
    ]
    return [speed / max(rest) for speed, *rest in zip(ours, *others, strict=True)]


def has_ratios(measurements: Measurements, phase: str = 'train') -> bool:
    """Returns whether mnist_jax and at least one other program were measured in a phase."""
    measured = {name for name, measurement in measurements.items() if speeds_of(measurement, phase)}
    return 'ours' in measured and len(measured) > 1


def format_table(results: dict[str, Measurements], phase: str) -> str:
    """Returns the medians and the ratios of all models, in Markdown."""
    measured = {
        name for measurements in results.values() for name in measurements if speeds_of(measurements[name], phase)
    }
    names = [name for name in PROGRAMS if name in measured]
    title = {'train': 'training', 'eval': 'evaluation'}[phase]
    programs = ' | '.join(PROGRAMS[name] for name in names)
    lines = [f'| {title}: images/s | {programs} | ratio (range) |', '|---' * (len(names) + 2) + '|']
    for model, measurements in results.items():
        medians = [
            f'{statistics.median(speeds_of(measurements[name], phase)):,.0f}' if name in measurements else '-'
            for name in names
        ]
        ratio = '-'
        if has_ratios(measurements, phase):
            by_round = ratios(measurements, phase)
            ratio = f'{statistics.median(by_round):.2f} ({min(by_round):.2f} to {max(by_round):.2f})'
        lines.append(f'| `{model}` | ' + ' | '.join(medians) + f' | {ratio} |')
    return '\n'.join(lines)


def format_summary(results: dict[str, Measurements]) -> str:
    """Returns the geometric means of the training ratios, and the first steps and the memory of all programs."""
    lines = []
    convolutional = [m for m in results if m.endswith(('cnn', 'convnet_valid', 'convnet_same')) and m != 'digits_cnn']
    other = [m for m in results if m not in convolutional]
    for kind, models in (('convolutional', convolutional), ('other', other)):
        medians = [statistics.median(ratios(results[m], 'train')) for m in models if has_ratios(results[m])]
        if medians:
            mean = statistics.geometric_mean(medians)
            lines.append(f'geometric mean of the training ratio, {len(medians)} {kind} models: {mean:.2f}')
    for model, measurements in results.items():
        by_program = (
            f'{PROGRAMS[name]} {measurement["first_step_seconds"]:.1f} s, {measurement["peak_bytes"] / 1e6:,.0f} MB'
            for name, measurement in measurements.items()
            if measurement['train']
        )
        lines.append(f'{model}: time to the first step, peak memory of training: {"; ".join(by_program)}')
    return '\n'.join(lines)


def processor() -> str:
    """Returns the name of the processor, the width of its vectors and the number of cores."""
    path = Path('/proc/cpuinfo')
    text = path.read_text() if path.exists() else ''
    name = re.search(r'model name\s*:\s*(.*)', text)
    width = 'AVX-512' if 'avx512f' in text else 'AVX2' if 'avx2' in text else 'no AVX2'
    return f'{name[1] if name else "unknown processor"} ({width}), {os.cpu_count()} cores'


def main() -> None:
    """Measures, prints the tables and appends to the history."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = (*MODELS, *NEWER_MODELS)  # Of other configs, the other programs would train another model.
    parser.add_argument(
        '--models', type=flags.names(models), default=MODELS, help=f'comma-separated; also {", ".join(NEWER_MODELS)}'
    )
    parser.add_argument(
        '--programs',
        type=flags.names(PROGRAMS),
        default=tuple(PROGRAMS),
        help='comma-separated; ours, mnist_jax, is one of them',
    )
    parser.add_argument('--rounds', type=flags.at_least(1), default=5)
    parser.add_argument('--seconds', type=float, default=3.0, help='per program in each round')
    parser.add_argument('--warm-up', type=float, default=3.0, help='seconds per program before the rounds')
    parser.add_argument('--history', type=Path, default=HERE / 'history.jsonl', help='the JSON lines file to append to')
    options = parser.parse_args()
    if 'ours' not in options.programs:
        parser.error(f'--programs must contain ours, got {",".join(options.programs)}')
    if not options.history.parent.is_dir():
        parser.error(f'--history must be in a directory that exists, got {str(options.history)!r}')
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=HERE, capture_output=True, text=True)
    results = {}
    for model in options.models:
        results[model] = measure(model, options.programs, options.rounds, options.seconds, options.warm_up)
        row = {
            'when': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
            'commit': commit.stdout.strip(),
            'processor': processor(),
            'model': model,
            'programs': results[model],
        }
        with options.history.open('a') as file:
            file.write(json.dumps(row) + '\n')
        print(format_table({model: results[model]}, 'train'), flush=True)
    versions = [measurement['version'] for measurement in next(iter(results.values())).values()]
    print(f'\n{processor()}; {"; ".join(versions)}')
    for phase in ('train', 'eval'):
        print(f'\n{format_table(results, phase)}')
    print(f'\n{format_summary(results)}')


if __name__ == '__main__':
    main()
