"""Images and files that cannot be predicted as they are: what is skipped, scaled or refused."""

import csv
import gzip
import json

import numpy as np
import pytest
from digit_images import read_mnist_test
from PIL import Image, ImageOps

from mnist_jax.data import idx, kaggle
from mnist_jax.errors import UserError
from mnist_jax.inference.predict import predict
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.train import train


@pytest.fixture(scope='module')
def test_set():
    return read_mnist_test(200)


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
    (folder / 'packed.png').write_bytes(gzip.compress((folder / 'a.png').read_bytes()))
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
        "skipped: image 'scans/packed.png' must be a PNG, JPEG, BMP, WebP, TIFF or GIF file, "
        'got another format or a damaged file',
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
        lines = [json.loads(line) for line in (tmp_path / 'out.jsonl').read_text().splitlines()]
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
