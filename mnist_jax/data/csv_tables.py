"""Reads tables of images from CSV files, plain, gzipped or in a zip archive."""

import contextlib
import csv
import gzip
import hashlib
import io
import itertools
import lzma
import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, TextIO, cast

import numpy as np

from mnist_jax.data.builder import MAX_SPLIT_BYTES
from mnist_jax.errors import MAX_INT, UserError, comma_separated, first_line

SIDE = 28  # pixels per row and per column of an image
NUM_CLASSES = 10
SUFFIXES = ('.csv', '.csv.gz', '.zip')
# The names of the pixel columns, row by row: those of Kaggle, the same counted from 1, and row x column.
PIXEL_NAMES = (
    [f'pixel{i}' for i in range(SIDE * SIDE)],
    [f'pixel{i}' for i in range(1, SIDE * SIDE + 1)],
    [f'{row}x{column}' for row in range(1, SIDE + 1) for column in range(1, SIDE + 1)],
)
LABEL_NAMES = ('label', 'labels', 'class', 'target', 'y')
MIN_COUNTED = 10  # columns; a first line that counts them is hardly an image
INDEX_NAMES = ('', 'unnamed: 0', 'index')  # row numbers, as pandas writes them; they are ignored
MAX_DIGITS = 4000  # of a number in the name of a column; Python converts no more than 4,300
BLOCK_BYTES = 2**20  # bytes that are hashed at once
BLOCK_ROWS, BLOCK_CELLS = 4096, 2**22  # the most rows and cells that are parsed at once
MAX_LINE = 2**14  # characters; a line of 784 quoted pixels has 4,700
MAX_OPEN_LINE = 2**24  # characters in a table of larger images
MAX_LINES = 1_000_000
MAX_BYTES = 2**33  # limit on the uncompressed size


class _Columns(NamedTuple):
    """The columns of a table."""

    names: list[str]  # what error messages call them
    order: list[int]  # indices of the columns to return: the label, if there is one, and the pixels row by row
    maxima: np.ndarray  # the largest value that each column may have


def is_table(path: Path) -> bool:
    """Returns whether the name of a file is that of a CSV, plain or compressed."""
    return path.name.lower().endswith(SUFFIXES)


def sha256(path: Path, member: str) -> str:
    """Returns the digest of the uncompressed contents; see `read` for the arguments."""
    digest, size = hashlib.sha256(), 0
    with _opened(path, member) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            size += len(block)
            if size > MAX_BYTES:
                raise UserError(f'raw file {str(path)!r} must have at most {MAX_BYTES:,} bytes, uncompressed, got more')
    return digest.hexdigest()


def read(path: Path, member: str, labeled: bool) -> np.ndarray:
    """Reads a table with one row per image, and a column per pixel.

    The header names the columns, which may be in any order: the pixels as in one of `PIXEL_NAMES`, `label` if
    `labeled`, and possibly row numbers. A byte-order mark, quoted values and both kinds of line endings are accepted.

    Args:
      path: The CSV. Its first bytes, not its name, tell whether it is gzipped or a zip archive.
      member: The name of the CSV in a zip archive that contains several.
      labeled: Whether the table must have a column `label`; otherwise it must have none.

    Returns:
      The label, if `labeled`, and the pixels, row by row; uint8, one row per image.

    Raises:
      UserError: the file is anything else; the message names the file and the line or the column.
    """
    with _opened(path, member) as binary, io.TextIOWrapper(binary, encoding='utf-8-sig', newline='\n') as file:
        columns = _find_columns(path, file.readline(MAX_LINE), labeled)
        tables = list(_read_tables(path, _read_lines(path, file, MAX_LINE), 2, columns))
    if not tables:
        raise UserError(f'raw file {str(path)!r} must have one line per image after its header, got none')
    return np.concatenate(tables).astype(np.uint8)


def read_open(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a table of square images of any size, gray or colored, with one row per image.

    A header must call the column of the labels by one of `LABEL_NAMES`; row numbers are ignored, and all other columns
    are pixels, ordered by the numbers in their names. Without a header, the label comes first.

    Returns:
      The images, uint8 NxHxHxC, and the labels, int64 N.

    Raises:
      UserError: the file is anything else; the message names the file and the line or the column.
    """
    with _opened(path, path.name) as binary, io.TextIOWrapper(binary, encoding='utf-8-sig', newline='\n') as file:
        line = _read_line(path, file, MAX_OPEN_LINE, 1)
        columns, has_header = _find_open_columns(path, line)
        lines = itertools.chain([] if has_header else [line], _read_lines(path, file, MAX_OPEN_LINE))
        size, parts = 0, []
        for table in _read_tables(path, lines, 1 + has_header, columns):
            parts.append((table[:, 0].astype(np.int64), table[:, 1:].astype(np.uint8)))
            size += parts[-1][1].nbytes
            if size > MAX_SPLIT_BYTES:
                raise UserError(f'raw file {str(path)!r} must have at most {MAX_SPLIT_BYTES:,} pixels, got more')
    if not parts:
        raise UserError(f'raw file {str(path)!r} must have one line per image after its header, got none')
    labels, pixels = map(np.concatenate, zip(*parts, strict=True))
    side, channels = _image_size(pixels.shape[1])
    return pixels.reshape(-1, side, side, channels), labels


def _image_size(pixels: int) -> tuple[int, int]:
    """Returns the side and the channels of a square image; (0, 0) if there is none with this many values."""
    for channels in (1, 3):
        side = math.isqrt(pixels // channels)
        if side and side * side * channels == pixels:
            return side, channels
    return 0, 0


def _find_open_columns(path: Path, line: str) -> tuple[_Columns, bool]:
    """Returns the columns that the first line of a table names, and whether this line is a header."""
    cells = [cell.strip() for cell in _split_cells(line)]
    # pandas calls the columns of an array 0, 1, 2 and so on.
    counted = len(cells) > MIN_COUNTED and any(cells == [*map(str, range(i, i + len(cells)))] for i in (0, 1))
    has_header = counted or not cells or not all(cell.isascii() and cell.isdigit() for cell in cells)
    names = [cell.lower() for cell in cells] if has_header else [f'number {i}' for i in range(1, len(cells) + 1)]
    labels = [i for i, name in enumerate(names) if name in LABEL_NAMES] if has_header else [0]
    if len(labels) != 1:
        raise UserError(
            f'raw file {str(path)!r}, line 1 must be a header in which one column is called '
            f'{", ".join(LABEL_NAMES[:-1])} or {LABEL_NAMES[-1]}, or a row of integers that starts with the label, got '
            f'{len(labels)} such columns in a line that starts with {line[:20].strip()!r}'
        )
    pixels = [i for i, name in enumerate(names) if i != labels[0] and name not in INDEX_NAMES]
    if not all(_image_size(len(pixels))):
        raise UserError(
            f'raw file {str(path)!r} must have one column per pixel of square images, gray or colored, such as 784 or '
            f'2352, got {len(pixels)}'
        )
    if has_header and len(set(names)) < len(names):
        repeated = next(name for i, name in enumerate(names) if name in names[:i])
        raise UserError(f'raw file {str(path)!r}, line 1 must name each column once, got {repeated[:20]!r} twice')
    if has_header and all(re.search(r'\d', names[i]) for i in pixels):
        numbers = {i: [int(number[-MAX_DIGITS:]) for number in re.findall(r'\d+', names[i])] for i in pixels}
        pixels.sort(key=lambda i: numbers[i])
        for previous, following in itertools.pairwise(pixels):
            # Names such as 2x3 have several numbers, of which the last one starts again in each row.
            if [len(numbers[i]) for i in (previous, following)] == [1, 1] and (
                numbers[following][0] > numbers[previous][0] + 1
            ):
                raise UserError(
                    f'the columns of pixels of raw file {str(path)!r} must be numbered without gaps, got '
                    f'{names[following][:20]!r} after {names[previous][:20]!r}'
                )
    maxima = np.full(len(names), MAX_INT)
    maxima[pixels] = 255
    return _Columns(
        [cell or f'number {i}' for i, cell in enumerate(names, 1)], [labels[0], *pixels], maxima
    ), has_header


@contextlib.contextmanager
def _opened(path: Path, member: str) -> Iterator[IO[bytes]]:
    """Opens the uncompressed contents of a CSV; errors in the `with` block become a UserError."""
    try:
        with open(path, 'rb') as file, contextlib.ExitStack() as stack:
            start = file.read(4)
            file.seek(0)
            if start == b'PK\x03\x04':
                archive = stack.enter_context(zipfile.ZipFile(file))
                yield stack.enter_context(archive.open(_choose_member(path, archive, member)))
            elif start[:2] == b'\x1f\x8b':
                yield cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=file)))
            else:
                yield file
    except UnicodeDecodeError:
        raise UserError(f'raw file {str(path)!r} is not UTF-8 text; expected a CSV') from None
    except (EOFError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
        raise UserError(f'raw file {str(path)!r} is truncated or damaged: {first_line(error)}') from None
    except (RuntimeError, NotImplementedError) as error:  # The archive is encrypted, or uses an unknown compression.
        raise UserError(f'raw file {str(path)!r} cannot be read: {first_line(error)}') from None
    except OSError as error:
        raise UserError(f'raw file {str(path)!r} cannot be read: {error.strerror or error}') from None


def _choose_member(path: Path, archive: zipfile.ZipFile, name: str) -> str:
    """Returns the name of the only CSV in an archive, or of the one that is called `name`."""
    # macOS adds files that start with a dot.
    members = {
        member: Path(member).name.lower()
        for member in archive.namelist()
        if member.lower().endswith('.csv') and not Path(member).name.startswith('.')
    }
    chosen = list(members) if len(members) == 1 else [member for member in members if members[member] == name]
    if len(chosen) != 1:
        or_named = f' or {name}' if name.endswith('.csv') else ''
        raise UserError(
            f'raw file {str(path)!r} must contain a single CSV file{or_named}, got '
            f'{comma_separated(list(members)[:5])}; otherwise, unpack it, and use the directory or one of its files'
        )
    return chosen[0]


def _find_columns(path: Path, line: str, labeled: bool) -> _Columns:
    """Returns the columns that the header, the first line of the file, names."""
    cells = _split_cells(line)
    names = [cell.strip().lower() for cell in cells]
    pixels = max(PIXEL_NAMES, key=lambda scheme: len(set(scheme) & set(names)))
    expected = ['label', *pixels] if labeled else pixels
    missing = next((name for name in expected if name not in names), None)
    extra = next((i for i, name in enumerate(names) if name not in {*expected, *INDEX_NAMES}), None)
    repeated = next((i for i, name in enumerate(names) if name in names[:i]), None)
    if not line.strip():
        problem = 'an empty line'
    elif expected[0] not in names and (labeled or not set(pixels) & set(names)):
        problem = f'no column {expected[0]!r} in a line that starts with {(cells[0] or line)[:20]!r}'
    elif missing:
        problem = f'no column {missing!r}'
    elif extra is not None:
        problem = f'an additional column {cells[extra][:20]!r}'
    elif repeated is not None:
        problem = f'the column {cells[repeated][:20]!r} twice'
    else:
        maxima = {'label': NUM_CLASSES - 1, **dict.fromkeys(pixels, 255)}
        return _Columns(
            names=[cell.strip() or f'number {number} (without a name)' for number, cell in enumerate(cells, 1)],
            order=[names.index(name) for name in expected],
            maxima=np.array([maxima.get(name, MAX_INT) for name in names]),
        )
    first = 'label,' if labeled else ''
    raise UserError(
        f'raw file {str(path)!r}, line 1 must be the header {first}pixel0,...,pixel783 of {len(expected)} columns, '
        f'got {problem}'
    )


def _read_tables(path: Path, lines: Iterator[str], first: int, columns: _Columns) -> Iterator[np.ndarray]:
    """Yields the rows in blocks; `first` is the number of the first of `lines` in the file."""
    rows = max(1, min(BLOCK_ROWS, BLOCK_CELLS // len(columns.names)))
    while block := list(itertools.islice(lines, rows)):
        if first + len(block) - 1 > MAX_LINES:
            raise UserError(f'raw file {str(path)!r} must have at most {MAX_LINES:,} lines, got more')
        yield _parse_rows(path, block, first, columns)
        first += len(block)


def _read_line(path: Path, file: TextIO, limit: int, number: int) -> str:
    """Returns the next line, whose number is `number`; raises a UserError if it has `limit` or more characters."""
    line = file.readline(limit)
    if len(line) == limit:
        raise UserError(f'raw file {str(path)!r}, line {number} must have fewer than {limit:,} characters')
    return line


def _read_lines(path: Path, file: TextIO, limit: int) -> Iterator[str]:
    """Yields the lines after the first one, of fewer characters than `limit`, except for blank lines at the end."""
    blank = 0
    for number in itertools.count(2):
        line = _read_line(path, file, limit, number)
        if not line:
            return
        if line.strip():
            yield from itertools.repeat('\n', blank)
            yield line
            blank = 0
        else:
            blank += 1


def _parse_rows(path: Path, lines: list[str], first: int, columns: _Columns) -> np.ndarray:
    """Returns the label and the pixels in `lines`; `first` is the number of the first line in the file."""
    try:
        if not all(map(str.strip, lines)):
            raise ValueError('it has blank lines')  # NumPy would skip them.
        dtype = np.uint8 if columns.maxima.max() <= 255 else np.int32
        table = np.loadtxt(lines, dtype, comments=None, delimiter=',', quotechar='"', ndmin=2)
        # A quoted line break makes one row out of two lines.
        if table.shape != (len(lines), len(columns.names)) or table.min() < 0 or (table > columns.maxima).any():
            raise ValueError('it has the wrong number of rows or columns, or an invalid value')
    except ValueError as error:
        raise _find_error(path, lines, first, columns) or UserError(f'raw file {str(path)!r}: {error}') from None
    return table[:, columns.order]


def _find_error(path: Path, lines: list[str], first: int, columns: _Columns) -> UserError | None:
    """Returns an error that describes the first invalid line; `first` is the number of the first of `lines`."""
    for number, line in enumerate(lines, first):
        cells = _split_cells(line)
        location = f'raw file {str(path)!r}, line {number}'
        if len(cells) != len(columns.names):
            quotes = ' (a quote is not closed)' if line.count('"') % 2 else ''
            return UserError(
                f'{location} must have {len(columns.names)} columns, like the header, got {len(cells)}{quotes}'
            )
        for name, maximum, cell in zip(columns.names, columns.maxima, cells, strict=True):
            digits = cell.strip()
            if not (digits.isascii() and digits.isdigit() and len(digits) <= 10 and int(digits) <= maximum):
                return UserError(f'{location}, column {name} must be an integer from 0 to {maximum}, got {cell[:20]!r}')
    return None


def _split_cells(line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error:  # A cell is longer than the csv module allows, 131,072 characters.
        return line.split(',')
