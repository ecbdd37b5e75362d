"""The model that comes with the package: where it comes from, and how well it reads digits of other origins."""

import json
import re

import matplotlib
import numpy as np
import pytest
import sklearn.datasets
from digit_images import draw_digit, paste_on_canvas, read_mnist_test
from PIL import Image, ImageDraw, ImageOps
from ruled_papers import KINDS, draw_on_paper

import mnist_jax
from mnist_jax.config import config_sha256, load_config
from mnist_jax.data.image_files import to_grays
from mnist_jax.errors import UserError
from mnist_jax.evaluate import evaluate_workdir
from mnist_jax.inference import packaged
from mnist_jax.inference.packaged import PACKAGED, WEIGHTS
from mnist_jax.inference.restored import RestoredModel

FONTS = ('DejaVuSans', 'DejaVuSans-Bold', 'DejaVuSansMono', 'DejaVuSerif', 'DejaVuSerif-Italic', 'DejaVuSans-Oblique',
         'STIXGeneral', 'STIXGeneralItalic', 'STIXGeneralBol', 'cmr10', 'cmss10', 'cmtt10')  # fmt: skip
# The strokes of each digit on a pad of 100 x 100, as a person draws them with a mouse; some digits in two forms.
STROKES = {
    0: [[[(50, 15), (30, 25), (22, 50), (30, 78), (50, 88), (70, 76), (78, 50), (70, 24), (52, 14)]]],
    1: [[[(50, 12), (50, 88)]], [[(35, 30), (52, 12), (52, 88)]]],
    2: [[[(28, 32), (34, 18), (52, 12), (70, 22), (70, 40), (50, 62), (26, 86), (78, 86)]]],
    3: [[[(28, 20), (48, 12), (68, 20), (68, 38), (46, 48), (70, 58), (72, 76), (50, 88), (26, 80)]]],
    4: [[[(40, 12), (24, 58), (76, 58)], [(62, 34), (60, 90)]], [[(60, 88), (60, 12), (24, 62), (78, 62)]]],
    5: [[[(72, 14), (34, 14), (30, 46), (52, 42), (72, 54), (72, 74), (52, 88), (26, 80)]]],
    6: [[[(64, 12), (40, 30), (28, 58), (32, 80), (52, 88), (70, 76), (68, 58), (50, 52), (32, 62)]]],
    7: [[[(24, 16), (76, 16), (46, 88)]]],
    8: [
        [[(66, 24), (50, 12), (34, 24), (40, 42), (62, 58), (70, 74), (50, 88), (30, 74), (40, 56), (62, 40), (67, 25)]]
    ],
    9: [[[(70, 28), (52, 14), (34, 26), (36, 44), (54, 50), (70, 34), (70, 24), (68, 60), (58, 88)]]],
}


@pytest.fixture(scope='module')
def model():
    return RestoredModel.load(PACKAGED)


@pytest.fixture(scope='module')
def mnist():
    return read_mnist_test()


def accuracy(model, pictures, labels):
    """The accuracy on pictures as a person's image files are read, gray levels HxW."""
    images = [model.frame(np.asarray(picture, np.float32)).image for picture in pictures]
    return np.mean(model.predict(images).argmax(-1) == np.asarray(labels))


def test_it_is_the_run_that_its_files_describe(model, mnist):
    result = json.loads((PACKAGED / 'eval.json').read_text())
    assert model.params_sha256 == result['params_sha256'] and result['step'] == int(model.snapshot.state.step)
    assert config_sha256(model.plan.config) == config_sha256(load_config('configs/handwriting.py'))
    assert (PACKAGED / WEIGHTS).stat().st_size <= 2**20
    images, labels = mnist
    accuracy = np.mean(model.predict(images).argmax(-1) == labels)
    assert accuracy == pytest.approx(result['accuracy'], abs=1e-9) and accuracy >= 0.990
    run = mnist_jax.load()
    assert run.result['accuracy'] == result['accuracy'] and run.params_sha256 == model.params_sha256


@pytest.mark.parametrize('resampling', [Image.Resampling.NEAREST, Image.Resampling.BICUBIC])
def test_it_reads_low_resolution_digits_of_other_writers(model, resampling):
    digits = sklearn.datasets.load_digits()
    pictures = (
        paste_on_canvas(Image.fromarray(np.uint8(255 / 16 * image)).resize((48, 48), resampling), (64, 64), (8, 8))
        for image in digits.images
    )
    assert accuracy(model, pictures, digits.target) >= 0.97


def test_it_reads_fonts(model):
    paths = [f'{matplotlib.get_data_path()}/fonts/ttf/{name}.ttf' for name in FONTS]
    cases = [(draw_digit(path, digit, 90, dark), digit) for path in paths for digit in range(10) for dark in (0, 1)]
    assert accuracy(model, *zip(*cases, strict=True)) >= 0.97


def test_it_reads_drawings_with_a_mouse(model):
    rng = np.random.default_rng(0)
    pictures, labels = [], []
    for digit, forms in STROKES.items():
        for number in range(12):
            width = rng.integers(8, 40)
            angle, (sx, sy) = rng.uniform(-0.2, 0.2), rng.uniform(1.2, 3.0, 2)
            matrix = np.diag([sx, sy]) @ np.array([[1, -np.tan(angle)], [0, 1]])
            picture = Image.new('L', (400, 400))
            draw = ImageDraw.Draw(picture)
            for stroke in forms[number % len(forms)]:
                points = 200 + (np.array(stroke) - 50 + rng.normal(0, 2.5, (len(stroke), 2))) @ matrix.T
                draw.line([tuple(point) for point in points], 255, int(width), 'curve')
                for x, y in points:
                    draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), 255)
            pictures.append(picture)
            labels.append(digit)
    assert accuracy(model, pictures, labels) >= 0.97


def test_it_reads_photographs_with_uneven_light(model, mnist):
    rng = np.random.default_rng(0)
    images, labels = mnist[0][:100], mnist[1][:100]
    pictures = []
    for digit in images:
        sheet = Image.new('L', (320, 400), int(rng.integers(150, 240)))
        side = int(rng.integers(80, 200))
        large = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
        sheet.paste(
            int(rng.integers(20, 90)), (int(rng.integers(20, 300 - side)), int(rng.integers(20, 380 - side))), large
        )
        light = np.linspace(*rng.uniform(0.7, 1.05, 2), 320)[None]
        pictures.append(np.clip(np.asarray(sheet) * light + rng.normal(0, 4, (400, 320)), 0, 255))
    assert accuracy(model, pictures, labels) >= 0.97


def test_it_reads_ruled_paper(model, mnist):
    rng = np.random.default_rng(1)
    by_digit = [mnist[0][mnist[1] == digit] for digit in range(10)]
    cases = [(kind, digit) for kind in KINDS for digit in range(10) for _ in range(2)]
    pictures = (
        to_grays(np.asarray(draw_on_paper(kind, digit, rng, by_digit[digit], (200, 440))[0])) for kind, digit in cases
    )
    assert accuracy(model, pictures, [digit for _, digit in cases]) >= 0.97


@pytest.mark.parametrize('proportions', [0.7, 1.0, 1.4])
def test_it_reads_binary_scans_whose_proportions_are_distorted(model, mnist, proportions):
    images, labels = mnist[0][:500], mnist[1][:500]
    pictures = (
        ImageOps.invert(Image.fromarray(np.uint8(255 * (digit > 100))).resize((round(42 * proportions), 42)))
        for digit in images
    )
    assert accuracy(model, pictures, labels) >= 0.97


def test_predict_needs_no_workdir_and_says_which_model_it_uses(forked, mnist, tmp_path):
    ImageOps.invert(paste_on_canvas(Image.fromarray(mnist[0][0]).resize((100, 100)))).save(tmp_path / 'seven.png')
    process = forked('--mode=predict', '--input=seven.png')
    assert process.returncode == 0, process.stderr
    assert re.search(r'seven.png +7 +0.9', process.stdout)
    (line,) = process.stderr.splitlines()
    assert line == packaged.describe(PACKAGED)
    digest = json.loads((PACKAGED / 'eval.json').read_text())['params_sha256'][:12]
    assert digest in line and '--config=configs/handwriting.py trains it again' in line
    process = forked('--mode=predict', '--input=seven.png', '--step=best')
    assert process.returncode == 2 and '--step needs --workdir' in process.stderr


def test_weights_are_written_as_they_were_read(model, tmp_path):
    packaged.write_weights(model.snapshot, PACKAGED, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in PACKAGED.iterdir())
    for path in tmp_path.iterdir():
        if path.name != WEIGHTS:  # The bytes around the arrays depend on the version of Python.
            assert path.read_bytes() == (PACKAGED / path.name).read_bytes()
    assert RestoredModel.load(tmp_path).params_sha256 == model.params_sha256
    with pytest.raises(UserError, match="a step must not be given for weights without checkpoints, got 'best'"):
        RestoredModel.load(tmp_path, 'best')
    with pytest.raises(UserError, match=r'a run with checkpoints, got .*, which has only weights'):
        evaluate_workdir(tmp_path)


def test_a_report_needs_more_than_weights(forked):
    process = forked('--mode=report', f'--workdir={PACKAGED}')
    assert process.returncode == 2 and 'a run with checkpoints' in process.stderr


def scale_weights(path):
    with np.load(path) as archive:
        arrays = {name: archive[name] if name == 'step' else 3 * archive[name] for name in archive.files}
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), 'is damaged: .*; install mnist_jax again'),
        (lambda path: path.write_bytes(b''), 'is damaged: .*; install mnist_jax again'),
        (lambda path: np.savez(path, step=1), 'must have the weights of the config next to it'),
        (scale_weights, 'must be the weights that eval.json next to it describes'),
        (lambda path: path.with_name('config.json').unlink(), 'must have a config.json next to it'),
    ],
)
def test_damaged_weights_are_one_line(model, tmp_path, damage, message):
    packaged.write_weights(model.snapshot, PACKAGED, tmp_path)
    damage(tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=message):
        RestoredModel.load(tmp_path)


def test_too_many_weights_are_refused(model, tmp_path):
    state = model.snapshot.state
    large = model.snapshot._replace(state=state.replace(params={**state.params, 'large': np.zeros(2**18, np.float32)}))
    with pytest.raises(UserError, match='the weights must be at most 1,048,576 bytes, got'):
        packaged.write_weights(large, PACKAGED, tmp_path / 'new')
    assert not (tmp_path / 'new').exists()
