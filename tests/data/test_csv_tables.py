"""Tests the layouts and the compressed forms of CSV files of images."""

import gzip
import zipfile

import numpy as np
import pytest
from conftest import memory_limit

from mnist_jax.data import csv_tables, kaggle
from mnist_jax.data.source import SOURCES
from mnist_jax.errors import UserError
from mnist_jax.inference.predict import predict

GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (300, 28, 28, 1)).astype(np.uint8)
LABELS = np.arange(300) % 10
PIXELS = [f'pixel{i}' for i in range(784)]
FROM_1 = [f'pixel{i}' for i in range(1, 785)]
ROW_BY_COLUMN = [f'{row}x{column}' for row in range(1, 29) for column in range(1, 29)]


def table(columns):
    """Returns a CSV with these columns: 'label', row numbers ('' or 'index'), and any name for the next pixel."""
    values = {'label': LABELS, '': np.arange(300), 'index': np.arange(300)[::-1], 'Unnamed: 0': np.arange(300) + 70_000}
    pixels = iter(IMAGES.reshape(300, 784).T)
    array = np.column_stack([values[name] if name in values else next(pixels) for name in columns])
    return '\n'.join([','.join(columns), *(','.join(map(str, row)) for row in array.tolist()), ''])


@pytest.mark.parametrize(
    'columns',
    [
        ['label', *PIXELS],
        [*PIXELS, 'label'],
        ['', 'label', *PIXELS],
        ['Unnamed: 0', *FROM_1, 'label'],
        ['index', 'label', *ROW_BY_COLUMN],
        [*ROW_BY_COLUMN, 'label', ''],
    ],
    ids=['kaggle', 'label last', 'pandas index', 'pixels from 1', 'row x column', 'index last'],
)
def test_a_csv_with_an_index_column_or_the_label_last_or_other_pixel_names_is_read(tmp_path, columns):
    (tmp_path / 'train.csv').write_text(table(columns))
    images, labels = kaggle.read(tmp_path / 'train.csv')
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)
    (tmp_path / 'test.csv').write_text(table([name for name in columns if name != 'label']))
    np.testing.assert_array_equal(kaggle.read_unlabeled(tmp_path / 'test.csv'), IMAGES)


def test_pixels_are_placed_by_their_names(tmp_path):
    columns = ['label', *reversed(PIXELS)]
    (tmp_path / 'train.csv').write_text(table(columns))
    np.testing.assert_array_equal(kaggle.read(tmp_path / 'train.csv')[0], IMAGES[:, ::-1, ::-1])


@pytest.mark.parametrize(
    ('columns', 'message'),
    [
        ([*PIXELS, 'label'], "got an additional column 'label'"),
        (FROM_1[:-1], "line 1 must be the header pixel0,...,pixel783 of 784 columns, got no column 'pixel0'"),
        ([*FROM_1[:-1], 'pixel_784'], "got no column 'pixel0'"),
        ([*ROW_BY_COLUMN[:-1], '28 x 28'], "got no column '28x28'"),
        (['', *PIXELS, ''], "got the column '' twice"),
        (['ImageId', *PIXELS], "got an additional column 'ImageId'"),
    ],
)
def test_a_header_without_one_meaning_is_refused_with_the_column(tmp_path, columns, message):
    (tmp_path / 'test.csv').write_text(','.join(columns) + '\n')
    with pytest.raises(UserError) as error:
        kaggle.read_unlabeled(tmp_path / 'test.csv')
    assert str(tmp_path / 'test.csv') in str(error.value) and message in str(error.value)


@pytest.mark.parametrize(
    ('cell', 'message'),
    [
        ('x', "line 3, column number 1 (without a name) must be an integer from 0 to 2147483647, got 'x'"),
        ('-1', "line 3, column number 1 (without a name) must be an integer from 0 to 2147483647, got '-1'"),
        ('1,256', "line 3, column pixel0 must be an integer from 0 to 255, got '256'"),
        ('1,-1', "line 3, column pixel0 must be an integer from 0 to 255, got '-1'"),
        ('1,1,1', 'line 3 must have 785 columns, like the header, got 786'),
    ],
)
def test_an_invalid_cell_in_a_csv_with_row_numbers_is_refused_with_its_column(tmp_path, cell, message):
    header, first, second, *_ = table(['', *PIXELS]).splitlines()
    rest = second.split(',')[1 + (',' in cell) :]
    (tmp_path / 'test.csv').write_text('\n'.join([header, first, ','.join([cell, *rest])]))
    with pytest.raises(UserError) as error:
        kaggle.read_unlabeled(tmp_path / 'test.csv')
    assert message in str(error.value)


def archive(path, members, **options):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED, **options) as file:
        for name, contents in members.items():
            file.writestr(name, contents)
    return path


@pytest.fixture(scope='module')
def train_csv():
    return table(['label', *PIXELS])


@pytest.fixture(scope='module')
def test_csv():
    return table(PIXELS)


def test_gzipped_files_and_archives_give_the_same_prepared_data_as_the_plain_csv(tmp_path, train_csv, test_csv):
    for name in ('plain', 'gzipped', 'zipped', 'kaggle', 'renamed'):
        (tmp_path / name).mkdir()
    (tmp_path / 'plain' / 'train.csv').write_text(train_csv)
    (tmp_path / 'gzipped' / 'train.csv.gz').write_bytes(gzip.compress(train_csv.encode()))
    archive(tmp_path / 'zipped' / 'train.csv.zip', {'train.csv': train_csv})
    members = {'sample_submission.csv': 'ImageId,Label\n', 'test.csv': test_csv, 'train.csv': train_csv}
    kaggle_zip = archive(tmp_path / 'kaggle' / 'digit-recognizer.zip', members)
    renamed = archive(tmp_path / 'renamed' / 'x.zip', {'my/Digits.CSV': train_csv, '__MACOSX/my/._Digits.CSV': ''})
    paths = [*(tmp_path / name for name in ('plain', 'gzipped', 'zipped', 'kaggle')), kaggle_zip, renamed]
    variants = {kaggle.KaggleDigits.variant(path, 0) for path in paths}
    assert len(variants) == 1
    for path in paths:
        np.testing.assert_array_equal(kaggle.read(kaggle.find(path))[0], IMAGES)
    np.testing.assert_array_equal(kaggle.read_unlabeled(kaggle_zip), IMAGES)


def test_a_compressed_csv_is_an_input_of_predict(trained, tmp_path, train_csv, test_csv):
    (tmp_path / 'test.csv.gz').write_bytes(gzip.compress(test_csv.encode()))
    archive(tmp_path / 'digit-recognizer.zip', {'test.csv': test_csv, 'train.csv': train_csv})
    (tmp_path / 'test.csv').write_text(test_csv)
    submissions = set()
    for name in ('test.csv', 'test.csv.gz', 'digit-recognizer.zip'):
        predict(trained, [str(tmp_path / name)], tmp_path / 'out.csv')
        submissions.add((tmp_path / 'out.csv').read_text())
    assert len(submissions) == 1 and submissions.pop().startswith('ImageId,Label\n1,')


@pytest.mark.parametrize(
    ('members', 'message'),
    [
        ({'a.csv': '', 'b.csv': ''}, 'must contain a single CSV file or train.csv, got a.csv, b.csv'),
        ({'a.png': ''}, 'must contain a single CSV file or train.csv, got (none)'),
        ({'a/train.csv': '', 'b/train.csv': ''}, 'must contain a single CSV file or train.csv, got a/train.csv'),
        ({'test.csv': ','.join(PIXELS)}, "got no column 'label' in a line that starts with 'pixel0'"),
    ],
)
def test_an_archive_without_one_suitable_csv_is_refused(tmp_path, members, message):
    path = archive(tmp_path / 'x.zip', members)
    with pytest.raises(UserError) as error:
        kaggle.read(path)
    assert str(path) in str(error.value) and message in str(error.value)


def test_an_archive_of_two_open_tables_is_refused_with_what_to_do(tmp_path):
    path = archive(tmp_path / 'archive.zip', {'mnist_train.csv': '', 'mnist_test.csv': ''})
    with pytest.raises(UserError, match=r'a single CSV file, got mnist_test.csv, mnist_train.csv; .*unpack'):
        csv_tables.read_open(path)


@pytest.mark.parametrize('make', [gzip.compress, None], ids=['gzip', 'zip'])
@pytest.mark.parametrize('damage', ['truncate', 'flip'])
def test_damaged_compressed_files_are_refused(tmp_path, train_csv, make, damage):
    path = tmp_path / 'train.csv.gz'
    if make is None:
        archive(path, {'train.csv': train_csv})
    else:
        path.write_bytes(make(train_csv.encode()))
    contents = bytearray(path.read_bytes())
    if damage == 'truncate':
        del contents[len(contents) // 2 :]
    else:
        contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)
    for function in (kaggle.read, lambda path: kaggle.KaggleDigits.variant(path, 0)):
        with pytest.raises(UserError, match=r'raw file .* (is truncated or damaged|line .* must)'):
            function(path)


def test_an_encrypted_archive_is_refused(tmp_path):
    path = archive(tmp_path / 'x.zip', {'train.csv': 'label'})
    contents = bytearray(path.read_bytes())
    for start, offset in ((b'PK\x03\x04', 6), (b'PK\x01\x02', 8)):  # the flags of the two headers of the member
        contents[contents.index(start) + offset] |= 1
    path.write_bytes(contents)
    with pytest.raises(UserError, match=r'cannot be read: .* is encrypted'):
        kaggle.read(path)


@pytest.mark.parametrize('start', ['', ','.join(kaggle.HEADER) + '\n'], ids=['no header', 'header'])
@pytest.mark.parametrize('kind', ['gzip', 'zip'])
def test_a_file_that_unpacks_to_a_line_of_absurd_length_does_not_allocate_memory(tmp_path, start, kind):
    path = tmp_path / 'train.csv.gz'
    contents = start.encode() + bytes(100_000_000)
    path.write_bytes(gzip.compress(contents, compresslevel=1)) if kind == 'gzip' else archive(path, {'a.csv': contents})
    del contents
    messages = "line 1 must be the header .*no column 'label'|line 2 must have fewer than"
    with pytest.raises(UserError, match=messages), memory_limit(20_000_000):
        kaggle.read(path)


def test_a_file_that_unpacks_to_more_than_the_limit_is_not_hashed(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_tables, 'MAX_BYTES', 3 * 2**20)
    path = tmp_path / 'train.csv.gz'
    path.write_bytes(gzip.compress(bytes(50_000_000), compresslevel=1))
    with pytest.raises(UserError, match='must have at most 3,145,728 bytes, uncompressed, got more'):
        SOURCES['kaggle_digits'](str(tmp_path), str(path), 'train', '', 'test').data.prepare()
