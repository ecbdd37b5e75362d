"""Studies: many runs that differ in some config fields and in the seed; the best one is chosen by validation.

A study is a directory. Any number of workers share it, on one machine or on many: each takes a trial that no other
worker has locked, trains it, and writes its outcome. Which trials there are is a pure function of the outcomes, so the
result does not depend on the number of workers, nor on which of them were killed. No trial is evaluated on the test
split.
"""

import copy
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import logging

from mnist_jax import files
from mnist_jax.config import (
    CHANGEABLE_FIELDS,
    ConfigDict,
    config_fields,
    config_from_json,
    config_sha256,
    config_to_json,
    field_references,
    override_fields,
)
from mnist_jax.errors import MAX_INT, NonFiniteError, UserError, WriteError, check_integer
from mnist_jax.files import JsonObject
from mnist_jax.learning.callbacks import EarlyStopping
from mnist_jax.studies import workers
from mnist_jax.studies.rounds import Outcomes, Rounds
from mnist_jax.studies.space import Point
from mnist_jax.studies.study import DEFINITION, Outcome, Standing, Study, Task, Trial, read_definition, read_outcome
from mnist_jax.studies.study_checks import check_study
from mnist_jax.train import train
from mnist_jax.training.experiment import make_experiment
from mnist_jax.training.plan import Plan, make_plan
from mnist_jax.workdir.checkpoints import Checkpoints, check_holds_only
from mnist_jax.workdir.config_sections import SECTIONS
from mnist_jax.workdir.directory_lock import InUseError
from mnist_jax.workdir.metrics_log import read_metrics

IN_USE_SECONDS = 2.0


class Sweep:
    """A study in its directory.

    Attributes:
      study: What it tries.
      config: The config that it starts from.
      workdir: Its directory. `trials` in it holds the runs, and `outcomes` a file for each finished task.
      rounds: Its trials in their order.
    """

    def __init__(self, study: Study, config: ConfigDict, workdir: str | Path):
        """Checks everything that does not need the data.

        Raises:
          UserError: a field or a value of the study, or the config, is invalid, or `workdir` holds another study.
        """
        self.study, self.config = study, copy.deepcopy(config)
        self.workdir = files.user_path(workdir, '--workdir')
        files.check_no_file(self.workdir, '--workdir')
        check_study(self.study, self.config)
        self.rounds = Rounds(self.study, self.config)
        self._plans: dict[str, Plan] = {}
        self._outcomes: dict[tuple[str, int], Outcome] = {}
        for task in self.rounds.next_tasks({}):  # Report an invalid point before anything is written.
            self.plan(task.trial.point)
        self._check_directory()

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
            'needs_config': not self.is_described_by_values(),
            'config': json.loads(config_to_json(self.config)),
        }
        files.write_text(self.workdir / DEFINITION, json.dumps(definition, indent=2) + '\n')

    def _check_data(self) -> None:
        """Raises a UserError if a trial that will not be trained again has another config or other data."""
        checked = set()
        # Without a study.json, only the trials themselves say of which config they are.
        defined = (self.workdir / DEFINITION).exists()
        for standing in self.standings():
            selected = repr({name: value for name, value in standing.point.items() if name.startswith('dataset.')})
            if selected not in checked:
                checked.add(selected)
                data = self.plan(standing.point).source.data
                data.prepare()
                Checkpoints(self.trial_workdir(standing.trials[0])).check_data(data.digests)
            for trial in [] if defined else standing.trials:
                checkpoints = Checkpoints(self.trial_workdir(trial))
                if checkpoints.steps():
                    checkpoints.check_config(self.trial_config(trial))

    def trial_workdir(self, trial: Trial) -> Path:
        """Returns the workdir of a trial."""
        return self.workdir / 'trials' / trial.name

    def trial_config(self, trial: Trial) -> ConfigDict:
        """Returns the config of a trial, an ordinary run."""
        return self._trial_config(trial, self.config)

    def _trial_config(self, trial: Trial, base: ConfigDict) -> ConfigDict:
        config = copy.deepcopy(base)
        texts = {field: value if isinstance(value, str) else repr(value) for field, value in trial.point.items()}
        override_fields(config, texts, lambda: SECTIONS)
        config.seed = self.config.seed + trial.seed
        return config.copy_and_resolve_references()  # Only now: a field may refer to one that varies.

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
                    f'{stopping.monitor!r} and {"some" if plan.source.validated else "no"} validation examples'
                )
            self._plans[key] = plan
        return self._plans[key]

    def check(self) -> bool:
        """Builds the experiment of the first trial, which prepares the data; returns whether trials run on a CPU.

        Raises:
          UserError: the config does not fit the data.
        """
        return make_experiment(self.trial_config(self.rounds.next_tasks({})[0].trial)).replicas.on_cpu

    def is_described_by_values(self) -> bool:
        """Returns whether `study.json` describes all trials: whether no field of the config refers to a varied one."""
        if not any(field_references(self.config)):
            return True
        values = config_from_json(json.loads(config_to_json(self.config)))
        return all(
            config_to_json(self.trial_config(task.trial)) == config_to_json(self._trial_config(task.trial, values))
            for task in self.rounds.next_tasks({})
        )

    def maximizes(self, point: Point) -> bool:
        """Returns whether a larger value of that metric is better."""
        return self.plan(point).callbacks.early_stopping.worst < 0

    def value(self, point: Point, score: float) -> float:
        """Returns the value of that metric that has this score."""
        return score if self.maximizes(point) else -score

    def monitor(self, point: Point) -> str:
        """Returns the name of the metric by which the study chooses."""
        return self.plan(point).callbacks.early_stopping.monitor

    def read_outcomes(self) -> Outcomes:
        """Returns all outcomes so far."""
        for path in (self.workdir / 'outcomes').glob('*-epochs*.json'):
            name, _, epochs = path.stem.rpartition('-epochs')
            key = name, int(epochs) if epochs.isdecimal() else 0
            # A trial whose workdir was deleted is trained again.
            if key not in self._outcomes and (self.workdir / 'trials' / name).is_dir():
                self._outcomes[key] = read_outcome(path)
        return self._outcomes

    def standings(self) -> list[Standing]:
        """Returns all points that have outcomes of all seeds, those trained longest first, and then the best."""
        return self.rounds.standings(self.read_outcomes())

    def run(self, task: Task) -> Outcome:
        """Trains a trial up to an epoch, or resumes it, and writes the outcome."""
        trial, path = task.trial, self.trial_workdir(task.trial)
        if not path.is_dir():  # If it was deleted, its outcomes must not count when the directory exists again.
            for old in (self.workdir / 'outcomes').glob(f'{trial.name}-epochs*.json'):
                old.unlink()
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
        while tasks := self.rounds.next_tasks(self.read_outcomes()):
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
        value = 'diverged' if outcome.score is None else f'{monitor} {self.value(task.trial.point, outcome.score):.4f}'
        return (
            f'trial {task.trial.name} ({values}seed={self.config.seed + task.trial.seed}), {task.epochs} epochs: '
            f'{value}, {outcome.seconds:.1f} s'
        )


def run_sweep(sweep: Sweep, worker_count: int | None = None, arguments: Sequence[str] | None = None) -> int:
    """Trains all trials of a study, or those that other workers leave, and prints and writes its tables.

    Args:
      sweep: The study.
      worker_count: See `workers.share_work`; 0 writes no table, and None is the default of `workers.choose_count`.
      arguments: See `workers.share_work`.

    Returns:
      The exit status.
    """
    workers.check_workers(worker_count)
    on_cpu = worker_count == 0 or sweep.check()  # The process that started this one has checked it.
    count = workers.choose_count(worker_count, on_cpu, arguments)
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
