"""Images made into a data set's: MNIST's own come back from other forms, and digits in fonts are framed as those."""

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy import ndimage

from mnist_jax.data import idx, images
from mnist_jax.data.builder import ArrayBuilder
from mnist_jax.data.idx_builders import FashionMnistIdx
from mnist_jax.errors import UserError

MNIST = ROOT / 'mnist_jax' / 'data' / 'mnist'
SHAPE = (28, 28, 1)


@pytest.fixture(scope='module')
def digits():
    return idx.read(idx.find(MNIST, 't10k-images-idx3-ubyte'), dimensions=3)[:40]


def framed(picture, tmp_path, name='digit.png', framing=ArrayBuilder.FRAMING):
    picture.save(tmp_path / name)
    return images.framed(images.read(tmp_path / name), SHAPE, framing, 255)


def on_canvas(picture, size=(200, 150), place=(90, 20)):
    canvas = Image.new('L', size)
    canvas.paste(picture, place)
    return canvas


def test_what_lies_as_mnist_does_is_left_as_it_is(digits, tmp_path):
    for digit in digits:
        same = framed(Image.fromarray(digit), tmp_path)
        np.testing.assert_array_equal(same.image[..., 0], digit)
        inverted = framed(ImageOps.invert(Image.fromarray(digit)), tmp_path, 'digit.bmp')
        np.testing.assert_array_equal(inverted.image[..., 0], digit)
        assert (same.done, inverted.done) == ('as it was', 'inverted (it was dark on light)')


@pytest.mark.parametrize('scale', [1, 4, 10])
def test_other_sizes_places_and_polarities_come_back(digits, tmp_path, scale):
    differences = []
    for digit in digits:
        large = Image.fromarray(digit).resize((28 * scale,) * 2, Image.Resampling.NEAREST)
        canvas = on_canvas(large, (40 * scale, 35 * scale), (9 * scale, 2 * scale))
        found = framed(ImageOps.invert(canvas), tmp_path)
        assert found.done.startswith('inverted') and f'from {40 * scale} x {35 * scale}' in found.done
        differences.append(least_difference(found.image[..., 0], digit))
    # Of 256 greys; a digit itself has about 33 in the mean, and is 15 from itself where it is shifted by a pixel.
    assert np.mean(differences) < (1 if scale == 1 else 6) and max(differences) < 15


def least_difference(image, digit):
    """The mean over the pixels, where the image may be shifted by one: so the centre of mass may be rounded."""
    shifted = (np.roll(image, (down, right), (0, 1)) for down in (-1, 0, 1) for right in (-1, 0, 1))
    return min(np.abs(each.astype(float) - digit).mean() for each in shifted)


def test_transparent_and_coloured_images(digits, tmp_path):
    digit = Image.fromarray(digits[0]).resize((84, 84))
    ink = Image.new('RGBA', digit.size, (10, 20, 120, 0))
    ink.putalpha(digit)  # Dark ink on nothing.
    chalk = Image.new('RGBA', digit.size, (250, 250, 200, 0))
    chalk.putalpha(digit)
    red = Image.composite(
        Image.new('RGB', digit.size, (200, 30, 30)), Image.new('RGB', digit.size, (240, 240, 220)), digit
    )
    deep = Image.fromarray(np.asarray(digit).astype(np.uint16) * 257)
    expected = framed(digit, tmp_path).image.astype(float)
    for picture in (ink, chalk, red, deep, digit.convert('P')):
        found = framed(picture, tmp_path).image
        assert np.abs(found - expected).mean() < 3, picture


def test_a_photograph_with_uneven_light_noise_and_specks(digits, tmp_path):
    rng = np.random.default_rng(0)
    for digit in digits[:10]:
        canvas = np.asarray(on_canvas(Image.fromarray(digit).resize((180, 180)), (320, 240), (80, 30)), float)
        light = 120 + 100 * np.linspace(0, 1, 320)[None] * np.linspace(0.5, 1, 240)[:, None]
        photograph = light * (1 - 0.6 * canvas / 255) + rng.normal(0, 4, canvas.shape)
        photograph[5:9, 5:9] = 20  # a speck
        found = framed(Image.fromarray(np.clip(photograph, 0, 255).astype(np.uint8)), tmp_path, 'photograph.jpg')
        assert least_difference(found.image[..., 0], digit) < 15


@pytest.mark.parametrize(('table', 'paper', 'ink', 'angle'), [(60, 220, 40, 8), (20, 160, 90, -3), (120, 200, 90, 0)])
def test_a_sheet_on_a_table_is_not_what_is_shown(digits, tmp_path, table, paper, ink, angle):
    rng = np.random.default_rng(0)
    for digit in digits[:5]:
        size = (320, 400)
        sheet, mask = Image.new('L', size, paper), Image.new('L', size, 255)
        # An upright sheet, and a digit that will be upright on the table.
        large = Image.fromarray(digit).resize((150, 150), Image.Resampling.BICUBIC).rotate(-angle)
        sheet.paste(ink, (60, 150), large)
        sheet, mask = (each.rotate(angle, Image.Resampling.BICUBIC, expand=True) for each in (sheet, mask))
        scene = Image.new('L', (640, 480), table)
        scene.paste(sheet, (100, 20), mask)
        light = np.linspace(0.85, 1.05, 640)[None]
        photograph = np.clip(np.asarray(scene) * light + rng.normal(0, 4, (480, 640)), 0, 255).astype(np.uint8)
        found = framed(Image.fromarray(photograph), tmp_path, 'photograph.jpg')
        assert 'cut out of the sheet it is on' in found.done
        assert least_difference(found.image[..., 0], digit) < 15


@pytest.mark.parametrize(('edge', 'width'), [((0, 0, 199, 149), 2), ((0, 0, 9, 149), 5), ((0, 140, 199, 149), 5)])
def test_frames_and_edges_of_scans_are_left_out(digits, tmp_path, edge, width):
    for digit in digits[:10]:
        scan = ImageOps.invert(on_canvas(Image.fromarray(digit).resize((110, 110)), place=(50, 20)))
        expected = framed(scan, tmp_path).image
        ImageDraw.Draw(scan).rectangle(edge, outline=0, width=width)
        found = framed(scan, tmp_path)
        assert 'without what runs along its edges' in found.done
        assert least_difference(found.image[..., 0], expected[..., 0]) < 3
        # A digit may reach the edges too.
        tight = framed(Image.fromarray(digit).crop(Image.fromarray(digit).getbbox()).resize((90, 90)), tmp_path)
        assert 'edges' not in tight.done


@pytest.mark.parametrize('shown', ['0', '1', '5', '8', '9', '\N{FULL BLOCK}'])
@pytest.mark.parametrize('dark', [False, True])
def test_bold_digits_and_empty_rectangles_are_no_sheets(tmp_path, shown, dark):
    picture = Image.new('L', (300, 240), 255 * dark)
    font = ImageFont.truetype(fonts()[0], 200)
    ImageDraw.Draw(picture).text((80, 0), shown, fill=255 * (not dark), font=font, stroke_width=10)
    assert 'sheet' not in framed(picture, tmp_path).done


def fonts():
    import matplotlib

    return [
        f'{matplotlib.get_data_path()}/fonts/ttf/{name}.ttf'
        for name in ('DejaVuSans', 'DejaVuSerif-Bold', 'DejaVuSansMono-Oblique', 'STIXGeneral')
    ]


def drawn(font, digit, size, dark):
    """A digit drawn off the centre of a canvas."""
    picture = Image.new('L', (3 * size, 2 * size), 255 * dark)
    ImageDraw.Draw(picture).text(
        (size, size // 8), str(digit), fill=255 * (not dark), font=ImageFont.truetype(font, size)
    )
    return picture


@pytest.mark.parametrize('font', fonts())
@pytest.mark.parametrize('size', [16, 200])
def test_drawn_digits_have_mnists_size_and_place(tmp_path, font, size):
    for digit in range(10):
        found = framed(drawn(font, digit, size, dark=digit % 2), tmp_path).image[..., 0]
        mask = found > 32
        sides = [np.ptp(np.flatnonzero(mask.any(axis=axis))) + 1 for axis in (0, 1)]
        assert 19 <= max(sides) <= 20
        np.testing.assert_allclose(ndimage.center_of_mass(found), (14, 14), atol=0.51)
        assert found.max() == 255


def test_thin_strokes_are_drawn_thicker(tmp_path):
    picture = Image.new('L', (500, 500), 255)
    ImageDraw.Draw(picture).ellipse((100, 50, 300, 450), outline=0, width=3)  # a zero of a hair's breadth
    found = framed(picture, tmp_path).image[..., 0]
    row = found[14] / 255
    assert 2.5 < row.sum() < 5  # two strokes


def test_clothes_fill_the_frame_and_keep_their_inside(tmp_path):
    picture = Image.new('L', (300, 200), 255)
    ImageDraw.Draw(picture).rectangle((100, 40, 179, 159), fill=90)  # 80 x 120
    found = framed(picture, tmp_path, framing=FashionMnistIdx.FRAMING).image[..., 0]
    mask = found > 32
    assert mask.any(axis=1).sum() == 28 and mask.any(axis=0).sum() == 19  # 28 * 80 / 120
    assert mask[:, 5:23].all() and not mask[:, :4].any() and not mask[:, 24:].any()


@pytest.mark.parametrize(
    ('contents', 'told'),
    [
        (b'', 'is no image that can be read; PNG, JPEG and BMP can'),
        (b'GIF89a nonsense', 'is no image that can be read'),
        (b'\x89PNG\r\n\x1a\n' + bytes(20), 'is no image that can be read'),
    ],
)
def test_what_is_no_image(tmp_path, contents, told):
    (tmp_path / 'digit.png').write_bytes(contents)
    with pytest.raises(UserError, match=f"digit.png' {told}"):
        images.read(tmp_path / 'digit.png')


def test_truncated_and_huge_images(digits, tmp_path):
    Image.fromarray(digits[0]).resize((100, 100)).save(tmp_path / 'whole.png')
    (tmp_path / 'cut.png').write_bytes((tmp_path / 'whole.png').read_bytes()[:-200])
    with pytest.raises(UserError, match=r"cut.png' cannot be read"):
        images.read(tmp_path / 'cut.png')
    Image.new('1', (20_000, 20_000)).save(tmp_path / 'huge.png')
    with pytest.raises(
        UserError, match=r"huge.png' is too large: more than 50,000,000 pixels|too large: 20000 x 20000"
    ):
        images.read(tmp_path / 'huge.png')


def test_odd_images_are_framed_or_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (200, 300)).astype(np.uint8)
    dot, frame, line = (Image.new('L', size, 255) for size in ((100, 100), (100, 100), (1000, 3)))
    ImageDraw.Draw(dot).point((50, 50), fill=0)
    ImageDraw.Draw(frame).rectangle((0, 0, 99, 99), outline=0, width=3)
    ImageDraw.Draw(line).line((0, 1, 999, 1), fill=0)
    checks = np.indices((90, 90)).sum(0) % 2 * 255
    for array in (noise, checks, dot, frame, np.array([[0, 255], [255, 0]]), np.array([[0, 255, 0, 0]])):
        found = framed(Image.fromarray(np.asarray(array).astype(np.uint8)), tmp_path)
        assert found.image.max() == 255, array
    for picture in (line, Image.new('L', (50, 50), 130), Image.new('1', (1, 1))):
        with pytest.raises(ValueError, match='it shows nothing'):
            framed(picture, tmp_path)
