"""The IDX format of the MNIST files: http://yann.lecun.com/exdb/mnist/, 'file formats'."""

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np

from mnist_jax.errors import UserError

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
      UserError: it cannot be read, is of the wrong kind, is truncated, or has another checksum.
    """
    contents = _uncompressed(path)
    magic = contents[:4]
    if magic != MAGIC[dimensions]:
        raise UserError(
            f'raw file {str(path)!r} is not an IDX file of unsigned bytes with {dimensions} dimension(s): '
            f'it begins with {magic.hex() or "nothing"} and not with {MAGIC[dimensions].hex()}'
        )
    header = 4 + 4 * dimensions
    if len(contents) < header:
        raise UserError(f'raw file {str(path)!r} is truncated: it ends within its header')
    shape = tuple(int(size) for size in np.frombuffer(contents[4:header], '>u4'))
    expected = header + int(np.prod(shape, dtype=np.uint64))
    if len(contents) != expected:
        kind = 'truncated' if len(contents) < expected else 'too long'
        raise UserError(
            f'raw file {str(path)!r} is {kind}: {len(contents):,} bytes, and its header {shape} asks for {expected:,}'
        )
    found = hashlib.sha256(contents).hexdigest()
    if sha256 is not None and found != sha256:
        raise UserError(f'raw file {str(path)!r} has the wrong checksum: sha256 {found}, and not {sha256}')
    return np.frombuffer(contents, np.uint8, offset=header).reshape(shape)


def _uncompressed(path: Path) -> bytes:
    try:
        contents = path.read_bytes()
        return gzip.decompress(contents) if contents[:2] == b'\x1f\x8b' else contents
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f'raw file {str(path)!r} is truncated or damaged: {error}') from None
    except OSError as error:
        raise UserError(f'raw file {str(path)!r} cannot be read: {error.strerror}') from None
