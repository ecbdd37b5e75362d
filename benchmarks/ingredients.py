"""What each ingredient of training adds: to the validation accuracy of one recipe, or to the time of a step.

    .venv/bin/python benchmarks/ingredients.py accuracy --dataset=mnist --seeds=5 --jobs=2
    .venv/bin/python benchmarks/ingredients.py time --config=configs/cnn.py --rounds=5

`accuracy` trains a small CNN with batch normalization for 10 epochs on the first 30% of the training split, with each
ingredient alone, and evaluates it on the last 10%; the test split is never read. Each of the jobs runs on one core.
Prints the mean accuracy and, for each ingredient, the mean difference from the recipe without it over the same seeds,
with its standard error. Results are kept in --directory, so the command can be repeated with more seeds or after an
interruption.

`time` measures, in rounds, a step with each ingredient and one without it in turn, and prints the median of the ratios.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import flags
from ml_collections import ConfigDict

from mnist_jax.config import default_config, load_config

AFFINE = {'name': 'affine', 'rotation': 10.0, 'scale': 0.1, 'shift': 1.5}
# The fields of the config that each ingredient changes, by dotted name.
INGREDIENTS: dict[str, dict[str, Any]] = {
    'shift by 1 pixel': {'augmentation': ({'name': 'shift', 'pixels': 1},)},
    'shift by 2 pixels': {'augmentation': ({'name': 'shift', 'pixels': 2},)},
    'rotation with scale and shift': {'augmentation': (AFFINE,)},
    'elastic distortion': {'augmentation': ({'name': 'elastic', 'distance': 20.0},)},
    'flip': {'augmentation': ({'name': 'flip'},)},
    'alternating flip': {'augmentation': ({'name': 'alternating_flip'},)},
    'brightness and contrast': {'augmentation': ({'name': 'brightness'}, {'name': 'contrast'})},
    'random erasing': {'augmentation': ({'name': 'erase', 'probability': 0.5},)},
    'salt-and-pepper noise': {'augmentation': ({'name': 'noise'},)},
    'mixup': {'augmentation': ({'name': 'mixup'},)},
    'CutMix': {'augmentation': ({'name': 'cutmix', 'probability': 0.5},)},
    'label smoothing': {'loss.label_smoothing': 0.1},
    'focal loss': {'loss': {'name': 'focal'}},
    'EMA': {'average': {'name': 'ema', 'decay': 0.995, 'evaluated': 'average'}},
    'SWA': {'average': {'name': 'swa', 'start': 6, 'evaluated': 'average'}},
    'schedule-free': {
        'average': {'name': 'schedule_free', 'evaluated': 'average'},
        'optimizer.beta_1': 0.0,
        'schedule': {'name': 'constant'},
    },
    'SAM': {'optimizer.sam_radius': 0.05},
    'clipping by norm': {'optimizer.clip_norm': 1.0},
    'accumulation over 2 batches': {'optimizer.accumulate': 2},
    'NAdam': {'optimizer': {'name': 'nadam', 'learning_rate': 3e-3, 'weight_decay': 0.05}},
    'Lion': {'optimizer': {'name': 'lion', 'learning_rate': 6e-4, 'weight_decay': 0.25}},
    'Muon': {'optimizer': {'name': 'muon', 'learning_rate': 0.02, 'weight_decay': 0.05}},
    'Nesterov SGD': {
        'optimizer': {'name': 'sgd', 'learning_rate': 0.05, 'momentum': 0.9, 'nesterov': True, 'weight_decay': 0.005}
    },
    'dropout': {'model.stage_dropout': (0.1, 0.1), 'model.dropout': (0.2,)},
    'no normalization': {'model.normalization': 'none'},
    'layer normalization': {'model.normalization': 'layer'},
    'group normalization': {'model.normalization': 'group'},
    'GELU': {'model.activation': 'gelu'},
    'SiLU': {'model.activation': 'silu'},
    'leaky ReLU': {'model.activation': 'leaky_relu'},
    'global average pooling': {'model.global_pool': True},
}
BASE = 'the recipe'


def recipe(dataset: str) -> ConfigDict:
    """Returns the config without any ingredient."""
    config = default_config()
    config.unlock()
    config.epochs, config.batch_size, config.chunks, config.devices = 10, 64, 1, 1
    config.dataset.name = dataset
    config.dataset.train, config.dataset.validation, config.dataset.test = 'train[:30%]', '', 'train[90%:]'
    config.model.stages, config.model.hidden, config.model.padding = ((16,), (24, 32)), (64,), 'valid'
    config.model.normalization = 'batch'
    config.schedule.name = 'one_cycle'
    config.optimizer = ConfigDict({'name': 'adamw', 'learning_rate': 3e-3, 'weight_decay': 0.05, 'beta_1': 0.9})
    return config


def with_ingredient(config: ConfigDict, name: str) -> ConfigDict:
    """Returns `config` with the fields of an ingredient."""
    config = config.copy_and_resolve_references().unlock()
    for field, value in ({} if name == BASE else INGREDIENTS[name]).items():
        section, _, inner = field.rpartition('.')
        parent = config[section] if section else config
        with parent.ignore_type():
            parent[inner] = ConfigDict(value) if isinstance(value, dict) else value
    return config.lock()


def train_once(job: tuple[str, str, int, str]) -> None:
    """Trains a job (dataset, ingredient, seed, directory) on one core, and writes its result."""
    dataset, name, seed, directory = job
    path = Path(directory) / f'{dataset}-{name}-{seed}.json'
    if path.exists():
        return
    from absl import logging

    from mnist_jax.train import train

    logging.set_verbosity(logging.ERROR)
    config = with_ingredient(recipe(dataset), name)
    config.seed = seed
    with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stdout(None):
        result = train(config, workdir)
    path.write_text(json.dumps({'accuracy': result['accuracy'], 'params_sha256': result['params_sha256']}))


def _pin_to_a_core(counter: Any) -> None:
    """Binds this process to a core of its own."""
    os.environ['JAX_PLATFORMS'] = 'cpu'
    if not hasattr(os, 'sched_setaffinity'):  # macOS does not have it.
        return
    with counter.get_lock():
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[counter.value % len(cores)]})
        counter.value += 1


def measure_accuracy(dataset: str, names: Sequence[str], seeds: int, jobs: int, directory: Path) -> None:
    """Trains all runs, and prints the table."""
    directory.mkdir(parents=True, exist_ok=True)
    context = get_context('spawn')
    work = [(dataset, name, seed, str(directory)) for seed in range(seeds) for name in [BASE, *names]]
    # A process that compiles many programs runs out of memory mappings.
    with context.Pool(jobs, _pin_to_a_core, (context.Value('i', 0),), maxtasksperchild=10) as pool:
        for _ in pool.imap_unordered(train_once, work):
            pass

    def results(name: str) -> list[dict[str, float]]:
        return [json.loads((directory / f'{dataset}-{name}-{seed}.json').read_text()) for seed in range(seeds)]

    base = results(BASE)
    base_accuracies = [100 * result['accuracy'] for result in base]
    mean, deviation = statistics.mean(base_accuracies), statistics.stdev(base_accuracies)
    print(f'{dataset}, {seeds} seeds: {BASE} {mean:.2f} ± {deviation:.2f} (standard deviation)\n')
    print('| ingredient | accuracy, % | difference, points | seeds that gain |\n|---|---|---|---|')
    for name in names:
        own = results(name)
        differences = [100 * (a['accuracy'] - b['accuracy']) for a, b in zip(own, base, strict=True)]
        error = statistics.stdev(differences) / len(differences) ** 0.5
        print(
            f'| {name} | {100 * statistics.mean(result["accuracy"] for result in own):.2f} | '
            f'{statistics.mean(differences):+.2f} ± {error:.2f} | {sum(d > 0 for d in differences)} of {seeds} |'
        )


class Trainer:
    """Makes training steps of a config."""

    def __init__(self, config: ConfigDict):
        from mnist_jax.training.experiment import make_experiment

        self._experiment = make_experiment(config)
        self._state = self._experiment.replicas.replicate(self._experiment.create_state())
        self._groups = self._epochs()
        self.seconds(4)

    def _epochs(self) -> Iterator[list]:
        size = min(self._experiment.steps_per_call, self._experiment.steps_per_epoch)
        for epoch in itertools.count():
            # A shorter call at the end of an epoch would be compiled separately.
            yield from (group for group in self._experiment.train_calls(epoch) if len(group) == size)

    def seconds(self, calls: int) -> float:
        """Returns how long a call takes, on average."""
        start = time.perf_counter()
        for _ in range(calls):
            self._state, sums = self._experiment.train_steps(self._state, next(self._groups))
        float(sums['loss'].ravel()[0])
        return (time.perf_counter() - start) / calls


def time_ratios(
    config: ConfigDict, names: Iterable[str], rounds: int, seconds: float
) -> Iterator[tuple[str, list[float]]]:
    """Yields for each ingredient the ratios of its time of a step to that without it, one for each round."""
    base = Trainer(config)
    calls = max(1, round(seconds / base.seconds(20)))
    for name in names:
        trainer, ratios = Trainer(with_ingredient(config, name)), []
        for number in range(rounds):
            pair = [base, trainer] if number % 2 else [trainer, base]
            times = {which: which.seconds(calls) for which in pair}
            ratios.append(times[trainer] / times[base])
        yield name, ratios


def measure_time(config: ConfigDict, names: Sequence[str], rounds: int, seconds: float) -> None:
    """Measures all ingredients, and prints the table."""
    print('| ingredient | time of a step (range) |\n|---|---|')
    for name, ratios in time_ratios(config, names, rounds, seconds):
        print(f'| {name} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |', flush=True)


def main() -> None:
    """Runs the chosen measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=('accuracy', 'time'))
    parser.add_argument(
        '--names', type=flags.names(INGREDIENTS), default=tuple(INGREDIENTS), help='comma-separated ingredients'
    )
    parser.add_argument('--dataset', default='mnist', choices=('mnist', 'fashion_mnist'))
    parser.add_argument('--seeds', type=flags.at_least(2), default=5)
    parser.add_argument('--jobs', type=flags.at_least(1), default=2)
    parser.add_argument(
        '--directory',
        type=Path,
        default=Path('/tmp/ingredients'),
        help='where results are kept; those that are there are not measured again, even if the code has changed',
    )
    parser.add_argument('--config', type=flags.config_path, default='configs/cnn.py')
    parser.add_argument('--rounds', type=flags.at_least(1), default=5)
    parser.add_argument('--seconds', type=float, default=1.0, help='per program in each round')
    options = parser.parse_args()
    if options.what == 'accuracy':
        measure_accuracy(options.dataset, options.names, options.seeds, options.jobs, options.directory)
    else:
        measure_time(load_config(options.config), options.names, options.rounds, options.seconds)


if __name__ == '__main__':
    main()
