"""The IDX format of the MNIST files: http://yann.lecun.com/exdb/mnist/, 'file formats'."""

import gzip
import hashlib
import math
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from mnist_jax.errors import UserError

PIECE = 2**20  # bytes that are read in one go
MAX_BYTES = 2**30  # bytes of elements; TFDS prepares no larger split without TensorFlow
GZIPPED = b'\x1f\x8b'
# Two zero bytes, the element type (8: unsigned byte), the number of dimensions.
MAGIC = {1: b'\x00\x00\x08\x01', 3: b'\x00\x00\x08\x03'}


def find(directory: Path, name: str) -> Path:
    """The file `name` in `directory`, plain or gzipped."""
    for path in (directory / name, directory / f'{name}.gz'):
        if path.is_file():
            return path
    raise UserError(f'raw file {name} (or {name}.gz) is missing in {str(directory)!r}')


def read(path: Path, dimensions: int, sha256: str | None = None) -> np.ndarray:
    """The array of unsigned bytes in an IDX file, plain or gzipped (by its first bytes, not its name).

    Args:
      path: the file.
      dimensions: how many it must have: 3 for images, 1 for labels.
      sha256: of its uncompressed contents, where that is known.

    Raises:
      UserError: it cannot be read, is of the wrong kind, of another length than it says, or has another checksum.
    """
    try:
        with open(path, 'rb') as file:
            zipped = file.read(2) == GZIPPED
            file.seek(0)
            header, pixels, shape = _read(path, gzip.GzipFile(fileobj=file) if zipped else file, dimensions)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f'raw file {str(path)!r} is truncated or damaged: {error}') from None
    except OSError as error:
        raise UserError(f'raw file {str(path)!r} cannot be read: {error.strerror}') from None
    found = hashlib.sha256(header)
    found.update(pixels)
    if sha256 is not None and found.hexdigest() != sha256:
        raise UserError(f'raw file {str(path)!r} has the wrong checksum: sha256 {found.hexdigest()}, and not {sha256}')
    return np.frombuffer(pixels, np.uint8).reshape(shape)


def _read(path: Path, file: IO[bytes], dimensions: int) -> tuple[bytes, bytearray, tuple[int, ...]]:
    """Header, elements and shape; no more is read than the header asks for, whatever the file unpacks to."""
    size = 4 + 4 * dimensions
    header = file.read(size)
    if header[:4] != MAGIC[dimensions]:
        raise UserError(
            f'raw file {str(path)!r} is not an IDX file of unsigned bytes with {dimensions} dimension(s): '
            f'it begins with {header[:4].hex() or "nothing"} and not with {MAGIC[dimensions].hex()}'
        )
    if len(header) < size:
        raise UserError(f'raw file {str(path)!r} is truncated: it ends within its header')
    shape = tuple(int(length) for length in np.frombuffer(header[4:], '>u4'))
    expected = math.prod(shape)
    if expected > MAX_BYTES:
        raise UserError(
            f'raw file {str(path)!r} is too large: its header {shape} asks for more than {MAX_BYTES:,} bytes'
        )
    pixels = bytearray()
    while piece := file.read(min(PIECE, expected + 1 - len(pixels))):
        pixels += piece
    if len(pixels) != expected:
        problem = f'truncated: {size + len(pixels):,} bytes' if len(pixels) < expected else 'too long'
        raise UserError(f'raw file {str(path)!r} is {problem}, and its header {shape} asks for {size + expected:,}')
    return header, pixels, shape
