"""Kaggle's CSV: read and written, prepared, and refused with the line that is wrong."""

import csv
import itertools

import numpy as np
import pytest
from conftest import memory

from mnist_jax.data import kaggle
from mnist_jax.data.source import Source
from mnist_jax.errors import UserError


def kaggle_digits(tmp_path, raw_dir, **fields):
    return Source(
        'kaggle_digits', kaggle.KaggleDigits, str(tmp_path / 'data'), str(raw_dir), 'train', '', 'test', **fields
    )


@pytest.fixture
def rows():
    """Header and 300 rows of a good CSV, as lists of strings; 30 of each class."""
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
def test_every_style_of_csv_is_read(tmp_path, rows, style):
    images, labels = kaggle.read(write(tmp_path / 'train.csv', rows, **style))
    assert images.shape == (300, 28, 28, 1) and images.dtype == np.uint8
    np.testing.assert_array_equal(np.column_stack([labels, images.reshape(300, -1)]), np.array(rows[1:], int))


def test_what_is_written_is_read_again(tmp_path, rows):
    images, labels = kaggle.read(write(tmp_path / 'one.csv', rows))
    assert kaggle.text(images, labels) == (tmp_path / 'one.csv').read_text()


def changed(row, column, value):
    def change(rows):
        rows[row][column] = value
        return rows

    return change


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (lambda rows: [], 'line 1, is empty; the header of 785 columns is label,pixel0,...,pixel783'),
        (lambda rows: rows[:1], 'ends after its header, line 1'),
        (lambda rows: [row[1:] for row in rows], "line 1, has no column label: it begins with 'pixel0'"),
        (lambda rows: rows[1:], "line 1, has no column label: it begins with '0'"),
        (lambda rows: [row[:-1] for row in rows], 'line 1, has no column pixel783'),
        (lambda rows: [[*row, '7'] for row in rows], "line 1, has the column '7' too"),
        (lambda rows: [[*row[1:], row[0]] for row in rows], 'line 1, has another order'),
        (lambda rows: [rows[0], *(row[:-1] for row in rows[1:])], 'line 2, has 784 columns; its header has 785'),
        (lambda rows: [*rows[:50], rows[50][:20], *rows[51:]], 'line 51, has 20 columns; its header has 785'),
        (lambda rows: [*rows[:50], [*rows[50], '0'], *rows[51:]], 'line 51, has 786 columns; its header has 785'),
        (lambda rows: [*rows[:50], [], *rows[51:]], 'line 51, has 0 columns; its header has 785'),
        (changed(7, 3, 'x'), "line 8, column pixel2: 'x' is no whole number from 0 to 255"),
        (changed(7, 3, ''), "line 8, column pixel2: '' is no whole number from 0 to 255"),
        (changed(7, 3, '1.5'), "line 8, column pixel2: '1.5' is no whole number from 0 to 255"),
        (changed(7, 3, '256'), "line 8, column pixel2: '256' is no whole number from 0 to 255"),
        (changed(7, 3, '-1'), "line 8, column pixel2: '-1' is no whole number from 0 to 255"),
        (changed(7, 3, 'nan'), "line 8, column pixel2: 'nan' is no whole number from 0 to 255"),
        (changed(100, 0, '10'), "line 101, column label: '10' is no whole number from 0 to 9"),
        (changed(7, 3, '7' * 5000), "line 8, column pixel2: '77777777777777777777' is no whole number"),
        (changed(7, 3, '7' * 200_000), 'line 8, is longer than 16,384 characters'),
        (changed(7, 3, '5\n6'), 'line 8, has 4 columns (a quote is not closed); its header has 785'),
        (lambda rows: [['x' * 200_000]], "line 1, has no column label: it begins with 'xxxxxxxxxxxxxxxxxxxx'"),
        (changed(100, 0, 'seven'), "line 101, column label: 'seven' is no whole number from 0 to 9"),
    ],
)
def test_a_wrong_csv_is_told_with_its_line(tmp_path, rows, change, told):
    path = write(tmp_path / 'train.csv', change(rows))
    with pytest.raises(UserError) as error:
        kaggle_digits(tmp_path, path).data.prepare()
    assert str(path) in str(error.value) and told in str(error.value)
    assert not list(tmp_path.rglob('*.array_record*'))


def test_rows_of_several_blocks_and_blank_lines_at_the_end_are_read(tmp_path, rows, monkeypatch):
    monkeypatch.setattr(kaggle, 'ROWS', 64)
    path = write(tmp_path / 'train.csv', rows)
    with open(path, 'a') as file:
        file.write('\n \r\n' * 100)
    images, labels = kaggle.read(path)
    np.testing.assert_array_equal(np.column_stack([labels, images.reshape(300, -1)]), np.array(rows[1:], int))
    with open(path, 'a') as file:
        file.write('5\n')
    with pytest.raises(UserError, match='line 302, has 0 columns'):
        kaggle.read(path)
    monkeypatch.setattr(kaggle, 'MAX_ROWS', 200)
    with pytest.raises(UserError, match='is too large: it has more than 200 lines'):
        kaggle.read(path)


@pytest.mark.parametrize('begin', ['', ','.join(kaggle.HEADER) + '\n'])
def test_a_line_of_absurd_length_takes_no_memory(tmp_path, begin):
    path = tmp_path / 'train.csv'
    with open(path, 'w') as file:
        file.write(begin)
        file.truncate(400_000_000)  # NUL characters, which take no place on the disk.
    with pytest.raises(UserError, match=r'line 1, has no column label|line 2, is longer than'), memory(20_000_000):
        kaggle.read(path)


def test_a_file_that_is_no_text_is_told(tmp_path):
    (tmp_path / 'train.csv').write_bytes(b'\xff\xfe\x00label')
    with pytest.raises(UserError, match='is no text in UTF-8'):
        kaggle.read(tmp_path / 'train.csv')


def test_where_the_csv_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"dataset.raw_dir='' does not say where Kaggle's CSV lies"):
        kaggle_digits(tmp_path, '').data.prepare()
    for place in (tmp_path, tmp_path / 'nowhere.csv'):
        with pytest.raises(UserError, match=r'does not exist; dataset.raw_dir is a CSV, or a directory of train.csv'):
            kaggle_digits(tmp_path, place).data.prepare()


def test_the_split_is_recorded_and_disjoint_and_decided_by_the_seed(tmp_path, rows):
    path = write(tmp_path / 'train.csv', rows)
    images, labels = kaggle.read(path)
    recorded = []
    for seed in (0, 1):
        found = kaggle_digits(tmp_path, path, split_seed=seed)
        found.data.prepare()
        places = found.data._builder.info.metadata['rows']
        # Of the 30 rows of a class 24, then 5 (4.8, rounded up), then 1.
        assert {name: len(rows) for name, rows in places.items()} == {'train': 240, 'test': 50, 'holdout': 10}
        assert sorted(itertools.chain(*places.values())) == list(range(300))
        for name in places:
            split = found.data.slice('dataset.test', name)
            np.testing.assert_array_equal(split.image, images[places[name]])
            np.testing.assert_array_equal(split.label, labels[places[name]])
        recorded.append(places)
    assert recorded[0] != recorded[1]


def test_a_changed_csv_is_prepared_anew(tmp_path, rows):
    path = write(tmp_path / 'train.csv', rows)
    kaggle_digits(tmp_path, tmp_path).data.prepare()
    rows[1][1:] = ['200'] * 784
    write(path, rows)
    found = kaggle_digits(tmp_path, tmp_path)
    found.data.prepare()
    everything = np.concatenate([found.data.slice('test', name).image for name in ('train', 'test', 'holdout')])
    assert (everything == 200).all(axis=(1, 2, 3)).sum() == 1


def test_too_few_rows_are_told(tmp_path, rows):
    write(tmp_path / 'train.csv', rows[:101])
    with pytest.raises(UserError, match=r"has too few rows, 100: none is left for the split 'holdout'"):
        kaggle_digits(tmp_path, tmp_path).data.prepare()
