"""Reproduces the published experiments over several seeds, and compares the results with the published ones."""

import os
import re
import statistics
import subprocess
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from mnist_jax import files, text_tables
from mnist_jax.config import CHECKOUT, CONFIGS, ROOT
from mnist_jax.data import kaggle
from mnist_jax.data.source import SOURCES
from mnist_jax.distributed.local_launch import FORWARDED_SIGNALS, run_child
from mnist_jax.errors import Interrupted, UserError
from mnist_jax.workdir.metrics_log import read_metrics
from mnist_jax.workdir.provenance import processor
from mnist_jax.workdir.results import read_result

# The signal that stopped a run, by the exit status of the run.
SIGNAL_BY_STATUS = {128 + number: number for number in FORWARDED_SIGNALS}
# How far our mean accuracy may be below the published accuracy, which comes from a single run.
TOLERANCE = 0.002
# The number of rows of each class in Kaggle's train.csv, 42,000 in all.
KAGGLE_CLASS_COUNTS = (4132, 4684, 4177, 4351, 4072, 3795, 4137, 4401, 4063, 4188)
HEADER = (
    'config', 'test split', 'published accuracy', 'published loss', 'our accuracy', 'range', 'our loss', 'seeds',
    'training time', 'verdict',
)  # fmt: skip
ABOVE, MISSED, FAILED = 'mean above', 'MISSED', 'FAILED'  # verdicts
DIGEST_LENGTH = 12  # the hexadecimal digits of params_sha256 in RESULTS.md


class PublishedResult(NamedTuple):
    """An experiment and the result of the single run that its authors published."""

    config: str
    accuracy: float | None
    loss: float | None
    split: str | None = None  # another split to evaluate the trained runs on; None is the config's test split
    min_seeds: int = 1  # more than 1 if runs take seconds and their results vary widely


# An experiment with `split` must follow the one that trains its config.
EXPERIMENTS = (
    PublishedResult('mlp', 0.9787, 0.1212),
    PublishedResult('cnn', 0.9914, 0.0321),
    PublishedResult('fashion_cnn', 0.9379, 0.1879),
    PublishedResult('convnet_valid', 0.9922, 0.0271),
    PublishedResult('convnet_same', None, None),
    PublishedResult('digits_cnn', 0.9596, 0.00754, min_seeds=40),
    PublishedResult('kaggle_mlp', 0.9768, 0.1751),
    PublishedResult('kaggle_mlp', 0.9743, 0.1881, split='holdout'),
    PublishedResult('kaggle_cnn', 0.9909, 0.0295),
)


class Measurement(NamedTuple):
    """Our results for an experiment, one value per seed."""

    published: PublishedResult
    accuracies: list[float]
    losses: list[float]
    seconds: list[float]
    failed: int = 0  # the number of seeds without a result
    digests: Mapping[int, str] = {}  # the first digits of params_sha256 by seed

    def verdict(self) -> tuple[bool, str]:
        """Returns whether the published accuracy is reproduced, and the reason."""
        published = self.published.accuracy
        if self.failed or not self.accuracies:
            return False, FAILED
        if published is None:
            return True, 'none published'
        mean = statistics.mean(self.accuracies)
        if mean > published:
            return True, ABOVE
        if mean >= published - TOLERANCE:
            return True, f'mean within {TOLERANCE}'
        # Published numbers have four digits: 285 correct examples of 297 were published as 0.9596.
        if round(min(self.accuracies), 4) <= published <= round(max(self.accuracies), 4):
            return True, 'in the range of the seeds'
        return False, MISSED


def reproduce(
    names: Sequence[str], seeds: int, workdir: str | Path, overrides: Sequence[str] = ()
) -> list[Measurement]:
    """Trains every experiment with several seeds, or resumes the existing runs, and writes `RESULTS.md`.

    Logs for each run whether its parameters are those of the RESULTS.md in the repository, bit for bit.

    Args:
      names: The configs of the experiments to reproduce; all if empty.
      seeds: The number of seeds; they are 0 to `seeds - 1`.
      workdir: The directory of the runs, which are named CONFIG-SEED. RESULTS.md is written there too, or to the root
        of the repository if all experiments are reproduced without overrides.
      overrides: Further flags for each training command.

    Raises:
      SystemExit: an experiment failed or its published accuracy was missed; RESULTS.md is written, and the status is 1.
    """
    configs = list(dict.fromkeys(published.config for published in EXPERIMENTS))
    for name in names:
        if name not in configs:
            raise UserError(f'--experiments must be among {", ".join(configs)}, got {name!r}')
    if seeds < 1:
        raise UserError(f'--seeds must be at least 1, got {seeds}')
    workdir = files.user_path(workdir, '--workdir')
    files.make_directory(workdir, '--workdir')
    selected = [published for published in EXPERIMENTS if not names or published.config in names]
    if any(published.config == 'kaggle_mlp' for published in selected):
        write_kaggle_csv(workdir / 'kaggle.csv')
    measurements = []
    for published in selected:
        count = max(seeds, published.min_seeds)
        finished = [seed for seed in range(count) if _run_seed(published, seed, workdir, overrides)]
        measurement = read_measurement(published, finished, workdir)
        measurements.append(measurement._replace(failed=count - len(finished)))
    command = ' '.join(['./launch.sh reproduce', f'--seeds={seeds}', *overrides])
    environment = f'{processor()}, {jax.default_backend()}, jax {jax.__version__}'
    trained = {run.published.config: run.digests for run in measurements if not run.published.split}
    if not overrides:
        _log_comparison(trained, read_digests((CHECKOUT or workdir) / 'RESULTS.md'))
    rows = [table_row(measurement) for measurement in measurements]
    text = format_results(rows, command, environment, trained)
    files.write_text((workdir if names or overrides else CHECKOUT or workdir) / 'RESULTS.md', text)
    print(text, flush=True)
    if not all(measurement.verdict()[0] for measurement in measurements):
        raise SystemExit(1)
    return measurements


def _run_seed(published: PublishedResult, seed: int, workdir: Path, overrides: Sequence[str]) -> bool:
    """Trains or resumes the run of one seed in a child process, or only evaluates it if the experiment names a split.

    Returns whether the run succeeded.
    """
    run_workdir = workdir / f'{published.config}-{seed}'
    flags = [f'--workdir={run_workdir}']
    if published.split:
        flags += ['--mode=eval', f'--split={published.split}']
    else:
        flags += ['--noreport', f'--config={CONFIGS / published.config}.py', f'--config.seed={seed}']
        if published.config == 'kaggle_mlp':
            flags.append(f'--config.dataset.raw_dir={workdir / "kaggle.csv"}')
        flags += overrides
    logging.info('%s', ' '.join(flags))
    python_path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    status = run_child(flags, {**os.environ, 'PYTHONPATH': python_path}, output=subprocess.DEVNULL)
    if status in SIGNAL_BY_STATUS:
        raise Interrupted(SIGNAL_BY_STATUS[status], f'in {str(run_workdir)!r}')
    if status:
        logging.error('The run in %s failed with exit status %d', run_workdir, status)
    return not status


def read_measurement(published: PublishedResult, seeds: Iterable[int], workdir: Path) -> Measurement:
    """Reads the results of the finished runs CONFIG-SEED in `workdir`."""
    seeds = list(seeds)
    workdirs = [workdir / f'{published.config}-{seed}' for seed in seeds]
    results = [read_result(path, published.split) for path in workdirs]
    digests = (result['params_sha256'][:DIGEST_LENGTH] for result in results)
    return Measurement(
        published,
        accuracies=[result['accuracy'] for result in results],
        losses=[result['loss'] for result in results],
        seconds=[sum(row['seconds'] for row in read_metrics(path)) for path in workdirs],
        digests=dict(zip(seeds, digests, strict=True)),
    )


def read_digests(path: Path) -> dict[str, dict[int, str]]:
    """Returns the digests in a RESULTS.md, by config and seed; none if the file lacks them or does not exist."""
    text = path.read_text() if path.exists() else ''
    found: dict[str, dict[int, str]] = {}
    for config, seed, digest in re.findall(r'^\| (\w+) \| (\d+) \| ([0-9a-f]+) \|$', text, re.MULTILINE):
        found.setdefault(config, {})[int(seed)] = digest
    return found


def _log_comparison(trained: Mapping[str, Mapping[int, str]], published: Mapping[str, Mapping[int, str]]) -> None:
    for config, digests in trained.items():
        for seed, digest in digests.items():
            expected = published.get(config, {}).get(seed)
            if expected is None:
                verdict = 'has no published digest'
            elif expected == digest:
                verdict = 'is bit-identical to the published run'
            else:
                verdict = f'differs from the published run, whose digest is {expected}'
            logging.info('%s, seed %d: %s %s', config, seed, digest, verdict)


def write_kaggle_csv(path: Path) -> None:
    """Writes a CSV in Kaggle's format, with Kaggle's number of rows per class, drawn at random from all of MNIST."""
    if path.exists():
        return
    mnist = SOURCES['mnist'](data_dir='', raw_dir='', train='train+test', validation='', test='test')
    mnist.data.prepare()
    split = mnist.data.load('config.dataset.train', 'train+test')
    order = np.random.default_rng(0).permutation(split.size)
    labels = split.label[order]
    drawn = np.concatenate([order[labels == label][:count] for label, count in enumerate(KAGGLE_CLASS_COUNTS)])
    indices = np.random.default_rng(1).permutation(drawn)
    logging.info('Writing %s from MNIST; this happens once', path)
    files.write_text(path, kaggle.to_csv(split.image[indices], split.label[indices]))


def format_results(
    rows: Sequence[Sequence[str]],
    command: str,
    environment: str,
    digests: Mapping[str, Mapping[int, str]] = types.MappingProxyType({}),
) -> str:
    """Returns the text of RESULTS.md; trains nothing.

    Args:
      rows: The cells of each experiment in the columns of `HEADER`, as `table_row` returns them.
      command: The command that trained the runs.
      environment: The hardware and the versions that it ran on.
      digests: The digests of the runs, by config and seed.
    """
    above = sum(row[-1] == ABOVE for row in rows)
    missed = [row[0] for row in rows if row[-1] in (MISSED, FAILED)]
    lines = [
        '# Reproduction of the published experiments',
        '',
        f'Command: `{command}`',
        '',
        f'Environment: {environment}',
        '',
        'Our accuracy and our loss are the mean ± the standard deviation over the seeds; the range is the lowest and',
        'the highest accuracy. Each run is evaluated after its last epoch, or after the epoch that the published',
        'recipe selects by validation. Each published result comes from a single run. It counts as reproduced if our',
        f'mean accuracy is at most {TOLERANCE} below the published accuracy, or if the published accuracy is in the',
        'range of our seeds. Training time is the total time of all epochs, the median over the seeds. `kaggle_mlp` is',
        'trained on a CSV file in the format of Kaggle, generated from MNIST.',
        '',
        *text_tables.markdown([HEADER, *rows]),
        '',
        f'Our mean accuracy is above the published accuracy in {above} rows. Missed: {", ".join(missed) or "none"}.',
    ]
    digest_rows = [(config, str(seed), digest) for config, runs in digests.items() for seed, digest in runs.items()]
    if digest_rows:
        lines += [
            '',
            '## Digests',
            '',
            f'The first {DIGEST_LENGTH} digits of `params_sha256`, the digest of the parameters of each run:',
            'the same digits mean the same bits.',
            '',
            *text_tables.markdown([('config', 'seed', 'params_sha256'), *digest_rows]),
        ]
    return '\n'.join(lines) + '\n'


def table_row(measurement: Measurement) -> list[str]:
    """Returns the cells of an experiment in the columns of `HEADER`."""
    published, accuracies = measurement.published, measurement.accuracies
    cells = [
        published.config,
        published.split or 'test',
        text_tables.number(published.accuracy),
        text_tables.number(published.loss),
    ]
    if accuracies:
        cells += [
            _mean_and_deviation(accuracies),
            f'{min(accuracies):.4f} to {max(accuracies):.4f}',
            _mean_and_deviation(measurement.losses),
            str(len(accuracies)),
            f'{statistics.median(measurement.seconds):,.0f} s',
        ]
    else:
        cells += ['failed', '', '', '0', '']
    return [*cells, measurement.verdict()[1]]


def _mean_and_deviation(values: Sequence[float]) -> str:
    mean = f'{statistics.mean(values):.4f}'
    return f'{mean} ± {statistics.stdev(values):.4f}' if len(values) > 1 else mean
