"""Measures the time to a test accuracy on a CPU, of mnist_jax and of Keras and PyTorch with the same recipe.

    .venv/bin/python benchmarks/time_to_accuracy.py --configs=fast --seeds=10 --other-seeds=3

Times whole processes, from start to exit; mnist_jax runs with --noreport, and writes its checkpoints and eval.json.
Keras and PyTorch get the same splits, model, optimizer, learning rate of every update, loss, batch size, epochs and
shifts of the images; initial parameters, the order of the examples and AdamW's epsilon are their own. A first run of
each program, which does not count, prepares the data and fills the caches. Then one process runs at a time: the
programs alternate, Keras and PyTorch for the first seeds only. Both are installed into benchmarks/.venv if they are
missing; see throughput.py.

Prints the seconds and the test accuracy of every run to standard error, and at the end a table: the mean accuracy and
its range, the median seconds and their range.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras_results
import numpy as np

ROOT = Path(__file__).parents[1]
ON_CPU = {**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '2'}
Result = tuple[float, float]
"""The seconds from the command to the result, and the test accuracy."""


def keras_accuracy(task_path: Path, seed: int) -> float:
    """Trains with Keras's own loop, and TensorFlow's pipeline for shifts; returns the accuracy on the test split."""
    os.environ['KERAS_BACKEND'] = 'tensorflow'
    import keras
    import programs
    import tensorflow as tf

    task = json.loads(task_path.read_text())
    keras.utils.set_random_seed(seed)
    program = programs.Keras(task)
    model = program.model
    rates = tf.constant(task['rates'])

    class Rates(keras.optimizers.schedules.LearningRateSchedule):
        """The learning rates of the task."""

        def __call__(self, step: Any) -> Any:
            return tf.gather(rates, tf.cast(step, tf.int32))

    options = {name: value for name, value in task['optimizer'].items() if name not in ('name', 'learning_rate')}
    # Keras smooths only labels that are given as probabilities.
    model.compile(
        keras.optimizers.AdamW(Rates(), **options),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=task['loss']['label_smoothing']),
        metrics=['accuracy'],
    )
    image, targets = program.image, np.eye(10, dtype=np.float32)[program.label]
    pixels = task['shift']
    if pixels:
        padded = np.pad(image, [(0, 0), (pixels, pixels), (pixels, pixels), (0, 0)])

        def crop(image: Any, target: Any) -> tuple[Any, Any]:
            return tf.image.random_crop(image, task['image_shape']), target

        data = tf.data.Dataset.from_tensor_slices((padded, targets)).shuffle(len(padded), seed)
        data = data.map(crop, tf.data.AUTOTUNE).batch(task['batch_size']).prefetch(tf.data.AUTOTUNE)
        model.fit(data, epochs=task['epochs'], verbose=0)
    else:
        model.fit(image, targets, batch_size=task['batch_size'], epochs=task['epochs'], verbose=0)
    test_image, test_label = keras_results.read_split(task_path, 'test')
    return model.evaluate(test_image, np.eye(10, dtype=np.float32)[test_label], batch_size=500, verbose=0)[1]


def torch_accuracy(task_path: Path, seed: int) -> float:
    """Trains in a plain loop over shuffled tensors; returns the accuracy on the test split."""
    import programs
    import torch

    task = json.loads(task_path.read_text())
    torch.manual_seed(seed)
    program = programs.Torch(task)
    pixels, size = task['shift'], task['batch_size']
    padded = torch.nn.functional.pad(program.image, [pixels] * 4).contiguous(memory_format=torch.channels_last)
    height, width, _ = task['image_shape']
    rates, smoothing = iter(task['rates']), task['loss']['label_smoothing']
    program.model.train()
    for _ in range(task['epochs']):
        for rows in torch.randperm(len(padded)).split(size):
            image = padded[rows]
            if pixels:
                down, right = torch.randint(2 * pixels + 1, (2, len(rows), 1))
                i, j = down + torch.arange(height), right + torch.arange(width)
                example = torch.arange(len(rows))[:, None, None]
                image = image[example, :, i[:, :, None], j[:, None, :]].permute(0, 3, 1, 2)
            program.optimizer.param_groups[0]['lr'] = next(rates)
            program.optimizer.zero_grad()
            logits = program.model(image)
            torch.nn.functional.cross_entropy(logits, program.label[rows], label_smoothing=smoothing).backward()
            program.optimizer.step()
    program.model.eval()
    image, label = keras_results.read_split(task_path, 'test')
    with torch.inference_mode():
        parts = torch.from_numpy(image).permute(0, 3, 1, 2).split(500)
        predicted = torch.cat([program.model(part).argmax(-1) for part in parts])
    return float((predicted == torch.from_numpy(label)).double().mean())


PEERS: dict[str, Callable[[Path, int], float]] = {'keras': keras_accuracy, 'torch': torch_accuracy}


def run_mnist_jax(name: str, seed: int, directory: Path) -> Result:
    """Runs the command for a config."""
    workdir = directory / f'{name}-{seed}'
    command = [sys.executable, '-m', 'mnist_jax.main', '--noreport', f'--config=configs/{name}.py']
    seconds, _ = _run([*command, f'--workdir={workdir}', f'--config.seed={seed}'])
    return seconds, json.loads((workdir / 'eval.json').read_text())['accuracy']


def run_peer(program: str, task_path: Path, seed: int) -> Result:
    """Runs one of `PEERS` in a process of its own."""
    import throughput  # It imports mnist_jax, which the environment of the others lacks.

    command = [throughput.other_python(), __file__, '--peer', program, '--task', str(task_path), '--seed', str(seed)]
    seconds, output = _run(command)
    return seconds, float(output.split()[-1])


def _run(command: Sequence[str]) -> tuple[float, str]:
    """Returns the seconds that a process took, and its standard output; exits with its last line if it failed."""
    start = time.perf_counter()
    process = subprocess.run(command, capture_output=True, text=True, env=ON_CPU)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f'{" ".join(command)} failed: {process.stderr.strip().splitlines()[-1:]}')
    return seconds, process.stdout


def write_task(name: str, directory: Path) -> Path:
    """Writes the splits and the recipe of a config for `PEERS`; returns the path of the task."""
    from mnist_jax.config import load_config
    from mnist_jax.factory import build
    from mnist_jax.learning.schedules import SCHEDULES

    config = load_config(f'configs/{name}.py')
    directory.mkdir()
    path = keras_results.write_task(name, directory)
    schedule = build('config.schedule', SCHEDULES, config.schedule)
    with np.load(directory / 'train.npz') as data:
        steps_per_epoch = -(-len(data['label']) // config.batch_size)
    epoch = np.arange(config.epochs * steps_per_epoch, dtype=np.float32) / steps_per_epoch
    rates = config.optimizer.learning_rate * np.asarray(schedule(epoch, config.epochs))
    task = {
        **json.loads(path.read_text()),
        'rates': rates.tolist(),
        'shift': sum(step['pixels'] for step in config.augmentation),
    }
    path.write_text(json.dumps(task))
    return path


def check_recipe(name: str) -> None:
    """Raises a ValueError unless `PEERS` can train a config as it says."""
    from throughput import OWN_FIELDS

    from mnist_jax.config import default_config, load_config

    if not (ROOT / 'configs' / f'{name}.py').is_file():
        raise ValueError(f'must be names of configs, got {name!r}')
    config, default = load_config(f'configs/{name}.py'), default_config()
    free = ('seed', 'epochs', 'batch_size', 'chunks', 'model', 'schedule', 'augmentation', 'loss', 'optimizer')
    fields = [field for field in config if field not in free and config[field] != default[field]]
    if fields or config.model.name != 'cnn' or config.optimizer.name != 'adamw':
        raise ValueError(f'must be a CNN on MNIST with adamw and no more than a schedule and shifts, got {name!r}')
    shifts = list(config.augmentation)
    if len(shifts) > 1 or any(step.keys() != {'name', 'pixels'} or step['name'] != 'shift' for step in shifts):
        raise ValueError(f'must have no augmentation except a shift by whole pixels, got {name!r}')
    if config.loss.name != 'cross_entropy' or config.model.get('activation', 'relu') != 'relu':
        raise ValueError(f'must have the loss cross_entropy and the activation relu, got {name!r}')
    if config.model.get('normalization', 'none') != 'none' or config.model.get('global_pool', False):
        raise ValueError(f'must have no normalization but batch_norm, and no global_pool, got {name!r}')
    if any(field in config.optimizer for field in OWN_FIELDS):
        raise ValueError(f'must have an optimizer without {", ".join(OWN_FIELDS)}, got {name!r}')


def measure(name: str, seeds: int, other_seeds: int, directory: Path) -> Iterator[tuple[int, dict[str, Result]]]:
    """Yields each seed and its results by program; the first runs, which fill caches, are not among them."""
    task_path = write_task(name, directory / f'task-{name}')

    def run_all(seed: int, with_peers: bool) -> dict[str, Result]:
        peers = PEERS if with_peers else ()
        others = {program: run_peer(program, task_path, seed) for program in peers}
        return {'mnist_jax': run_mnist_jax(name, seed, directory), **others}

    run_all(seeds, other_seeds > 0)
    for seed in range(seeds):
        yield seed, run_all(seed, seed < other_seeds)


def _row(name: str, program: str, runs: Sequence[Result]) -> str:
    seconds, accuracies = zip(*runs, strict=True)
    cells = (
        f'`{name}`',
        program,
        f'{statistics.fmean(accuracies):.4f}',
        f'{min(accuracies):.4f} to {max(accuracies):.4f}',
        f'{statistics.median(seconds):.1f}',
        f'{min(seconds):.1f} to {max(seconds):.1f}',
        str(len(runs)),
    )
    return f'| {" | ".join(cells)} |'


def main() -> None:
    """Measures all configs, and prints every run and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--configs', default='fast', help='comma-separated names of configs')
    parser.add_argument('--seeds', type=int, default=10, help='the number of seeds')
    parser.add_argument(
        '--other-seeds', type=int, default=3, help='how many of these seeds Keras and PyTorch also train'
    )
    parser.add_argument('--peer', choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument('--task', type=Path, help=argparse.SUPPRESS)
    parser.add_argument('--seed', type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        print(PEERS[options.peer](options.task, options.seed))
        return
    for flag, count, least in (('--seeds', options.seeds, 1), ('--other-seeds', options.other_seeds, 0)):
        if count < least:
            parser.error(f'{flag} must be at least {least}, got {count}')
    if options.other_seeds > options.seeds:
        parser.error(f'--other-seeds must be at most --seeds={options.seeds}, got {options.other_seeds}')
    names = list(dict.fromkeys(options.configs.split(',')))
    for name in names:
        try:
            check_recipe(name)
        except ValueError as error:
            parser.error(f'--configs {error}')
    header = ('config', 'program', 'test accuracy', 'its range', 'seconds', 'their range', 'seeds')
    rows = [f'| {" | ".join(header)} |', '|' + '---|' * len(header)]
    with tempfile.TemporaryDirectory() as directory:
        for name in names:
            results: dict[str, list[Result]] = {}
            measured = measure(name, options.seeds, options.other_seeds, Path(directory))
            for seed, of_seed in measured:
                for program, (seconds, accuracy) in of_seed.items():
                    print(
                        f'{name}, {program}, seed {seed}: {seconds:.1f} s, {accuracy:.4f}', file=sys.stderr, flush=True
                    )
                    results.setdefault(program, []).append((seconds, accuracy))
            rows += [_row(name, program, runs) for program, runs in results.items()]
    print('\n'.join(rows))


if __name__ == '__main__':
    main()
