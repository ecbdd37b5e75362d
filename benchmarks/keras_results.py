"""The test accuracy of Keras with the recipes of the published experiments, over several seeds, next to ours.

    .venv/bin/python benchmarks/keras_results.py --configs=mlp,cnn --seeds=6 --output=keras.json

Keras gets the same splits, model, optimizer, loss, batch size, epochs and callbacks as the config says; initial
parameters, dropout and the order of the examples are its own. One process trains one seed. The results are kept in
--output, so the command can be repeated with more seeds or after an interruption. Prints a table of both distributions;
ours is that of RESULTS.md. Keras is installed into benchmarks/.venv if it is missing; see throughput.py.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

CONFIGS = ('mlp', 'cnn', 'fashion_cnn', 'convnet_valid', 'convnet_same', 'digits_cnn', 'kaggle_mlp', 'kaggle_cnn')


def read_split(task_path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images of a split of a task, NxHxWxC from 0 to 1, and the labels; `write_task` wrote them."""
    max_pixel = json.loads(task_path.read_text())['max_pixel']
    with np.load(task_path.with_name(f'{name}.npz')) as data:
        return data['image'].astype(np.float32) / max_pixel, data['label'].astype(np.int64)


def train_keras(task_path: Path, seed: int) -> dict[str, float]:
    """Trains a model by the recipe of a task, in the environment of Keras; returns its result on the test split."""
    os.environ['KERAS_BACKEND'] = 'tensorflow'
    import keras
    import programs

    task = json.loads(task_path.read_text())
    keras.utils.set_random_seed(seed)
    program = programs.Keras(task)
    splits = {}
    for name in task['splits']:
        image, label = read_split(task_path, name)
        is_one_hot = task['loss']['name'] == 'mean_squared_error'
        splits[name] = image, np.eye(10, dtype=np.float32)[label] if is_one_hot else label
    start = time.perf_counter()
    history = program.model.fit(
        *splits['train'],
        batch_size=task['batch_size'],
        epochs=task['epochs'],
        validation_data=splits.get('validation'),
        callbacks=_callbacks(keras, task),
        verbose=0,
    )
    seconds = time.perf_counter() - start
    loss, accuracy = program.model.evaluate(*splits['test'], verbose=0)
    return {'accuracy': accuracy, 'loss': loss, 'seconds': seconds, 'epochs': len(history.epoch)}


def _callbacks(keras: Any, task: dict[str, Any]) -> list[Any]:
    """Returns Keras's callbacks for the sections early_stopping and reduce_lr of a config."""
    names = {'validation_loss': 'val_loss', 'validation_accuracy': 'val_accuracy'}
    stopping, reduction = task['early_stopping'], task['reduce_lr']
    callbacks = []
    if stopping['patience']:
        callbacks.append(
            keras.callbacks.EarlyStopping(
                names[stopping['monitor']],
                min_delta=stopping['min_delta'],
                patience=stopping['patience'],
                restore_best_weights=stopping['restore_best'],
            )
        )
    if reduction['patience']:
        options = {name: reduction[name] for name in ('min_delta', 'patience', 'factor', 'cooldown', 'min_lr')}
        callbacks.append(keras.callbacks.ReduceLROnPlateau(names[reduction['monitor']], **options))
    return callbacks


def write_task(name: str, directory: Path) -> Path:
    """Writes the splits and the recipe of a config for `train_keras`; returns the path of the task."""
    import throughput  # It imports mnist_jax, which the environment of Keras lacks.

    from mnist_jax.config import load_config
    from mnist_jax.studies.reproduction import write_kaggle_csv
    from mnist_jax.training.plan import make_plan

    config = load_config(f'configs/{name}.py')
    if config.dataset.name == 'kaggle_digits':
        config.dataset.raw_dir = str(directory / 'kaggle.csv')
        write_kaggle_csv(directory / 'kaggle.csv')
    source = make_plan(config).source
    source.data.prepare()
    path, task = throughput.write_task(name, directory)
    for split in source.split_names:
        examples = source.split(split)
        examples = examples.take(np.arange(examples.size))
        np.savez(directory / f'{split}.npz', image=examples.image, label=examples.label)
    recipe = {
        **task,
        'data': str(directory / 'train.npz'),
        'splits': list(source.split_names),
        'max_pixel': source.max_pixel,
        'epochs': config.epochs,
        'early_stopping': config.early_stopping.to_dict(),
        'reduce_lr': config.reduce_lr.to_dict(),
    }
    path.write_text(json.dumps(recipe))
    return path


def run(names: Sequence[str], seeds: int, output: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Trains what is missing in `output`; returns its contents: results by config and seed."""
    import throughput

    results = json.loads(output.read_text()) if output.exists() else {}
    environment = {**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '2', 'CUDA_VISIBLE_DEVICES': ''}
    for name in names:
        done = results.setdefault(name, {})
        with tempfile.TemporaryDirectory() as directory:
            missing = [seed for seed in range(seeds) if str(seed) not in done]
            path = write_task(name, Path(directory)) if missing else None
            for seed in missing:
                command = [throughput.other_python(), __file__, '--task', str(path), str(seed)]
                process = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
                done[str(seed)] = json.loads(process.stdout.splitlines()[-1])
                output.write_text(json.dumps(results, indent=2))
                print(f'{name}, seed {seed}: {done[str(seed)]}', file=sys.stderr, flush=True)
    return results


def format_table(results: dict[str, dict[str, dict[str, float]]], ours: dict[str, list[float]]) -> str:
    """Returns both distributions of each config as a table in Markdown.

    Args:
      results: Those of Keras, by config and seed.
      ours: Our accuracies by config.
    """
    header = '| config | Keras: accuracy | range | seeds | mnist_jax: accuracy | range | seeds |'
    rows = [header, '|' + '---|' * 7]
    for name, by_seed in results.items():
        cells = [_cells([result['accuracy'] for result in by_seed.values()]), _cells(ours.get(name, []))]
        rows.append(f'| `{name}` | {" | ".join(cells)} |')
    return '\n'.join(rows)


def _cells(accuracies: Sequence[float]) -> str:
    if not accuracies:
        return 'NA | NA | 0'
    deviation = f' ± {statistics.stdev(accuracies):.4f}' if len(accuracies) > 1 else ''
    extremes = f'{min(accuracies):.4f} to {max(accuracies):.4f}'
    return f'{statistics.fmean(accuracies):.4f}{deviation} | {extremes} | {len(accuracies)}'


def main() -> None:
    """Trains all seeds, and prints the table; with --task, trains one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--configs', default=','.join(CONFIGS), help='comma-separated names of published experiments')
    parser.add_argument('--seeds', type=int, default=6, help='the number of seeds')
    parser.add_argument('--output', type=Path, default=Path('keras.json'), help='where the results are kept')
    parser.add_argument('--task', nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(json.dumps(train_keras(Path(options.task[0]), int(options.task[1]))))
        return
    names = options.configs.split(',')
    for name in names:
        if name not in CONFIGS:
            parser.error(f'--configs must be among {", ".join(CONFIGS)}, got {name!r}')
    if options.seeds < 1:
        parser.error(f'--seeds must be at least 1, got {options.seeds}')
    results = run(names, options.seeds, options.output)
    from mnist_jax.studies.results_table import read_results

    ours: dict[str, list[float]] = {}
    for result in read_results(Path(__file__).parents[1] / 'RESULTS.md'):
        if result.split == 'test' and not result.is_ensemble and result.result is not None:
            ours.setdefault(result.config, []).append(result.result.accuracy)
    print(format_table({name: results[name] for name in names}, ours))


if __name__ == '__main__':
    main()
