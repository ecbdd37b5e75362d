"""Tests that images are framed like those of a dataset: MNIST's own digits are recovered from other forms."""

import numpy as np
import pytest
from digit_images import draw_digit, font_paths, paste_on_canvas, read_mnist_test
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy import ndimage

from mnist_jax.data import image_files
from mnist_jax.data.framing import frame_image
from mnist_jax.data.idx_builders import EMNIST_FRAMING, MNIST_FRAMING, FashionMnistIdx

SHAPE = (28, 28, 1)


@pytest.fixture(scope='module')
def digits():
    return read_mnist_test(40)[0]


def save_and_frame(picture, tmp_path, name='digit.png', framing=MNIST_FRAMING):
    """Saves a picture, reads it again and frames it."""
    picture.save(tmp_path / name)
    return frame_image(image_files.read(tmp_path / name), SHAPE, framing, 255)


def min_difference(image, digit):
    """Returns the least mean absolute difference over shifts by one pixel: the center of mass may round differently."""
    shifted = (np.roll(image, (down, right), (0, 1)) for down in (-1, 0, 1) for right in (-1, 0, 1))
    return min(np.abs(candidate.astype(float) - digit).mean() for candidate in shifted)


def test_digits_that_are_already_framed_are_not_changed(digits, tmp_path):
    for digit in digits:
        same = save_and_frame(Image.fromarray(digit), tmp_path)
        np.testing.assert_array_equal(same.image[..., 0], digit)
        inverted = save_and_frame(ImageOps.invert(Image.fromarray(digit)), tmp_path, 'digit.bmp')
        np.testing.assert_array_equal(inverted.image[..., 0], digit)
        assert (same.description, inverted.description) == ('unchanged', 'inverted (it was dark on light)')


@pytest.mark.parametrize('scale', [1, 4, 10])
def test_digits_are_recovered_from_other_sizes_positions_and_polarities(digits, tmp_path, scale):
    differences = []
    for digit in digits:
        large = Image.fromarray(digit).resize((28 * scale,) * 2, Image.Resampling.NEAREST)
        canvas = paste_on_canvas(large, (40 * scale, 35 * scale), (9 * scale, 2 * scale))
        result = save_and_frame(ImageOps.invert(canvas), tmp_path)
        assert result.description.startswith('inverted') and f'from {40 * scale} x {35 * scale}' in result.description
        differences.append(min_difference(result.image[..., 0], digit))
    # In gray levels, of 256. The mean pixel of a digit is about 33; a shift by one pixel makes a mean difference of 15.
    assert np.mean(differences) < (1 if scale == 1 else 6) and max(differences) < 15


def test_digits_are_recovered_from_transparent_and_colored_images(digits, tmp_path):
    digit = Image.fromarray(digits[0]).resize((84, 84))
    ink = Image.new('RGBA', digit.size, (10, 20, 120, 0))
    ink.putalpha(digit)  # dark ink on a transparent background
    chalk = Image.new('RGBA', digit.size, (250, 250, 200, 0))
    chalk.putalpha(digit)
    red = Image.composite(
        Image.new('RGB', digit.size, (200, 30, 30)), Image.new('RGB', digit.size, (240, 240, 220)), digit
    )
    deep = Image.fromarray(np.asarray(digit).astype(np.uint16) * 257)
    expected = save_and_frame(digit, tmp_path).image.astype(float)
    for picture in (ink, chalk, red, deep, digit.convert('P')):
        image = save_and_frame(picture, tmp_path).image
        assert np.abs(image - expected).mean() < 3, picture


def test_digits_are_recovered_from_photographs_with_uneven_light_noise_and_specks(digits, tmp_path):
    rng = np.random.default_rng(0)
    for digit in digits[:10]:
        canvas = np.asarray(paste_on_canvas(Image.fromarray(digit).resize((180, 180)), (320, 240), (80, 30)), float)
        light = 120 + 100 * np.linspace(0, 1, 320)[None] * np.linspace(0.5, 1, 240)[:, None]
        photograph = light * (1 - 0.6 * canvas / 255) + rng.normal(0, 4, canvas.shape)
        photograph[5:9, 5:9] = 20  # a speck
        result = save_and_frame(
            Image.fromarray(np.clip(photograph, 0, 255).astype(np.uint8)), tmp_path, 'photograph.jpg'
        )
        assert min_difference(result.image[..., 0], digit) < 15


@pytest.mark.parametrize(('table', 'paper', 'ink', 'angle'), [(60, 220, 40, 8), (20, 160, 90, -3), (120, 200, 90, 0)])
def test_digits_are_recovered_from_a_sheet_of_paper_on_a_table(digits, tmp_path, table, paper, ink, angle):
    rng = np.random.default_rng(0)
    for digit in digits[:5]:
        size = (320, 400)
        sheet, mask = Image.new('L', size, paper), Image.new('L', size, 255)
        # The sheet is rotated below, so rotate the digit the other way to keep it upright in the photograph.
        large = Image.fromarray(digit).resize((150, 150), Image.Resampling.BICUBIC).rotate(-angle)
        sheet.paste(ink, (60, 150), large)
        sheet, mask = (layer.rotate(angle, Image.Resampling.BICUBIC, expand=True) for layer in (sheet, mask))
        scene = Image.new('L', (640, 480), table)
        scene.paste(sheet, (100, 20), mask)
        light = np.linspace(0.85, 1.05, 640)[None]
        photograph = np.clip(np.asarray(scene) * light + rng.normal(0, 4, (480, 640)), 0, 255).astype(np.uint8)
        result = save_and_frame(Image.fromarray(photograph), tmp_path, 'photograph.jpg')
        assert 'cropped to the sheet of paper' in result.description
        assert min_difference(result.image[..., 0], digit) < 15


@pytest.mark.parametrize(('edge', 'width'), [((0, 0, 199, 149), 2), ((0, 0, 9, 149), 5), ((0, 140, 199, 149), 5)])
def test_borders_and_dark_edges_of_scans_are_removed(digits, tmp_path, edge, width):
    for digit in digits[:10]:
        scan = ImageOps.invert(paste_on_canvas(Image.fromarray(digit).resize((110, 110)), position=(50, 20)))
        expected = save_and_frame(scan, tmp_path).image
        ImageDraw.Draw(scan).rectangle(edge, outline=0, width=width)
        result = save_and_frame(scan, tmp_path)
        assert 'lines along the edges removed' in result.description
        assert min_difference(result.image[..., 0], expected[..., 0]) < 3
        # A digit may reach the edges as well.
        tight = save_and_frame(Image.fromarray(digit).crop(Image.fromarray(digit).getbbox()).resize((90, 90)), tmp_path)
        assert 'edges' not in tight.description


@pytest.mark.parametrize('character', ['0', '1', '5', '8', '9', '\N{FULL BLOCK}'])
@pytest.mark.parametrize('dark', [False, True])
def test_bold_digits_and_empty_rectangles_are_not_mistaken_for_paper(tmp_path, character, dark):
    picture = Image.new('L', (300, 240), 255 * dark)
    font = ImageFont.truetype(font_paths()[0], 200)
    ImageDraw.Draw(picture).text((80, 0), character, fill=255 * (not dark), font=font, stroke_width=10)
    assert 'paper' not in save_and_frame(picture, tmp_path).description


@pytest.mark.parametrize('font', font_paths())
@pytest.mark.parametrize('size', [16, 200])
def test_digits_in_fonts_get_the_size_and_position_of_mnist(tmp_path, font, size):
    for digit in range(10):
        image = save_and_frame(draw_digit(font, digit, size, dark=digit % 2), tmp_path).image[..., 0]
        mask = image > 32
        sides = [np.ptp(np.flatnonzero(mask.any(axis=axis))) + 1 for axis in (0, 1)]
        assert 19 <= max(sides) <= 20
        np.testing.assert_allclose(ndimage.center_of_mass(image), (14, 14), atol=0.51)
        assert image.max() == 255


def test_thin_strokes_are_thickened(tmp_path):
    picture = Image.new('L', (500, 500), 255)
    ImageDraw.Draw(picture).ellipse((100, 50, 300, 450), outline=0, width=3)  # a zero drawn with a thin line
    image = save_and_frame(picture, tmp_path).image[..., 0]
    row = image[14] / 255
    assert 2.5 < row.sum() < 5  # two strokes


def test_clothes_fill_the_frame_and_keep_their_interior(tmp_path):
    picture = Image.new('L', (300, 200), 255)
    ImageDraw.Draw(picture).rectangle((100, 40, 179, 159), fill=90)  # 80 x 120
    image = save_and_frame(picture, tmp_path, framing=FashionMnistIdx.FRAMING).image[..., 0]
    mask = image > 32
    assert mask.any(axis=1).sum() == 28 and mask.any(axis=0).sum() == 19  # 28 * 80 / 120
    assert mask[:, 5:23].all() and not mask[:, :4].any() and not mask[:, 24:].any()


@pytest.mark.parametrize(('top', 'left', 'unchanged'), [(2, 8, True), (1, 9, True), (2, 2, False), (4, 8, False)])
def test_a_bounding_box_that_is_not_in_the_middle_is_centered(tmp_path, top, left, unchanged):
    array = np.zeros((28, 28), np.uint8)
    array[top : top + 24, left : left + 12] = 200
    framed = save_and_frame(Image.fromarray(array), tmp_path, framing=EMNIST_FRAMING)
    assert (framed.description == 'unchanged') is unchanged
    ends = np.argwhere(framed.image[..., 0] > 100)[[0, -1]]
    np.testing.assert_allclose(ends.mean(0), [13.5, 13.5], atol=1)


def test_unusual_images_are_framed_and_blank_images_are_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (200, 300)).astype(np.uint8)
    dot, frame, line = (Image.new('L', size, 255) for size in ((100, 100), (100, 100), (1000, 3)))
    ImageDraw.Draw(dot).point((50, 50), fill=0)
    ImageDraw.Draw(frame).rectangle((0, 0, 99, 99), outline=0, width=3)
    ImageDraw.Draw(line).line((0, 1, 999, 1), fill=0)
    checkerboard = np.indices((90, 90)).sum(0) % 2 * 255
    for array in (noise, checkerboard, dot, frame, np.array([[0, 255], [255, 0]]), np.array([[0, 255, 0, 0]])):
        result = save_and_frame(Image.fromarray(np.asarray(array).astype(np.uint8)), tmp_path)
        assert result.image.max() == 255, array
    for picture in (line, Image.new('L', (50, 50), 130), Image.new('1', (1, 1))):
        with pytest.raises(ValueError, match='it is blank'):
            save_and_frame(picture, tmp_path)
