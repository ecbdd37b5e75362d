"""Tests the report page of a run in a browser, its files, and the errors for unfinished or damaged runs."""

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from conftest import open_page
from digit_images import read_mnist_test
from matplotlib.image import imread

from mnist_jax import train
from mnist_jax.errors import UserError
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.learning.label_errors import find_label_suspects
from mnist_jax.report.figures import SVG_NAMESPACE
from mnist_jax.report.image_grids import PredictedExamples, label_suspects
from mnist_jax.report.run_page import make_figures, make_known_errors_table, write_report
from mnist_jax.workdir.finished_runs import read_run

FIGURES = (
    'learning_curves', 'confusion_matrix', 'flow', 'by_class', 'mistakes', 'explanations', 'doubts', 'feature_space',
    'calibration', 'filters', 'feature_maps',
)  # fmt: skip
CAVEATS = {
    'overlaps': [{'first': 'train', 'second': 'test', 'examples': 1234}],
    'reschedules': [{'step': 188, 'epochs_before': 1, 'epochs_after': 3}],
}
TABLES = ('statistics', 'errors', 'prediction_sets', 'label_suspects', 'layers', 'config')
DATA_FIGURES = ('outliers',)
DATA = ('data', 'duplicates', *DATA_FIGURES)


def report(path):
    return write_report(RestoredModel.load(path))


@pytest.fixture(scope='module')
def workdir(trained, tmp_path_factory):
    """A finished run with a report; its name needs escaping in HTML."""
    path = tmp_path_factory.mktemp('reported') / '<b>run & "co"'
    shutil.copytree(trained, path)
    result = json.loads((path / 'eval.json').read_text())
    (path / 'eval.json').write_text(json.dumps({**result, **CAVEATS}))
    assert report(path) == path / 'report' / 'index.html'
    return path


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_page_shows_all_sections_and_tooltips_in_both_color_schemes(workdir, browser, scheme):
    from playwright.sync_api import expect

    with open_page(browser, (workdir / 'report' / 'index.html').as_uri(), color_scheme=scheme) as page:
        assert page.locator('h1').inner_text() == '<b>run & "co": cnn on mnist'
        result = json.loads((workdir / 'eval.json').read_text())
        assert f'{result["accuracy"]:.4f}' in page.locator('.facts').inner_text()
        assert [section.get_attribute('id') for section in page.locator('section').all()] == [*FIGURES, *DATA, *TABLES]
        for name in (*FIGURES, *DATA_FIGURES):
            box = page.locator(f'#{name} svg').bounding_box()
            assert box['width'] > 700 and box['height'] > 60, name
        # The browser decoded every image in the figures.
        assert page.evaluate("[...document.querySelectorAll('image')].every(i => i.getBBox().width > 0)")
        cell = page.locator('#confusion_matrix [id$="cell-count-7-7"]')
        cell.hover()
        count = result['confusion_matrix'][7][7]
        expect(page.locator('#tip')).to_contain_text(f'true 7, predicted 7: {count}')
        page.locator('h1').hover()
        expect(page.locator('#tip')).to_be_hidden()
        background = page.evaluate('getComputedStyle(document.body).backgroundColor')
        assert (max(map(int, re.findall(r'\d+', background))) < 60) == (scheme == 'dark')


def test_clicking_a_heading_sorts_the_table_numerically(workdir, browser):
    with open_page(browser, (workdir / 'report' / 'index.html').as_uri()) as page:
        support = page.locator('#statistics th button').last

        def column():
            cells = page.locator('#statistics tbody tr td:last-child').all_inner_texts()
            return [int(cell.replace(',', '')) for cell in cells]

        unsorted = column()
        support.click()
        ascending = column()
        support.click()
        descending = column()
        assert ascending == sorted(unsorted) == descending[::-1] != unsorted
        assert page.locator('#statistics tfoot td:first-child').all_inner_texts() == ['macro mean', 'weighted mean']


def test_page_is_self_contained_and_prints_in_light_colors(workdir, browser, tmp_path):
    from playwright.sync_api import expect

    shutil.copy(workdir / 'report' / 'index.html', tmp_path / 'alone.html')
    requests = []
    page = browser.new_page()
    page.on('request', lambda request: requests.append(request.url[:30]))
    page.goto((tmp_path / 'alone.html').as_uri())
    assert [url for url in requests if not url.startswith('data:')] == [(tmp_path / 'alone.html').as_uri()[:30]]
    page.emulate_media(media='print', color_scheme='dark')
    expect(page.locator('nav')).to_be_hidden()
    assert page.evaluate('getComputedStyle(document.body).backgroundColor') == 'rgb(255, 255, 255)'
    page.close()


def test_report_directory_holds_every_figure_as_png_and_svg(workdir):
    names = {path.name for path in (workdir / 'report').iterdir()}
    drawn = (*FIGURES, *DATA_FIGURES)
    assert names == {'index.html', *(f'{name}.{kind}' for name in drawn for kind in ('png', 'svg'))}
    for name in drawn:
        pixels = imread(workdir / 'report' / f'{name}.png')
        assert min(pixels.shape[:2]) > 100 and pixels[..., :3].std() > 0.02, name
        root = ElementTree.parse(workdir / 'report' / f'{name}.svg').getroot()
        ids = [element.get('id') for element in root.iter() if element.get('id')]
        titles = root.findall(f'.//{{{SVG_NAMESPACE}}}title')
        assert titles and len(ids) == len(set(ids)), name
    page = (workdir / 'report' / 'index.html').read_text()
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_page_names_overlapping_splits_a_changed_schedule_and_the_cross_entropy(workdir):
    page = (workdir / 'report' / 'index.html').read_text()
    result = json.loads((workdir / 'eval.json').read_text())
    for name, fact in (
        ('overlap', 'train and test share 1,234 examples'),
        ('schedule', 'changed from that of 1 to that of 3 epochs at step 188'),
        ('loss', f'{result["loss"]:.4f} (cross entropy)'),
        ('cross-entropy', f'{result["cross_entropy"]:.4f}'),
    ):
        assert f'<dt>{name}</dt><dd>{fact}</dd>' in page


def test_untrained_mlp_has_no_learning_curves_and_no_feature_maps(small, tmp_path):
    train.train(small(epochs=0), tmp_path)
    figures = make_figures(read_run(tmp_path, 'new'), RestoredModel.load(tmp_path))
    assert set(FIGURES) - set(figures) == {'learning_curves', 'feature_maps'}


def test_missing_or_unfinished_run_is_a_one_line_error(forked, workdir, tmp_path):
    unfinished = shutil.copytree(workdir, tmp_path / 'unfinished')
    (unfinished / 'eval.json').unlink()
    for arguments, message in (
        ((), '--mode=report needs --workdir'),
        (('--workdir=nowhere',), "--workdir must be the directory of a run, got 'nowhere', which does not exist"),
        (('--workdir=unfinished',), "'unfinished' has no eval.json; it is written when training ends"),
        (
            ('--run=nothing-*',),
            "a pattern of workdirs such as 'runs/cnn-*', got 'nothing-*'",
        ),
    ):
        finished = forked('--mode=report', *arguments)
        assert finished.returncode == 2 and message in finished.stderr and len(finished.stderr.splitlines()) == 1


def test_results_of_another_step_or_other_predictions_are_refused(workdir, tmp_path):
    damaged = shutil.copytree(workdir, tmp_path / 'damaged')
    result = json.loads((workdir / 'eval.json').read_text())
    (damaged / 'eval.json').write_text(json.dumps({**result, 'step': 1}))
    with pytest.raises(UserError, match='must be the result of the restored checkpoint, with the step 564, got 1;'):
        report(damaged)
    (damaged / 'eval.json').write_text(json.dumps(result))
    np.savez(damaged / 'predictions.npz', label=np.zeros(3), prediction=np.zeros(3))
    with pytest.raises(UserError, match=r'predictions.npz.* does not match eval.json'):
        report(damaged)


def test_label_suspects_are_drawn_with_the_class_that_is_suggested():
    # The mean probability of the label is 0.9 for class 0 and 0.4 for class 1, so the first example is confidently 1.
    probabilities = np.array([[0.6, 0.4], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.6, 0.4]])
    examples = PredictedExamples(
        lambda index: np.zeros((4, 4, 1)), np.array([0, 0, 0, 0, 1]), probabilities, ('a', 'b')
    )
    suspects = find_label_suspects(probabilities, examples.label)
    figure = label_suspects(examples, suspects)
    titles = [axis.get_title() for axis in figure.figure.axes if axis.get_title()]
    assert titles == ['0: a\n\u2192 b 40.0%'] and 'training example 0, label a' in figure.tooltips['example-0']


def test_the_errors_of_a_run_are_compared_with_the_known_label_errors():
    images, labels = read_mnist_test()
    predictions = labels.copy()
    predictions[[947, 2130, 2654]] = 9, 9, 1  # of which two are what people saw
    predictions[:17] = (labels[:17] + 1) % 10
    probabilities = 0.9 * np.eye(10)[predictions] + 0.01
    examples = PredictedExamples(lambda index: images[index, ..., None], labels, probabilities, tuple('0123456789'))
    table = make_known_errors_table({'dataset': 'mnist', 'split': 'test'}, examples)['known_label_errors']
    assert '3 of the 20 errors of this run are among them; without them, its accuracy is 0.9983' in table.about
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows['947'] == ['8', '9', '9', '0.9100'] and rows['2654'] == ['6', 'no majority', '1', '0.9100']
    assert rows['6651'] == ['0', '6', '0', '0.9100'] and len(rows) == 15
    assert not make_known_errors_table({'dataset': 'mnist', 'split': 'train'}, examples)
