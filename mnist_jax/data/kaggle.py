"""Kaggle's CSV of digits (https://www.kaggle.com/c/digit-recognizer): read, written, and prepared."""

import csv
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
import tensorflow_datasets as tfds

from mnist_jax.data import partition
from mnist_jax.data.builder import ArrayBuilder, Arrays
from mnist_jax.errors import UserError

SIDE = 28
PIXELS = [f'pixel{i}' for i in range(SIDE * SIDE)]
HEADER = ['label', *PIXELS]
CLASSES = 10
ROWS = 4096  # that are read in one go
LONGEST = 2**14  # characters of a line; 784 quoted pixels have 4,700
MAX_ROWS = 1_000_000


def find(raw_dir: Path | None) -> Path:
    """The CSV file at `raw_dir`, which is that file or a directory with train.csv."""
    if raw_dir is None:
        raise UserError(
            "dataset.raw_dir='' does not say where Kaggle's CSV lies; give the train.csv of "
            'https://www.kaggle.com/c/digit-recognizer, or its directory'
        )
    path = raw_dir / 'train.csv' if raw_dir.is_dir() else raw_dir
    if not path.is_file():
        raise UserError(
            f'raw file {str(path)!r} does not exist; dataset.raw_dir is a CSV, or a directory of train.csv; where it '
            'was moved, a run learns that from its training command with the new raw_dir'
        )
    return path


def read(path: Path) -> Arrays:
    """Images, uint8 Nx28x28x1, and labels, uint8 N, of a CSV with the header label,pixel0,...,pixel783.

    A byte-order mark, quotes around values, and either kind of line end are read.

    Raises:
      UserError: anything else; it names the file and the line.
    """
    table = _read(path, HEADER)
    return table[:, 1:].reshape(-1, SIDE, SIDE, 1), table[:, 0]


def read_unlabelled(path: Path) -> np.ndarray:
    """Images, uint8 Nx28x28x1, of a CSV with the header pixel0,...,pixel783, as Kaggle's test.csv; else as `read`."""
    return _read(path, PIXELS).reshape(-1, SIDE, SIDE, 1)


def _read(path: Path, header: Sequence[str]) -> np.ndarray:
    """The numbers below the header, uint8, a row an image."""
    try:
        with open(path, encoding='utf-8-sig', newline='\n') as file:
            _check_header(path, file.readline(LONGEST), header)
            tables = list(_tables(path, file, header))
    except OSError as error:
        raise UserError(f'raw file {str(path)!r} cannot be read: {error.strerror}') from None
    except UnicodeDecodeError:
        raise UserError(f'raw file {str(path)!r} is no text in UTF-8; a CSV is wanted') from None
    if not tables:
        raise UserError(f'raw file {str(path)!r} ends after its header, line 1; a line an image is wanted')
    return np.concatenate(tables)


def _tables(path: Path, file: TextIO, header: Sequence[str]) -> Iterator[np.ndarray]:
    """The rows after the header, so many at a time, uint8."""
    lines, first = _lines(path, file), 2
    while block := list(itertools.islice(lines, ROWS)):
        if first + len(block) > MAX_ROWS:
            raise UserError(f'raw file {str(path)!r} is too large: it has more than {MAX_ROWS:,} lines')
        yield _table(path, block, first, header)
        first += len(block)


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    """The lines from the second on, but for blank ones at the end."""
    blank = 0
    for number in itertools.count(2):
        line = file.readline(LONGEST)
        if not line:
            return
        if len(line) == LONGEST:
            raise UserError(f'raw file {str(path)!r}, line {number}, is longer than {LONGEST:,} characters')
        if line.strip():
            yield from itertools.repeat('\n', blank)
            yield line
            blank = 0
        else:
            blank += 1


def _table(path: Path, lines: list[str], first: int, header: Sequence[str]) -> np.ndarray:
    """The numbers of these lines, of which the first has the number `first` in the file."""
    try:
        if not all(map(str.strip, lines)):
            raise ValueError('blank lines, which NumPy skips')
        table = np.loadtxt(lines, np.uint8, comments=None, delimiter=',', quotechar='"', ndmin=2)
        # A quoted line break makes one row of two lines.
        labels = table[:, : len(header) - len(PIXELS)]
        if table.shape != (len(lines), len(header)) or labels.max(initial=0) >= CLASSES:
            raise ValueError('a wrong number of rows or columns, or a wrong label')
    except ValueError as error:
        raise _wrong_row(path, lines, first, header) or UserError(f'raw file {str(path)!r}: {error}') from None
    return table


def _check_header(path: Path, line: str, header: Sequence[str]) -> None:
    names = _cells(line)
    if names == header:
        return
    if not line.strip():
        problem = 'is empty'
    elif header[0] not in names:
        problem = f'has no column {header[0]}: it begins with {names[0][:20]!r}'
    else:
        missing = next((name for name in header if name not in names), None)
        extra = next((name for name in names if name not in header), None)
        problem = (
            f'has no column {missing}' if missing else f'has the column {extra!r} too' if extra else 'has another order'
        )
    first = 'label,' if 'label' in header else ''
    raise UserError(
        f'raw file {str(path)!r}, line 1, {problem}; the header of {len(header)} columns is {first}pixel0,...,pixel783'
    )


def _cells(line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error:  # A cell beyond the limit of the module, 131,072 characters.
        return line.split(',')


def _wrong_row(path: Path, lines: list[str], first: int, header: Sequence[str]) -> UserError | None:
    """What is wrong with the first wrong one of these lines, which are numbered from `first`."""
    for number, line in enumerate(lines, first):
        cells = _cells(line)
        where = f'raw file {str(path)!r}, line {number}'
        if len(cells) != len(header):
            quotes = ' (a quote is not closed)' if line.count('"') % 2 else ''
            return UserError(f'{where}, has {len(cells)} columns{quotes}; its header has {len(header)}')
        for name, cell in zip(header, cells, strict=True):
            most = CLASSES - 1 if name == 'label' else 255
            digits = cell.strip()
            if not (digits.isascii() and digits.isdigit() and len(digits) < 10 and int(digits) <= most):
                return UserError(f'{where}, column {name}: {cell[:20]!r} is no whole number from 0 to {most}')
    return None


def text(images: np.ndarray, labels: np.ndarray) -> str:
    """Images, uint8 Nx28x28x1, and their labels as the text of such a CSV."""
    words = list(map(str, range(256)))
    table = np.column_stack([labels, images.reshape(len(images), -1)])
    rows = (','.join(map(words.__getitem__, row)) for row in table.tolist())
    return '\n'.join([','.join(HEADER), *rows, ''])


class KaggleDigits(ArrayBuilder):
    """Kaggle's digits, of each class four fifths to train on; of the rest four fifths to test, the last to hold out.

    The rows of the CSV that went into each split, counted from 0, are in `info.metadata['rows']`.
    """

    @classmethod
    def variant(cls, raw_dir: Path | None, split_seed: int) -> str:
        """The digest of the CSV and the seed, so that another CSV is prepared anew."""
        path = find(raw_dir)
        try:
            with open(path, 'rb') as file:
                digest = hashlib.file_digest(file, 'sha256').hexdigest()
        except OSError as error:
            raise UserError(f'raw file {str(path)!r} cannot be read: {error.strerror}') from None
        return f'{digest[:16]}-seed{split_seed}'

    def _arrays(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Arrays]:
        path = find(self._raw_dir)
        images, labels = read(path)
        train, others = partition.stratified(labels, 0.8, self._split_seed)
        test, holdout = (others[places] for places in partition.stratified(labels[others], 0.8, self._split_seed))
        rows = {'train': train, 'test': test, 'holdout': holdout}
        for name, places in rows.items():
            if not len(places):
                raise UserError(
                    f'raw file {str(path)!r} has too few rows, {len(labels)}: none is left for the split {name!r}; '
                    'four of each class at least are wanted'
                )
        self.info.metadata['rows'] = {name: places.tolist() for name, places in rows.items()}
        return {name: (images[places], labels[places]) for name, places in rows.items()}
