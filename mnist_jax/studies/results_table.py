"""RESULTS.md: the results of many runs as tables, written from the list of runs that it contains, and read again."""

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import scipy.special

from mnist_jax import files, text_tables
from mnist_jax.config import CONFIGS, load_config
from mnist_jax.models.layer_table import list_layers
from mnist_jax.training.plan import make_plan
from mnist_jax.workdir.metrics_log import read_metrics
from mnist_jax.workdir.provenance import read_provenance
from mnist_jax.workdir.results import read_result

DIGEST_LENGTH = 12  # the hexadecimal digits of params_sha256
COMMIT_LENGTH = 7
# How far our mean accuracy may be below the published accuracy, which comes from a single run.
TOLERANCE = 0.002
ABOVE, MISSED, FAILED = 'mean above', 'MISSED', 'FAILED'  # verdicts
RUN_HEADER = ('config', 'split', 'seed', 'accuracy', 'loss', 'seconds', 'params_sha256', 'environment')
RUN = re.compile(
    r'^\| (\w+) \| (\w+) \| (\d+|ensemble of \d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([0-9a-f]+) \| (\d+) \|$',
    re.MULTILINE,
)
ENVIRONMENT = re.compile(r'^\| (\d+) \| (.+) \| (.+) \| ([\w ]+) \|$', re.MULTILINE)
COLUMNS = ('split', 'parameters', 'multiply-adds', 'accuracy', '95% interval', 'worst', 'best', 'loss', 'seeds', 'time')
HEADER = ('config', 'dataset', *COLUMNS)
PUBLISHED_HEADER = ('config', 'dataset', *COLUMNS, 'published accuracy', 'published loss', 'verdict')
ENSEMBLE = 'ensemble of'


class Experiment(NamedTuple):
    """A config that is trained with several seeds, and the result that others published for it.

    Attributes:
      config: The name of the config.
      accuracy, loss: The published result, of a single run; None if there is none.
      split: Another split to evaluate the trained runs on; None is the config's test split.
      seeds: The number of seeds by default.
      is_published: Whether it reproduces the experiment of others; if not, it is a recipe of this project.
      has_ensemble: Whether the runs of all seeds are also evaluated together.
    """

    config: str
    accuracy: float | None = None
    loss: float | None = None
    split: str | None = None
    seeds: int = 6
    is_published: bool = True
    has_ensemble: bool = False


# An experiment with `split` must follow the one that trains its config.
PUBLISHED = (
    Experiment('mlp', 0.9787, 0.1212),
    Experiment('cnn', 0.9914, 0.0321),
    Experiment('fashion_cnn', 0.9379, 0.1879),
    Experiment('convnet_valid', 0.9922, 0.0271),
    Experiment('convnet_same'),
    Experiment('digits_cnn', 0.9596, 0.00754, seeds=40),  # Its results vary widely, and a run takes seconds.
    Experiment('kaggle_mlp', 0.9768, 0.1751),
    Experiment('kaggle_mlp', 0.9743, 0.1881, split='holdout'),
    Experiment('kaggle_cnn', 0.9909, 0.0295),
)
RECIPES = (
    Experiment('mnist_best', is_published=False, has_ensemble=True),
    Experiment('digits_best', seeds=20, is_published=False, has_ensemble=True),
    Experiment('mnist_1k', seeds=10, is_published=False),
    Experiment('mnist_5k', seeds=10, is_published=False),
    Experiment('mnist_10k', seeds=10, is_published=False),
    Experiment('mnist_50k', seeds=10, is_published=False),
    Experiment('handwriting', seeds=3, is_published=False),
)
EXPERIMENTS = (*PUBLISHED, *RECIPES)


class Anchor(NamedTuple):
    """A result that others published, for comparison."""

    dataset: str
    result: str
    method: str
    choice: str  # how epoch and model were chosen, as far as the publication says


BY_TEST = 'chosen by test'
ANCHORS = (
    Anchor('MNIST', '0.9991', 'two layers of voting among CNNs (An et al. 2020)', BY_TEST),
    Anchor('MNIST', '0.9987', 'vote of three CNNs (An et al. 2020)', BY_TEST),
    Anchor(
        'MNIST', '0.9984', 'ensemble of capsule networks of 161,000 parameters each (Efficient-CapsNet)', 'best run'
    ),
    Anchor('MNIST', '0.9983', 'one CNN of 1,500,000 parameters with vector capsules (HVC)', 'best run'),
    Anchor('MNIST', '0.9985', 'a perfect reader: 15 test labels are wrong (Northcutt et al. 2021)', 'not trained'),
    Anchor('MNIST', '0.980', '575 parameters', BY_TEST),
    Anchor('MNIST', '0.990', '3,888 parameters', BY_TEST),
    Anchor('MNIST', '0.994', '7,070 parameters', BY_TEST),
    Anchor('MNIST', '0.995', '8,900 parameters', BY_TEST),
    Anchor('Fashion-MNIST', '0.9691', 'a searched architecture', 'best run'),
    Anchor('Fashion-MNIST', '0.963', 'WRN-28-10 with random erasing (Zhong et al. 2020)', 'best run'),
    Anchor('Fashion-MNIST', '0.954', 'DenseNet-BC of 768,000 parameters', 'best run'),
    Anchor('Fashion-MNIST', '0.835', 'people', 'not trained'),
    Anchor('scikit-learn digits, last 297', '0.9596', '3 nearest neighbors', 'no choice'),
    Anchor('scikit-learn digits, last 297', '0.9529', 'support vector machine', 'no choice'),
)


class Environment(NamedTuple):
    """What a run was computed on."""

    processor: str
    jax: str  # its version
    commit: str


class RunResult(NamedTuple):
    """The result of a run, or of the ensemble of all runs of a config.

    Attributes:
      config: The name of the config.
      split: The split that was evaluated.
      seed: The seed, or 'ensemble of N'.
      accuracy, loss: The result.
      seconds: The training time of all epochs.
      digest: The first digits of params_sha256.
      environment: Where it was trained, and with which code.
    """

    config: str
    split: str
    seed: str
    accuracy: float
    loss: float
    seconds: float
    digest: str
    environment: Environment

    @property
    def is_ensemble(self) -> bool:
        """Whether it is the result of several runs."""
        return self.seed.startswith(ENSEMBLE)


def read_run(experiment: Experiment, seed: str, workdir: Path) -> RunResult:
    """Reads the result of a finished run, or of an ensemble in `workdir`, whose `seed` says so."""
    result = read_result(workdir, experiment.split)
    last = (read_provenance(workdir) or [{}])[-1]
    return RunResult(
        config=experiment.config,
        split=experiment.split or 'test',
        seed=seed,
        accuracy=result['accuracy'],
        loss=result['loss'],
        seconds=sum(row['seconds'] for row in read_metrics(workdir)),
        digest=result['params_sha256'][:DIGEST_LENGTH],
        environment=Environment(
            last.get('processor', 'unknown'),
            last.get('versions', {}).get('jax', 'unknown'),
            _short_commit(last.get('commit', 'unknown')),
        ),
    )


def _short_commit(commit: str) -> str:
    """Returns the first digits of a commit, and the words after it."""
    name, *words = commit.split(' ')
    return ' '.join([name[:COMMIT_LENGTH] if re.fullmatch('[0-9a-f]{40}', name) else name, *words])


def read_results(path: Path) -> list[RunResult]:
    """Returns the runs in a RESULTS.md; none if the file lacks them or does not exist."""
    text = files.read_bytes(path).decode() if path.exists() else ''
    environments = {number: Environment(*rest) for number, *rest in ENVIRONMENT.findall(text)}
    unknown = Environment('unknown', 'unknown', 'unknown')
    return [
        RunResult(config, split, seed, float(accuracy), float(loss), float(seconds), digest,
                  environments.get(number, unknown))
        for config, split, seed, accuracy, loss, seconds, digest, number in RUN.findall(text)
    ]  # fmt: skip


def merge(old: Iterable[RunResult], new: Iterable[RunResult]) -> list[RunResult]:
    """Returns all results, those of configs and splits in `new` from there, in the order of `EXPERIMENTS`."""
    new = list(new)
    replaced = {(run.config, run.split) for run in new}
    order = {(experiment.config, experiment.split or 'test'): n for n, experiment in enumerate(EXPERIMENTS)}
    runs = [*(run for run in old if (run.config, run.split) not in replaced), *new]
    return sorted(runs, key=lambda run: order.get((run.config, run.split), len(order)))


def verdict(experiment: Experiment, accuracies: Sequence[float], failed: int = 0) -> tuple[bool, str]:
    """Returns whether the published accuracy is reproduced, and the reason.

    Args:
      experiment: The experiment.
      accuracies: The test accuracy of each seed.
      failed: The number of seeds without a result.
    """
    published = experiment.accuracy
    if failed or not accuracies:
        return False, FAILED
    if published is None:
        return True, 'none published'
    mean = statistics.mean(accuracies)
    if mean > published:
        return True, ABOVE
    if mean >= published - TOLERANCE:
        return True, f'mean within {TOLERANCE}'
    # Published numbers have four digits: 285 correct examples of 297 were published as 0.9596.
    if round(min(accuracies), 4) <= published <= round(max(accuracies), 4):
        return True, 'in the range of the seeds'
    return False, MISSED


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Returns the 95% confidence interval of the mean (Student 1908); None for a single value."""
    if len(values) < 2:
        return None
    quantile = float(scipy.special.stdtrit(len(values) - 1, 0.975))
    margin = quantile * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.mean(values)
    return mean - margin, mean + margin


def format_results(runs: Sequence[RunResult], failed: Mapping[str, int] | None = None) -> str:
    """Returns the text of RESULTS.md; trains nothing.

    Args:
      runs: All runs, in the order of `merge`.
      failed: The number of seeds without a result, by config.
    """
    failed = failed or {}
    published = [row for experiment in PUBLISHED if (row := _row(experiment, runs, failed.get(experiment.config, 0)))]
    recipes = [row for experiment in RECIPES if (row := _row(experiment, runs, failed.get(experiment.config, 0)))]
    missed = [row[0] for row in published if row[-1] in (MISSED, FAILED)]
    environments = list(dict.fromkeys(run.environment for run in runs))
    lines = [
        '# Results',
        '',
        'Each row is the result of several runs of one config that differ in the seed: `./launch.sh reproduce',
        '--experiments=CONFIG` trains them again, and says of each whether it has the same bits. The accuracy on the',
        'test split is the mean ± the standard deviation over the seeds, with the 95% confidence interval of the mean',
        '(Student 1908), and the accuracy of the worst and of the best seed. Nothing was chosen by test accuracy. Time',
        'is the training time of all epochs in seconds, the median over the seeds. Multiply-adds',
        'are those of the forward pass for one image.',
        '',
        '## Published experiments',
        '',
        'Each published result comes from a single run. It counts as reproduced if our mean accuracy is at most',
        f'{TOLERANCE} below the published accuracy, or if the published accuracy is in the range of our seeds.',
        '`kaggle_mlp` is trained on a CSV file in the format of Kaggle, generated from MNIST.',
        '',
        *text_tables.markdown([PUBLISHED_HEADER, *published]),
        '',
        f'Our mean accuracy is above the published accuracy in {sum(row[-1] == ABOVE for row in published)} rows. '
        f'Missed: {", ".join(missed) or "none"}.',
        '',
        '## Recipes of this project',
        '',
        *text_tables.markdown([HEADER, *recipes]),
        '',
        '## Results of others',
        '',
        *text_tables.markdown([('dataset', 'accuracy', 'method', 'how it was chosen'), *ANCHORS]),
        '',
        '## Runs',
        '',
        f'`params_sha256` are the first {DIGEST_LENGTH} digits of the digest of the parameters: the same digits mean',
        'the same bits.',
        '',
        *text_tables.markdown([('environment', 'processor', 'jax', 'commit'), *(
            (str(number), *environment) for number, environment in enumerate(environments, start=1)
        )]),
        '',
        *text_tables.markdown([RUN_HEADER, *(_run_cells(run, environments) for run in runs)]),
    ]  # fmt: skip
    return '\n'.join(lines) + '\n'


def _run_cells(run: RunResult, environments: Sequence[Environment]) -> tuple[str, ...]:
    accuracy, loss, seconds = f'{run.accuracy:.6f}', f'{run.loss:.6f}', f'{run.seconds:.1f}'
    number = str(environments.index(run.environment) + 1)
    return run.config, run.split, run.seed, accuracy, loss, seconds, run.digest, number


def _row(experiment: Experiment, runs: Sequence[RunResult], failed: int) -> list[str]:
    """Returns the cells of an experiment in the columns of its table; [] if it was not run."""
    split = experiment.split or 'test'
    all_runs = [run for run in runs if (run.config, run.split) == (experiment.config, split)]
    seeds = [run for run in all_runs if not run.is_ensemble]
    if not seeds and not failed:
        return []
    accuracies = [run.accuracy for run in seeds]
    plan = make_plan(load_config(CONFIGS / f'{experiment.config}.py'))
    layers = list_layers(plan.model, plan.source.image_shape)
    parameters = sum(layer.trainable + layer.non_trainable for layer in layers)
    multiply_adds = sum(layer.multiply_adds for layer in layers)
    cells = [experiment.config, plan.source.name, split, f'{parameters:,}', f'{multiply_adds:,}']
    if seeds:
        interval = mean_interval(accuracies)
        cells += [
            _mean_and_deviation(accuracies),
            'NA' if interval is None else f'{interval[0]:.4f} to {interval[1]:.4f}',
            f'{min(accuracies):.4f}',
            f'{max(accuracies):.4f}',
            _mean_and_deviation([run.loss for run in seeds]),
            str(len(seeds)),
            f'{statistics.median(run.seconds for run in seeds):,.0f}',
        ]
    else:
        cells += ['failed', '', '', '', '', '0', '']
    for run in all_runs:
        if run.is_ensemble:
            cells[COLUMNS.index('accuracy') + 2] += f'; {run.seed}: {run.accuracy:.4f}'
    if not experiment.is_published:
        return cells
    reason = verdict(experiment, accuracies, failed)[1]
    return [*cells, text_tables.number(experiment.accuracy), text_tables.number(experiment.loss), reason]


def _mean_and_deviation(values: Sequence[float]) -> str:
    mean = f'{statistics.mean(values):.4f}'
    return f'{mean} ± {statistics.stdev(values):.4f}' if len(values) > 1 else mean
