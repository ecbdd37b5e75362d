"""Populations: one config with several seeds, trained at the same time, and their statistics."""

import copy
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from mnist_jax import files, text_tables
from mnist_jax.config import ConfigDict
from mnist_jax.config_checks import check_config
from mnist_jax.errors import MAX_INT, NonFiniteError, UserError, check_integer
from mnist_jax.files import JsonObject
from mnist_jax.studies import workers
from mnist_jax.train import train
from mnist_jax.training.experiment import make_experiment
from mnist_jax.workdir import claims
from mnist_jax.workdir.checkpoints import Checkpoints, check_holds_only
from mnist_jax.workdir.finished_runs import FinishedRun, read_run

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


class Member(NamedTuple):
    """A run of a population."""

    workdir: Path
    config: ConfigDict

    @property
    def finished(self) -> bool:
        """Whether the run is trained to its end and evaluated, and its config can be read."""
        try:
            if not (self.workdir / 'eval.json').exists():
                return False
            run = read_run(self.workdir, '')
            return bool(run.epochs or not run.config.epochs) and not run.progress
        except UserError:
            return False  # Training it again rewrites its config and its result.

    def check(self) -> None:
        """Raises a UserError unless the run, if there is one already, has this config."""
        checkpoints = Checkpoints(self.workdir)
        if not checkpoints.steps():
            return
        saved = checkpoints.check_config(self.config)
        if saved.epochs != self.config.epochs:  # A member that has a result would not be trained further.
            raise UserError(
                f'config.epochs must be {saved.epochs}, as in {str(self.workdir)!r}, got {self.config.epochs}; use '
                'another --workdir for another population'
            )


def train_population(
    config: ConfigDict, workdir: str | Path, worker_count: int | None = None, arguments: Sequence[str] | None = None
) -> int:
    """Trains `config.population` runs with the seeds `config.seed`, `config.seed + 1` and so on, or resumes them.

    Each is an ordinary run, in the directory `member-SEED` of the workdir, with the bits that it has alone. Prints the
    results and their statistics as a table, and writes them to `population.json`.

    Args:
      config: The config of all members.
      workdir: The directory of the population.
      worker_count: See `workers.share_work`; 0 writes no table, and None is the default of `workers.choose_count`.
      arguments: See `workers.share_work`.

    Returns:
      The exit status.

    Raises:
      UserError: the config is invalid, or the directory holds a run, or members with another config.
    """
    check_config(config)
    workers.check_workers(worker_count)
    workdir = files.user_path(workdir, '--workdir')
    check_holds_only(workdir, 'a population')
    if config.folds:
        raise UserError(f'config.folds must be 0 in a population, got {config.folds}')
    check_integer('config.seed + config.population - 1', config.seed + config.population - 1, 0, MAX_INT)
    members = [_member(config, workdir, seed) for seed in range(config.seed, config.seed + config.population)]
    for member in members:
        member.check()
    # Report what is wrong before anything is written, and prepare the data once.
    experiment = make_experiment(members[0].config)
    for member in members:
        Checkpoints(member.workdir).check_data(experiment.source.data.digests)
    files.make_directory(workdir, '--workdir')

    tried: set[Path] = set()  # Damaged metrics may say that a member is not finished, however often it is trained.

    def run(member: Member) -> None:
        tried.add(member.workdir)
        if not member.finished:
            try:
                with workers.quiet():
                    result = train(member.config, member.workdir)
            except NonFiniteError as error:
                raise NonFiniteError(f'the member with seed {member.config.seed} diverged: {error}') from None
            logging.info('seed %d: accuracy %.4f', member.config.seed, result['accuracy'])

    def work() -> None:
        while missing := [member for member in members if member.workdir not in tried and not member.finished]:
            workers.do_one(missing, lambda member: workdir / 'claims' / member.workdir.name, run)

    count = workers.choose_count(worker_count, experiment.replicas.on_cpu, arguments)
    status = workers.share_work(work, count, arguments)
    if worker_count != 0 and status == 0:
        _write_summary(workdir, members)
    return status


def _member(config: ConfigDict, workdir: Path, seed: int) -> Member:
    own = copy.deepcopy(config)
    own.seed, own.population = seed, 0
    # Only now: a field may refer to the seed.
    return Member(workdir / f'member-{seed}', own.copy_and_resolve_references())


def _write_summary(workdir: Path, members: Sequence[Member]) -> None:
    """Prints the table, and writes `population.json`."""
    runs = [read_run(member.workdir, member.workdir.name) for member in members]
    accuracies = [run.result['accuracy'] for run in runs]
    interval = claims.bca_interval(accuracies)
    summary: JsonObject = {
        'members': [
            {
                'seed': run.config.seed,
                'accuracy': run.result['accuracy'],
                'validation_accuracy': run.validation_accuracy,
                'params_sha256': run.result['params_sha256'],
            }
            for run in runs
        ],
        'mean': statistics.fmean(accuracies),
        'standard_deviation': statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        'interval': interval,
        'quantiles': {f'{quantile:g}': float(np.quantile(accuracies, quantile)) for quantile in QUANTILES},
    }
    files.write_text(workdir / 'population.json', json.dumps(summary, indent=2) + '\n')
    print('\n'.join(_summary_lines(runs, summary)), flush=True)


def _summary_lines(runs: Sequence[FinishedRun], summary: JsonObject) -> list[str]:
    rows = [['seed', 'accuracy', 'validation', 'params_sha256']]
    for run in runs:
        validation = text_tables.number(run.validation_accuracy)
        digest = run.result['params_sha256'][:12]
        rows.append([str(run.config.seed), f'{run.result["accuracy"]:.4f}', validation, digest])
    interval, deviation = summary['interval'], summary['standard_deviation']
    bounds = f' (95% interval {interval[0]:.4f} to {interval[1]:.4f})' if interval else ''
    noise = claims.sampling_deviation(summary['mean'], runs[0].result['count'])
    return [
        *text_tables.titled(rows),
        '',
        f'mean        {summary["mean"]:.4f}{bounds}',
        f'std. dev.   {text_tables.number(deviation)} over the seeds; {noise:.4f} from the choice of the test examples',
        'quantiles   ' + ', '.join(f'{float(name):.0%} {value:.4f}' for name, value in summary['quantiles'].items()),
    ]
