"""Predictions for a user's own images: the table, the files, and robustness to size, position and polarity."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from digit_images import MNIST, draw_digit, font_paths, paste_on_canvas, read_mnist_test
from PIL import Image, ImageOps

from mnist_jax.data import idx, kaggle
from mnist_jax.errors import UserError
from mnist_jax.inference.predict import predict
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.workdir.results import result_paths

IMAGES = idx.find(MNIST, 't10k-images-idx3-ubyte')


@pytest.fixture(scope='module')
def test_set():
    return read_mnist_test(200)


def read_json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_predictions_equal_those_of_the_evaluation(trained, test_set):
    images, _ = test_set
    model = RestoredModel.load(trained)
    stored = np.load(result_paths(trained)[1])['probabilities']
    np.testing.assert_allclose(model.predict(images), stored, atol=1e-6)
    np.testing.assert_allclose(model.predict(images[:3, ..., None].astype(float)), stored[:3], atol=1e-6)
    assert model.predict(images[:0]).shape == (0, 10)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda images: images[:, :27], r'images must be numeric, of shape N x 28 x 28 x 1, got shape \(200, 27, 28\)'),
        (lambda images: images[0], r'images must be numeric, of shape N x 28 x 28 x 1, got shape \(28, 28\)'),
        (lambda images: images.astype(str), r'images must be numeric, of shape .* and type <U3'),
        (lambda images: images * 2.0, 'pixels must be from 0 to 255, got 0 to 510'),
        (lambda images: images / 255, 'got 0 to 1, which seem to be scaled already; multiply them by 255'),
        (lambda images: images // 128, 'got 0 to 1, which seem to be scaled already; multiply them by 255'),
        (lambda images: (images // 128).astype(int), 'got 0 to 1, which seem to be scaled already'),
        (lambda images: images > 127, 'images must be numeric, .* and type bool'),
        (lambda images: np.full((1, 28, 28), np.nan), 'pixels must be from 0 to 255, got nan to nan'),
    ],
)
def test_wrong_shapes_types_and_pixel_values_are_errors(trained, test_set, change, message):
    with pytest.raises(UserError, match=message):
        RestoredModel.load(trained).predict(change(test_set[0]))


def test_feature_maps_and_filters(trained, test_set):
    model = RestoredModel.load(trained)
    maps = model.feature_maps(test_set[0][0][..., None])
    assert {name: array.shape for name, array in maps.items()} == {
        'Conv_0': (28, 28, 8),
        'MaxPool_0': (14, 14, 8),
        'Conv_1': (14, 14, 16),
        'MaxPool_1': (7, 7, 16),
        'Flatten_0': (784,),
        'Dense_0': (32,),
        'Dense_1': (10,),
    }
    assert next(iter(maps)) == 'Conv_0' and model.filters().shape == (3, 3, 1, 8)
    # The corner of the first maps, worked out by hand: the image is zero there.
    np.testing.assert_allclose(maps['Conv_0'][0, 0], np.maximum(model.params['Conv_0']['bias'], 0), atol=1e-6)
    logits = maps['Dense_1']
    exponentials = np.exp(logits - logits.max())
    np.testing.assert_allclose(exponentials / exponentials.sum(), model.predict(test_set[0][:1])[0], atol=1e-6)


def vary(digit, seed):
    """Returns an MNIST digit unchanged, and enlarged and shifted on a canvas, dark on light and light on dark."""
    rng = np.random.default_rng(seed)
    large = Image.fromarray(digit).resize((140, 140), Image.Resampling.BICUBIC)
    canvas = paste_on_canvas(large, (300, 240), tuple(rng.integers(0, [160, 100]).tolist()))
    return {'plain': Image.fromarray(digit), 'inverted': ImageOps.invert(canvas), 'canvas': canvas}


def test_accuracy_hardly_depends_on_the_size_position_and_polarity_of_digits(trained, test_set, tmp_path):
    images, labels = test_set
    images, labels = images[:120], labels[:120]
    expected = (RestoredModel.load(trained).predict(images).argmax(-1) == labels).mean()
    assert expected > 0.9
    for number, digit in enumerate(images):
        for form, picture in vary(digit, number).items():
            (tmp_path / form).mkdir(exist_ok=True)
            picture.save(tmp_path / form / f'{number:03}.png')
    for form, minimum in (('plain', expected), ('inverted', 0.97 * expected), ('canvas', 0.97 * expected)):
        predict(trained, [str(tmp_path / form)], tmp_path / f'{form}.jsonl')
        predictions = [int(line['class']) for line in read_json_lines(tmp_path / f'{form}.jsonl')]
        assert (predictions == labels).mean() >= minimum, form


def test_digits_drawn_in_fonts_are_mostly_classified_correctly(trained, tmp_path):
    for name in font_paths():
        for digit in range(10):
            for dark in (0, 1):
                draw_digit(name, digit, 60, dark).save(tmp_path / f'{digit}-{len(list(tmp_path.iterdir()))}.png')
    predict(trained, [str(tmp_path)], tmp_path / 'predictions.jsonl')
    predictions = read_json_lines(tmp_path / 'predictions.jsonl')
    correct = [line['class'] == line['image'].rsplit('/', 1)[1][0] for line in predictions]
    assert len(correct) == 80 and np.mean(correct) > 0.7  # The model was trained on only 12,000 handwritten digits.


def test_the_table_and_the_csv_file(trained, test_set, tmp_path, capsys):
    image = str(tmp_path / 'seven, of test.png')
    ImageOps.invert(Image.fromarray(test_set[0][0])).save(image)
    predict(trained, [image])
    (row,) = [line for line in capsys.readouterr().out.splitlines() if 'seven' in line]
    probabilities = RestoredModel.load(trained).predict(test_set[0][:1])[0]
    assert f'7      {probabilities[7]:.4f}' in row and row.endswith('inverted (it was dark on light)')
    predict(trained, [image, str(IMAGES)], tmp_path / 'new' / 'all.csv')
    with open(tmp_path / 'new' / 'all.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['image'] for row in rows[:2]] == [image, f'{IMAGES.name}[0]'] and len(rows) == 10_001
    np.testing.assert_allclose([float(rows[0][f'probability {k}']) for k in range(10)], probabilities, atol=1e-6)
    assert capsys.readouterr().out == f'wrote 10,001 predictions to {tmp_path}/new/all.csv\n'


def test_a_pattern_matches_each_image_at_all_levels_once_and_not_the_output(trained, test_set, tmp_path):
    images, _ = test_set
    for name in ('a.png', 'x/b.png', 'x/y/c.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(images[0]).save(tmp_path / name)
    for _ in range(2):
        assert predict(trained, [f'{tmp_path}/**/*'], tmp_path / 'predictions.csv') == 0
        names = [line.split(',')[0] for line in (tmp_path / 'predictions.csv').read_text().splitlines()[1:]]
        assert [Path(name).name for name in names] == ['a.png', 'b.png', 'c.png']


def test_the_images_of_emnist_files_are_transposed(trained, test_set, tmp_path):
    upright = test_set[0][:20]
    names = ('emnist-digits-test-images-idx3-ubyte', 'digits-test-images-idx3-ubyte')
    for name, images in zip(names, (upright.swapaxes(1, 2), upright), strict=True):
        (tmp_path / name).write_bytes(idx.MAGIC[3] + np.array(images.shape, '>u4').tobytes() + images.tobytes())
    predict(trained, [str(tmp_path / name) for name in names], tmp_path / 'predictions.jsonl')
    lines = read_json_lines(tmp_path / 'predictions.jsonl')
    assert [line['class'] for line in lines[:20]] == [line['class'] for line in lines[20:]]
    prepared = ['transposed (rows and columns were swapped)'] * 20 + [''] * 20
    assert [line['prepared'] for line in lines] == prepared


def test_kaggle_csv_is_predicted_as_a_submission(trained, test_set, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = idx.read(idx.find(MNIST, 'train-images-idx3-ubyte'), dimensions=3)[:28_000]
    labeled = kaggle.to_csv(images, np.zeros(len(images), int)).splitlines()
    unlabeled = [line.split(',', 1)[1] for line in labeled]
    (tmp_path / 'test.csv').write_text('\n'.join([*unlabeled, '']))
    predict(trained, ['test.csv'])
    lines = (tmp_path / 'submission.csv').read_text().splitlines()
    assert lines[0] == 'ImageId,Label' and len(lines) == 28_001
    submission = np.array([line.split(',') for line in lines[1:]], int)
    np.testing.assert_array_equal(submission[:, 0], np.arange(1, 28_001))
    np.testing.assert_array_equal(submission[:, 1], RestoredModel.load(trained).predict(images).argmax(-1))
    for number, wrong, message in (
        (
            1,
            labeled[0],
            "line 1 must be the header pixel0,.* of 784 columns, got an additional column 'label'",
        ),
        (17, unlabeled[16] + ',0', 'line 17 must have 784 columns, like the header, got 785'),
        (
            20_001,
            '256' + unlabeled[20_000][1:],
            "line 20001, column pixel0 must be an integer from 0 to 255, got '256'",
        ),
        (300, '', 'line 300 must have 784 columns, like the header, got 0'),
    ):
        changed = [*unlabeled[: number - 1], wrong, *unlabeled[number:]]
        (tmp_path / 'wrong.csv').write_text('\n'.join(changed))
        with pytest.raises(UserError, match=message):
            predict(trained, ['wrong.csv'], tmp_path / 'none.csv')
    assert not (tmp_path / 'none.csv').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((), '--mode=predict needs --input'),
        (
            ('--input=nothing.png',),
            "--input must be an image, a directory, an IDX file or a CSV, got 'nothing.png', which does not exist",
        ),
        (('--input=empty',), ".tif, .tiff, .gif), got the directory 'empty' without any"),
        (('--input=blank.png',), "image 'blank.png': it is blank"),
        (
            ('--input=text.png',),
            "image 'text.png' must be a PNG, JPEG, BMP, WebP, TIFF or GIF file, got another format",
        ),
        (
            ('--input=blank.png', '--output=x.txt'),
            "the suffix of --output must be one of .csv, .jsonl, got '.txt'",
        ),
        (('--input=a.csv', '--input=blank.png'), '--input must be a single path if it is a CSV, got 2 paths'),
        (('--input=a.csv', '--output=x.jsonl'), "the suffix of --output must be one of .csv, got '.jsonl'"),
        (('--input=blank.png', '--output=empty'), "--output must be a file, got the directory 'empty'"),
        (('--input=a.csv', '--output=a.csv'), "--output must not be an input file, got 'a.csv'"),
        (
            ('--input=a.csv',),
            "raw file 'a.csv', line 1 must be the header pixel0,...,pixel783 of 784 columns, got an empty line",
        ),
        (('--input=idx',), "raw file 'idx' is truncated"),
        (('--input=blank.png', '--step=7'), '--step must be one of latest,'),
    ],
)
def test_wrong_input_is_a_one_line_error_and_writes_nothing(forked, trained, tmp_path, arguments, message):
    Image.new('L', (30, 30), 100).save(tmp_path / 'blank.png')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'a.csv').touch()
    (tmp_path / 'text.png').write_text('a digit')
    (tmp_path / 'idx').write_bytes(idx.MAGIC[3] + bytes(11))
    before = sorted(tmp_path.iterdir())
    process = forked('--mode=predict', f'--workdir={trained}', *arguments)
    assert process.returncode == 2, process.stderr
    assert len(process.stderr.splitlines()) == 1 and message in process.stderr and process.stdout == ''
    assert sorted(tmp_path.iterdir()) == before
