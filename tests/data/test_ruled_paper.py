"""Tests that lines of ruled paper are removed, and that digits on it are framed as if the paper were plain."""

import numpy as np
import pytest
from digit_images import draw_digit, font_paths, paste_on_canvas, read_mnist_test
from PIL import Image, ImageDraw, ImageOps
from ruled_papers import KINDS, draw_on_paper

from mnist_jax.data.framing import frame_image
from mnist_jax.data.idx_builders import MNIST_FRAMING

LEFT = 'lines or a pattern left'


@pytest.fixture(scope='module')
def test_split():
    return read_mnist_test()


def frame(picture):
    return frame_image(np.asarray(picture.convert('L'), np.float32), (28, 28, 1), MNIST_FRAMING, 255)


def similarity(image, expected):
    """Returns the highest correlation over shifts by up to two pixels."""
    shifts = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
    return max(np.corrcoef(np.roll(image[..., 0], shift, (0, 1)).ravel(), expected.ravel())[0, 1] for shift in shifts)


@pytest.mark.parametrize('kind', KINDS)
def test_digits_on_ruled_paper_are_framed_as_on_plain_paper(test_split, kind):
    images, labels = test_split
    rng = np.random.default_rng(KINDS.index(kind))
    similarities, removed = [], []
    for digit in range(10):
        source = images[labels == digit] if digit % 3 else None  # otherwise a font
        ruled, plain = draw_on_paper(kind, digit, rng, source, sides=(200, 320))
        result = frame(ruled)
        removed.append('of ruled paper removed' in result.description)
        similarities.append(similarity(result.image, frame(plain).image))
    assert sum(np.array(similarities) > 0.8) >= 9, similarities
    assert kind == 'dotted' or sum(removed) >= 9


@pytest.mark.parametrize('polarity', ['dark on light', 'light on dark'])
def test_the_lines_that_are_removed_are_counted(test_split, polarity):
    page = Image.new('L', (300, 300), 250)
    for y in range(25, 300, 50):
        ImageDraw.Draw(page).line((0, y, 299, y), fill=120, width=2)
    digit = Image.fromarray(test_split[0][0]).resize((140, 140), Image.Resampling.BICUBIC)
    plain = Image.new('L', page.size, 250)
    for picture in (page, plain):
        picture.paste(10, (80, 80), digit)
    if polarity == 'light on dark':
        page, plain = ImageOps.invert(page), ImageOps.invert(plain)
    result = frame(page)
    assert '6 lines of ruled paper removed' in result.description and LEFT not in result.description
    assert similarity(result.image, frame(plain).image) > 0.95


def test_lines_on_a_sheet_of_paper_on_a_table_are_removed(test_split):
    sheet, plain = (Image.new('L', (400, 300), 230) for _ in range(2))
    for y in range(20, 300, 40):
        ImageDraw.Draw(sheet).line((0, y, 399, y), fill=150, width=2)
    digit = Image.fromarray(test_split[0][0]).resize((150, 150), Image.Resampling.BICUBIC)
    results = []
    for picture in (sheet, plain):
        picture.paste(40, (120, 70), digit)
        photograph = Image.new('L', (560, 420), 60)
        photograph.paste(picture, (80, 60))
        results.append(frame(photograph))
    assert 'cropped to the sheet of paper' in results[0].description and 'lines of ruled' in results[0].description
    assert similarity(results[0].image, results[1].image) > 0.9


def test_strokes_that_cross_the_picture_are_not_mistaken_for_lines(test_split):
    for font in font_paths():
        for digit in (1, 4, 7):
            picture = draw_digit(font, digit, 160, dark=True)
            tight = picture.crop(ImageOps.invert(picture).getbbox())
            assert 'removed' not in frame(tight).description, (font, digit)
    for image in test_split[0][:60]:
        large = Image.fromarray(image).resize((112, 112), Image.Resampling.BICUBIC)
        tight = large.crop(large.getbbox())
        assert 'removed' not in frame(tight).description


def test_what_is_left_of_a_pattern_is_reported(test_split):
    """A wavy pattern has no straight lines."""
    y, x = np.indices((300, 300))
    waves = np.where((y + 12 * np.sin(x / 20)) % 30 < 4, 60.0, 250.0)
    picture = Image.fromarray(waves.astype(np.uint8))
    digit = Image.fromarray(test_split[0][0]).resize((140, 140), Image.Resampling.BICUBIC)
    picture.paste(10, (80, 80), digit)
    assert LEFT in frame(picture).description
    underlined = ImageOps.invert(paste_on_canvas(digit, (300, 300), (80, 80)))
    ImageDraw.Draw(underlined).line((0, 195, 299, 195), fill=0, width=8)
    assert LEFT in frame(underlined).description or 'line of ruled paper removed' in frame(underlined).description


@pytest.mark.parametrize(('side', 'radius'), [(130, 1), (130, 10), (300, 3), (300, 40)])
def test_a_dot_is_reported(side, radius):
    picture = Image.new('L', (side, side), 255)
    ImageDraw.Draw(picture).ellipse((60 - radius, 60 - radius, 60 + radius, 60 + radius), fill=0)
    assert frame(picture).description.endswith('only a dot (expected a digit)')


def test_digits_are_not_reported_as_dots(test_split):
    for image in test_split[0][:40]:
        canvas = paste_on_canvas(Image.fromarray(image).resize((56, 56)), (150, 150), (40, 50))
        assert 'dot' not in frame(canvas).description
    for font in font_paths():
        for digit in range(10):
            assert 'dot' not in frame(draw_digit(font, digit, 16 + 10 * digit, dark=True)).description
