"""Studies: many runs that differ in some config fields and in the seed; the best one is chosen by validation.

A study is a directory. Any number of workers share it, on one machine or on many: each takes a trial that no other
worker has locked, trains it, and writes its outcome. Which trials there are is a pure function of the outcomes, so the
result does not depend on the number of workers, nor on which of them were killed. No trial is evaluated on the test
split.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from absl import logging

from mnist_jax import files
from mnist_jax.config import (
    CHANGEABLE_FIELDS,
    ConfigDict,
    config_fields,
    config_sha256,
    config_to_json,
    override_fields,
)
from mnist_jax.errors import MAX_INT, NonFiniteError, UserError, WriteError, check_integer, did_you_mean
from mnist_jax.factory import arguments, build, choose
from mnist_jax.files import JsonObject
from mnist_jax.learning.callbacks import EarlyStopping
from mnist_jax.studies import workers
from mnist_jax.studies.search import SEARCHES, Search
from mnist_jax.studies.space import Choice, Condition, Interval, Point
from mnist_jax.studies.study import DEFINITION, Outcome, Standing, Study, Task, Trial, read_definition, read_outcome
from mnist_jax.train import train
from mnist_jax.training.experiment import make_experiment
from mnist_jax.training.plan import Plan, make_plan
from mnist_jax.workdir.checkpoints import Checkpoints, check_holds_only
from mnist_jax.workdir.config_sections import SECTIONS
from mnist_jax.workdir.directory_lock import InUseError
from mnist_jax.workdir.metrics_log import read_metrics

MAX_SEEDS = 1000
# Fields that determine which examples validate a run.
VALIDATION_FIELDS = ('dataset.name', 'dataset.validation', 'dataset.validation_fraction', 'dataset.split_seed')
IN_USE_SECONDS = 2.0


class Sweep:
    """A study in its directory.

    Attributes:
      study: What it tries.
      config: The config that it starts from.
      workdir: Its directory. `trials` in it holds the runs, and `outcomes` a file for each finished task.
    """

    def __init__(self, study: Study, config: ConfigDict, workdir: str | Path):
        """Checks everything that does not need the data.

        Raises:
          UserError: a field or a value of the study, or the config, is invalid, or `workdir` holds another study.
        """
        self.study, self.config = study, config.copy_and_resolve_references()
        self.workdir = files.user_path(workdir, '--workdir')
        files.check_no_file(self.workdir, '--workdir')
        self._check_study()
        self._search = self._build_search()
        self._values = dict(config_fields(config))
        self._plans: dict[str, Plan] = {}
        self._outcomes: dict[tuple[str, int], Outcome] = {}
        for task in self.next_tasks({}):  # Report an invalid point before anything is written.
            self.plan(task.trial.point)
        self._check_directory()

    def _build_search(self) -> Search:
        options = self.study.search
        constructor = choose('--search', options.get('name'), SEARCHES)
        if 'trials' in arguments(constructor) and 'trials' not in options:
            raise UserError(f'--trials, the number of points, must be set for the search {options["name"]!r}')
        if 'trials' in options and 'trials' not in arguments(constructor):
            raise UserError(f'--trials must not be set for the search {options["name"]!r}, which has all points')
        return build('search', SEARCHES, options)

    def _check_study(self) -> None:
        study = self.study
        if not study.vary and study.seeds == 1:
            raise UserError(
                'a study must vary at least one config field, with --vary or --sweep, or have several seeds'
            )
        for field, entry in study.vary.items():
            if field == 'seed':
                raise UserError('a study must not vary the seed as a field; set --seeds, the number of seeds')
            if field in ('early_stopping.monitor', 'early_stopping.mode'):
                raise UserError(f'a study must not vary config.{field}, by which it compares its points')
            domain = entry.domain if isinstance(entry, Condition) else entry
            if not isinstance(domain, Choice | Interval):
                raise UserError(
                    f'the values of {field} must be a domain such as choice(0.1, 0.2) or uniform(0.1, 0.2), got '
                    f'{domain!r}'
                )
            if isinstance(entry, Condition):
                self._check_condition(field, entry)
        if not study.vary and study.search.get('name') != 'grid':
            raise UserError(f"--search must be 'grid' if no field is varied, got {study.search.get('name')!r}")
        check_integer('--seeds', study.seeds, 1, MAX_SEEDS)
        check_integer('the first_epochs of a study', study.first_epochs, 1, MAX_INT)
        if study.reduction != 0:
            check_integer('--reduction', study.reduction, 2, 1000)
            if 'epochs' in study.vary:
                raise UserError('a study with --reduction must not vary config.epochs, which it divides into rounds')
            least = study.first_epochs * study.reduction
            if self.config.epochs < least:
                raise UserError(
                    f'config.epochs must be at least {least} with --reduction={study.reduction}, got '
                    f'{self.config.epochs}: there would be only one round'
                )
        for field in ('folds', 'population'):
            if self.config[field] or field in study.vary:
                raise UserError(f'config.{field} must be 0 in a study, got {study.vary.get(field, self.config[field])}')
        if self.config.epochs < 1 and 'epochs' not in study.vary:
            raise UserError(f'config.epochs must be at least 1 in a study, got {self.config.epochs}')
        monitor = self.config.early_stopping.monitor
        for field in study.vary:
            if field.startswith('loss.') and monitor.endswith('_loss'):
                raise UserError(
                    f'a study that varies config.{field} must compare its points by another metric than '
                    f'config.early_stopping.monitor={monitor!r}, which has another meaning for each loss'
                )
            if field in VALIDATION_FIELDS:
                raise UserError(
                    f'a study must not vary config.{field}: its points would be compared on different examples'
                )

    def _check_condition(self, field: str, condition: Condition) -> None:
        """Raises a UserError unless the condition of `field` can be met, and is on a field that is set before it."""
        vary = self.study.vary
        names = list(vary)
        before = names[: names.index(field)]
        known = [*(name for name in dict(config_fields(self.config)) if name not in vary), *before]
        if condition.field not in known:
            raise UserError(
                f'the condition of {field} must be on a field of the config, or one that is varied before it, got '
                f'{condition.field!r}{did_you_mean(condition.field, known)}'
            )
        domain = vary.get(condition.field)
        if isinstance(domain, Choice) and not set(map(repr, domain.values)) & set(map(repr, condition.values)):
            raise UserError(
                f'the condition of {field} must name one of the values of {condition.field}, '
                f'{", ".join(map(repr, domain.values))}, got {", ".join(map(repr, condition.values))}'
            )

    def _check_directory(self) -> None:
        """Raises a UserError if the directory holds something else, or another study."""
        check_holds_only(self.workdir, 'a study')
        path = self.workdir / DEFINITION
        if not path.exists():
            return
        saved = read_definition(path)
        before, now = saved, self._identity()
        # The order of fields matters too: it is that of the points.
        changed = [name for name, value in now.items() if json.dumps(saved.get(name)) != json.dumps(value)]
        if 'config_sha256' in changed:  # Say which fields of the config they are.
            old = dict(config_fields(saved.get('config', {})))
            new = dict(config_fields(json.loads(config_to_json(self.config))))
            fields = [name for name in new if old.get(name) != new[name] and name not in CHANGEABLE_FIELDS]
            if fields:
                before, now, changed = old, new, fields
        if changed:
            differences = '; '.join(f'{name} (was {before.get(name)!r}, is {now[name]!r})' for name in changed)
            raise UserError(
                f'--workdir {str(self.workdir)!r} holds another study: {differences}; use another --workdir'
            )
        for name, value in (('seeds', self.study.seeds), ('trials', self.study.search.get('trials'))):
            if isinstance(saved.get(name), int) and isinstance(value, int) and value < saved[name]:
                raise UserError(
                    f'--{name} must be at least {saved[name]}, as in the study in {str(self.workdir)!r}, got {value}'
                )

    def _identity(self) -> JsonObject:
        """Returns what must not change when a study resumes: it may get more trials, seeds and workers."""
        study = self.study
        return {
            'config_sha256': config_sha256(self.config),
            'epochs': self.config.epochs,
            'vary': {field: str(entry) for field, entry in study.vary.items()},
            'search': {name: value for name, value in study.search.items() if name != 'trials'},
            'reduction': study.reduction,
            'first_epochs': study.first_epochs,
        }

    def write(self) -> None:
        """Creates the directory, and writes `study.json`.

        Raises:
          UserError: the directory cannot be written, or the data is not that of the finished trials.
        """
        self._check_data()
        files.make_directory(self.workdir, '--workdir')
        for name in ('trials', 'outcomes', 'claims'):
            (self.workdir / name).mkdir(exist_ok=True)
        definition = {
            **self._identity(),
            'trials': self.study.search.get('trials'),
            'seeds': self.study.seeds,
            'config': json.loads(config_to_json(self.config)),
        }
        files.write_text(self.workdir / DEFINITION, json.dumps(definition, indent=2) + '\n')

    def _check_data(self) -> None:
        """Raises a UserError if a trial that will not be trained again was trained with other data."""
        checked = set()
        for standing in self.standings():
            selected = repr({name: value for name, value in standing.point.items() if name.startswith('dataset.')})
            if selected not in checked:
                checked.add(selected)
                data = self.plan(standing.point).source.data
                data.prepare()
                Checkpoints(self.trial_workdir(standing.trials[0])).check_data(data.digests)

    def trial_workdir(self, trial: Trial) -> Path:
        """Returns the workdir of a trial."""
        return self.workdir / 'trials' / trial.name

    def trial_config(self, trial: Trial) -> ConfigDict:
        """Returns the config of a trial, an ordinary run."""
        config = self.config.copy_and_resolve_references()
        texts = {field: value if isinstance(value, str) else repr(value) for field, value in trial.point.items()}
        override_fields(config, texts, lambda: SECTIONS)
        config.seed = self.config.seed + trial.seed
        return config

    def plan(self, point: Point) -> Plan:
        """Returns the plan of the runs of a point.

        Raises:
          UserError: the config of the point is invalid, or has no validation examples to choose by.
        """
        key = repr(point)
        if key not in self._plans:
            try:
                config = self.trial_config(Trial(0, point, 0))
                check_integer('config.epochs', config.epochs, 1, MAX_INT)
                plan = make_plan(config)
            except UserError as error:
                values = ', '.join(f'{field}={value!r}' for field, value in point.items())
                raise UserError(f'{error} (with {values})') from None
            stopping = plan.callbacks.early_stopping
            if not plan.source.validated or not stopping.monitor.startswith('validation'):
                raise UserError(
                    'a study chooses by validation, so config.early_stopping.monitor must be a validation metric, and '
                    'there must be validation examples, for example with config.dataset.validation_fraction=0.1; got '
                    f'{stopping.monitor!r}'
                )
            self._plans[key] = plan
        return self._plans[key]

    def check(self) -> bool:
        """Builds the experiment of the first trial, which prepares the data; returns whether trials run on a CPU.

        Raises:
          UserError: the config does not fit the data.
        """
        return make_experiment(self.trial_config(self.next_tasks({})[0].trial)).replicas.on_cpu

    def uses_only_package_parts(self) -> bool:
        """Returns whether other processes can train the trials: whether none has a part of the user's own."""
        return all(self.plan(task.trial.point).program_key('') is not None for task in self.next_tasks({}))

    def maximizes(self, point: Point) -> bool:
        """Returns whether a larger value of that metric is better."""
        return self.plan(point).callbacks.early_stopping.worst < 0

    def monitor(self, point: Point) -> str:
        """Returns the name of the metric by which the study chooses."""
        return self.plan(point).callbacks.early_stopping.monitor

    def next_tasks(self, outcomes: Mapping[tuple[str, int], Outcome]) -> list[Task]:
        """Returns the tasks of the current round, also those that are done; [] when the study is finished.

        A round ends when all of its tasks have an outcome: only then is it known which points are trained further, or
        what the search proposes next.

        Args:
          outcomes: The outcomes by the name of the trial and the number of epochs.
        """
        for tasks in self._rounds(outcomes):
            if any((task.trial.name, task.epochs) not in outcomes for task in tasks):
                return tasks
        return []

    def _rounds(self, outcomes: Mapping[tuple[str, int], Outcome]) -> Iterator[list[Task]]:
        """Yields the tasks of each round, as long as all tasks of the rounds before have an outcome."""
        results: list[tuple[Point, float | None]] = []
        while points := self._search(self.study.vary, self._values, results):
            numbered = {len(results) + index: point for index, point in enumerate(points)}
            scores: dict[int, float | None] = {}
            remaining = list(numbered)
            for epochs, share in self._rungs():
                ranked = sorted(remaining, key=lambda number: _descending(scores.get(number, 0.0)))
                remaining = sorted(ranked[: max(1, math.ceil(len(numbered) * share))])
                tasks = [
                    Task(Trial(number, numbered[number], seed), self._epochs(numbered[number], epochs))
                    for number in remaining
                    for seed in range(self.study.seeds)
                ]
                self._check_points(tasks, outcomes)
                yield tasks
                for number in remaining:
                    own = [outcomes[task.trial.name, task.epochs] for task in tasks if task.trial.number == number]
                    scores[number] = Standing(number, numbered[number], epochs, own).score
            results += [(point, scores[number]) for number, point in numbered.items()]

    def _check_points(self, tasks: Sequence[Task], outcomes: Mapping[tuple[str, int], Outcome]) -> None:
        """Raises a UserError if an outcome is not that of the point that the search proposes now."""
        for task in tasks:
            outcome = outcomes.get((task.trial.name, task.epochs))
            point = json.loads(json.dumps(task.trial.point))
            if outcome is not None and outcome.point not in (None, point):
                raise UserError(
                    f'trial {task.trial.name} in {str(self.workdir)!r} must have been trained with {point}, which the '
                    f'search proposes now, got {outcome.point}; a search that learns from results proposes other '
                    'points if there are other seeds or results, so use another --workdir'
                )

    def _rungs(self) -> list[tuple[int, float]]:
        """Returns the epochs of each round of successive halving, and the share of points that it has."""
        study, last = self.study, self.config.epochs
        if not study.reduction:
            return [(last, 1.0)]
        rungs = []
        epochs, share = study.first_epochs, 1.0
        while epochs * study.reduction <= last:
            rungs.append((epochs, share))
            epochs, share = epochs * study.reduction, share / study.reduction
        return [*rungs, (last, share)]

    def _epochs(self, point: Point, epochs: int) -> int:
        return point.get('epochs', epochs)

    def read_outcomes(self) -> dict[tuple[str, int], Outcome]:
        """Returns all outcomes so far, by the name of the trial and the number of epochs."""
        for path in (self.workdir / 'outcomes').glob('*-epochs*.json'):
            name, _, epochs = path.stem.rpartition('-epochs')
            key = name, int(epochs) if epochs.isdecimal() else 0
            # A trial whose workdir was deleted is trained again.
            if key not in self._outcomes and (self.workdir / 'trials' / name).is_dir():
                self._outcomes[key] = read_outcome(path)
        return self._outcomes

    def standings(self) -> list[Standing]:
        """Returns all points that have outcomes of all seeds, those trained longest first, and then the best."""
        outcomes = self.read_outcomes()
        points: dict[int, Standing] = {}
        for tasks in self._rounds(outcomes):
            by_point: dict[int, list[Task]] = {}
            for task in tasks:
                by_point.setdefault(task.trial.number, []).append(task)
            for number, own in by_point.items():
                found = [outcomes[key] for task in own if (key := (task.trial.name, task.epochs)) in outcomes]
                if len(found) == len(own):
                    points[number] = Standing(number, own[0].trial.point, own[0].epochs, found)
            if any((task.trial.name, task.epochs) not in outcomes for task in tasks):
                break
        rounds = bool(self.study.reduction)
        return sorted(points.values(), key=lambda s: (-s.epochs if rounds else 0, _descending(s.score), s.number))

    def run(self, task: Task) -> Outcome:
        """Trains a trial up to an epoch, or resumes it, and writes the outcome."""
        trial, path = task.trial, self.trial_workdir(task.trial)
        config = self.trial_config(trial)
        stopping = self.plan(trial.point).callbacks.early_stopping
        try:
            with workers.quiet():
                result = train(config, path, until=task.epochs, evaluate=False)
        except NonFiniteError as error:
            logging.info('%s diverged: %s', trial.name, error)
            outcome = Outcome(None, {}, sum(row['seconds'] for row in read_metrics(path)), '')
        else:
            rows = [row for row in read_metrics(path) if row['epoch'] <= task.epochs]
            row = next((row for row in rows if row['step'] == result['step']), None)
            if row is None:
                raise UserError(
                    f'{str(path / "metrics.csv")!r} must have the row of step {result["step"]}; delete {str(path)!r} '
                    'to train this trial again'
                )
            seconds = sum(row['seconds'] for row in rows)
            metrics = {name: value if math.isfinite(value) else None for name, value in row.items()}
            outcome = Outcome(_score(stopping, row), metrics, seconds, result['params_sha256'])
        text = json.dumps({**outcome._asdict(), 'point': trial.point, 'seed': config.seed}, indent=2)
        outcome_path = self.workdir / 'outcomes' / f'{trial.name}-epochs{task.epochs}.json'
        try:
            files.write_text(outcome_path, f'{text}\n')
        except OSError as error:
            raise WriteError(
                f'the outcome of trial {trial.name} could not be written to {str(outcome_path)!r}: {error.strerror}; '
                'once it is writable, run the same command again'
            ) from None
        return outcome

    def work(self) -> None:
        """Trains the trials that no other worker is training, until the study is finished."""
        while tasks := self.next_tasks(self.read_outcomes()):
            missing = [task for task in tasks if (task.trial.name, task.epochs) not in self._outcomes]
            workers.do_one(missing, lambda task: self.workdir / 'claims' / task.trial.name, self._run_unless_done)

    def _run_unless_done(self, task: Task) -> None:
        if (task.trial.name, task.epochs) not in self.read_outcomes():
            try:
                outcome = self.run(task)
            except InUseError:  # by a command other than a sweep, such as an evaluation
                logging.warning('trial %s is in use by another process; trying again', task.trial.name)
                time.sleep(IN_USE_SECONDS)
                return
            logging.info('%s', self._describe(task, outcome))

    def _describe(self, task: Task, outcome: Outcome) -> str:
        values = ''.join(f'{field}={value!r}, ' for field, value in task.trial.point.items())
        monitor = self.monitor(task.trial.point)
        value = 'diverged' if outcome.score is None else f'{monitor} {abs(outcome.score):.4f}'
        return (
            f'trial {task.trial.name} ({values}seed={self.config.seed + task.trial.seed}), {task.epochs} epochs: '
            f'{value}, {outcome.seconds:.1f} s'
        )


def run_sweep(sweep: Sweep, worker_count: int | None = None, arguments: Sequence[str] = ()) -> int:
    """Trains all trials of a study, or those that other workers leave, and prints and writes its tables.

    Args:
      sweep: The study.
      worker_count: See `workers.share_work`; 0 writes no table, and None is `workers.default_count`.
      arguments: See `workers.share_work`.

    Returns:
      The exit status.
    """
    workers.check_workers(worker_count)
    on_cpu = worker_count == 0 or sweep.check()  # The process that started this one has checked it.
    count = workers.default_count(on_cpu) if worker_count is None else worker_count
    sweep.write()
    status = workers.share_work(sweep.work, count, arguments)
    if worker_count != 0 and status == 0:
        from mnist_jax.studies.study_report import write_report  # Workers do not need Matplotlib.

        print(write_report(sweep), end='', flush=True)
    return status


def _score(stopping: EarlyStopping, row: Mapping[str, float]) -> float | None:
    """Returns the monitored metric as a number of which a larger one is better; None if it is not finite."""
    value = stopping.value(row)
    if value is None or not math.isfinite(value):
        return None
    return value if stopping.worst < 0 else -value


def _descending(score: float | None) -> float:
    return math.inf if score is None else -score
