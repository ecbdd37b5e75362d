"""Predictions for a user's own images: the table, the files, and robustness to size, position and polarity."""

import csv
import json

import numpy as np
import pytest
from digit_images import MNIST, draw_digit, font_paths, paste_on_canvas
from PIL import Image, ImageOps

from mnist_jax.data import idx, kaggle
from mnist_jax.errors import UserError
from mnist_jax.inference.predict import predict
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.train import train
from mnist_jax.workdir.results import result_paths

IMAGES = idx.find(MNIST, 't10k-images-idx3-ubyte')


@pytest.fixture(scope='module')
def test_set():
    labels = idx.find(MNIST, 't10k-labels-idx1-ubyte')
    return idx.read(IMAGES, dimensions=3)[:200], idx.read(labels, dimensions=1)[:200]


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


def save_digits(directory, images, *names):
    directory.mkdir(parents=True, exist_ok=True)
    for name, image in zip(names, images, strict=False):
        ImageOps.invert(Image.fromarray(image)).save(directory / name)


def test_hidden_broken_blank_and_foreign_files_of_a_folder_are_skipped_and_listed(forked, trained, test_set, tmp_path):
    folder = tmp_path / 'scans'
    save_digits(folder, test_set[0], 'a.png', 'b.tiff', 'c.webp', 'd.gif', '.hidden.png', 'cut.png')
    save_digits(folder / '__MACOSX', test_set[0], 'e.png')
    (folder / '.DS_Store').touch()
    (folder / '._a.png').write_bytes(bytes(20))
    (folder / 'cut.png').write_bytes((folder / 'cut.png').read_bytes()[:80])
    (folder / 'notes.txt').write_text('two digits')
    (folder / 'photo.HEIC').write_bytes(b'\0\0\0\x18ftypheic' + bytes(20))
    (folder / 'gone.png').symlink_to('nothing')
    (folder / 'link').symlink_to(tmp_path)
    Image.new('L', (30, 30), 7).save(folder / 'blank.png')
    process = forked('--mode=predict', f'--workdir={trained}', '--input=scans', '--output=scans/predictions.csv')
    assert process.returncode == 3 and process.stdout == 'wrote 4 predictions to scans/predictions.csv\n'
    assert process.stderr.splitlines() == [
        "skipped: 'scans/.DS_Store' is hidden: its name, or that of its directory, starts with a dot",
        "skipped: 'scans/._a.png' is hidden: its name, or that of its directory, starts with a dot",
        "skipped: 'scans/.hidden.png' is hidden: its name, or that of its directory, starts with a dot",
        "skipped: 'scans/__MACOSX/e.png' is metadata of macOS, not an image",
        "skipped: 'scans/gone.png' is not a regular file",
        "skipped: 'scans/link' is not a regular file",
        "skipped: 'scans/notes.txt' is not an image: its name must end with "
        '.png, .jpg, .jpeg, .bmp, .webp, .tif, .tiff, .gif',
        "skipped: image 'scans/blank.png': it is blank: its pixels, from 7 to 7 of 255, have nearly the same value",
        "skipped: image 'scans/cut.png' cannot be read: image file is truncated",
        "skipped: image 'scans/photo.HEIC' must be a PNG, JPEG, BMP, WebP, TIFF or GIF file, "
        'got a HEIC file; convert it to PNG or JPEG first',
    ]
    with open(folder / 'predictions.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['image'] for row in rows] == [f'scans/{name}' for name in ('a.png', 'b.tiff', 'c.webp', 'd.gif')]
    assert [int(row['class']) for row in rows] == RestoredModel.load(trained).predict(test_set[0][:4]).argmax(
        -1
    ).tolist()


@pytest.mark.parametrize('problem', ['blank.png', 'cut.png', 'notes.txt', '.DS_Store'])
def test_strict_ends_at_the_first_problem_and_writes_nothing(forked, trained, test_set, tmp_path, problem):
    save_digits(tmp_path / 'scans', test_set[0], 'a.png')
    (tmp_path / 'scans' / problem).write_text('no image')
    if problem == 'blank.png':
        Image.new('L', (30, 30), 7).save(tmp_path / 'scans' / problem)
    command = ('--mode=predict', f'--workdir={trained}', '--input=scans', '--output=predictions.csv')
    process = forked(*command, '--strict')
    assert process.returncode == 2 and process.stdout == '' and not (tmp_path / 'predictions.csv').exists()
    (line,) = process.stderr.splitlines()
    assert line.startswith('error: ') and f"'scans/{problem}'" in line


def test_a_broken_file_that_is_named_is_skipped_if_others_can_be_predicted(trained, test_set, tmp_path, capsys):
    save_digits(tmp_path, test_set[0], 'a.png', 'b.png')
    (tmp_path / 'b.png').write_text('no image')
    (tmp_path / 'c.png').touch()
    assert predict(trained, [str(tmp_path / 'b.png'), str(tmp_path / 'a.png')]) == 3
    assert f'skipped: image {str(tmp_path / "b.png")!r} must be a PNG' in capsys.readouterr().err
    with pytest.raises(
        UserError, match=r"no input could be predicted; the last one: image .*c.png' must be .* an empty"
    ):
        predict(trained, [str(tmp_path / 'b.png'), str(tmp_path / 'c.png')], tmp_path / 'out.csv')
    assert predict(trained, [str(tmp_path / 'a.png')]) == 0 and not (tmp_path / 'out.csv').exists()
    assert capsys.readouterr().err == ''


def write_idx(path, array_NxHxW):
    path.write_bytes(idx.MAGIC[3] + np.array(array_NxHxW.shape, '>u4').tobytes() + array_NxHxW.tobytes())


def test_idx_files_and_csvs_with_pixels_of_0_and_1_are_multiplied_by_255(trained, test_set, tmp_path, capsys):
    binary = test_set[0][:60] // 128
    labels = RestoredModel.load(trained).predict(binary * 255).argmax(-1)
    write_idx(tmp_path / 'binary', binary)
    write_idx(tmp_path / 'large', binary.repeat(3, 1).repeat(3, 2))
    for name in ('binary', 'large'):
        assert predict(trained, [str(tmp_path / name)], tmp_path / 'out.jsonl') == 0
        lines = read_json_lines(tmp_path / 'out.jsonl')
        assert all(line['prepared'].startswith('multiplied by 255 (all pixels were 0 or 1)') for line in lines)
        agreement = ([int(line['class']) for line in lines] == labels).mean()
        assert agreement == 1 if name == 'binary' else agreement > 0.95
    capsys.readouterr()
    rows = kaggle.to_csv(binary[..., None], np.zeros(len(binary), int)).splitlines()
    (tmp_path / 'test.csv').write_text('\n'.join(row.split(',', 1)[1] for row in rows))
    predict(trained, [str(tmp_path / 'test.csv')], tmp_path / 'submission.csv')
    assert capsys.readouterr().out.endswith('submission.csv (multiplied by 255 (all pixels were 0 or 1))\n')
    submission = (tmp_path / 'submission.csv').read_text().splitlines()[1:]
    assert [int(line.split(',')[1]) for line in submission] == labels.tolist()


def test_a_blank_image_of_an_idx_file_of_another_size_is_skipped(trained, test_set, tmp_path, capsys):
    images = test_set[0][:3].repeat(2, 1).repeat(2, 2)
    images[1] = 0
    write_idx(tmp_path / 'images', images)
    assert predict(trained, [str(tmp_path / 'images')], tmp_path / 'out.csv') == 3
    assert capsys.readouterr().err == (
        'skipped: images[1]: it is blank: its pixels, from 0 to 0 of 255, have nearly the same value\n'
    )
    assert [line.split(',')[0] for line in (tmp_path / 'out.csv').read_text().splitlines()[1:]] == [
        'images[0]',
        'images[2]',
    ]


def test_images_brighter_than_a_model_of_another_range_takes_are_refused(small, tmp_path):
    config = small(dataset__name='digits', dataset__data_dir=str(tmp_path / 'data'), epochs=1)
    train(config, tmp_path / 'run', report=False)
    model = RestoredModel.load(tmp_path / 'run')
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8)).astype(np.uint8)
    write_idx(tmp_path / 'bright', images)
    with pytest.raises(UserError, match=r'pixels of bright\[0\] to bright\[3\] must be from 0 to 16, got 25'):
        predict(tmp_path / 'run', [str(tmp_path / 'bright')])
    with pytest.raises(UserError, match='pixels must be from 0 to 16, got 0 to 25'):
        model.predict(images)
    assert model.predict(images // 16).shape == (4, 10)
