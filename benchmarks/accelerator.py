"""Tests and measures mnist_jax on an accelerator within a time limit, without a network.

    python benchmarks/accelerator.py --minutes=6 --wheels=wheels --output=results    # on the GPU machine
    .venv/bin/python benchmarks/accelerator.py --quick --output=results             # every part, small, on a CPU

`fetch_wheels.py` fills the directory of wheels on a machine with a network. Each part runs in a process of its own with
a share of the time, so that a failure costs the others nothing. The parts:

    device      versions, and the ceilings: copy bandwidth and matrix products
    tests       tests/accelerator: gradients, augmentation, reproducibility, moving checkpoints, evaluation
    time        time to 99% on MNIST with configs/fast_gpu.py: the whole process, and the training alone
    scale       images/s of the CNN with larger batches and more features
    ingredients the time of a step of the CNN with augmentation, EMA and other optimizers, compared with one without
    throughput  images/s of all models in training and evaluation, compared with PyTorch and Keras on JAX

--parts and --models select some of them. Writes `accelerator.json` and, as Markdown, `accelerator.md` after each part.
Exits with 1 if a part failed.
"""

import argparse
import concurrent.futures
import contextlib
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import flags
from programs import MODELS, NEWER_MODELS

ROOT = Path(__file__).parent.parent
OURS = {'ours': 'float32', 'ours.fast': 'TF32', 'ours.bfloat16': 'bfloat16'}
OTHERS = {
    'torch': 'PyTorch float32',
    'torch.tf32': 'PyTorch TF32',
    'torch.compile': 'PyTorch compiled, TF32',
    'torch.graph': 'PyTorch compiled, CUDA graph, TF32',
    'keras.jax': 'Keras on JAX',
}
MODULES = {'torch': 'torch', 'keras': 'keras'}  # what a program needs, by the start of its name
MODELS_AT_ONCE = 4  # models whose programs start at the same time, before any of them is measured
TEST_PROCESSES = 8
MEASURED_INGREDIENTS = (
    'rotation with scale and shift',
    'elastic distortion',
    'random erasing',
    'mixup',
    'EMA',
    'Muon',
    'SAM',
)
# Environment variables of programs that share the device and the cores with others.
SHARED_DEVICE = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false', 'TORCHINDUCTOR_COMPILE_THREADS': '1'}
# What makes the recipe of configs/fast_gpu.py small for --quick.
QUICK_FIELDS = {
    'dataset.train': 'train[:1024]',
    'dataset.test': 'test[:200]',
    'epochs': 1,
    'model.stages': ((8,), (8,)),
}


def device_part(options: argparse.Namespace) -> dict[str, Any]:
    """Returns versions, and the rates of a device-to-device copy and of matrix products."""
    import jax
    import jax.numpy as jnp

    from mnist_jax.distributed.devices import start_backend

    replicas = start_backend(1, deterministic=False)  # ceilings: with kernels that are selected by their measured time
    size = 512 if options.quick else 8192
    source = jnp.arange(size * size * 4, dtype=jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    rates = {'copy, GB/s': 2 * source.nbytes / _time_call(copy, source) / 1e9}
    x = jax.random.normal(jax.random.key(0), (size, size))
    for name, dtype, precision in (
        ('float32', 'float32', 'highest'),
        ('TF32', 'float32', 'default'),
        ('bfloat16', 'bfloat16', 'default'),
    ):
        product = jax.jit(lambda x, precision=precision: jnp.matmul(x, x, precision=precision))
        rates[f'{name} products, TFLOP/s'] = 2 * size**3 / _time_call(product, x.astype(dtype)) / 1e12
    versions = {name: __import__(name).__version__ for name in ('jax', 'flax', 'optax', 'numpy')}
    return {'device': str(replicas), 'versions': versions, 'rates': rates}


def _time_call(function: Callable, *arguments: Any) -> float:
    """Returns the median time of a compiled call in seconds."""
    function(*arguments).block_until_ready()
    times = []
    for _ in range(10):
        start = time.perf_counter()
        function(*arguments).block_until_ready()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def tests_part(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the outcome of each test in tests/accelerator."""
    directory = ROOT / 'tests' / 'accelerator'
    # Without the fixtures of the other tests, which start eight CPU devices.
    command = [sys.executable, '-m', 'pytest', '-v', '--tb=short', '-p', 'no:cacheprovider', '-o', 'addopts=']
    if not options.quick and importlib.util.find_spec('xdist'):
        command.append(f'--numprocesses={TEST_PROCESSES}')
    environment = {**os.environ, **SHARED_DEVICE, 'ACCELERATOR_TESTS': 'quick' if options.quick else 'all'}
    with tempfile.TemporaryFile('w+') as output:
        status = _run([*command, f'--confcutdir={directory}', str(directory)], options.seconds, environment, output)
        output.seek(0)
        text = output.read()
    print(text)
    # With several processes, pytest prints the outcome before the name.
    outcomes = dict(re.findall(r'::(\S+) (PASSED|FAILED|ERROR|SKIPPED)', text))
    outcomes |= {name: outcome for outcome, name in re.findall(r'(PASSED|FAILED|ERROR|SKIPPED) \S+::(\S+)', text)}
    return {'outcomes': outcomes, 'passed': status == 0}


def _run(command: list[str], seconds: float, environment: dict[str, str], output: IO[str]) -> int | None:
    """Runs a command; returns its exit status, or None if it reached the time limit: then it ends with its children."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(timeout=max(1, seconds))
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def throughput_part(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields, after each model, the images/s of all programs."""
    import throughput

    names = [name for name in (('ours', 'ours.fast') if options.quick else (*OURS, *OTHERS)) if _available(name)]
    rounds, round_seconds = (1, 0.05) if options.quick else (3, 0.1)
    models = options.models[:1] if options.quick else options.models
    deadline = time.monotonic() + options.seconds
    results: dict[str, Any] = {}
    os.environ.update(SHARED_DEVICE)
    with tempfile.TemporaryDirectory() as directory, concurrent.futures.ThreadPoolExecutor(32) as executor:

        def start_program(name: str, task_path: Path) -> throughput.ProgramProcess:
            program = throughput.ProgramProcess(name, task_path, sys.executable, hide_gpus=False)
            try:
                for phase in ('train', 'eval') if program.version is not None else ():
                    program.seconds(phase, throughput.CALIBRATION_STEPS)  # compiles now, while the others do
            except SystemExit as error:
                print(f'{task_path.parent.name}: {error}', flush=True)
                program.version = None
            return program

        def start(model: str, task: throughput.Task) -> list[concurrent.futures.Future]:
            path = Path(directory) / model / 'task.json'
            path.write_text(json.dumps({**task, 'chunks': 1}))
            return [executor.submit(start_program, name, path) for name in names]

        for first in range(0, len(models), MODELS_AT_ONCE):
            tasks: dict[str, throughput.Task] = {}
            for model in models[first : first + MODELS_AT_ONCE]:
                (path := Path(directory) / model).mkdir()
                tasks[model] = throughput.write_task(model, path)[1]
            started = {model: start(model, task) for model, task in tasks.items()}
            by_model = {model: [future.result() for future in futures] for model, futures in started.items()}
            for model, programs in by_model.items():
                for program in programs:
                    print(f'{model}: {program.name} took {program.first_step_seconds:.0f} s to start', flush=True)
                programs = [program for program in programs if program.version is not None]
                if time.monotonic() < deadline - 3:
                    measure = (programs, rounds, round_seconds, round_seconds)
                    results[model] = {
                        phase: throughput.measure_rounds(phase, tasks[model][size], *measure)  # type: ignore[literal-required]
                        for phase, size in (('train', 'batch_size'), ('eval', 'eval_batch_size'))
                    }
                    results[model]['versions'] = {program.name: program.version for program in programs}
                for program in programs:
                    program.close()
                yield results
            if time.monotonic() > deadline - 20:
                return


def _available(program: str) -> bool:
    module = MODULES.get(program.partition('.')[0])
    return module is None or importlib.util.find_spec(module) is not None


def time_part(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields the times of whole processes, and then those of the training alone for several seeds."""
    deadline = time.monotonic() + options.seconds
    fields = [f'--config.{name}={value}' for name, value in QUICK_FIELDS.items()] if options.quick else []
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        for start in ('warm',) if options.quick else ('cold', 'warm'):
            workdir = Path(directory) / start
            command = [sys.executable, '-m', 'mnist_jax.main', '--config=configs/fast_gpu.py', *fields, '--noreport']
            begin = time.perf_counter()
            subprocess.run(
                [*command, f'--workdir={workdir}'],
                cwd=ROOT,
                env=os.environ if options.quick else {**os.environ, 'JAX_COMPILATION_CACHE_DIR': f'{directory}/cache'},
                check=True,
                stdout=subprocess.DEVNULL,
            )
            accuracy = json.loads((workdir / 'eval.json').read_text())['accuracy']
            result[start] = {'seconds': time.perf_counter() - begin, 'accuracy': accuracy}
            yield result
    result['seeds'] = []
    for row in _train_seeds(1 if options.quick else 10, options.quick):
        result['seeds'].append(row)
        yield result
        if time.monotonic() > deadline:
            return


def _train_seeds(count: int, quick: bool) -> Iterator[dict[str, float]]:
    """Trains the recipe with compiled steps for several seeds; yields the seconds and the test accuracy of each."""
    from mnist_jax.config import load_config
    from mnist_jax.training.evaluation import evaluate_split
    from mnist_jax.training.experiment import make_experiment

    config = load_config(str(ROOT / 'configs' / 'fast_gpu.py'))
    if quick:
        config.update_from_flattened_dict(QUICK_FIELDS)
    experiment = make_experiment(config)
    _train(experiment, config.epochs)  # compiles the program, or loads it from the cache, and copies the data
    for seed in range(count):
        config.seed = seed
        vars(experiment).pop('_numbers')  # All seeds share the compiled program; it takes the seed as an argument.
        seconds, state = _train(experiment, config.epochs)
        totals, _ = evaluate_split(experiment, state.variables, experiment.source.split('test'))
        yield {'seconds': seconds, 'accuracy': float(totals['correct'] / totals['count'])}


def _train(experiment: Any, epochs: int) -> tuple[float, Any]:
    """Trains from the start; returns the seconds from the first call to the result of the last one, and the state."""
    import jax

    state = experiment.replicas.replicate(experiment.create_state())
    jax.block_until_ready(state)
    start = time.perf_counter()
    for epoch in range(epochs):
        for group in experiment.train_calls(epoch):
            state, _ = experiment.train_steps(state, group)
    jax.block_until_ready(state)
    return time.perf_counter() - start, state


def scale_part(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields the images/s of training the CNN with larger batches and more features, in TF32 and bfloat16."""
    from mnist_jax.config import load_config
    from mnist_jax.training.experiment import make_experiment

    deadline = time.monotonic() + options.seconds
    examples = 2048 if options.quick else 57344
    sizes = [(1, 128)] if options.quick else [(1, 1024), (1, 8192), (4, 1024), (1, 128), (2, 1024)]
    rows = list[dict[str, Any]]()
    for width, batch_size in sizes:
        for dtype, kind in [('float32', 'TF32')] if options.quick else [('float32', 'TF32'), ('bfloat16', 'bfloat16')]:
            if time.monotonic() > deadline:
                return
            config = load_config(str(ROOT / 'configs' / 'cnn.py'))
            config.dtype, config.batch_size, config.chunks, config.deterministic = dtype, batch_size, 1, False
            config.model.stages = ((32 * width,), (64 * width,))
            config.dataset.train = f'train[:{examples}]'
            experiment = make_experiment(config)
            _train(experiment, 1)  # compiles the program
            speed = examples / statistics.median(_train(experiment, 1)[0] for _ in range(3))
            rows.append({'kind': kind, 'width': width, 'batch_size': batch_size, 'images_per_second': speed})
            yield {'rows': rows}


def ingredients_part(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields, after each ingredient of `ingredients.py`, the ratios of its time of a step to that without it."""
    import ingredients

    from mnist_jax.config import load_config

    deadline = time.monotonic() + options.seconds
    config = load_config(str(ROOT / 'configs' / 'cnn.py'))
    config.chunks, config.deterministic = 1, False
    if options.quick:
        config.dataset.train, config.batch_size = 'train[:1024]', 32
    rows = {}
    for name, ratios in ingredients.time_ratios(config, MEASURED_INGREDIENTS[: 1 if options.quick else None], 3, 0.1):
        rows[name] = ratios
        yield {'rows': rows}
        if time.monotonic() > deadline:
            return


# Each part, and its weight in the time.
PARTS: dict[str, tuple[Callable, float]] = {
    'device': (device_part, 0.08),
    'tests': (tests_part, 0.25),
    'time': (time_part, 0.15),
    'scale': (scale_part, 0.15),
    'ingredients': (ingredients_part, 0.20),
    'throughput': (throughput_part, 0.50),
}


def run_part(options: argparse.Namespace) -> None:
    """Runs `options.part` in this process, and writes what it returns or yields to `options.output`."""
    result = PARTS[options.part][0](options)
    for value in [result] if isinstance(result, dict) else result:
        options.output.write_text(json.dumps(value))


def run_parts(options: argparse.Namespace, wheels: list[Path]) -> dict[str, Any]:
    """Runs all parts, each in a process with a time limit; returns their results, and the errors of those that failed.

    A part may use the time that the parts before it left.
    """
    environment = dict(os.environ)
    environment['PYTHONPATH'] = os.pathsep.join(
        [*_install(wheels, options.output), str(ROOT), *filter(None, [environment.get('PYTHONPATH')])]
    )
    if options.quick:
        environment |= {'JAX_PLATFORMS': 'cpu', 'CUDA_VISIBLE_DEVICES': ''}
    results: dict[str, Any] = {'parts': {}, 'errors': {}}
    start = time.monotonic()
    weights = {name: weight for name, (_, weight) in PARTS.items() if name in options.parts}
    done = 0.0
    for name, weight in weights.items():
        done += weight
        seconds = max(1, start + done / sum(weights.values()) * 60 * options.minutes - time.monotonic())
        output = options.output / f'{name}.json'
        output.unlink(missing_ok=True)
        command = [
            sys.executable,
            __file__,
            f'--part={name}',
            f'--seconds={seconds * 0.9:.1f}',
            f'--models={",".join(options.models)}',
            '--output',
            str(output),
        ]
        print(f'{name}: at most {seconds:.0f} s', flush=True)
        with (options.output / f'{name}.log').open('w') as log:
            status = _run(command + ['--quick'] * options.quick, seconds, environment, log)
        if status != 0:
            last_lines = (options.output / f'{name}.log').read_text().strip().splitlines()[-3:]
            reason = 'time limit' if status is None else f'status {status}'
            results['errors'][name] = f'{reason}: {" | ".join(last_lines)[-500:]}'
        if output.exists():
            results['parts'][name] = json.loads(output.read_text())
            if not results['parts'][name].get('passed', True):
                results['errors'].setdefault(name, 'tests failed')
        results['seconds'] = time.monotonic() - start
        (options.output / 'accelerator.json').write_text(json.dumps(results, indent=2))
        (options.output / 'accelerator.md').write_text(format_results(results))
    return results


def _install(wheels: list[Path], output: Path) -> list[str]:
    """Installs the wheels that this environment lacks into a directory; returns the directories to import from."""
    missing = [str(wheel) for wheel in wheels if not _is_installed(wheel.name.partition('-')[0])]
    if not missing:
        return []
    site = output.resolve() / 'site'
    pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-index', '--no-deps', '--no-compile', '--upgrade']
    process = subprocess.run([*pip, f'--target={site}', *missing], capture_output=True, text=True)
    if process.returncode:
        sys.exit(f'error: the wheels in --wheels must be intact: {process.stderr.strip().splitlines()[-1]}')
    return [str(site)]


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def format_results(results: dict[str, Any]) -> str:
    """Returns the results as Markdown."""
    parts, lines = results['parts'], list[str]()
    if device := parts.get('device'):
        versions = ', '.join(f'{name} {version}' for name, version in device['versions'].items())
        lines += [f'{device["device"]}; {versions}.', '']
        lines += _table(
            ['ceiling', 'measured'],
            [[name, f'{value:,.1f}'] for name, value in device['rates'].items()],
        )
    if tests := parts.get('tests'):
        lines += _table(
            ['test', 'outcome'], [[f'`{name}`', outcome.lower()] for name, outcome in tests['outcomes'].items()]
        )
    for phase, title in (('train', 'training'), ('eval', 'evaluation')):
        if models := parts.get('throughput'):
            lines += _throughput_table(models, phase, title)
    if times := parts.get('time'):
        lines += _table(*_time_rows(times))
    if scale := parts.get('scale'):
        lines += _table(
            ['`cnn`, training', 'features', 'batch size', 'images/s'],
            [
                [row['kind'], f'x{row["width"]}', f'{row["batch_size"]:,}', f'{row["images_per_second"]:,.0f}']
                for row in scale['rows']
            ],
        )
    if ingredients := parts.get('ingredients'):
        lines += _table(
            ['`cnn`, training', 'time of a step (range)'],
            [
                [name, f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})']
                for name, ratios in ingredients['rows'].items()
            ],
        )
    lines += [f'{name} failed: {error}' for name, error in results['errors'].items()]
    return '\n'.join(lines) + '\n'


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f'| {" | ".join(row)} |' for row in (header, ['---'] * len(header), *rows)] + ['']


def _throughput_table(models: dict[str, Any], phase: str, title: str) -> list[str]:
    names = [name for name in (*OURS, *OTHERS) if any(name in result[phase] for result in models.values())]
    rows = []
    for model, result in models.items():
        speeds = result[phase]
        best_others = [max(others) for others in zip(*(speeds[name] for name in OTHERS if name in speeds), strict=True)]
        ratios = [_median_ratio(speeds.get(name, []), best_others) for name in OURS]
        medians = [f'{statistics.median(speeds[name]):,.0f}' if name in speeds else '-' for name in names]
        rows.append([f'`{model}`', *medians, *ratios])
    titles = [{**{name: f'mnist_jax {kind}' for name, kind in OURS.items()}, **OTHERS}[name] for name in names]
    return _table([f'{title}: images/s', *titles, *(f'ratio {kind}' for kind in OURS.values())], rows)


def _median_ratio(ours: list[float], best_others: list[float]) -> str:
    """Returns the median, over the rounds, of the ratio to the fastest other program."""
    if not ours or not best_others:
        return '-'
    return f'{statistics.median(own / best for own, best in zip(ours, best_others, strict=True)):.2f}'


def _time_rows(times: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [f'whole process, {start} cache', f'{times[start]["seconds"]:.1f} s', f'{times[start]["accuracy"]:.4f}']
        for start in ('cold', 'warm')
        if start in times
    ]
    if seeds := times.get('seeds'):
        seconds, accuracies = ([row[name] for row in seeds] for name in ('seconds', 'accuracy'))
        rows.append(
            [
                f'training alone, {len(seeds)} seed' + 's' * (len(seeds) > 1),
                f'{statistics.median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f})',
                f'{statistics.mean(accuracies):.4f} ({min(accuracies):.4f} to {max(accuracies):.4f})',
            ]
        )
    return ['`configs/fast_gpu.py`', 'time', 'test accuracy'], rows


def main() -> None:
    """Runs all parts, or the part that the command line names, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=6.0, help='the time limit')
    parser.add_argument('--wheels', type=Path, help='a directory with wheels of missing packages')
    parser.add_argument('--quick', action='store_true', help='run every part on the CPU, with little work')
    parser.add_argument('--output', type=Path, default=Path('accelerator'), help='the directory for the results')
    parser.add_argument('--parts', type=flags.names(PARTS), default=tuple(PARTS), help='comma-separated')
    models = (*MODELS, *NEWER_MODELS)
    parser.add_argument('--models', type=flags.names(models), default=MODELS, help='comma-separated')
    parser.add_argument('--part', choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument('--seconds', type=float, default=60.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        run_part(options)
        return
    wheels = sorted(options.wheels.glob('*.whl')) if options.wheels else []
    if options.wheels and not wheels:
        parser.error(
            f'--wheels must be a directory with wheels, got {str(options.wheels)!r}; '
            'benchmarks/fetch_wheels.py fills one'
        )
    if not 0 < options.minutes < math.inf:
        parser.error(f'--minutes must be a number greater than 0, got {options.minutes:g}')
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f'--output must be a directory that can be written, got {str(options.output)!r}: {error.strerror}')
    results = run_parts(options, wheels)
    print(format_results(results))
    sys.exit(bool(results['errors']))


if __name__ == '__main__':
    main()
