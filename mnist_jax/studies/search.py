"""How a study chooses the points that it tries.

Each constructor of `SEARCHES` returns a `Search`, a pure function of the results so far: a study that is resumed, or
that has more workers, proposes the same points.
"""

import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from scipy.stats import qmc

from mnist_jax.errors import UserError
from mnist_jax.factory import Count, PositiveInt, Range
from mnist_jax.studies.space import Choice, Condition, Interval, Point, Space, grid, is_active, point_at

if TYPE_CHECKING:
    import optuna

SAMPLER_PACKAGES = {'gp': 'torch', 'cmaes': 'cmaes'}
Values = Mapping[str, Any]
"""The values of all fields of the config that the study starts from, by dotted name."""
Result = tuple[Point, float | None]
"""A point that was tried, and its score, of which a larger one is better; None if training diverged."""
Search = Callable[[Space, Values, Sequence[Result]], list[Point]]
"""Maps what is searched, and the results of all points proposed so far, to the next points; [] at the end."""


def grid_search(points: PositiveInt = 3) -> Search:
    """Tries all combinations of values; of an interval, this many evenly spread ones."""

    def propose(space: Space, values: Values, results: Sequence[Result]) -> list[Point]:
        return [] if results else grid(space, values, points)

    return propose


def random_search(trials: PositiveInt, seed: Count = 0) -> Search:
    """Tries independent random points (Bergstra and Bengio 2012). More trials add to those of fewer."""

    def propose(space: Space, values: Values, results: Sequence[Result]) -> list[Point]:
        fractions = (np.random.default_rng((seed, number)).random(len(space)) for number in range(trials))
        return [] if results else [point_at(space, values, row.tolist()) for row in fractions]

    return propose


def quasi_random_search(trials: PositiveInt, seed: Count = 0) -> Search:
    """Tries the points of a scrambled Halton sequence, which cover the space more evenly than random ones."""

    def propose(space: Space, values: Values, results: Sequence[Result]) -> list[Point]:
        rows = qmc.Halton(len(space), scramble=True, rng=seed).random(trials)
        return [] if results else [point_at(space, values, row.tolist()) for row in rows]

    return propose


def optuna_search(
    trials: PositiveInt,
    batch: Annotated[int, Range(1, 1000)] = 4,
    sampler: Literal['tpe', 'gp', 'cmaes', 'random'] = 'tpe',
    seed: Count = 0,
) -> Search:
    """Lets a sampler of Optuna propose points, from the results of all earlier ones.

    Args:
      trials: The number of points.
      batch: The number of points that are proposed together, and can be tried at the same time.
      sampler: Tree-structured Parzen estimator, Gaussian process, CMA-ES, or random.
      seed: The seed of the sampler.
    """
    try:
        import optuna
    except ImportError:
        raise UserError("the search 'optuna' needs the package optuna: pip install optuna") from None
    package = SAMPLER_PACKAGES.get(sampler)
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(f'the sampler {sampler!r} of Optuna needs the package {package}: pip install {package}')
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def propose(space: Space, values: Values, results: Sequence[Result]) -> list[Point]:
        # Optuna's samplers are random generators with a state, so the whole study is replayed.
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of samplers that Optuna calls experimental
            study = optuna.create_study(direction='maximize', sampler=_sampler(sampler, seed))
        for first in range(0, trials, batch):
            asked = [study.ask() for _ in range(min(batch, trials - first))]
            points = [_suggest(trial, space, values) for trial in asked]
            if first >= len(results):
                return points
            for trial, (_, score) in zip(asked, results[first:], strict=False):
                failed = optuna.trial.TrialState.FAIL
                study.tell(trial, score, state=failed if score is None else None)
        return []

    return propose


def _sampler(name: str, seed: int) -> 'optuna.samplers.BaseSampler':
    import optuna

    samplers = {
        'tpe': optuna.samplers.TPESampler,
        'gp': optuna.samplers.GPSampler,
        'cmaes': optuna.samplers.CmaEsSampler,
        'random': optuna.samplers.RandomSampler,
    }
    return samplers[name](seed=seed)


def _suggest(trial: 'optuna.Trial', space: Space, values: Values) -> Point:
    point: Point = {}
    for field, entry in space.items():
        if not is_active(entry, {**values, **point}):
            continue
        domain = entry.domain if isinstance(entry, Condition) else entry
        if isinstance(domain, Choice):  # Optuna cannot store tuples, so it chooses a position.
            point[field] = domain.values[trial.suggest_categorical(field, range(len(domain.values)))]
        elif isinstance(domain, Interval) and domain.whole:
            point[field] = trial.suggest_int(field, int(domain.low), int(domain.high), log=domain.logarithmic)
        elif isinstance(domain, Interval):
            value = trial.suggest_float(field, domain.low, domain.high, log=domain.logarithmic)
            point[field] = domain.rounded(value)
        else:
            raise UserError(f'the values of {field} must be a choice or an interval, got {domain!r}')
    return point


SEARCHES: dict[str, Callable[..., Search]] = {
    'grid': grid_search,
    'random': random_search,
    'quasi_random': quasi_random_search,
    'optuna': optuna_search,
}
