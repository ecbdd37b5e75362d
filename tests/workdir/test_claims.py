"""Statistics over seeds: against SciPy, against numbers worked out by hand, and under the null hypothesis."""

import numpy as np
import pytest
import scipy.stats

from mnist_jax.workdir import claims


def test_the_sign_flip_test_by_hand():
    # Of the 8 flips of 1, 2, 3, only the observed one and its opposite have a sum of at least 6.
    assert claims.sign_flip_p_value([1, 2, 3]) == 2 / 8
    # Of the 4 flips of 1 and 1, both sums of 2 and -2; of 1, 1 and -1, sums of +-1 and +-3: all 8.
    assert claims.sign_flip_p_value([1, 1]) == 0.5 and claims.sign_flip_p_value([1, 1, -1]) == 1
    assert claims.sign_flip_p_value([0.1] * 6) == 2 / 64
    assert claims.sign_flip_p_value([0, 0, 0]) == 1
    assert claims.sign_flip_p_value([0.1, 0.2, -0.3]) == 1  # Their sum is 5.6e-17 in floating-point numbers.


def test_the_sign_flip_test_against_scipy():
    for seed in range(5):
        sample = np.random.default_rng(seed).normal(0.5, 1, 9)
        expected = scipy.stats.permutation_test(
            (sample,), np.sum, permutation_type='samples', n_resamples=np.inf, vectorized=False
        )
        assert claims.sign_flip_p_value(sample) == pytest.approx(expected.pvalue, rel=1e-12)
    large = np.random.default_rng(9).normal(0.4, 1, 40)
    t_test = scipy.stats.ttest_1samp(large, 0).pvalue
    assert claims.sign_flip_p_value(large) == pytest.approx(t_test, rel=0.3)


def test_the_false_positive_rate_is_five_percent():
    rng = np.random.default_rng(1)
    studies = [claims.sign_flip_p_value(rng.normal(size=8) - rng.normal(size=8)) < 0.05 for _ in range(1000)]
    # With 8 seeds, the p-values are multiples of 2 / 256; the largest below 5% is 12 / 256 = 0.047.
    assert scipy.stats.binomtest(sum(studies), 1000, 12 / 256).pvalue > 0.01
    three = [claims.compare(rng.normal(size=3), rng.normal(size=3)).verdict() for _ in range(20)]
    assert set(three) == {'too few seeds to tell: at least 6 are needed'}


def test_the_interval_covers_the_mean_about_as_often_as_it_should():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        low, high = claims.bca_interval(rng.exponential(size=20))
        covered += low <= 1 <= high
    assert 0.85 <= covered / 200 <= 0.98  # Bootstrap intervals of small skewed samples are somewhat too short.
    sample = np.random.default_rng(3).normal(size=2000)
    assert claims.bca_interval(sample) == pytest.approx(
        scipy.stats.t.interval(0.95, 1999, sample.mean(), scipy.stats.sem(sample)), abs=3e-3
    )
    assert claims.bca_interval([1.0, 2.0]) is None and claims.bca_interval([2.0, 2.0, 2.0]) is None


def test_the_power_analysis():
    # A textbook case: an effect of half a standard deviation needs 34 pairs for a power of 80% (Cohen 1988).
    assert claims.seeds_needed(0.5, 1.0) == 34
    assert claims.seeds_needed(0.2, 1.0) == 199 and claims.seeds_needed(10.0, 1.0) == 6
    assert claims.seeds_needed(0.0, 1.0) is None and claims.seeds_needed(1e-6, 1.0) is None
    rng = np.random.default_rng(4)
    found = [scipy.stats.ttest_1samp(rng.normal(0.5, 1, 34), 0).pvalue < 0.05 for _ in range(2000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)


def test_holm_by_hand():
    assert claims.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert claims.holm([0.5, 0.9]) == [1.0, 1.0] and claims.holm([]) == []


def test_a_claim_in_words():
    better = claims.compare([0.91, 0.92, 0.93, 0.94, 0.95, 0.96], [0.90] * 6)
    assert better.difference == pytest.approx(0.035) and better.p_value == 2 / 64 and better.superiority == 1
    assert better.verdict() == 'better' and better.verdict(p_value=0.2).startswith('may be chance')
    assert better.interval[0] > 0.01 and better.interval[1] < 0.06
    # One of five such comparisons: 7 seeds have a smallest corrected p-value of 5 / 64 = 0.078; 8 have 5 / 128 = 0.039.
    assert better.verdict(p_value=5 * 2 / 64, comparisons=5) == 'too few seeds to tell: at least 8 are needed'
    # 780 pairs of points: 20 seeds that all agree are enough, and no number is for 10,000 pairs.
    rng = np.random.default_rng(5)
    many = claims.compare(rng.uniform(0.94, 0.95, 20), rng.uniform(0.90, 0.91, 20))
    assert many.verdict(780 * many.p_value, comparisons=780) == 'better'
    assert many.verdict(1.0, comparisons=10_000) == 'too few random flips of signs to tell'
    assert claims.seeds_for_significance(5_000) == 17 and claims.seeds_for_significance(10_000) is None
    # A pair with more seeds than the others may be significant after Holm's correction, but not after Bonferroni's.
    assert better.verdict(0.0313, comparisons=2) == 'better'
    worse = claims.compare([0.90] * 6, [0.91, 0.92, 0.93, 0.94, 0.95, 0.96])
    assert worse.verdict() == 'worse' and worse.superiority == 0
    unsure = claims.compare([0.90, 0.92, 0.91, 0.90, 0.93, 0.91, 0.92], [0.91, 0.91, 0.90, 0.91, 0.91, 0.92, 0.91])
    assert 'may be chance; at least' in unsure.verdict() and 0.4 < unsure.superiority < 0.7


def test_the_noise_of_the_test_set():
    assert claims.sampling_deviation(0.99, 10_000) == pytest.approx(0.000995, rel=1e-3)
