"""Compare finished runs: a table, and whether two of them differ by more than chance."""

import glob
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnist_jax import files, text_tables
from mnist_jax.errors import UserError
from mnist_jax.learning import metrics
from mnist_jax.workdir.checkpoints import Checkpoints
from mnist_jax.workdir.metrics_log import read_metrics
from mnist_jax.workdir.results import read_predictions, read_result


class FinishedRun(NamedTuple):
    """What a workdir holds of a finished run."""

    name: str
    workdir: Path
    config: Any
    result: dict[str, Any]
    epochs: list[dict[str, float]]  # the numbers of metrics.csv

    @property
    def seconds(self) -> float | None:
        """Of training, all epochs together; None where metrics.csv is missing."""
        return sum(row['seconds'] for row in self.epochs) if self.epochs or not self.result['step'] else None

    @property
    def epochs_told(self) -> str:
        """How many there were, or NA."""
        return 'NA' if self.seconds is None else str(len(self.epochs))

    @property
    def seconds_told(self) -> str:
        """How long training took, or NA."""
        return 'NA' if self.seconds is None else f'{self.seconds:,.1f} s'


HEADER = (
    'run', 'data set', 'model', 'parameters', 'epochs', 'step', 'accuracy', '95 % interval', 'loss', 'training',
    'images/s',
)  # fmt: skip
PAIR_HEADER = ('run', 'and run', 'difference', 'only first right', 'only second right', 'P-value', '')


def comparison_table(patterns: Sequence[str]) -> str:
    """The comparison of the runs whose workdirs are given, by path or by pattern, as text."""
    runs = read_runs(patterns)
    lines = text_tables.titled([HEADER, *map(table_row, runs)], left=3)
    comparable, apart = pair_rows(runs)
    if comparable:
        lines += ['', "McNemar's exact test of the difference in accuracy, pair by pair", '']
        lines += text_tables.titled([PAIR_HEADER, *comparable], left=2)
    return '\n'.join([*lines, '', apart] if apart else lines)


def read_runs(patterns: Sequence[str]) -> list[FinishedRun]:
    """The runs whose workdirs the patterns name, each once."""
    workdirs = find_runs(patterns)
    return [read_run(workdir, name) for workdir, name in zip(workdirs, _short_names(workdirs), strict=True)]


def pair_rows(runs: Sequence[FinishedRun]) -> tuple[list[list[str]], str]:
    """A row for each two runs that were evaluated on the same examples, and a line on those that were not."""
    both = list(itertools.combinations(runs, 2))
    rows = [_pair(*pair) for pair in both]
    apart = [f'{one.name} and {other.name}' for (one, other), row in zip(both, rows, strict=True) if row is None]
    told = f'Evaluated on different examples, and so without a test: {"; ".join(apart)}' if apart else ''
    return [row for row in rows if row is not None], told


def find_runs(patterns: Sequence[str]) -> list[Path]:
    """The workdirs that the patterns name, each once, in order."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        if Path(pattern).is_dir():
            found[Path(pattern).resolve()] = None
            continue
        paths = [Path(match).resolve() for match in sorted(glob.glob(pattern))]
        matches = [path for path in paths if (path / 'config.json').is_file()]
        if not matches:
            raise UserError(f"--run={pattern!r} is no workdir, nor a pattern of workdirs such as 'runs/cnn-*'")
        found.update(dict.fromkeys(matches))
    return list(found)


def read_run(workdir: Path, name: str) -> FinishedRun:
    """The run in a workdir; UserError where it is not finished."""
    config = Checkpoints(workdir).read_config()
    if config is None:
        raise UserError(f'{str(workdir)!r} holds no config.json; give the workdir of a run')
    run = FinishedRun(name, workdir, config, read_result(workdir), read_metrics(workdir))
    numbers = [int(row['epoch']) for row in run.epochs]
    # A run that was stopped within an epoch has no row of that.
    steps = run.epochs[0]['step'] * (len(numbers) + 1) if numbers else math.inf
    if numbers != list(range(1, len(numbers) + 1)) or run.result['step'] >= steps:
        raise UserError(
            f'{str(workdir / "metrics.csv")!r} is damaged: it has rows of {len(numbers)} epochs, the last of them '
            f'{numbers[-1]}, and the result is of step {run.result["step"]:,}; without the file, all else is told'
        )
    return run


def _short_names(workdirs: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell all of them apart."""
    parts = [tuple(map(files.printable, workdir.parts)) for workdir in workdirs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ['/'.join(path[-length:]) for path in parts]
        if len(set(names)) == len(names):
            break
    return names


def table_row(run: FinishedRun) -> list[str]:
    """The run in the columns of `HEAD`."""
    lower, upper = run.result['statistics']['overall']['accuracy_interval']
    speeds = [row['images_per_second'] for row in run.epochs]
    return [
        run.name,
        run.result['dataset'],
        run.config.model.name,
        f'{run.result["parameters"]:,}',
        run.epochs_told,
        f'{run.result["step"]:,}',
        f'{run.result["accuracy"]:.4f}',
        f'{lower:.4f} to {upper:.4f}',
        f'{run.result["loss"]:.4f}',
        run.seconds_told,
        f'{np.median(speeds):,.0f}' if speeds else 'NA',
    ]


def _pair(first: FinishedRun, second: FinishedRun) -> list[str] | None:
    if first.result['split_sha256'] != second.result['split_sha256']:
        return None
    (label, one), (other_label, other) = (read_predictions(run.workdir, run.result) for run in (first, second))
    if not np.array_equal(label, other_label):
        raise UserError(f'the predictions of {first.name!r} and {second.name!r} are not of the same examples')
    only_first, only_second = (
        int(((one == label) & (other != label)).sum()),
        int(((one != label) & (other == label)).sum()),
    )
    p_value = metrics.mcnemar_exact(only_first, only_second)
    return [
        first.name,
        second.name,
        f'{first.result["accuracy"] - second.result["accuracy"]:+.4f}',
        str(only_first),
        str(only_second),
        f'{p_value:.3g}',
        'significant at 5 %' if p_value < 0.05 else 'may be chance',
    ]
