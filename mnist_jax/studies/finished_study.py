"""The study that `mnist_jax.study` trains and returns to notebooks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mnist_jax import text_tables
from mnist_jax.config import ConfigDict, load_config
from mnist_jax.distributed.local_launch import MAX_PROCESSES, PROGRAM
from mnist_jax.errors import Interrupted, UserError, check_integer
from mnist_jax.evaluate import evaluate_workdir
from mnist_jax.factory import package_name
from mnist_jax.files import JsonObject
from mnist_jax.report.figures import ReportFigure
from mnist_jax.studies import study_report, workers
from mnist_jax.studies.space import Choice, Condition, Domain, choice, parse_domain, plain
from mnist_jax.studies.study import Standing, Study
from mnist_jax.studies.sweep import Sweep
from mnist_jax.workdir.config_sections import SECTIONS


class FinishedStudy:
    """A study whose trials are trained: its points, the best first, and their results. See `mnist_jax.study`."""

    def __init__(self, sweep: Sweep):
        self._sweep = sweep
        self._standings = sweep.standings()

    @property
    def workdir(self) -> Path:
        """The directory of the study."""
        return self._sweep.workdir

    @property
    def metric(self) -> str:
        """The validation metric by which the study chooses."""
        return self._sweep.monitor(self._standings[0].point)

    @property
    def points(self) -> list[dict[str, Any]]:
        """One dict per point, the best first.

        Each has the values of the varied fields by name, and `epochs`, `seeds`, `mean` and `deviation` of the metric
        over the seeds, which are None if they are undefined, `seconds` for all seeds, and `workdirs`, one for each
        seed.
        """
        return [self._describe(standing) for standing in self._standings]

    @property
    def trials(self) -> list[dict[str, Any]]:
        """One dict per run: the values of the varied fields by name, `seed`, `epochs`, the metric, and `seconds`."""
        return [
            {
                **standing.point,
                'seed': self._sweep.config.seed + trial.seed,
                'epochs': standing.epochs,
                self.metric: None if outcome.score is None else self._sweep.value(standing.point, outcome.score),
                'seconds': outcome.seconds,
            }
            for standing in self._standings
            for trial, outcome in zip(standing.trials, standing.outcomes, strict=True)
        ]

    @property
    def best(self) -> dict[str, Any]:
        """The best point."""
        return self.points[0]

    def table(self) -> str:
        """Returns the points as text."""
        rows = study_report.points_rows(self._sweep, self._standings)
        return '\n'.join(text_tables.titled(rows, left=1 + len(self._sweep.study.vary)))

    def differences(self) -> str:
        """Returns the differences of the other points from the best one, and whether they are significant, as text.

        Differences are positive if the other point is better. The p-values are those of the sign-flip permutation test,
        alone and corrected for all pairs of points (Holm).
        """
        rows = study_report.claim_rows(self._sweep, self._standings)
        return '\n'.join(text_tables.titled([[*study_report.CLAIM_HEADER], *rows]))

    def figures(self) -> dict[str, Figure]:
        """Returns the figures of the report by name."""
        sections = study_report.make_sections(self._sweep, self._standings)
        return {name: section.figure for name, section in sections.items() if isinstance(section, ReportFigure)}

    def test(self) -> list[JsonObject]:
        """Evaluates the runs of the best point on the test split, and returns the result of each seed.

        Do this once, at the end: a study that was changed after a look at the test split no longer chooses by
        validation alone.
        """
        if self._standings[0].score is None:
            raise UserError('the study must have a best point, so one of which no run diverged, got none')
        with workers.quiet():
            return [evaluate_workdir(workdir) for workdir in self.best['workdirs']]

    def _describe(self, standing: Standing) -> dict[str, Any]:
        return {
            **standing.point,
            'epochs': standing.epochs,
            'seeds': len(standing.outcomes),
            'mean': None if standing.score is None else self._sweep.value(standing.point, standing.score),
            'deviation': standing.deviation,
            'seconds': standing.seconds,
            'workdirs': [self._sweep.trial_workdir(trial) for trial in standing.trials],
        }

    def __repr__(self) -> str:
        return f'<FinishedStudy {str(self.workdir)!r}: {len(self._standings)} points>'


def run_study(
    config: ConfigDict | str | Path,
    vary: Mapping[str, Any],
    workdir: str | Path,
    search: str | Mapping[str, Any],
    trials: int | None,
    seeds: int,
    reduction: int,
    worker_count: int | None,
) -> FinishedStudy:
    """Trains a study, or resumes it; see `mnist_jax.study`."""
    if worker_count is not None:
        check_integer('workers', worker_count, 1, MAX_PROCESSES)
    if not isinstance(config, ConfigDict | str | Path):
        raise UserError(f'config must be a ConfigDict or the path of a config file, got {config!r}')
    if not isinstance(workdir, str | Path) or not str(workdir).strip():
        raise UserError(f'workdir must be a path, got {workdir!r}')
    if not isinstance(vary, Mapping):
        raise UserError(f'vary must be a dict of values by field, got {vary!r}')
    if not isinstance(search, str | Mapping):
        raise UserError(f'search must be a name, or a dict with a name, got {search!r}')
    options = {'name': search} if isinstance(search, str) else dict(search)
    study = Study(
        vary={field: _domain(field, values) for field, values in vary.items()},
        search=options if trials is None else {**options, 'trials': plain(trials)},
        seeds=plain(seeds),
        reduction=plain(reduction),
    )
    sweep = Sweep(study, config if isinstance(config, ConfigDict) else load_config(config), workdir)
    arguments = ['--mode=sweep', f'--workdir={sweep.workdir.absolute()}']
    on_cpu = sweep.check()
    count = workers.choose_count(worker_count, on_cpu, arguments)
    # Another process does not know the parts that this one has added to the tables, and it reads study.json.
    if count > 1 and (reason := _needs_this_process(sweep)):
        if worker_count is not None:
            raise UserError(f'workers must be 1 for a config {reason}, got {count}')
        count = 1
    sweep.write()
    status = workers.share_work(sweep.work, count, arguments, PROGRAM)
    if status > 128:
        raise Interrupted(status - 128, 'in a study')
    if status:
        raise RuntimeError(f'a worker of the study ended with the exit status {status}; its output says why')
    study_report.write_report(sweep)
    return FinishedStudy(sweep)


def _needs_this_process(sweep: Sweep) -> str:
    """Returns which property of the config other processes cannot handle; '' for none."""
    parts: list[object] = []
    for name, section in SECTIONS.items():
        entry = sweep.study.vary.get(f'{name}.name')
        domain = entry.domain if isinstance(entry, Condition) else entry
        if isinstance(domain, Choice):  # A search that learns from the results may choose any of them later.
            parts += [section.table.get(str(value)) for value in domain.values]
    plans = [sweep.plan(task.trial.point) for task in sweep.rounds.next_tasks({})]
    if None in map(package_name, parts) or not all(plan.of_package for plan in plans):
        return 'with parts of your own'
    return '' if sweep.is_described_by_values() else 'with fields that refer to ones that vary'


def _domain(field: str, values: Any) -> Domain | Condition:
    if isinstance(values, str):
        return parse_domain(field, values)
    return choice(*values) if isinstance(values, Sequence | np.ndarray) else values
