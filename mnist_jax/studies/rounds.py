"""The rounds of a study: which trials it trains, and for how long, as a pure function of the outcomes so far."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence

from mnist_jax.config import ConfigDict, config_fields
from mnist_jax.errors import UserError
from mnist_jax.factory import arguments, build, choose
from mnist_jax.studies.search import SEARCHES, Search
from mnist_jax.studies.space import Point
from mnist_jax.studies.study import Outcome, Standing, Study, Task, Trial

Outcomes = Mapping[tuple[str, int], Outcome]
"""Outcomes by the name of the trial and the number of epochs."""


class Rounds:
    """The rounds of a study.

    A round ends when all of its tasks have an outcome: only then is it known which points are trained further, or what
    the search proposes next.
    """

    def __init__(self, study: Study, config: ConfigDict):
        """Builds the search of a study; raises a UserError if it, or an argument of it, is unknown or invalid."""
        self._study, self._epochs = study, config.epochs
        self._values = dict(config_fields(config))
        self._search = _build_search(study)

    def next_tasks(self, outcomes: Outcomes) -> list[Task]:
        """Returns the tasks of the current round, also those that are done; [] when the study is finished."""
        for tasks in self._rounds(outcomes):
            if any((task.trial.name, task.epochs) not in outcomes for task in tasks):
                return tasks
        return []

    def standings(self, outcomes: Outcomes) -> list[Standing]:
        """Returns all points that have outcomes of all seeds, those trained longest first, and then the best."""
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
        halving = bool(self._study.reduction)
        return sorted(points.values(), key=lambda s: (-s.epochs if halving else 0, _descending(s.score), s.number))

    def _rounds(self, outcomes: Outcomes) -> Iterator[list[Task]]:
        """Yields the tasks of each round, as long as all tasks of the rounds before have an outcome."""
        results: list[tuple[Point, float | None]] = []
        while points := self._search(self._study.vary, self._values, results):
            numbered = {len(results) + index: point for index, point in enumerate(points)}
            scores: dict[int, float | None] = {}
            first_scores: dict[int, float | None] = {}
            remaining = list(numbered)
            for epochs, divisor in self._rungs():
                ranked = sorted(remaining, key=lambda number: _descending(scores.get(number, 0.0)))
                remaining = sorted(ranked[: -(-len(numbered) // divisor)])
                tasks = [
                    Task(Trial(number, numbered[number], seed), numbered[number].get('epochs', epochs))
                    for number in remaining
                    for seed in range(self._study.seeds)
                ]
                _check_points(tasks, outcomes)
                yield tasks
                for number in remaining:
                    own = [outcomes[task.trial.name, task.epochs] for task in tasks if task.trial.number == number]
                    scores[number] = Standing(number, numbered[number], epochs, own).score
                first_scores = first_scores or dict(scores)
            # A search that learns from the results compares all points after the same number of epochs.
            results += [
                (point, None if scores[number] is None else first_scores[number]) for number, point in numbered.items()
            ]

    def _rungs(self) -> list[tuple[int, int]]:
        """Returns the epochs of each round of successive halving, and the divisor of the number of points in it."""
        study, last = self._study, self._epochs
        if not study.reduction:
            return [(last, 1)]
        rungs = []
        epochs, divisor = study.first_epochs, 1
        while epochs * study.reduction <= last:
            rungs.append((epochs, divisor))
            epochs, divisor = epochs * study.reduction, divisor * study.reduction
        return [*rungs, (last, divisor)]


def _build_search(study: Study) -> Search:
    options = study.search
    constructor = choose('--search', options.get('name'), SEARCHES)
    if 'trials' in arguments(constructor) and 'trials' not in options:
        raise UserError(f'--trials, the number of points, must be set for the search {options["name"]!r}')
    if 'trials' in options and 'trials' not in arguments(constructor):
        raise UserError(f'--trials must not be set for the search {options["name"]!r}, which tries all points')
    return build('search', SEARCHES, options)


def _check_points(tasks: Sequence[Task], outcomes: Outcomes) -> None:
    """Raises a UserError if an outcome is not that of the point that the search proposes now."""
    for task in tasks:
        outcome = outcomes.get((task.trial.name, task.epochs))
        point = json.loads(json.dumps(task.trial.point))
        if outcome is not None and outcome.point not in (None, point):
            raise UserError(
                f'trial {task.trial.name} in --workdir must have been trained with {point}, which the search proposes '
                f'now, got {outcome.point}; a search that learns from results proposes other points if there are other '
                'seeds or results, so use another --workdir'
            )


def _descending(score: float | None) -> float:
    return math.inf if score is None else -score
