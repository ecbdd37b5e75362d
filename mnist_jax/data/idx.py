"""The IDX format of the MNIST files; see 'file formats' in http://yann.lecun.com/exdb/mnist/."""

import gzip
import hashlib
import io
import math
import zlib
from pathlib import Path

import numpy as np

from mnist_jax.errors import UserError

BLOCK_BYTES = 2**20  # bytes per read
MAX_BYTES = 2**30  # limit on the size of the elements; TFDS needs TensorFlow to prepare a larger split
GZIPPED = b'\x1f\x8b'
# Two zero bytes, the element type (8: unsigned byte), and the number of dimensions.
MAGIC = {1: b'\x00\x00\x08\x01', 3: b'\x00\x00\x08\x03'}


def find(directory: Path, name: str) -> Path:
    """Returns the path of the file `name` in `directory`, plain or gzipped."""
    for path in (directory / name, directory / f'{name}.gz'):
        if path.is_file():
            return path
    raise UserError(f'raw file {name} (or {name}.gz) is missing from {str(directory)!r}')


def read(path: Path, dimensions: int, sha256: str | None = None) -> np.ndarray:
    """Reads the array of unsigned bytes in an IDX file.

    Args:
      path: The file. Its first bytes, not its name, tell whether it is gzipped.
      dimensions: The number of dimensions that the array must have: 3 for images, 1 for labels.
      sha256: The digest that the uncompressed contents must have, if it is known.

    Raises:
      UserError: the file cannot be read, is not such an IDX file, does not have the length that its header gives, or
        has a different digest.
    """
    try:
        with open(path, 'rb') as file:
            gzipped = file.read(2) == GZIPPED
            file.seek(0)
            header, elements, shape = _parse(path, gzip.GzipFile(fileobj=file) if gzipped else file, dimensions)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f'raw file {str(path)!r} is truncated or damaged: {error}') from None
    except OSError as error:
        raise UserError(f'raw file {str(path)!r} cannot be read: {error.strerror}') from None
    digest = hashlib.sha256(header)
    digest.update(elements)
    if sha256 is not None and digest.hexdigest() != sha256:
        raise UserError(f'raw file {str(path)!r} must have the SHA-256 {sha256}, got {digest.hexdigest()}')
    return np.frombuffer(elements, np.uint8).reshape(shape)


def _parse(path: Path, file: io.BufferedIOBase, dimensions: int) -> tuple[bytes, bytearray, tuple[int, ...]]:
    """Returns header, elements and shape; reads at most what the header announces, even if the file unpacks to more."""
    header_size = 4 + 4 * dimensions
    header = file.read(header_size)
    if header[:4] != MAGIC[dimensions]:
        raise UserError(
            f'raw file {str(path)!r} must be an IDX file of unsigned bytes with {dimensions} dimension(s): it must '
            f'start with {MAGIC[dimensions].hex()}, got {header[:4].hex() or "an empty file"}'
        )
    if len(header) < header_size:
        raise UserError(f'raw file {str(path)!r} is truncated: it ends inside its header')
    shape = tuple(int(length) for length in np.frombuffer(header[4:], '>u4'))
    size = math.prod(shape)
    if size > MAX_BYTES:
        raise UserError(
            f'raw file {str(path)!r} must have at most {MAX_BYTES:,} elements, got the shape {shape} in its header'
        )
    elements = bytearray()
    while block := file.read(min(BLOCK_BYTES, size + 1 - len(elements))):
        elements += block
    if len(elements) != size:
        length = f'only {header_size + len(elements):,}' if len(elements) < size else 'more'
        raise UserError(
            f'raw file {str(path)!r} must have {header_size + size:,} bytes, uncompressed, for the shape {shape} in '
            f'its header, got {length}'
        )
    return header, elements, shape
