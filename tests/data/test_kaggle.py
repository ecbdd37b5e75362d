"""Tests that Kaggle's CSV is read, written and prepared, and that error messages name the invalid line."""

import csv
import itertools

import numpy as np
import pytest
from conftest import memory_limit

from mnist_jax.data import csv_tables, kaggle
from mnist_jax.data.source import Source
from mnist_jax.errors import UserError


def kaggle_digits(tmp_path, raw_dir, **options):
    return Source(
        'kaggle_digits', kaggle.KaggleDigits, str(tmp_path / 'data'), str(raw_dir), 'train', '', 'test', **options
    )


@pytest.fixture
def rows():
    """The header and 300 rows of a valid CSV, as lists of strings; 30 rows per class."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (300, 28, 28, 1)).astype(np.uint8)
    labels = np.arange(300) % 10
    pixels = images.reshape(300, -1).astype(str).tolist()
    return [list(kaggle.HEADER), *([str(label), *row] for label, row in zip(labels, pixels, strict=True))]


def write(path, rows, end='\n', encoding='utf-8', quoting=csv.QUOTE_MINIMAL):
    with open(path, 'w', newline='', encoding=encoding) as file:
        csv.writer(file, lineterminator=end, quoting=quoting).writerows(rows)
    return path


@pytest.mark.parametrize(
    'style',
    [
        {},
        {'end': '\r\n'},
        {'encoding': 'utf-8-sig'},
        {'end': '\r\n', 'encoding': 'utf-8-sig', 'quoting': csv.QUOTE_ALL},
    ],
)
def test_csv_files_in_every_style_are_read(tmp_path, rows, style):
    images, labels = kaggle.read(write(tmp_path / 'train.csv', rows, **style))
    assert images.shape == (300, 28, 28, 1) and images.dtype == np.uint8
    np.testing.assert_array_equal(np.column_stack([labels, images.reshape(300, -1)]), np.array(rows[1:], int))


def test_writing_what_was_read_gives_the_same_file(tmp_path, rows):
    images, labels = kaggle.read(write(tmp_path / 'one.csv', rows))
    assert kaggle.to_csv(images, labels) == (tmp_path / 'one.csv').read_text()


def set_cell(row, column, value):
    """Returns a function that sets one cell of the rows that it is called with."""

    def change(rows):
        rows[row][column] = value
        return rows

    return change


HEADER_MESSAGE = 'line 1 must be the header label,pixel0,...,pixel783 of 785 columns, got '
PIXEL_MESSAGE = 'line 8, column pixel2 must be an integer from 0 to 255, got '


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda rows: [], f'{HEADER_MESSAGE}an empty line'),
        (lambda rows: rows[:1], 'must have one line per image after its header, got none'),
        (
            lambda rows: [row[1:] for row in rows],
            f"{HEADER_MESSAGE}no column 'label' in a line that starts with 'pixel0'",
        ),
        (lambda rows: rows[1:], f"{HEADER_MESSAGE}no column 'label' in a line that starts with '0'"),
        (lambda rows: [row[:-1] for row in rows], f"{HEADER_MESSAGE}no column 'pixel783'"),
        (lambda rows: [[*row, '7'] for row in rows], f"{HEADER_MESSAGE}an additional column '7'"),
        (lambda rows: [[*row, row[0]] for row in rows], f"{HEADER_MESSAGE}the column 'label' twice"),
        (lambda rows: [['id', *rows[0]], *rows[1:]], f"{HEADER_MESSAGE}an additional column 'id'"),
        (
            lambda rows: [rows[0], *(row[:-1] for row in rows[1:])],
            'line 2 must have 785 columns, like the header, got 784',
        ),
        (
            lambda rows: [*rows[:50], rows[50][:20], *rows[51:]],
            'line 51 must have 785 columns, like the header, got 20',
        ),
        (
            lambda rows: [*rows[:50], [*rows[50], '0'], *rows[51:]],
            'line 51 must have 785 columns, like the header, got 786',
        ),
        (lambda rows: [*rows[:50], [], *rows[51:]], 'line 51 must have 785 columns, like the header, got 0'),
        (set_cell(7, 3, 'x'), f"{PIXEL_MESSAGE}'x'"),
        (set_cell(7, 3, ''), f"{PIXEL_MESSAGE}''"),
        (set_cell(7, 3, '1.5'), f"{PIXEL_MESSAGE}'1.5'"),
        (set_cell(7, 3, '256'), f"{PIXEL_MESSAGE}'256'"),
        (set_cell(7, 3, '-1'), f"{PIXEL_MESSAGE}'-1'"),
        (set_cell(7, 3, 'nan'), f"{PIXEL_MESSAGE}'nan'"),
        (set_cell(100, 0, '10'), "line 101, column label must be an integer from 0 to 9, got '10'"),
        (set_cell(7, 3, '7' * 5000), f"{PIXEL_MESSAGE}'77777777777777777777'"),
        (set_cell(7, 3, '7' * 200_000), 'line 8 must have fewer than 16,384 characters'),
        (
            set_cell(7, 3, '5\n6'),
            'line 8 must have 785 columns, like the header, got 4 (a quote is not closed)',
        ),
        (
            lambda rows: [['x' * 200_000]],
            f"{HEADER_MESSAGE}no column 'label' in a line that starts with 'xxxxxxxxxxxxxxxxxxxx'",
        ),
        (set_cell(100, 0, 'seven'), "line 101, column label must be an integer from 0 to 9, got 'seven'"),
    ],
)
def test_an_invalid_csv_is_refused_with_the_line_number(tmp_path, rows, change, message):
    path = write(tmp_path / 'train.csv', change(rows))
    with pytest.raises(UserError) as error:
        kaggle_digits(tmp_path, path).data.prepare()
    assert str(path) in str(error.value) and message in str(error.value)
    assert not list(tmp_path.rglob('*.array_record*'))


def test_several_blocks_of_rows_and_blank_lines_at_the_end_are_read(tmp_path, rows, monkeypatch):
    monkeypatch.setattr(csv_tables, 'BLOCK_ROWS', 64)
    path = write(tmp_path / 'train.csv', rows)
    with open(path, 'a') as file:
        file.write('\n \r\n' * 100)
    images, labels = kaggle.read(path)
    np.testing.assert_array_equal(np.column_stack([labels, images.reshape(300, -1)]), np.array(rows[1:], int))
    with open(path, 'a') as file:
        file.write('5\n')
    with pytest.raises(UserError, match='line 302 must have 785 columns, like the header, got 0'):
        kaggle.read(path)
    monkeypatch.setattr(csv_tables, 'MAX_LINES', 200)
    with pytest.raises(UserError, match='must have at most 200 lines, got more'):
        kaggle.read(path)


@pytest.mark.parametrize('start', ['', ','.join(kaggle.HEADER) + '\n'])
def test_a_line_of_absurd_length_does_not_allocate_memory(tmp_path, start):
    path = tmp_path / 'train.csv'
    with open(path, 'w') as file:
        file.write(start)
        file.truncate(400_000_000)  # NUL characters, which take no space on the disk
    messages = r"line 1 must be the header .*no column 'label'|line 2 must have fewer than"
    with pytest.raises(UserError, match=messages), memory_limit(20_000_000):
        kaggle.read(path)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / 'train.csv').write_bytes(b'\xff\xfe\x00label')
    with pytest.raises(UserError, match='is not UTF-8 text; expected a CSV'):
        kaggle.read(tmp_path / 'train.csv')


def test_a_missing_csv_is_an_error(tmp_path):
    with pytest.raises(
        UserError, match=r"config.dataset.raw_dir must be the train.csv of https://.*, or its directory, got ''"
    ):
        kaggle_digits(tmp_path, '').data.prepare()
    for path in (tmp_path, tmp_path / 'nowhere.csv'):
        with pytest.raises(
            UserError,
            match=r'config.dataset.raw_dir must be a CSV, or a directory with train.csv, but .* does not exist',
        ):
            kaggle_digits(tmp_path, path).data.prepare()


def test_the_splits_are_recorded_disjoint_and_a_function_of_the_seed(tmp_path, rows):
    path = write(tmp_path / 'train.csv', rows)
    images, labels = kaggle.read(path)
    recorded = []
    for seed in (0, 1):
        source = kaggle_digits(tmp_path, path, split_seed=seed)
        source.data.prepare()
        indices = source.data.metadata['rows']
        # Of the 30 rows of each class, 24 are for training, 5 (4.8, rounded up) for testing, and 1 is held out.
        assert {name: len(rows) for name, rows in indices.items()} == {'train': 240, 'test': 50, 'holdout': 10}
        assert sorted(itertools.chain(*indices.values())) == list(range(300))
        for name in indices:
            split = source.data.load('dataset.test', name)
            np.testing.assert_array_equal(split.image, images[indices[name]])
            np.testing.assert_array_equal(split.label, labels[indices[name]])
        recorded.append(indices)
    assert recorded[0] != recorded[1]


def test_a_changed_csv_is_prepared_again(tmp_path, rows):
    path = write(tmp_path / 'train.csv', rows)
    kaggle_digits(tmp_path, tmp_path).data.prepare()
    rows[1][1:] = ['200'] * 784
    write(path, rows)
    source = kaggle_digits(tmp_path, tmp_path)
    source.data.prepare()
    images = np.concatenate([source.data.load('test', name).image for name in ('train', 'test', 'holdout')])
    assert (images == 200).all(axis=(1, 2, 3)).sum() == 1


def test_too_few_rows_are_refused(tmp_path, rows):
    write(tmp_path / 'train.csv', rows[:101])
    message = (
        r"must have at least 25 rows of some class, got 100 rows in all, which leaves none for the split 'holdout'"
    )
    with pytest.raises(UserError, match=message):
        kaggle_digits(tmp_path, tmp_path).data.prepare()
