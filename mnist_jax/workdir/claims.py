"""Statistics for claims about recipes: whether one is better than another, given their results over the same seeds.

The unit is a seed, not a test example: the result of a recipe varies from seed to seed, often by more than the test set
can resolve. Differences are paired by seed, since runs with the same seed share the order of the examples.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

CONFIDENCE = 0.95
RESAMPLES = 10_000
EXACT_SEEDS = 16  # up to this number, all 2^n flips of signs are enumerated
FLIPS = 100_000  # random flips for more seeds
MAX_SEEDS = 10_000  # that a power analysis considers


class Claim(NamedTuple):
    """A comparison of two recipes over the same seeds.

    Attributes:
      seeds: The number of seeds, n.
      difference: The mean of the differences, the first recipe minus the second.
      interval: The bias-corrected and accelerated bootstrap interval of the mean (Efron 1987), at 95%; None for fewer
        than three seeds, or if all differences are equal.
      p_value: The two-sided p-value of the sign-flip permutation test (Fisher 1935), whose hypothesis is that the
        differences are symmetric around 0.
      smallest_p_value: The smallest p-value that n seeds can give.
      superiority: The probability that a seed is better with the first recipe; ties count half.
      needed: The number of seeds with which a t-test would detect a difference of this size with a probability of 80%;
        None if it is more than 10,000, or unknown.
    """

    seeds: int
    difference: float
    interval: tuple[float, float] | None
    p_value: float
    smallest_p_value: float
    superiority: float
    needed: int | None

    def verdict(self, p_value: float | None = None, comparisons: int = 1) -> str:
        """Returns what the comparison shows at a level of 5%, in words.

        Args:
          p_value: The p-value after a correction for several comparisons; by default, that of this one alone.
          comparisons: Their number.
        """
        if (self.p_value if p_value is None else p_value) < 1 - CONFIDENCE:
            return 'better' if self.difference > 0 else 'worse'
        if comparisons * self.smallest_p_value >= 1 - CONFIDENCE:
            needed = seeds_for_significance(comparisons)
            hint = f'seeds to tell: at least {needed} are needed' if needed else 'random flips of signs to tell'
            return f'too few {hint}'
        # The estimate is that of an uncorrected t-test, so it may be a number that has just turned out to be too small.
        hint = f'; at least {max(self.needed, self.seeds + 1):,} seeds would be needed' if self.needed else ''
        return f'may be chance{hint}'


def compare(first: Sequence[float], second: Sequence[float]) -> Claim:
    """Compares the results of two recipes, each with one number per seed, in the same order of seeds."""
    differences = np.asarray(first, float) - np.asarray(second, float)
    count = len(differences)
    superiority = float(((differences > 0) + 0.5 * (differences == 0)).mean())
    return Claim(
        seeds=count,
        difference=float(differences.mean()),
        interval=bca_interval(differences),
        p_value=sign_flip_p_value(differences),
        smallest_p_value=_smallest_p_value(count),
        superiority=superiority,
        needed=seeds_needed(abs(float(differences.mean())), _deviation(differences)),
    )


def cells(claim: Claim, p_value: float, comparisons: int) -> list[str]:
    """Returns a claim as strings: seeds, difference, interval, p-value, corrected p-value, superiority, verdict.

    Args:
      claim: One of several comparisons.
      p_value: Its p-value after the correction.
      comparisons: The number of comparisons.
    """
    interval = 'NA' if claim.interval is None else f'{claim.interval[0]:+.4f} to {claim.interval[1]:+.4f}'
    return [
        str(claim.seeds),
        f'{claim.difference:+.4f}',
        interval,
        f'{claim.p_value:.3g}',
        f'{p_value:.3g}',
        f'{claim.superiority:.0%}',
        claim.verdict(p_value, comparisons),
    ]


def _deviation(numbers: np.ndarray) -> float:
    return float(numbers.std(ddof=1)) if len(numbers) > 1 else math.nan


def bca_interval(numbers: Sequence[float] | np.ndarray) -> tuple[float, float] | None:
    """Returns the BCa bootstrap interval of the mean at 95%; None for fewer than three numbers, or only equal ones."""
    sample = np.asarray(numbers, float)
    if len(sample) < 3 or np.ptp(sample) == 0:
        return None
    result = scipy.stats.bootstrap(
        (sample,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method='BCa',
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def sign_flip_p_value(differences: Sequence[float] | np.ndarray) -> float:
    """Returns the two-sided p-value of the hypothesis that differences are symmetric around 0.

    It is the fraction of the flips of signs whose sum is at least as far from 0: of all flips for up to 16 differences,
    and of 100,000 random ones and the one that was observed for more.
    """
    sample = np.asarray(differences, float)
    sums = np.abs(_signs(len(sample)) @ sample)
    # Equal sums may differ by rounding.
    return float((sums >= sums[0] - 1e-12 * np.abs(sample).sum()).mean())


@functools.lru_cache(maxsize=1)  # A study has the same number of seeds for all pairs of its points.
def _signs(count: int) -> np.ndarray:
    """Returns flips of the signs of `count` numbers, the first of which flips none."""
    if count <= EXACT_SEEDS:
        return np.array(list(itertools.product((1.0, -1.0), repeat=count)))
    random = np.random.default_rng(0).choice((1.0, -1.0), (FLIPS, count))
    return np.concatenate([np.ones((1, count)), random])


def _smallest_p_value(seeds: int) -> float:
    return 2.0 ** (1 - seeds) if seeds <= EXACT_SEEDS else 1 / (FLIPS + 1)


def seeds_for_significance(comparisons: int = 1) -> int | None:
    """Returns the smallest number of seeds for which the sign-flip test can give a corrected p-value below 5%.

    None if there are too many comparisons for any number of seeds.
    """
    counts = range(1, EXACT_SEEDS + 2)
    return next((count for count in counts if comparisons * _smallest_p_value(count) < 1 - CONFIDENCE), None)


def seeds_needed(difference: float, deviation: float, power: float = 0.8) -> int | None:
    """Returns the number of seeds with which a paired t-test at 5% detects a difference with a probability of `power`.

    Args:
      difference: The mean difference.
      deviation: The standard deviation of the differences over the seeds.
      power: The probability.

    Returns:
      The number, at least that of `seeds_for_significance`; None if it is more than 10,000, or unknown.
    """
    if not difference or not math.isfinite(deviation):
        return None
    least = seeds_for_significance() or 1
    if deviation == 0:
        return least

    def reaches(count: int) -> bool:
        critical = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)
        shift = difference / deviation * math.sqrt(count)
        if shift - critical > 6:  # The power is 1; for very large shifts, SciPy returns NaN.
            return True
        noticed = scipy.stats.nct.sf(critical, count - 1, shift) + scipy.stats.nct.cdf(-critical, count - 1, shift)
        return bool(noticed >= power)

    low, high = least, MAX_SEEDS
    if not reaches(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle + 1, high)
    return low


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for several comparisons, in the same order (Holm 1979)."""
    order = np.argsort(p_values, kind='stable')
    corrected = np.empty(len(p_values))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected.tolist()


def sampling_deviation(accuracy: float, examples: int) -> float:
    """Returns the standard deviation of an accuracy that comes from the choice of the test examples (binomial)."""
    return math.sqrt(accuracy * (1 - accuracy) / examples)
