"""The page that runs a model in the browser, next to the model itself."""

import json
import re

import numpy as np
import pytest
from conftest import ROOT, make_small, open_page

from mnist_jax.errors import UserError
from mnist_jax.inference.browser import packaged_script, to_javascript
from mnist_jax.inference.packaged import PACKAGED
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.training.plan import make_plan
from mnist_jax.workdir.snapshot import EpochProgress, Snapshot

# Strokes on a pad of 100 x 100: each a list of points.
DRAWINGS = {
    'seven': [[(25, 20), (75, 20), (45, 85)]],
    'four in two strokes': [[(40, 15), (25, 55), (75, 55)], [(62, 35), (60, 90)]],
    'one, small and in a corner': [[(8, 10), (10, 35)]],
    'line along the border': [[(1, 1), (1, 99)], [(40, 30), (60, 30), (45, 70)]],
    'one, from top to bottom': [[(50, 3), (50, 97)]],
    'one, slanted': [[(30, 3), (60, 97)]],
    'eight, large': [[(50, 50), (20, 25), (50, 3), (80, 25), (50, 50), (20, 75), (50, 97), (80, 75), (50, 50)]],
    'dot and speck': [[(50, 50), (50, 50)], [(50, 20), (52, 75)]],
    'to the border': [[(0, 30), (50, 2), (99, 50), (50, 99)]],
}


def open_pad(browser, model, directory):
    text = (ROOT / 'docs' / 'draw.md').read_text()
    page = re.search(r'<style>.*</script>', text, re.DOTALL)[0].replace('../draw', 'draw')
    (directory / 'index.html').write_text(f'<!DOCTYPE html><meta charset="utf-8"><title>Draw</title>{page}')
    (directory / 'draw.js').write_text((ROOT / 'docs' / 'draw.js').read_text())
    (directory / 'draw-model.js').write_text(to_javascript(model, 'model: one for this test'))
    return open_page(browser, (directory / 'index.html').as_uri())


def test_the_script_of_the_documentation_has_the_packaged_model():
    script = packaged_script()
    model = json.loads(script[script.index('{') : script.rindex('}') + 1])
    assert model['about'].startswith('model: handwriting') and model['shape'] == [28, 28, 1]
    assert [layer['type'] for layer in model['layers']].count('conv') == 5


def draw(page, strokes):
    page.locator('#draw-clear').click()
    box = page.locator('#draw-pad').bounding_box()
    for first, *others in strokes:
        for number, (x, y) in enumerate([first, *others]):
            page.mouse.move(box['x'] + x / 100 * box['width'], box['y'] + y / 100 * box['height'], steps=4)
            if not number:
                page.mouse.down()
        page.mouse.up()


@pytest.mark.parametrize('name', ['packaged', 'same padding, no normalization'])
def test_the_page_has_the_classes_and_probabilities_of_the_model(browser, trained, tmp_path, name):
    model = RestoredModel.load(PACKAGED if name == 'packaged' else trained)
    with open_pad(browser, model, tmp_path) as page:
        assert page.locator('#draw-class').text_content() == ''
        assert page.locator('#draw-about').text_content() == 'model: one for this test'
        for strokes in DRAWINGS.values():
            draw(page, strokes)
            grays = np.reshape(page.evaluate('drawing()'), (64, 64)).astype(np.float32)
            assert grays.max() == 255 and page.evaluate('frameImage(drawing()).length') == 784
            framed = model.frame(grays).image
            assert np.abs(np.ravel(framed) - page.evaluate('frameImage(drawing())')).max() <= 1
            (expected,) = model.predict(framed[None])
            found = page.evaluate('probabilities(frameImage(drawing()))')
            np.testing.assert_allclose(found, expected, atol=1e-3)
            assert page.locator('#draw-class').text_content() == model.class_names[expected.argmax()]
            shown = page.locator('#draw-probabilities output').all_text_contents()
            assert shown == [f'{100 * probability:.1f} %' for probability in found]
        page.locator('#draw-clear').click()
        assert page.locator('#draw-class').text_content() == '' and page.evaluate('frameImage(drawing())') is None


def test_the_page_classifies_pixels_like_the_model(browser, trained, tmp_path):
    model = RestoredModel.load(trained)
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1), np.uint8)
    with open_pad(browser, model, tmp_path) as page:
        found = [page.evaluate('pixels => probabilities(pixels)', image.ravel().tolist()) for image in images]
    np.testing.assert_allclose(found, model.predict(images), atol=1e-5)


@pytest.mark.parametrize(
    ('model', 'fields', 'message'),
    [
        ('mlp', {}, 'a model for the browser must be a cnn with ReLU, and batch normalization or none'),
        (
            'cnn',
            {'dataset__normalize': 'none'},
            "a model for the browser must have dataset.normalize 'unit', got 'none'",
        ),
        (
            'cnn',
            {'dtype': 'bfloat16'},
            'a model for the browser must be trained in float32 on images framed as Framing',
        ),
    ],
)
def test_other_models_are_refused(data_dir, tmp_path, model, fields, message):
    plan = make_plan(make_small(data_dir, model, **fields))
    snapshot = Snapshot(plan.create_state(), plan.callbacks.init(), EpochProgress())
    with pytest.raises(UserError, match=message):
        to_javascript(RestoredModel(tmp_path, plan, snapshot), '')
