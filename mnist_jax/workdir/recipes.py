"""Compares recipes: groups of finished runs that differ only in the seed."""

import itertools
import json
import statistics
from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

from mnist_jax import files, text_tables
from mnist_jax.config import CHANGEABLE_FIELDS, config_fields
from mnist_jax.workdir import claims
from mnist_jax.workdir.finished_runs import FinishedRun

SUMMARY_HEADER = ('recipe', 'seeds', 'validation', 'mean accuracy', 'std. dev.', 'test noise', 'worst', 'best')
CLAIM_HEADER = (
    'first recipe', 'second recipe', 'seeds', 'difference', '95% interval', 'p-value', 'corrected', 'superiority',
    'verdict',
)  # fmt: skip
MAX_FIELDS = 6  # differing fields that name a recipe
MAX_COLUMNS = 8  # differing fields in a table
_WITHOUT_EFFECT = frozenset(CHANGEABLE_FIELDS) - {'epochs'}


class Recipe(NamedTuple):
    """Runs whose configs differ only in the seed, with the same data.

    Attributes:
      name: The fields in which it differs from the other recipes, or the name of its first run.
      runs: The runs by seed.
    """

    name: str
    runs: dict[int, FinishedRun]

    @property
    def accuracies(self) -> list[float]:
        """The test accuracies in the order of the seeds."""
        return [run.result['accuracy'] for run in self.runs.values()]


def group_runs(runs: Sequence[FinishedRun]) -> list[Recipe]:
    """Returns the recipes of the runs; of several runs with the same config, data and seed, the first counts.

    Runs whose result is not that of their end do not count. Fields that do not affect a result, such as the number of
    devices, are ignored, except for the number of epochs.
    """
    runs = [run for run in runs if not run.progress]
    fields = [dict(config_fields(run.config)) for run in runs]
    ignored = {'seed', *_WITHOUT_EFFECT}
    keys = [
        json.dumps([{name: repr(value) for name, value in own.items() if name not in ignored}, _past(run)])
        for run, own in zip(runs, fields, strict=True)
    ]
    grouped: dict[str, dict[int, FinishedRun]] = {}
    for run, key in zip(runs, keys, strict=True):
        grouped.setdefault(key, {}).setdefault(run.config.seed, run)
    first = {key: fields[keys.index(key)] for key in grouped}
    differing = sorted(_differing_fields(list(first.values()), ignored))
    recipes = []
    for key, by_seed in grouped.items():
        values = [f'{name}={first[key][name]!r}' for name in differing if name in first[key]]
        shown = values[:MAX_FIELDS] + ['...'] * (len(values) > MAX_FIELDS)
        recipes.append(Recipe(', '.join(shown) or next(iter(by_seed.values())).name, dict(sorted(by_seed.items()))))
    names = [recipe.name for recipe in recipes]
    # The same config with other data, or another past, has the name of its first run.
    return [
        recipe if names.count(recipe.name) == 1 else recipe._replace(name=next(iter(recipe.runs.values())).name)
        for recipe in recipes
    ]


def _past(run: FinishedRun) -> list:
    """Returns what a result depends on besides the config and the seed.

    This is the digests of the data, only that of the test split if the workdir has no others; how the schedule was
    changed while the run was trained; and the digests of the code of parts that are not of this package.
    """
    try:
        digests = files.read_json(run.workdir / 'digests.json')
    except (OSError, ValueError):
        digests = None
    data = digests.get('data') if isinstance(digests, dict) else None
    return [
        run.result['split_sha256'],
        data,
        *(run.result.get(name) or [] for name in ('reschedules', 'own_code', 'changed_code')),
    ]


def uncounted_runs(runs: Sequence[FinishedRun], recipes: Sequence[Recipe]) -> str:
    """Returns sentences that name the runs that are in no recipe, or ''."""
    counted = {id(run) for recipe in recipes for run in recipe.runs.values()}
    others = [run for run in runs if id(run) not in counted]
    reasons = {
        'the result is not that of the end of the run': [run.name for run in others if run.progress],
        'another run has the same config, data and seed': [run.name for run in others if not run.progress],
    }
    return ' '.join(f'Not counted, because {why}: {", ".join(names)}.' for why, names in reasons.items() if names)


def field_rows(runs: Sequence[FinishedRun]) -> tuple[list[list[str]], str]:
    """Returns the config fields in which runs differ.

    Fields that do not affect a result, such as the number of devices, are left out, except for the number of epochs.

    Returns:
      A header and a row for each run, or [] if there is no such field; and a sentence about fields that are left out
      because there are too many, or ''.
    """
    configs = [dict(config_fields(run.config)) for run in runs]
    differing = _differing_fields(configs, _WITHOUT_EFFECT)
    if not differing:
        return [], ''
    shown, others = differing[:MAX_COLUMNS], differing[MAX_COLUMNS:]
    rows = [[run.name, *(_text(config.get(name)) for name in shown)] for run, config in zip(runs, configs, strict=True)]
    return [['run', *shown], *rows], f'They also differ in: {", ".join(others)}.' if others else ''


def _differing_fields(configs: Sequence[Mapping[str, object]], ignored: Set[str]) -> list[str]:
    """Returns the names of the fields that do not have the same value in all configs, in the order of the fields."""
    names = [name for name in dict.fromkeys(itertools.chain.from_iterable(configs)) if name not in ignored]
    return [name for name in names if len({repr(config.get(name)) for config in configs}) > 1]


def _text(value: object) -> str:
    return '-' if value is None else value if isinstance(value, str) and value else repr(value)


def summary_rows(recipes: Sequence[Recipe]) -> list[list[str]]:
    """Returns a row of `SUMMARY_HEADER` for each recipe, the best by validation first."""
    return [
        [
            recipe.name,
            str(len(recipe.runs)),
            text_tables.number(_validation(recipe)),
            f'{statistics.fmean(recipe.accuracies):.4f}',
            f'{statistics.stdev(recipe.accuracies):.4f}' if len(recipe.runs) > 1 else 'NA',
            f'{claims.sampling_deviation(statistics.fmean(recipe.accuracies), _examples(recipe)):.4f}',
            f'{min(recipe.accuracies):.4f}',
            f'{max(recipe.accuracies):.4f}',
        ]
        for recipe in sorted(recipes, key=lambda recipe: -(_validation(recipe) or 0.0))
    ]


def _validation(recipe: Recipe) -> float | None:
    """Returns the mean validation accuracy at the steps with which the runs end; None if one was not validated."""
    values = [run.validation_accuracy for run in recipe.runs.values()]
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def _examples(recipe: Recipe) -> int:
    return next(iter(recipe.runs.values())).result['count']


def claim_rows(recipes: Sequence[Recipe]) -> list[list[str]]:
    """Returns a row of `CLAIM_HEADER` for each pair of recipes with at least two common seeds and the same test split.

    The p-values are corrected for the number of pairs (Holm).
    """
    pairs, found = [], []
    for first, second in itertools.combinations(recipes, 2):
        seeds = [seed for seed in first.runs if seed in second.runs]
        splits = {recipe.runs[seed].result['split_sha256'] for recipe in (first, second) for seed in seeds}
        if len(seeds) > 1 and len(splits) == 1:
            accuracies = [[recipe.runs[seed].result['accuracy'] for seed in seeds] for recipe in (first, second)]
            pairs.append((first, second))
            found.append(claims.compare(*accuracies))
    corrected = claims.holm([claim.p_value for claim in found])
    return [
        [first.name, second.name, *claims.cells(claim, p_value, len(found))]
        for (first, second), claim, p_value in zip(pairs, found, corrected, strict=True)
    ]


def recipe_lines(runs: Sequence[FinishedRun]) -> list[str]:
    """Returns the tables as text; [] if no recipe has several seeds."""
    recipes = group_runs(runs)
    if all(len(recipe.runs) < 2 for recipe in recipes):
        return []
    lines = [
        'recipes: runs that differ only in the seed. Test noise: the standard deviation from the choice of the test '
        'examples',
        '',
        *text_tables.titled([SUMMARY_HEADER, *summary_rows(recipes)]),
    ]
    if sentence := uncounted_runs(runs, recipes):
        lines += ['', sentence]
    if rows := claim_rows(recipes):
        lines += [
            '',
            'differences over common seeds: BCa bootstrap interval, sign-flip permutation test, corrected for the '
            'number of pairs (Holm)',
            '',
            *text_tables.titled([CLAIM_HEADER, *rows], left=2),
        ]
    return lines
