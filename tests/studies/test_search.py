"""The points that studies try."""

import numpy as np
import pytest
import scipy.stats
from scipy.stats import qmc

from mnist_jax.errors import UserError
from mnist_jax.studies.search import SEARCHES
from mnist_jax.studies.space import choice, grid, integers, log_integers, log_uniform, parse_domain, uniform, when

FRACTIONS = np.random.default_rng(0).random(2000).tolist()
SPACE = {
    'optimizer.learning_rate': log_uniform(1e-4, 1e-2),
    'model.width': integers(1, 4),
    'model.name': choice('a', 'b'),
}


def test_values_have_the_distribution_of_their_domain():
    logarithmic = [log_uniform(1e-4, 1e-1).at(fraction) for fraction in FRACTIONS]
    assert scipy.stats.kstest(logarithmic, scipy.stats.loguniform(1e-4, 1e-1).cdf).pvalue > 0.05
    assert scipy.stats.kstest([uniform(-2, 3).at(f) for f in FRACTIONS], scipy.stats.uniform(-2, 5).cdf).pvalue > 0.05
    counts = np.bincount([integers(2, 5).at(fraction) for fraction in FRACTIONS])
    assert counts[:2].sum() == 0 and scipy.stats.chisquare(counts[2:]).pvalue > 0.05
    # Of 1 to 7 in a logarithm to base 2, [1, 2), [2, 4) and [4, 8) each have a third.
    octaves = np.bincount([log_integers(1, 7).at(fraction).bit_length() for fraction in FRACTIONS])
    assert octaves[0] == 0 and scipy.stats.chisquare(octaves[1:]).pvalue > 0.05
    assert log_uniform(1e-4, 1e-2).at(0.5) == 1e-3 and uniform(0, 1).at(1 / 3) == 0.3333


def test_the_grid_spans_intervals_and_leaves_out_fields_without_a_meaning():
    assert log_uniform(1e-4, 1e-2).spread(3) == [1e-4, 1e-3, 1e-2] and integers(1, 2).spread(5) == [1, 2]
    assert uniform(0, 1).spread(1) == [0.5]
    assert integers(10001, 20003).spread(3) == [10001, 15002, 20003] and integers(12345, 12347).spread(3)[1] == 12346
    space = {
        'optimizer.name': choice('adam', 'sgd'),
        'optimizer.momentum': when(choice(0.0, 0.9), 'optimizer.name', 'sgd'),
        'batch_size': when(choice(32, 64), 'chunks', 8),
    }
    assert grid(space, {'chunks': 4}, 3) == [
        {'optimizer.name': 'adam'},
        {'optimizer.name': 'sgd', 'optimizer.momentum': 0.0},
        {'optimizer.name': 'sgd', 'optimizer.momentum': 0.9},
    ]
    assert len(grid(space, {'chunks': 8}, 3)) == 6


@pytest.mark.parametrize('name', ['random', 'quasi_random'])
def test_more_trials_add_to_those_of_fewer(name):
    few, many = (SEARCHES[name](trials)(SPACE, {}, []) for trials in (5, 12))
    assert many[:5] == few and len(many) == 12 and len({repr(point) for point in many}) == 12
    assert SEARCHES[name](5, seed=1)(SPACE, {}, []) != few
    assert SEARCHES[name](5)(SPACE, {}, [(point, 0.0) for point in few]) == []


def test_quasi_random_points_are_spread_more_evenly():
    space = {'x': uniform(0, 1), 'y': uniform(0, 1)}
    random, quasi = (
        [list(point.values()) for point in SEARCHES[name](64)(space, {}, [])] for name in ('random', 'quasi_random')
    )
    assert qmc.discrepancy(quasi) < 0.3 * qmc.discrepancy(random)


@pytest.mark.parametrize('sampler', ['tpe', 'random'])
def test_optuna_proposes_from_the_results_and_can_be_replayed(sampler):
    pytest.importorskip('optuna')
    space = {'x': uniform(-1, 1), 'width': log_integers(1, 64), 'kind': choice((1,), (2, 2))}

    def search(score):
        results = []
        proposed = []
        while points := SEARCHES['optuna'](trials=30, batch=4, sampler=sampler)(space, {}, results):
            proposed.append(points)
            results += [(point, score(point)) for point in points]
        return proposed, results

    proposed, results = search(lambda point: -((point['x'] - 0.5) ** 2))
    assert [len(points) for points in proposed] == [4] * 7 + [2]
    assert search(lambda point: -((point['x'] - 0.5) ** 2)) == (proposed, results)
    diverged, _ = search(lambda point: None if point['x'] > 0 else 0.0)
    assert diverged[0] == proposed[0]
    late = np.mean([abs(point['x'] - 0.5) for point, _ in results[20:]])
    assert (late < 0.3) == (sampler == 'tpe')  # |x - 0.5| is 0.625 on average for a uniform x.
    assert {point['kind'] for point, _ in results} == {(1,), (2, 2)}


@pytest.mark.parametrize(
    ('text', 'domain'),
    [
        ('log_uniform(1e-4, 1e-2)', log_uniform(1e-4, 1e-2)),
        ('integers(-2, 3)', integers(-2, 3)),
        ('0.1, 0.2', choice(0.1, 0.2)),
        ('adam,sgd', choice('adam', 'sgd')),
        ('(64,), (128, 128)', choice((64,), (128, 128))),
        ("({'name': 'flip'},), ()", choice(({'name': 'flip'},), ())),
        ('True,False', choice(True, False)),
        ('choice(1, 2)', choice(1, 2)),
    ],
)
def test_domains_on_the_command_line(text, domain):
    assert parse_domain('field', text) == domain


def test_a_narrow_interval_has_many_values_too():
    for make, low, high in ((uniform, 0.9995, 0.99999), (log_uniform, 0.9995, 0.99999), (uniform, 0.99, 1.0)):
        values = {make(low, high).at(index / 1000) for index in range(1000)}
        assert len(values) > 400 and low <= min(values) < max(values) <= high
    assert uniform(0.0, 0.5).at(0.123456789) == 0.06173  # The values of earlier versions stay.
    assert uniform(0.9, 1.0).at(0.123456789) == 0.9123


def test_numbers_of_numpy_become_plain_ones():
    assert str(log_uniform(np.float64(1e-4), np.float32(0.5))) == 'log_uniform(0.0001, 0.5)'
    nested = choice((np.int64(8),), [np.float64(0.5), 'a'])
    assert str(nested) == "choice((8,), [0.5, 'a'])" and type(nested.values[0][0]) is int
    assert when(choice(1, 2), 'batch_size', np.int64(8)).values == (8,)


@pytest.mark.parametrize(
    'text', ['', 'log_uniform(1e-4)', '1e-4:1e-2', 'open("x")', 'log(1, 2)', 'a b', '[x for x in y]']
)
def test_texts_that_are_no_domain(text):
    with pytest.raises(
        UserError, match=r'^--vary=field=VALUES must be values with commas between them, texts .*, or one of choice'
    ):
        parse_domain('field', text)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: log_uniform(0, 1), r'log_uniform\(low, high\) must have finite numbers with low < high, both greater'),
        (lambda: uniform(2, 1), r'got uniform\(2, 1\)'),
        (lambda: integers(1, 2.5), r'integers\(low, high\) must have whole numbers with low < high, got'),
        (lambda: uniform(0, float('nan')), 'uniform'),
        (lambda: choice(), 'choice must have at least one value'),
        (lambda: choice({64}, 1j), r'the values of a choice must be ones that JSON can hold, got \(\{64\}, 1j\)'),
    ],
)
def test_wrong_limits(make, message):
    with pytest.raises(UserError, match=message):
        make()
