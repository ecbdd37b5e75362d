"""Images/s of this project beside Keras on TensorFlow and PyTorch: the same models, recipes and batches.

    .venv/bin/python benchmarks/throughput.py                                # all eight models, about 40 minutes
    .venv/bin/python benchmarks/throughput.py --models=cnn,mlp --rounds=5    # some of them

Installs the others into benchmarks/.venv on first use. For each model, the programs run at the same time but wait for
each other: in every round each of them trains, and then evaluates, for some seconds, in an order that rotates. What
counts is the median over the rounds of the ratio of this project to the faster of the others in the same round. The
table is Markdown; a line of JSON a model is appended to benchmarks/history.jsonl.
"""

import argparse
import datetime
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))
MODELS = ('mlp', 'cnn', 'fashion_cnn', 'convnet_valid', 'convnet_same', 'digits_cnn', 'kaggle_mlp', 'kaggle_cnn')
PROGRAMS = ('ours', 'keras', 'torch', 'torch.compile')
CALIBRATION = 8  # steps, of which the seconds of a round are extrapolated


class Program:
    """One of PROGRAMS in a process of its own."""

    def __init__(self, name: str, task: Path):
        self.name = name
        python = sys.executable if name == 'ours' else other_python()
        began = time.perf_counter()
        with (task.parent / f'{name}.log').open('w') as log:
            self._process = subprocess.Popen(
                [python, str(HERE / 'programs.py'), name, str(task)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '2', 'CUDA_VISIBLE_DEVICES': ''},
            )
        answer = self._answer()
        self.failed = answer is None
        if self.failed:
            last = (task.parent / f'{name}.log').read_text().strip().splitlines()[-1:]
            print(f'{name} cannot run this model: {" ".join(last)[:300]}', file=sys.stderr)
        else:
            self.first_step_seconds = time.perf_counter() - began
            self.version = answer['version']
            self.peak_bytes = 0

    def _answer(self) -> dict | None:
        for line in self._process.stdout:
            if line.startswith('{'):
                return json.loads(line)
        return None

    def seconds(self, what: str, count: int) -> float:
        """How long it takes for `count` steps of 'train' or 'eval'."""
        self._process.stdin.write(f'{what} {count}\n')
        self._process.stdin.flush()
        answer = self._answer()
        if answer is None:
            raise SystemExit(f'{self.name} ended')
        self.peak_bytes = answer['peak_bytes']
        return answer['seconds']

    def calibrated(self, what: str, seconds: float) -> int:
        """About how many steps take so many seconds."""
        count = CALIBRATION
        while (took := self.seconds(what, count)) < seconds / 8:
            count *= 2
        return max(1, round(count * seconds / took))

    def end(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()


def other_python() -> str:
    """The interpreter of an environment with Keras and PyTorch; makes it where it is missing."""
    venv = Path(os.environ.get('BENCHMARK_VENV', HERE / '.venv'))
    python = venv / 'bin' / 'python'
    if not (venv / 'installed').exists():
        print(f'Installing benchmarks/requirements.txt into {venv} (once)', file=sys.stderr)
        subprocess.run([sys.executable, '-m', 'venv', str(venv)], check=True)
        requirements = str(HERE / 'requirements.txt')
        subprocess.run([str(python), '-m', 'pip', 'install', '--quiet', '--requirement', requirements], check=True)
        (venv / 'installed').touch()
    return str(python)


def write_task(model: str, directory: Path) -> tuple[Path, dict]:
    """What `programs.py` needs to know of a model, and its images; all of 28x28 pixels are MNIST's."""
    from mnist_jax.config import load_config
    from mnist_jax.data.source import SOURCES
    from mnist_jax.factory import build

    config = load_config(str(ROOT / 'configs' / f'{model}.py'))
    config.dataset.name = 'digits' if config.dataset.name == 'digits' else 'mnist'
    config.dataset.validation_fraction = 0.0
    source = build('dataset', SOURCES, config.dataset, fold=None)
    source.data.prepare()
    split = source.other('train')
    rows = np.arange(split.size)
    np.savez(directory / 'data.npz', image=split.take(rows).image, label=split.take(rows).label)
    task = {
        'config': f'configs/{model}.py',
        'dataset': config.dataset.name,
        'model': config.model.to_dict(),
        'optimizer': config.optimizer.to_dict(),
        'loss': config.loss.to_dict(),
        'batch_size': config.batch_size,
        'eval_batch_size': config.eval_batch_size,
        'data': str(directory / 'data.npz'),
    }
    path = directory / 'task.json'
    path.write_text(json.dumps(task))
    return path, task


def measure(model: str, names: list[str], rounds: int, seconds: float, warm_up: float) -> dict:
    """Images/s of each program in each round, its peak memory and the seconds to its first step."""
    with tempfile.TemporaryDirectory() as directory:
        path, task = write_task(model, Path(directory))
        programs = [program for name in names if not (program := Program(name, path)).failed]
        found = {program.name: {'train': [], 'eval': []} for program in programs}
        for what, size in (('train', task['batch_size']), ('eval', task['eval_batch_size'])):
            counts = {}
            for program in programs:
                program.seconds(what, max(1, program.calibrated(what, warm_up)))
                counts[program.name] = program.calibrated(what, seconds)
            for number in range(rounds):
                turn = number % len(programs)
                for program in programs[turn:] + programs[:turn]:
                    count = counts[program.name]
                    found[program.name][what].append(size * count / program.seconds(what, count))
            if what == 'train':
                for program in programs:
                    found[program.name]['peak_bytes'] = program.peak_bytes
        for program in programs:
            found[program.name].update(version=program.version, first_step_seconds=program.first_step_seconds)
            program.end()
    return found


def ratios(found: dict, what: str) -> list[float]:
    """In each round, this project's images/s by those of the fastest other program."""
    others = [each[what] for name, each in found.items() if name != 'ours']
    return [ours / max(rest) for ours, *rest in zip(found['ours'][what], *others, strict=True)]


def geometric_mean(values: list[float]) -> float:
    """Of positive numbers."""
    return math.exp(statistics.fmean(map(math.log, values)))


def table(results: dict[str, dict], what: str) -> str:
    """The medians and ratios of all models, in Markdown."""
    names = [name for name in PROGRAMS if any(name in found for found in results.values())]
    lines = [f'| {what}: images/s | ' + ' | '.join(names) + ' | ratio (range) |', '|---' * (len(names) + 2) + '|']
    for model, found in results.items():
        speeds = [f'{statistics.median(found[name][what]):,.0f}' if name in found else '-' for name in names]
        by_round = ratios(found, what) if len(found) > 1 and 'ours' in found else []
        told = f'{statistics.median(by_round):.2f} ({min(by_round):.2f} to {max(by_round):.2f})' if by_round else '-'
        lines.append(f'| `{model}` | ' + ' | '.join(speeds) + f' | {told} |')
    return '\n'.join(lines)


def summary(results: dict[str, dict]) -> str:
    """The geometric means of the training ratios, memory and first steps."""
    lines = []
    convolutional = [m for m in results if m.endswith(('cnn', 'convnet_valid', 'convnet_same')) and m != 'digits_cnn']
    for what, models in (('convolutional', convolutional), ('other', [m for m in results if m not in convolutional])):
        medians = [statistics.median(ratios(results[m], 'train')) for m in models if len(results[m]) > 1]
        if medians:
            lines.append(
                f'geometric mean of the training ratio, {len(medians)} {what} models: {geometric_mean(medians):.2f}'
            )
    for model, found in results.items():
        told = (f'{n} {f["first_step_seconds"]:.1f} s, {f["peak_bytes"] / 1e6:,.0f} MB' for n, f in found.items())
        lines.append(f'{model}: first step, peak memory of training: ' + '; '.join(told))
    return '\n'.join(lines)


def processor() -> str:
    """The processor's name and the number of cores."""
    path = Path('/proc/cpuinfo')
    found = re.search(r'model name\s*:\s*(.*)', path.read_text()) if path.exists() else None
    flags = path.read_text() if path.exists() else ''
    width = 'AVX-512' if 'avx512f' in flags else 'AVX2' if 'avx2' in flags else 'no AVX2'
    return f'{found[1] if found else "unknown processor"} ({width}), {os.cpu_count()} cores'


def main() -> None:
    """Measure, print the tables and append to the history."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', default=','.join(MODELS))
    parser.add_argument('--programs', default=','.join(PROGRAMS))
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--seconds', type=float, default=3.0, help='of each program in each round')
    parser.add_argument('--warm-up', type=float, default=3.0, help='seconds of each program before the rounds')
    parser.add_argument('--history', type=Path, default=HERE / 'history.jsonl')
    arguments = parser.parse_args()
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=ROOT, capture_output=True, text=True)
    results = {}
    for model in arguments.models.split(','):
        names = arguments.programs.split(',')
        results[model] = measure(model, names, arguments.rounds, arguments.seconds, arguments.warm_up)
        row = {
            'when': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
            'commit': commit.stdout.strip(),
            'processor': processor(),
            'model': model,
            'programs': results[model],
        }
        with arguments.history.open('a') as file:
            file.write(json.dumps(row) + '\n')
        print(table({model: results[model]}, 'train'), flush=True)
    print(f'\n{processor()}; ' + '; '.join(each['version'] for each in next(iter(results.values())).values()))
    for what in ('train', 'eval'):
        print(f'\n{table(results, what)}')
    print(f'\n{summary(results)}')


if __name__ == '__main__':
    main()
