"""What a study is: what it tries, its trials, and their results."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mnist_jax import files
from mnist_jax.config import ConfigDict, config_from_json, fill_missing_fields, load_module
from mnist_jax.config_checks import check_config
from mnist_jax.errors import UserError, first_line
from mnist_jax.files import JsonObject
from mnist_jax.studies.space import Point, Space, parse_domain

DEFINITION = 'study.json'


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study tries.

    Attributes:
      vary: The fields that differ between trials, and the values that they may take.
      search: The name of a search in `search.SEARCHES` and its arguments.
      seeds: The number of runs of each point, with different seeds; their mean is the score of the point.
      reduction: For successive halving (Jamieson and Talwalkar 2016): all points are trained for `first_epochs` epochs,
        the best 1 / `reduction` of them for `reduction` times as many, and so on up to `config.epochs`; 0 trains all
        points to the end.
      first_epochs: See `reduction`.
    """

    vary: Space
    search: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {'name': 'grid'})
    seeds: int = 1
    reduction: int = 0
    first_epochs: int = 1

    def __post_init__(self):
        if not isinstance(self.vary, Mapping):
            raise UserError(f'vary, the fields of a study, must be a dict of domains by field, got {self.vary!r}')
        if isinstance(self.search, str):
            object.__setattr__(self, 'search', {'name': self.search})
        if not isinstance(self.search, Mapping):
            raise UserError(f'the search of a study must be a name, or a dict with a name, got {self.search!r}')


class Trial(NamedTuple):
    """A run of a study: a point, and one of its seeds."""

    number: int  # of the point, in the order of proposals
    point: Point
    seed: int  # is added to `config.seed`

    @property
    def name(self) -> str:
        """The name of its directory."""
        return f'{self.number:04d}-seed{self.seed}'


class Task(NamedTuple):
    """A trial that is to be trained up to an epoch."""

    trial: Trial
    epochs: int


class Outcome(NamedTuple):
    """The result of a task.

    Attributes:
      score: The monitored validation metric of the epoch that the run ends with, its negative if it is to be minimized;
        None if training diverged.
      metrics: The row of metrics.csv of that epoch; None for a number that is not finite.
      seconds: The training time.
      params_sha256: The digest of the parameters; '' if training diverged.
      point: The point that was trained, as JSON has it; None if it is not known.
    """

    score: float | None
    metrics: Mapping[str, float | None]
    seconds: float
    params_sha256: str
    point: JsonObject | None = None


class Standing(NamedTuple):
    """A point, its trials, and their outcomes for the largest number of epochs that all of them were trained."""

    number: int
    point: Point
    epochs: int
    outcomes: Sequence[Outcome]

    @property
    def trials(self) -> list[Trial]:
        """The trials, in the order of their seeds."""
        return [Trial(self.number, self.point, seed) for seed in range(len(self.outcomes))]

    @property
    def scores(self) -> list[float]:
        """The scores of the trials that did not diverge."""
        return [outcome.score for outcome in self.outcomes if outcome.score is not None]

    @property
    def deviation(self) -> float | None:
        """The standard deviation of the scores; None for fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    @property
    def seconds(self) -> float:
        """The training time of all trials."""
        return sum(outcome.seconds for outcome in self.outcomes)

    @property
    def score(self) -> float | None:
        """The mean score; None if a trial diverged."""
        return statistics.fmean(self.scores) if len(self.scores) == len(self.outcomes) else None


def load_study(path: str | Path) -> Study:
    """Returns the study that `get_study()` in a Python file returns.

    Raises:
      UserError: the file cannot be loaded, or does not define `get_study`.
    """
    file = files.user_path(path, '--sweep')
    try:
        get_study = load_module(file, 'study').get_study
    except (Exception, SystemExit) as error:  # The file is the user's: whatever it raises is for them to fix.
        raise UserError(
            f'--sweep must be a Python file that defines get_study(), got {str(path)!r}: '
            f'{type(error).__name__}: {first_line(error)}'
        ) from None
    try:
        study = get_study()
    except (Exception, SystemExit) as error:
        raise UserError(f'get_study() in {str(path)!r} failed: {type(error).__name__}: {first_line(error)}') from None
    if not isinstance(study, Study):
        raise UserError(f'get_study() in {str(path)!r} must return a mnist_jax.studies.study.Study, got {study!r}')
    return study


def read_study(workdir: Path) -> tuple[Study, ConfigDict]:
    """Returns the study in a directory, as its `study.json` describes it, and the config that it starts from.

    Raises:
      UserError: there is no study, or its description is damaged.
    """
    path = workdir / DEFINITION
    if not path.exists():
        raise UserError(f'--workdir {str(workdir)!r} holds no study; to start one, give --config')
    saved = read_definition(path)
    if saved.get('needs_config'):  # It is missing in studies of older versions.
        raise UserError(
            f'--config must be given to resume the study in {str(workdir)!r}, with the flags that describe the study: '
            'fields of the config refer to ones that vary'
        )
    try:
        search = {**saved['search'], **({} if saved['trials'] is None else {'trials': saved['trials']})}
        vary = {field: parse_domain(field, text) for field, text in saved['vary'].items()}
        study = Study(vary, search, saved['seeds'], saved['reduction'], saved['first_epochs'])
        config = fill_missing_fields(config_from_json(saved['config']))
        check_config(config)
        return study, config
    except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
        raise _damaged(path, error) from None


def read_outcome(path: Path) -> Outcome:
    """Reads the outcome of a task; raises a UserError if it is damaged."""
    try:
        saved: Any = files.read_json(path)
        outcome = Outcome(*(saved[name] for name in Outcome._fields))
        numbers = [outcome.seconds] if outcome.score is None else [outcome.seconds, outcome.score]
        if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            raise ValueError(f'its numbers must be finite, got {numbers}')
        for value, kind in ((outcome.metrics, dict), (outcome.params_sha256, str), (outcome.point, dict)):
            if not isinstance(value, kind):
                raise ValueError(f'{value!r} must be of type {kind.__name__}')
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f'{str(path)!r} is damaged: {first_line(error)}; delete it, and run the same command again'
        ) from None
    return outcome


def read_definition(path: Path) -> JsonObject:
    """Reads a `study.json`; raises a UserError if it is not a JSON object."""
    try:
        saved = files.read_json(path)
        if not isinstance(saved, dict) or 'config_sha256' not in saved:
            raise ValueError('it must describe a study')
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None
    return saved


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f'{str(path)!r} is damaged: {first_line(error)}; delete it, and run the command that started the study again'
    )
