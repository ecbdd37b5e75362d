"""Tests that image files are read as gray levels, and that other files are refused."""

import struct

import numpy as np
import pytest
from PIL import Image

from mnist_jax.data import image_files
from mnist_jax.errors import UserError


@pytest.mark.parametrize(('ink', 'background'), [(10, 255), (250, 0)])
def test_transparent_pixels_become_a_contrasting_background(tmp_path, ink, background):
    picture = Image.new('LA', (3, 1), (ink, 0))
    picture.putpixel((1, 0), (ink, 255))
    picture.save(tmp_path / 'digit.png')
    assert image_files.read(tmp_path / 'digit.png').tolist() == [[background, ink, background]]


@pytest.mark.parametrize(('values', 'expected'), [((0, 65535), (0, 255)), ((0, 1023), (0, 255)), ((0, 255), (0, 255))])
def test_the_range_of_16_bit_images_is_detected(tmp_path, values, expected):
    Image.fromarray(np.array([values], np.uint16)).save(tmp_path / 'digit.png')
    np.testing.assert_allclose(image_files.read(tmp_path / 'digit.png'), [expected], rtol=1e-6)


@pytest.mark.parametrize(
    ('contents', 'problem'),
    [
        (b'', 'an empty file'),
        (b'a digit', 'another format or a damaged file'),
        (b'\x89PNG\r\n\x1a\n' + bytes(20), 'another format or a damaged file'),
        (b'\0\0\0\x18ftypheic' + bytes(20), 'a HEIC file; convert it to PNG or JPEG first'),
        (b'\0\0\0\x18ftypmif1' + bytes(20), 'a HEIC file; convert it to PNG or JPEG first'),
    ],
)
def test_files_in_other_formats_are_refused(tmp_path, contents, problem):
    (tmp_path / 'digit.png').write_bytes(contents)
    with pytest.raises(UserError, match=f"digit.png' must be a PNG, JPEG, BMP, WebP, TIFF or GIF file, got {problem}$"):
        image_files.read(tmp_path / 'digit.png')


def test_a_photograph_whose_exif_data_cannot_be_written_again_is_refused(tmp_path):
    entries = (0x0112, 3, 1, 6), (0x0128, 4, 1, 70000)  # the orientation; and a unit that is no 16-bit number
    exif = b'Exif\0\0II*\0' + struct.pack('<IH', 8, 2) + b''.join(struct.pack('<HHII', *entry) for entry in entries)
    Image.new('L', (8, 8)).save(tmp_path / 'photo.jpg', exif=exif + bytes(4))
    with pytest.raises(UserError, match=r"photo.jpg' cannot be read: .*ushort"):
        image_files.read(tmp_path / 'photo.jpg')


def test_a_tiff_in_lab_colors_is_read(tmp_path):
    Image.merge('LAB', [Image.new('L', (4, 4), value) for value in (100, 128, 128)]).save(tmp_path / 'lab.tif')
    expected = 255 * ((100 / 255 * 100 + 16) / 116) ** 3  # the luminance of this lightness, before the curve of sRGB
    level = 255 * (1.055 * (expected / 255) ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(image_files.read(tmp_path / 'lab.tif'), level, atol=1)
    assert image_files.read_pixels(tmp_path / 'lab.tif', channels=1).shape == (4, 4, 1)


@pytest.mark.parametrize('name', ['digit.webp', 'digit.tif', 'digit.TIFF', 'digit.gif'])
def test_the_first_frame_of_webp_tiff_and_gif_files_is_read(tmp_path, name):
    digit = np.full((20, 30), 255, np.uint8)
    digit[5:15, 10:14] = 0
    frames = [Image.fromarray(array).convert('RGB') for array in (digit, 255 - digit)]
    options = {'lossless': True} if name == 'digit.webp' else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(image_files.read(tmp_path / name), digit)
    with pytest.raises(UserError, match=f'{name}.* (cannot be read|must be a PNG)'):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:60])
        with image_files.without_warnings():
            image_files.read(tmp_path / name)


def test_truncated_and_huge_images_are_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (100, 100)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / 'whole.png')
    (tmp_path / 'cut.png').write_bytes((tmp_path / 'whole.png').read_bytes()[:-200])
    with pytest.raises(UserError, match=r"cut.png' cannot be read"):
        image_files.read(tmp_path / 'cut.png')
    Image.new('1', (20_000, 20_000)).save(tmp_path / 'huge.png')
    with pytest.raises(UserError, match=r"huge.png' must have at most 50,000,000 pixels, got (more|20000 x 20000)"):
        image_files.read(tmp_path / 'huge.png')
