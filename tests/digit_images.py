"""Images of digits for the tests: the raw MNIST files, digits drawn in fonts, and pictures on a larger canvas."""

from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from mnist_jax.data import idx

MNIST = Path(__file__).parent.parent / 'mnist_jax' / 'data' / 'mnist'


def read_mnist_test(count=None):
    """Returns the first `count` images, uint8 NxHxW, and labels of MNIST's test split; by default, all."""
    images, labels = (idx.find(MNIST, f't10k-{name}-ubyte') for name in ('images-idx3', 'labels-idx1'))
    return idx.read(images, dimensions=3)[:count], idx.read(labels, dimensions=1)[:count]


def font_paths():
    """Returns the paths of four different fonts."""
    names = ('DejaVuSans', 'DejaVuSerif-Bold', 'DejaVuSansMono-Oblique', 'STIXGeneral')
    return [f'{matplotlib.get_data_path()}/fonts/ttf/{name}.ttf' for name in names]


def draw_digit(font, digit, size, dark):
    """Returns a digit drawn off the center of a canvas; with `dark`, it is dark on light."""
    picture = Image.new('L', (3 * size, 2 * size), 255 * dark)
    ImageDraw.Draw(picture).text(
        (size, size // 8), str(digit), fill=255 * (not dark), font=ImageFont.truetype(font, size)
    )
    return picture


def paste_on_canvas(picture, size=(200, 150), position=(90, 20)):
    """Returns a picture on a larger black canvas."""
    canvas = Image.new('L', size)
    canvas.paste(picture, position)
    return canvas
