"""Trains the published experiments and the recipes of this project over several seeds; see `results_table.py`."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from mnist_jax import files
from mnist_jax.config import CHECKOUT, CONFIGS, ROOT
from mnist_jax.data import kaggle
from mnist_jax.data.source import SOURCES
from mnist_jax.distributed.local_launch import run_child
from mnist_jax.distributed.signals import SIGNALS
from mnist_jax.errors import Interrupted, UserError
from mnist_jax.studies.results_table import (
    ENSEMBLE,
    EXPERIMENTS,
    PUBLISHED,
    Experiment,
    RunResult,
    format_results,
    merge,
    read_results,
    read_run,
    verdict,
)

# The signal that stopped a run, by the exit status of the run.
# The number of rows of each class in Kaggle's train.csv, 42,000 in all.
KAGGLE_CLASS_COUNTS = (4132, 4684, 4177, 4351, 4072, 3795, 4137, 4401, 4063, 4188)


def reproduce(
    names: Sequence[str], seeds: int | None, workdir: str | Path, overrides: Sequence[str] = ()
) -> list[RunResult]:
    """Trains every experiment with several seeds, or resumes the existing runs, and writes `RESULTS.md`.

    Logs whether the parameters of each run are those of the RESULTS.md in the repository, bit for bit. A RESULTS.md
    that exists keeps all runs that are not run again.

    Args:
      names: The configs of the experiments and recipes to reproduce; all published experiments if empty.
      seeds: The number of seeds, which are 0 to `seeds - 1`; None for that of each experiment.
      workdir: The directory of the runs, which are named CONFIG-SEED. RESULTS.md is written there too, or to the root
        of the repository if all published experiments are reproduced without overrides.
      overrides: Further flags for each training command.

    Raises:
      UserError: an argument is wrong, or RESULTS.md is damaged; nothing was trained.
      Interrupted: a signal stopped a run; the same command resumes it.
      SystemExit: an experiment failed or its published accuracy was missed; RESULTS.md is written, and the status is 1.
    """
    configs = list(dict.fromkeys(experiment.config for experiment in EXPERIMENTS))
    for name in names:
        if name not in configs:
            raise UserError(f'--experiments must be among {", ".join(configs)}, got {name!r}')
    if seeds is not None and seeds < 1:
        raise UserError(f'--seeds must be at least 1, got {seeds}')
    workdir = files.user_path(workdir, '--workdir')
    files.make_directory(workdir, '--workdir')
    selected = [experiment for experiment in EXPERIMENTS if experiment.config in names] if names else PUBLISHED
    if any(experiment.config == 'kaggle_mlp' for experiment in selected):
        write_kaggle_csv(workdir / 'kaggle.csv')
    path = (workdir if names or overrides else CHECKOUT or workdir) / 'RESULTS.md'
    read_results(path)  # Report damage before anything is trained.
    published = read_results((CHECKOUT or workdir) / 'RESULTS.md')
    runs: list[RunResult] = []
    succeeded = True
    for experiment in selected:
        count = seeds or experiment.seeds
        own = [_reproduce_seed(experiment, seed, workdir, overrides) for seed in range(count)]
        accuracies = [run.result.accuracy for run in own if run.result is not None]
        succeeded &= verdict(experiment, accuracies, count - len(accuracies))[0]
        if experiment.has_ensemble and len(accuracies) == count > 1:
            own.append(_evaluate_ensemble(experiment, own, workdir))
            succeeded &= own[-1].result is not None
        runs += own
    if not overrides:
        _log_comparison(runs, published)
    # It is read only now, because another process may have added runs to it in the meantime.
    text = format_results(merge(read_results(path), runs))
    files.write_text(path, text)
    print(text, flush=True)
    if not succeeded:
        raise SystemExit(1)
    return runs


def _reproduce_seed(experiment: Experiment, seed: int, workdir: Path, overrides: Sequence[str]) -> RunResult:
    """Trains or resumes the run of one seed; returns its result, or that it failed."""
    if not _run_seed(experiment, seed, workdir, overrides):
        return RunResult(experiment.config, experiment.split or 'test', str(seed), None)
    return read_run(experiment, str(seed), workdir / f'{experiment.config}-{seed}')


def _evaluate_ensemble(experiment: Experiment, runs: Sequence[RunResult], workdir: Path) -> RunResult:
    """Evaluates the runs of all seeds together."""
    name = f'{ENSEMBLE} {len(runs)}'
    directory = workdir / f'{experiment.config}-ensemble-{len(runs)}'
    members = [f'--run={workdir / f"{experiment.config}-{run.seed}"}' for run in runs]
    if _run_command(['--mode=eval', f'--workdir={directory}', *members], directory):
        return RunResult(experiment.config, 'test', name, None)
    ensemble = read_run(experiment, name, directory)
    assert ensemble.result is not None
    seconds = sum(run.result.seconds for run in runs if run.result is not None)
    return ensemble._replace(result=ensemble.result._replace(seconds=seconds), environment=runs[-1].environment)


def _run_seed(experiment: Experiment, seed: int, workdir: Path, overrides: Sequence[str]) -> bool:
    """Trains or resumes the run of one seed in a child process, or only evaluates it if the experiment names a split.

    Returns whether the run succeeded.
    """
    run_workdir = workdir / f'{experiment.config}-{seed}'
    flags = [f'--workdir={run_workdir}']
    if experiment.split:
        flags += ['--mode=eval', f'--split={experiment.split}']
    else:
        flags += ['--noreport', f'--config={CONFIGS / experiment.config}.py', f'--config.seed={seed}']
        if experiment.config == 'kaggle_mlp':
            flags.append(f'--config.dataset.raw_dir={workdir / "kaggle.csv"}')
        flags += overrides
    return not _run_command(flags, run_workdir)


def _run_command(flags: Sequence[str], directory: Path) -> int:
    """Runs this program in a child process, and returns its exit status."""
    logging.info('%s', ' '.join(flags))
    python_path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    status = run_child(flags, {**os.environ, 'PYTHONPATH': python_path}, output=subprocess.DEVNULL)
    if status - 128 in SIGNALS:
        raise Interrupted(status - 128, f'in {str(directory)!r}')
    if status:
        logging.error('The run in %s failed with exit status %d', directory, status)
    return status


def _log_comparison(runs: Sequence[RunResult], published: Sequence[RunResult]) -> None:
    digests = {run.key: run.result.digest for run in published if run.result is not None}
    for run in runs:
        if run.split != 'test' or run.is_ensemble or run.result is None:
            continue
        expected, digest = digests.get(run.key), run.result.digest
        if expected is None:
            comparison = 'has no published digest'
        elif expected == digest:
            comparison = 'is bit-identical to the published run'
        else:
            comparison = f'differs from the published run, whose digest is {expected}'
        logging.info('%s, seed %s: %s %s', run.config, run.seed, digest, comparison)


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
