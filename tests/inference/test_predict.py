"""Predictions of a person's own images: what is printed and written, and that a digit's form matters little."""

import csv
import json

import numpy as np
import pytest
from PIL import Image, ImageOps
from test_images import MNIST, drawn, fonts, on_canvas

from mnist_jax.data import idx, kaggle
from mnist_jax.errors import UserError
from mnist_jax.inference.predict import predict
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.workdir.results import result_paths

IMAGES = idx.find(MNIST, 't10k-images-idx3-ubyte')


@pytest.fixture(scope='module')
def test_set():
    labels = idx.find(MNIST, 't10k-labels-idx1-ubyte')
    return idx.read(IMAGES, dimensions=3)[:200], idx.read(labels, dimensions=1)[:200]


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_predictions_are_those_of_the_evaluation(trained, test_set):
    images, _ = test_set
    run = RestoredModel.load(trained)
    stored = np.load(result_paths(trained)[1])['probabilities']
    np.testing.assert_allclose(run.predict(images), stored, atol=1e-6)
    np.testing.assert_allclose(run.predict(images[:3, ..., None].astype(float)), stored[:3], atol=1e-6)
    assert run.predict(images[:0]).shape == (0, 10)
    for wrong in (images[:, :27], images[0], images * 2.0, np.full((1, 28, 28), np.nan), images.astype(str)):
        with pytest.raises(UserError, match='wrong'):
            run.predict(wrong)


def test_feature_maps_and_filters(trained, test_set):
    run = RestoredModel.load(trained)
    maps = run.feature_maps(test_set[0][0][..., None])
    assert {name: array.shape for name, array in maps.items()} == {
        'Conv_0': (28, 28, 8),
        'MaxPool_0': (14, 14, 8),
        'Conv_1': (14, 14, 16),
        'MaxPool_1': (7, 7, 16),
        'Flatten_0': (784,),
        'Dense_0': (32,),
        'Dense_1': (10,),
    }
    assert next(iter(maps)) == 'Conv_0' and run.filters().shape == (3, 3, 1, 8)
    # The first value of the first map, by hand: the image is zero in that corner.
    np.testing.assert_allclose(maps['Conv_0'][0, 0], np.maximum(run.params['Conv_0']['bias'], 0), atol=1e-6)
    logits = maps['Dense_1']
    exponentials = np.exp(logits - logits.max())
    np.testing.assert_allclose(exponentials / exponentials.sum(), run.predict(test_set[0][:1])[0], atol=1e-6)


def forms(digit, number):
    """An MNIST digit inverted, enlarged, and shifted on a larger canvas."""
    rng = np.random.default_rng(number)
    large = Image.fromarray(digit).resize((140, 140), Image.Resampling.BICUBIC)
    canvas = on_canvas(large, (300, 240), tuple(rng.integers(0, [160, 100]).tolist()))
    return {'plain': Image.fromarray(digit), 'inverted': ImageOps.invert(canvas), 'canvas': canvas}


def test_the_form_of_mnists_digits_matters_little(trained, test_set, tmp_path):
    images, labels = test_set
    images, labels = images[:120], labels[:120]
    expected = (RestoredModel.load(trained).predict(images).argmax(-1) == labels).mean()
    assert expected > 0.9
    for number, digit in enumerate(images):
        for form, picture in forms(digit, number).items():
            (tmp_path / form).mkdir(exist_ok=True)
            picture.save(tmp_path / form / f'{number:03}.png')
    for form, least in (('plain', expected), ('inverted', 0.97 * expected), ('canvas', 0.97 * expected)):
        predict(trained, [str(tmp_path / form)], tmp_path / f'{form}.jsonl')
        found = [int(line['class']) for line in lines_of(tmp_path / f'{form}.jsonl')]
        assert (found == labels).mean() >= least, form


def test_digits_drawn_in_fonts(trained, tmp_path):
    for name in fonts():
        for digit in range(10):
            for dark in (0, 1):
                drawn(name, digit, 60, dark).save(tmp_path / f'{digit}-{len(list(tmp_path.iterdir()))}.png')
    predict(trained, [str(tmp_path)], tmp_path / 'found.jsonl')
    found = lines_of(tmp_path / 'found.jsonl')
    right = [line['class'] == line['image'].rsplit('/', 1)[1][0] for line in found]
    assert len(right) == 80 and np.mean(right) > 0.7  # of a model that saw 12,000 digits, all of them by hand


def test_the_table_and_the_files(trained, test_set, tmp_path, capsys):
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
    assert capsys.readouterr().out == f'10,001 predictions are in {tmp_path}/new/all.csv\n'


def test_a_submission_to_kaggle(trained, test_set, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = idx.read(idx.find(MNIST, 'train-images-idx3-ubyte'), dimensions=3)[:28_000]
    labelled = kaggle.text(images, np.zeros(len(images), int)).splitlines()
    unlabelled = [line.split(',', 1)[1] for line in labelled]
    (tmp_path / 'test.csv').write_text('\n'.join([*unlabelled, '']))
    predict(trained, ['test.csv'])
    lines = (tmp_path / 'submission.csv').read_text().splitlines()
    assert lines[0] == 'ImageId,Label' and len(lines) == 28_001
    found = np.array([line.split(',') for line in lines[1:]], int)
    np.testing.assert_array_equal(found[:, 0], np.arange(1, 28_001))
    np.testing.assert_array_equal(found[:, 1], RestoredModel.load(trained).predict(images).argmax(-1))
    for number, wrong, told in (
        (1, labelled[0], "line 1, has the column 'label' too; the header of 784 columns is pixel0,...,pixel783"),
        (17, unlabelled[16] + ',0', 'line 17, has 785 columns; its header has 784'),
        (20_001, '256' + unlabelled[20_000][1:], "line 20001, column pixel0: '256' is no whole number from 0 to 255"),
        (300, '', 'line 300, has'),
    ):
        changed = [*unlabelled[: number - 1], wrong, *unlabelled[number:]]
        (tmp_path / 'wrong.csv').write_text('\n'.join(changed))
        with pytest.raises(UserError, match=told):
            predict(trained, ['wrong.csv'], tmp_path / 'none.csv')
    assert not (tmp_path / 'none.csv').exists()


@pytest.mark.parametrize(
    ('arguments', 'told'),
    [
        ((), '--mode=predict needs --input'),
        (
            ('--input=nothing.png',),
            "--input='nothing.png' does not exist; give images, directories, IDX files or a CSV",
        ),
        (('--input=empty',), "--input='empty' is a directory without images (.png, .jpg, .jpeg, .bmp)"),
        (('--input=blank.png',), "image 'blank.png': it shows nothing"),
        (('--input=text.png',), "image 'text.png' is no image that can be read; PNG, JPEG and BMP can"),
        (
            ('--input=blank.png', '--output=x.txt'),
            "--output='x.txt': its ending='.txt' is unknown; the choices are: .csv, .js",
        ),
        (('--input=a.csv', '--input=blank.png'), 'a CSV is predicted by itself; give it alone'),
        (('--input=a.csv', '--output=x.jsonl'), "='.jsonl' is unknown; the choices are: .csv"),
        (('--input=blank.png', '--output=empty'), "--output='empty' is a directory; give a file"),
        (('--input=a.csv', '--output=a.csv'), "--output='a.csv' is the input too; give another file"),
        (('--input=a.csv',), "raw file 'a.csv', line 1, is empty"),
        (('--input=idx',), "raw file 'idx' is truncated"),
        (('--input=blank.png', '--step=7'), "--step='7' is not there; the choices are: latest,"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(forked, trained, tmp_path, arguments, told):
    Image.new('L', (30, 30), 100).save(tmp_path / 'blank.png')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'a.csv').touch()
    (tmp_path / 'text.png').write_text('a digit')
    (tmp_path / 'idx').write_bytes(idx.MAGIC[3] + bytes(11))
    before = sorted(tmp_path.iterdir())
    found = forked('--mode=predict', f'--workdir={trained}', *arguments)
    assert found.returncode == 2, found.stderr
    assert len(found.stderr.splitlines()) == 1 and told in found.stderr and found.stdout == ''
    assert sorted(tmp_path.iterdir()) == before
