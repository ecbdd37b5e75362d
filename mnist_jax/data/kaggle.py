"""Reads, writes and prepares the CSV of Kaggle's Digit Recognizer (https://www.kaggle.com/c/digit-recognizer)."""

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

SIDE = 28  # pixels per row and per column of an image
PIXELS = [f'pixel{i}' for i in range(SIDE * SIDE)]
HEADER = ['label', *PIXELS]
NUM_CLASSES = 10
BLOCK_ROWS = 4096  # rows that are parsed at once
MAX_LINE = 2**14  # characters; a line of 784 quoted pixels has 4,700
MAX_LINES = 1_000_000


def find(raw_dir: Path | None) -> Path:
    """Returns the path of the CSV at `raw_dir`, which is that file or a directory with train.csv."""
    if raw_dir is None:
        raise UserError(
            'dataset.raw_dir must be the train.csv of https://www.kaggle.com/c/digit-recognizer, or its directory, '
            "got ''"
        )
    path = raw_dir / 'train.csv' if raw_dir.is_dir() else raw_dir
    if not path.is_file():
        raise UserError(
            f'dataset.raw_dir must be a CSV, or a directory with train.csv, but {str(path)!r} does not exist; if the '
            'file was moved after training, run the training command again with the new raw_dir'
        )
    return path


def read(path: Path) -> Arrays:
    """Reads a CSV with the header label,pixel0,...,pixel783.

    A byte-order mark, quoted values and both kinds of line endings are accepted.

    Returns:
      Images, uint8 Nx28x28x1, and labels, uint8 N.

    Raises:
      UserError: the file is anything else; the message names the file and the line.
    """
    table = _read(path, HEADER)
    return table[:, 1:].reshape(-1, SIDE, SIDE, 1), table[:, 0]


def read_unlabeled(path: Path) -> np.ndarray:
    """Reads the images, uint8 Nx28x28x1, of a CSV with the header pixel0,...,pixel783, like Kaggle's test.csv.

    Otherwise like `read`.
    """
    return _read(path, PIXELS).reshape(-1, SIDE, SIDE, 1)


def _read(path: Path, header: Sequence[str]) -> np.ndarray:
    """Returns the numbers below the header, uint8, one row per image."""
    try:
        with open(path, encoding='utf-8-sig', newline='\n') as file:
            _check_header(path, file.readline(MAX_LINE), header)
            tables = list(_read_tables(path, file, header))
    except OSError as error:
        raise UserError(f'raw file {str(path)!r} cannot be read: {error.strerror}') from None
    except UnicodeDecodeError:
        raise UserError(f'raw file {str(path)!r} is not UTF-8 text; expected a CSV') from None
    if not tables:
        raise UserError(f'raw file {str(path)!r} must have one line per image after its header, got none')
    return np.concatenate(tables)


def _read_tables(path: Path, file: TextIO, header: Sequence[str]) -> Iterator[np.ndarray]:
    """Yields the rows after the header, uint8, in blocks of `BLOCK_ROWS`."""
    lines, first = _read_lines(path, file), 2
    while block := list(itertools.islice(lines, BLOCK_ROWS)):
        if first + len(block) > MAX_LINES:
            raise UserError(f'raw file {str(path)!r} must have at most {MAX_LINES:,} lines, got more')
        yield _parse_rows(path, block, first, header)
        first += len(block)


def _read_lines(path: Path, file: TextIO) -> Iterator[str]:
    """Yields the lines after the header, except for blank lines at the end."""
    blank = 0
    for number in itertools.count(2):
        line = file.readline(MAX_LINE)
        if not line:
            return
        if len(line) == MAX_LINE:
            raise UserError(f'raw file {str(path)!r}, line {number} must have fewer than {MAX_LINE:,} characters')
        if line.strip():
            yield from itertools.repeat('\n', blank)
            yield line
            blank = 0
        else:
            blank += 1


def _parse_rows(path: Path, lines: list[str], first: int, header: Sequence[str]) -> np.ndarray:
    """Returns the numbers in `lines`, uint8; `first` is the number of the first line in the file."""
    try:
        if not all(map(str.strip, lines)):
            raise ValueError('it has blank lines')  # NumPy would skip them.
        table = np.loadtxt(lines, np.uint8, comments=None, delimiter=',', quotechar='"', ndmin=2)
        # A quoted line break makes one row out of two lines.
        labels = table[:, : len(header) - len(PIXELS)]
        if table.shape != (len(lines), len(header)) or labels.max(initial=0) >= NUM_CLASSES:
            raise ValueError('it has the wrong number of rows or columns, or an invalid label')
    except ValueError as error:
        raise _find_error(path, lines, first, header) or UserError(f'raw file {str(path)!r}: {error}') from None
    return table


def _check_header(path: Path, line: str, header: Sequence[str]) -> None:
    names = _split_cells(line)
    if names == header:
        return
    missing = next((name for name in header if name not in names), None)
    extra = next((name for name in names if name not in header), None)
    if not line.strip():
        problem = 'an empty line'
    elif header[0] not in names:
        problem = f'no column {header[0]!r} in a line that starts with {names[0][:20]!r}'
    elif missing:
        problem = f'no column {missing!r}'
    elif extra:
        problem = f'an additional column {extra!r}'
    else:
        problem = 'another order'
    first = 'label,' if 'label' in header else ''
    raise UserError(
        f'raw file {str(path)!r}, line 1 must be the header {first}pixel0,...,pixel783 of {len(header)} columns, '
        f'got {problem}'
    )


def _split_cells(line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error:  # A cell is longer than the csv module allows, 131,072 characters.
        return line.split(',')


def _find_error(path: Path, lines: list[str], first: int, header: Sequence[str]) -> UserError | None:
    """Returns an error that describes the first invalid line; `first` is the number of the first of `lines`."""
    for number, line in enumerate(lines, first):
        cells = _split_cells(line)
        location = f'raw file {str(path)!r}, line {number}'
        if len(cells) != len(header):
            quotes = ' (a quote is not closed)' if line.count('"') % 2 else ''
            return UserError(f'{location} must have {len(header)} columns, like the header, got {len(cells)}{quotes}')
        for name, cell in zip(header, cells, strict=True):
            maximum = NUM_CLASSES - 1 if name == 'label' else 255
            digits = cell.strip()
            if not (digits.isascii() and digits.isdigit() and len(digits) < 10 and int(digits) <= maximum):
                return UserError(f'{location}, column {name} must be an integer from 0 to {maximum}, got {cell[:20]!r}')
    return None


def to_csv(images: np.ndarray, labels: np.ndarray) -> str:
    """Returns images, uint8 Nx28x28x1, and their labels as the text of a CSV that `read` accepts."""
    words = list(map(str, range(256)))
    table = np.column_stack([labels, images.reshape(len(images), -1)])
    rows = (','.join(map(words.__getitem__, row)) for row in table.tolist())
    return '\n'.join([','.join(HEADER), *rows, ''])


class KaggleDigits(ArrayBuilder):
    """Kaggle's digits. Of each class, 80% are for training; of the rest, 80% are for testing and 20% are held out.

    `info.metadata['rows']` holds the indices of the CSV rows in each split, from 0.
    """

    @classmethod
    def variant(cls, raw_dir: Path | None, split_seed: int) -> str:
        """Returns a name made of the digest of the CSV and the seed, so that a changed CSV is prepared again."""
        path = find(raw_dir)
        try:
            with open(path, 'rb') as file:
                digest = hashlib.file_digest(file, 'sha256').hexdigest()
        except OSError as error:
            raise UserError(f'raw file {str(path)!r} cannot be read: {error.strerror}') from None
        return f'{digest[:16]}-seed{split_seed}'

    def _load_arrays(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Arrays]:
        path = find(self._raw_dir)
        images, labels = read(path)
        train, rest = partition.stratified_split(labels, 0.8, self._split_seed)
        test, holdout = (rest[indices] for indices in partition.stratified_split(labels[rest], 0.8, self._split_seed))
        rows = {'train': train, 'test': test, 'holdout': holdout}
        for name, indices in rows.items():
            if not len(indices):
                raise UserError(
                    f'raw file {str(path)!r} must have at least 25 rows of some class, got {len(labels)} rows in all, '
                    f'which leaves none for the split {name!r}'
                )
        self.info.metadata['rows'] = {name: indices.tolist() for name, indices in rows.items()}
        return {name: (images[indices], labels[indices]) for name, indices in rows.items()}
