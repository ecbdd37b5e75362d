"""The report of a study, in a browser."""

import math

import numpy as np
import pytest
from conftest import make_small, open_page

from mnist_jax.report.study_page import StudyPoint, costs, importance, parallel_coordinates, pareto_front
from mnist_jax.studies.space import choice, when
from mnist_jax.studies.study import Study
from mnist_jax.studies.sweep import Sweep, run_sweep


@pytest.fixture(scope='module')
def page(data_dir, tmp_path_factory):
    """The page of a study with halving, a field that some points lack, and a point that diverges."""
    config = make_small(data_dir, dataset__validation='train[300:400]', devices=1, epochs=2)
    space = {
        'optimizer.name': choice('sgd', 'adam'),
        'optimizer.momentum': when(choice(0.5), 'optimizer.name', 'sgd'),
        'optimizer.learning_rate': choice(1e38, 1e-3),
    }
    directory = tmp_path_factory.mktemp('study')
    run_sweep(Sweep(Study(space, seeds=2, reduction=2), config, directory), 1)
    return directory / 'report' / 'index.html'


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_the_page_shows_all_sections_and_tooltips(page, browser, scheme):
    from playwright.sync_api import expect

    with open_page(browser, page.as_uri(), color_scheme=scheme) as opened:
        assert [section.get_attribute('id') for section in opened.locator('section').all()] == [
            'parallel', 'points', 'claims', 'slices', 'curves', 'costs',
        ]  # fmt: skip
        rows = opened.locator('#points tbody tr')
        assert rows.count() == 4 and 'diverged' in rows.last.text_content()
        assert 'no trial was evaluated on the test split' in opened.locator('body').text_content()
        assert 'too few seeds to tell' in opened.locator('#claims').text_content()
        opened.locator('#costs [id$="cost-0-0"]').hover()
        expect(opened.locator('#tip')).to_contain_text('point ')
        assert opened.evaluate('document.documentElement.scrollWidth <= innerWidth')


def point(number, score, seconds=1.0, **values):
    return StudyPoint(f'{number:04d}', values, [score], seconds, 100, 1000, [[score]])


def test_the_pareto_front_by_hand():
    assert pareto_front([3, 1, 2, 2], [5, 1, 4, 3]) == [1, 2, 0]
    assert pareto_front([1, 1, 2], [1, 2, 2]) == [1] and pareto_front([], []) == []


def test_importance_finds_the_field_that_matters():
    points = [point(number, 0.5 + 0.1 * (number % 5), x=number % 5, y=(number * 7) % 11) for number in range(40)]
    figure = importance(['x', 'y'], points, 'validation_accuracy')
    by_field = {text.split(':')[0]: float(text.split(':')[1]) for text in figure.tooltips.values()}
    assert by_field['x'] > 0.5 > 0.1 > by_field['y']
    assert importance(['x'], points[:7], 'validation_accuracy') is None
    equal = [point(number, 1.0, x=number % 5, y=number % 3) for number in range(9)]
    assert importance(['x', 'y'], equal, 'validation_accuracy') is None
    noise = np.random.default_rng(0).normal(size=24)
    random = [point(number, noise[number], x=number % 5, y=(number * 7) % 11) for number in range(24)]
    assert importance(['x', 'y'], random, 'validation_accuracy') is None


def test_sizes_are_compared_with_the_scores_after_the_same_number_of_epochs():
    # The best point comes first, and is drawn last, also where another one was better after few epochs.
    points, compared = [point(0, 0.95), point(1, 0.80)], [point(0, 0.70), point(1, 0.80)]
    figure = costs(points, compared, 'validation_accuracy', 'validation_accuracy after epoch 1', True)
    for place, number in enumerate((1, 0)):
        assert (
            f'point {number:04d}: : validation_accuracy {points[number].mean:.4f},'
            in figure.tooltips[f'cost-0-{place}']
        )
    assert 'point 0001: : validation_accuracy after epoch 1 0.8000,' in figure.tooltips['cost-1-0']


def test_values_of_every_kind_and_points_without_a_score_are_drawn():
    points = [
        point(0, 0.9, rate=1e-4, kind='a', sizes=(64,), flag=True),
        point(1, 0.8, rate=1e-1, kind='b', sizes=(8, 8), flag=False),
        point(2, math.nan, rate=1e-2, kind='$b', sizes=(64,), flag=True),
        point(3, 0.7, rate=1e-3, sizes=(64,), flag=True),
    ]
    figure = parallel_coordinates(['rate', 'kind', 'sizes', 'flag'], points, 'validation_loss')
    assert len(figure.tooltips) == 3
    single = parallel_coordinates(['rate'], [point(0, 0.9, rate=0.1)], 'validation_accuracy')
    close = parallel_coordinates(['rate'], [point(0, 0.9912, rate=0.1), point(1, 0.9901, rate=0.2)], 'accuracy')
    labels = {text.get_text() for text in close.figure.axes[0].texts}
    assert {'0.9901', '0.99047', '0.99083', '0.9912'} <= labels
    assert list(single.tooltips.values()) == ['point 0000: rate=0.1: validation_accuracy 0.9000, 100 parameters']
