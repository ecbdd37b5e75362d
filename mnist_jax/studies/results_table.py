"""RESULTS.md: the results of many runs as tables, written from the list of runs that it contains, and read again."""

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import scipy.special

from mnist_jax import files, text_tables
from mnist_jax.config import CONFIGS, load_config
from mnist_jax.errors import UserError
from mnist_jax.models.layer_table import list_layers
from mnist_jax.training.plan import make_plan
from mnist_jax.workdir.metrics_log import read_metrics
from mnist_jax.workdir.provenance import read_provenance, training_start
from mnist_jax.workdir.results import read_result

DIGEST_LENGTH = 12  # the hexadecimal digits of params_sha256
COMMIT_LENGTH = 7
# How far our mean accuracy may be below the published accuracy, which comes from a single run.
TOLERANCE = 0.002
ABOVE, MISSED, FAILED = 'mean above', 'MISSED', 'FAILED'  # verdicts
RUN_HEADER = ('config', 'split', 'seed', 'accuracy', 'loss', 'seconds', 'params_sha256', 'environment')
RUN = re.compile(
    r'\| (\w+) \| (\w+) \| (\d+|ensemble of \d+) \| '
    r'(?:(\d\.\d+) \| (\d+\.\d+) \| (\d+\.\d+) \| ([0-9a-f]+)|failed \|  \|  \| ) \| (\d+) \|'
)
ENVIRONMENT = re.compile(r'\| (\d+) \| (.+) \| (.+) \| (.+) \|')
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
      has_ensemble: Whether the runs of all seeds are also evaluated together.
    """

    config: str
    accuracy: float | None = None
    loss: float | None = None
    split: str | None = None
    seeds: int = 6
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
    Experiment('mnist_best', has_ensemble=True),
    Experiment('fashion_best', seeds=5, has_ensemble=True),
    Experiment('digits_best', seeds=20, has_ensemble=True),
    Experiment('mnist_1k', seeds=10),
    Experiment('mnist_5k', seeds=10),
    Experiment('mnist_10k', seeds=10),
    Experiment('mnist_50k', seeds=10),
    Experiment('fast', seeds=10),
    Experiment('fast_995', seeds=10),
    Experiment('handwriting', seeds=3),
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
    Anchor('MNIST', '0.9985', 'a reader who sees what most people see (Northcutt et al. 2021)', 'not trained'),
    Anchor('MNIST', '0.980', '575 parameters (hexhowells.com 2025)', BY_TEST),
    Anchor('MNIST', '0.994', '7,070 parameters (github.com/nitin-vig/ERAv4S6)', BY_TEST),
    Anchor('MNIST', '0.995', '8,900 parameters (github.com/The-School-of-AI/era-s7-ram)', BY_TEST),
    Anchor('Fashion-MNIST', '0.9691', 'a searched architecture', 'best run'),
    Anchor('Fashion-MNIST', '0.963', 'WRN-28-10 with random erasing (Zhong et al. 2020)', 'best run'),
    Anchor('Fashion-MNIST', '0.954', 'DenseNet-BC of 768,000 parameters (benchmark of Zalando)', 'best run'),
    Anchor('Fashion-MNIST', '0.835', 'people (benchmark of Zalando)', 'not trained'),
    Anchor('scikit-learn digits, last 297', '0.9596', '3 nearest neighbors', 'no choice'),
    Anchor('scikit-learn digits, last 297', '0.9529', 'support vector machine', 'no choice'),
)


class Environment(NamedTuple):
    """What a run was computed on."""

    processor: str
    jax: str  # its version
    commit: str


UNKNOWN = Environment('unknown', 'unknown', 'unknown')


class Result(NamedTuple):
    """The result of a run: accuracy, loss, training time of all epochs, and the first digits of params_sha256."""

    accuracy: float
    loss: float
    seconds: float
    digest: str


class RunResult(NamedTuple):
    """A run, or the ensemble of all runs of a config.

    Attributes:
      config: The name of the config.
      split: The split that was evaluated.
      seed: The seed, or 'ensemble of N'.
      result: The result; None if the run failed.
      environment: Where it was trained, and with which code.
    """

    config: str
    split: str
    seed: str
    result: Result | None
    environment: Environment = UNKNOWN

    @property
    def is_ensemble(self) -> bool:
        """Whether it is the result of several runs."""
        return self.seed.startswith(ENSEMBLE)

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from others: config, split and seed."""
        return self.config, self.split, self.seed


def read_run(experiment: Experiment, seed: str, workdir: Path) -> RunResult:
    """Reads the result of a finished run, or of an ensemble in `workdir`, whose `seed` says so."""
    result = read_result(workdir, experiment.split)
    starts = read_provenance(workdir) or [{'step': 0}]
    start = starts[training_start(starts, result['step'])]
    return RunResult(
        config=experiment.config,
        split=experiment.split or 'test',
        seed=seed,
        result=Result(
            accuracy=result['accuracy'],
            loss=result['loss'],
            seconds=sum(row['seconds'] for row in read_metrics(workdir)),
            digest=result['params_sha256'][:DIGEST_LENGTH],
        ),
        environment=Environment(
            start.get('processor', 'unknown'),
            start.get('versions', {}).get('jax', 'unknown'),
            _short_commit(start.get('commit', 'unknown')),
        ),
    )


def _short_commit(commit: str) -> str:
    """Returns the first digits of a commit, and the words after it."""
    name, *words = commit.split(' ')
    return ' '.join([name[:COMMIT_LENGTH] if re.fullmatch('[0-9a-f]{40}', name) else name, *words])


def read_results(path: Path) -> list[RunResult]:
    """Returns the runs in a RESULTS.md; none if the file does not exist, or has no list of runs.

    Raises:
      UserError: the list of runs is damaged.
    """
    try:
        lines = files.read_bytes(path).decode().splitlines() if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{str(path)!r} must be a text file, got {error}') from None
    environments = {
        match[1]: Environment(*match.groups()[1:]) for line in lines if (match := ENVIRONMENT.fullmatch(line))
    }
    header = text_tables.markdown([RUN_HEADER])[0]
    start = lines.index(header) + 2 if header in lines else len(lines)
    runs: dict[tuple[str, str, str], RunResult] = {}
    for number, line in enumerate(lines[start:], start=start + 1):
        match = RUN.fullmatch(line)
        if match is None or match[8] not in environments or match.groups()[:3] in runs:
            raise UserError(
                f'line {number} of {str(path)!r} must be a run in the columns {", ".join(RUN_HEADER)}, each run once, '
                f'got {line[:120]!r}; restore the file, or move it away'
            )
        config, split, seed, accuracy, loss, seconds, digest, environment = match.groups()
        result = Result(float(accuracy), float(loss), float(seconds), digest) if digest else None
        runs[config, split, seed] = RunResult(config, split, seed, result, environments[environment])
    return list(runs.values())


def merge(old: Iterable[RunResult], new: Iterable[RunResult]) -> list[RunResult]:
    """Returns all runs in the order of `EXPERIMENTS`: those in `new`, and those in `old` that were not run again.

    An ensemble in `old` is left out if one of its runs was run again.
    """
    new = list(new)
    again = {run.key for run in new}
    configs = {(run.config, run.split) for run in new}
    order = {(experiment.config, experiment.split or 'test'): n for n, experiment in enumerate(EXPERIMENTS)}
    kept = [run for run in old if run.key not in again and not (run.is_ensemble and (run.config, run.split) in configs)]

    def position(run: RunResult) -> tuple[int, bool, int]:
        number = 0 if run.is_ensemble else int(run.seed)
        return order.get((run.config, run.split), len(order)), run.is_ensemble, number

    return sorted([*kept, *new], key=position)


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
    """Returns the 95% confidence interval of a mean accuracy (Student 1908); None for a single value."""
    if len(values) < 2:
        return None
    quantile = float(scipy.special.stdtrit(len(values) - 1, 0.975))
    margin = quantile * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.mean(values)
    return max(0.0, mean - margin), min(1.0, mean + margin)


def format_results(runs: Sequence[RunResult]) -> str:
    """Returns the text of RESULTS.md with these runs, in the order of `merge`; trains nothing."""
    published = [row for experiment in PUBLISHED if (row := _row(experiment, runs))]
    recipes = [row for experiment in RECIPES if (row := _row(experiment, runs))]
    missed = [f'{row[0]} ({row[2]})' for row in published if row[-1] in (MISSED, FAILED)]
    environments = list(dict.fromkeys(run.environment for run in runs))
    lines = [
        '# Results',
        '',
        'Each row summarizes several runs of one config that differ in the seed. The command',
        '`./launch.sh reproduce --experiments=CONFIG` trains them again, and says of each run whether it is',
        'bit-identical. The accuracy on the test split is the mean ± the standard deviation over the seeds, with the',
        '95% confidence interval of the mean (Student 1908), and the accuracy of the worst and of the best seed.',
        'Nothing was chosen by test accuracy. Time is the training time of all epochs in seconds, the median over the',
        'seeds. Multiply-adds are those of the forward pass for one image.',
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
        f'`params_sha256` has the first {DIGEST_LENGTH} digits of the digest of the parameters: the same digits mean',
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
    cells = ('failed', '', '', '')
    if run.result is not None:
        accuracy, loss, seconds, digest = run.result
        cells = f'{accuracy:.6f}', f'{loss:.6f}', f'{seconds:.1f}', digest
    return run.config, run.split, run.seed, *cells, str(environments.index(run.environment) + 1)


def _row(experiment: Experiment, runs: Sequence[RunResult]) -> list[str]:
    """Returns the cells of an experiment in the columns of its table; [] if it was not run."""
    split = experiment.split or 'test'
    own = [run for run in runs if (run.config, run.split) == (experiment.config, split)]
    if not own:
        return []
    results = [run.result for run in own if run.result is not None and not run.is_ensemble]
    failed = sum(run.result is None for run in own)
    accuracies = [result.accuracy for result in results]
    plan = make_plan(load_config(CONFIGS / f'{experiment.config}.py'))
    layers = list_layers(plan.model, plan.source.image_shape)
    parameters = sum(layer.trainable + layer.non_trainable for layer in layers)
    multiply_adds = sum(layer.multiply_adds for layer in layers)
    cells = [experiment.config, plan.source.name, split, f'{parameters:,}', f'{multiply_adds:,}']
    if results:
        interval = mean_interval(accuracies)
        accuracy = [_mean_and_deviation(accuracies)]
        accuracy += [f'{run.seed}: {run.result.accuracy:.4f}' for run in own if run.is_ensemble and run.result]
        accuracy += [f'{failed} failed'] if failed else []
        cells += [
            '; '.join(accuracy),
            'NA' if interval is None else f'{interval[0]:.4f} to {interval[1]:.4f}',
            f'{min(accuracies):.4f}',
            f'{max(accuracies):.4f}',
            _mean_and_deviation([result.loss for result in results]),
            str(len(results)),
            # Of the rounded seconds, which the table of the runs has: it is enough to write this one again.
            f'{statistics.median(round(result.seconds, 1) for result in results):,.0f}',
        ]
    else:
        cells += [f'{failed} failed', '', '', '', '', '0', '']
    if experiment not in PUBLISHED:
        return cells
    reason = verdict(experiment, accuracies, failed)[1]
    return [*cells, text_tables.number(experiment.accuracy), text_tables.number(experiment.loss), reason]


def _mean_and_deviation(values: Sequence[float]) -> str:
    mean = f'{statistics.mean(values):.4f}'
    return f'{mean} ± {statistics.stdev(values):.4f}' if len(values) > 1 else mean
