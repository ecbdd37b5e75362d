"""The report: in a browser, as files, and its figures on results whose drawing is known."""

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from conftest import make_small, opened
from matplotlib.image import imread
from playwright.sync_api import expect

from mnist_jax import train
from mnist_jax.errors import UserError
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.learning import metrics
from mnist_jax.report import calibration, confusion, curves, style
from mnist_jax.report.comparison import compare_runs
from mnist_jax.report.run import make_figures, write_report
from mnist_jax.workdir.comparison import FinishedRun, read_run


def report(workdir):
    return write_report(RestoredModel.load(workdir))


FIGURES = (
    *('learning_curves', 'confusion_matrix', 'flow', 'by_class', 'mistakes', 'doubts', 'calibration', 'filters'),
    'feature_maps',
)
TABLES = ('statistics', 'errors', 'layers', 'config')


@pytest.fixture(scope='module')
def workdir(trained, tmp_path_factory):
    """A finished run of which the name is to be escaped, and its report."""
    place = tmp_path_factory.mktemp('reported') / '<b>run & "co"'
    shutil.copytree(trained, place)
    assert report(place) == place / 'report' / 'index.html'
    return place


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_the_page_in_a_browser(workdir, browser, scheme):
    with opened(browser, (workdir / 'report' / 'index.html').as_uri(), color_scheme=scheme) as page:
        assert page.locator('h1').inner_text() == '<b>run & "co": cnn on mnist'
        result = json.loads((workdir / 'eval.json').read_text())
        assert f'{result["accuracy"]:.4f}' in page.locator('.facts').inner_text()
        assert [section.get_attribute('id') for section in page.locator('section').all()] == [*FIGURES, *TABLES]
        for name in FIGURES:
            box = page.locator(f'#{name} svg').bounding_box()
            assert box['width'] > 700 and box['height'] > 60, name
        # Every image in them was decoded.
        assert page.evaluate("[...document.querySelectorAll('image')].every(i => i.getBBox().width > 0)")
        cell = page.locator('#confusion_matrix [id$="cell-count-7-7"]')
        cell.hover()
        hits = result['confusion_matrix'][7][7]
        expect(page.locator('#tip')).to_contain_text(f'7 taken for 7: {hits}')
        page.locator('h1').hover()
        expect(page.locator('#tip')).to_be_hidden()
        ground = page.evaluate('getComputedStyle(document.body).backgroundColor')
        assert (max(map(int, re.findall(r'\d+', ground))) < 60) == (scheme == 'dark')


def test_tables_sort_by_their_numbers(workdir, browser):
    with opened(browser, (workdir / 'report' / 'index.html').as_uri()) as page:
        support = page.locator('#statistics th button').last
        column = '#statistics tbody tr td:last-child'
        before = [int(cell.replace(',', '')) for cell in page.locator(column).all_inner_texts()]
        support.click()
        after = [int(cell.replace(',', '')) for cell in page.locator(column).all_inner_texts()]
        support.click()
        falling = [int(cell.replace(',', '')) for cell in page.locator(column).all_inner_texts()]
        assert after == sorted(before) == falling[::-1] != before
        assert page.locator('#statistics tfoot td:first-child').all_inner_texts() == ['macro mean', 'weighted']


def test_it_needs_nothing_beside_it_and_prints(workdir, browser, tmp_path):
    shutil.copy(workdir / 'report' / 'index.html', tmp_path / 'alone.html')
    asked = []
    page = browser.new_page()
    page.on('request', lambda request: asked.append(request.url[:30]))
    page.goto((tmp_path / 'alone.html').as_uri())
    assert [url for url in asked if not url.startswith('data:')] == [(tmp_path / 'alone.html').as_uri()[:30]]
    page.emulate_media(media='print', color_scheme='dark')
    expect(page.locator('nav')).to_be_hidden()
    assert page.evaluate('getComputedStyle(document.body).backgroundColor') == 'rgb(255, 255, 255)'
    page.close()


def test_the_figures_are_files_too(workdir):
    found = {path.name for path in (workdir / 'report').iterdir()}
    assert found == {'index.html', *(f'{name}.{kind}' for name in FIGURES for kind in ('png', 'svg'))}
    for name in FIGURES:
        picture = imread(workdir / 'report' / f'{name}.png')
        assert min(picture.shape[:2]) > 100 and picture[..., :3].std() > 0.02, name
        root = ElementTree.parse(workdir / 'report' / f'{name}.svg').getroot()
        ids = [element.get('id') for element in root.iter() if element.get('id')]
        titles = root.findall(f'.//{{{style.SVG}}}title')
        assert titles and len(ids) == len(set(ids)), name
    page = (workdir / 'report' / 'index.html').read_text()
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_the_confusion_matrix_as_heat_maps_and_as_a_flow():
    matrix = np.array([[90, 10, 0], [0, 80, 0], [1, 0, 19]])
    tips = confusion.heat_maps(matrix, ['a', 'b', 'c']).tips
    assert tips['cell-count-0-1'] == tips['cell-share-0-1'] == 'a taken for b: 10, 10.00% of 100'
    assert tips['cell-share-2-0'] == 'c taken for a: 1, 5.00% of 20' and len(tips) == 18
    flow = confusion.flow(matrix, ['a', 'b', 'c'])
    # 11 errors among 189 hits: five times as wide, they are 55 of 244, the first factor with more than a fifth.
    assert 'Errors are drawn 5 times as wide as hits.' in flow.about
    assert flow.tips['flow-0-1'] == 'a taken for b: 10' and flow.tips['bar-1-1'] == 'prediction b: 90'
    assert 'flow-1-0' not in flow.tips
    assert style.to_svg(flow) == style.to_svg(confusion.flow(matrix, ['a', 'b', 'c']))
    perfect = confusion.flow(np.diag([5, 0, 3]), ['a', 'b', 'c'])
    assert 'times as wide' not in perfect.about
    statistics = metrics.statistics(np.diag([5, 0, 3]), ['a', 'b', 'c'])
    assert {tip.split(':')[0] for tip in confusion.by_class(statistics).tips.values()} == {'a', 'c'}
    for picture in (perfect, confusion.heat_maps(np.array([[4]]), ['only']), confusion.flow(np.array([[4]]), ['only'])):
        assert len(style.to_png(picture)) > 1000


def test_calibration_worked_out_by_hand():
    # Of ten examples with confidence 0.85, eight are right; of four with 0.55, one.
    probabilities = np.array([[0.85, 0.15]] * 10 + [[0.45, 0.55]] * 4, np.float32)
    label = np.array([0] * 8 + [1] * 2 + [1] + [0] * 3)
    found = metrics.calibration(probabilities, label, bins=10)
    np.testing.assert_allclose(found['expected_calibration_error'], (10 * 0.05 + 4 * 0.3) / 14, atol=1e-6)
    # Twice the squared distance in two classes: 0.15 or 0.85, 0.45 or 0.55.
    brier = 2 * (8 * 0.15**2 + 2 * 0.85**2 + 0.45**2 + 3 * 0.55**2) / 14
    np.testing.assert_allclose(found['brier'], brier, atol=1e-6)
    filled = {round(each['to'], 1): each for each in found['bins'] if each['count']}
    assert {to: (each['count'], each['accuracy']) for to, each in filled.items()} == {0.9: (10, 0.8), 0.6: (4, 0.25)}
    assert sum(each['count'] for each in found['bins']) == 14 and found['bins'][0]['accuracy'] is None
    tips = calibration.reliability(probabilities, label).tips
    assert any('4 examples' in tip and '0.2500 of them right' in tip for tip in tips.values())


def made_up(config, values, rates, epochs=None):
    """A run with these validation accuracies and learning rates."""
    rows = [
        {'epoch': n + 1.0, 'step': 10.0 * (n + 1), 'train_loss': 1 / (n + 1), 'train_accuracy': v, 'learning_rate': r}
        | {'validation_accuracy': v, 'validation_loss': 1 - v, 'seconds': 1.0, 'images_per_second': 100.0}
        for n, (v, r) in enumerate(zip(values, rates, strict=True))
    ]
    return FinishedRun('made up', None, config, {}, rows)


def test_marks_in_the_learning_curves(small):
    config = small(epochs=9)
    config.early_stopping.patience = 2
    config.early_stopping.min_delta = 0.05
    run = made_up(config, [0.5, 0.7, 0.74, 0.72], [0.1, 0.1, 0.05, 0.05])
    # The third is better by less than min_delta, and so is not.
    assert curves.best_epoch(run) == 2 and curves.changes(run) == [3] and curves.stopped_early(run)
    picture = curves.learning_curves(run)
    assert picture.about.endswith(
        'Epoch 2 is the best by validation accuracy. The run stopped early, after epoch 4 of 9. '
        'The learning rate changed with epoch 3.'
    )
    assert picture.tips['point-validation_accuracy-3'] == 'epoch 3, validation: 0.74'
    labels = [text.get_text() for text in picture.figure.axes[0].get_legend().get_texts()]
    assert labels == ['training', 'validation', 'best epoch', 'lower learning rate', 'stopped early']
    plain = made_up(small(epochs=2), [0.5, 0.4], [0.1, 0.1])
    assert curves.best_epoch(plain) == 1 and not curves.stopped_early(plain)


def test_a_run_without_epochs_or_pictures_of_layers(small, tmp_path):
    train.train(small(epochs=0), tmp_path)
    found = make_figures(read_run(tmp_path, 'new'), RestoredModel.load(tmp_path))
    assert set(FIGURES) - set(found) == {'learning_curves', 'feature_maps'}


def test_several_runs_on_one_page(data_dir, trained, tmp_path, browser):
    train.train(make_small(data_dir, epochs=1), tmp_path / '_$a^$')  # no formula, and not hidden
    page_path = compare_runs([str(trained), str(tmp_path / '_$a^$')], tmp_path / 'both')
    with opened(browser, page_path.as_uri()) as page:
        assert [s.get_attribute('id') for s in page.locator('section').all()] == [
            'accuracies', 'runs', 'learning_curves', 'pairs',
        ]  # fmt: skip
        assert page.locator('#runs tbody tr').count() == 2 and page.locator('#pairs tbody tr').count() == 1
        assert '_$a^$' in page.locator('#learning_curves svg').text_content()
        page.locator('#accuracies [id$="run-0-left"]').hover()
        expect(page.locator('#tip')).to_contain_text('run: 0.')
    with pytest.raises(UserError, match=r"--workdir='.*' is a run, whose own report is there"):
        compare_runs([str(trained), str(tmp_path / '_$a^$')], trained)
    with pytest.raises(UserError, match='--run names one run only'):
        compare_runs([str(trained)], tmp_path / 'one')


def test_what_is_no_finished_run(forked, workdir, tmp_path):
    unfinished = shutil.copytree(workdir, tmp_path / 'unfinished')
    (unfinished / 'eval.json').unlink()
    for arguments, told in (
        ((), '--mode=report needs --workdir'),
        (('--workdir=nowhere',), "--workdir 'nowhere' does not exist"),
        (('--workdir=unfinished',), "'unfinished' holds no eval.json; it is written when a training ends"),
        (('--run=nothing-*',), "--run='nothing-*' is no workdir"),
    ):
        found = forked('--mode=report', *arguments)
        assert found.returncode == 2 and told in found.stderr and len(found.stderr.splitlines()) == 1
    result = json.loads((workdir / 'eval.json').read_text())
    (unfinished / 'eval.json').write_text(json.dumps({**result, 'step': 1}))
    with pytest.raises(UserError, match='is of step 1, and the run ends with step 564'):
        report(unfinished)
    (unfinished / 'eval.json').write_text(json.dumps(result))
    np.savez(unfinished / 'predictions.npz', label=np.zeros(3), prediction=np.zeros(3))
    with pytest.raises(UserError, match=r'predictions.npz.* does not fit eval.json'):
        report(unfinished)
