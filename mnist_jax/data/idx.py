"""The IDX format of the MNIST files; see 'file formats' in http://yann.lecun.com/exdb/mnist/."""

import gzip
import hashlib
import io
import math
import re
import zlib
from pathlib import Path

import numpy as np

from mnist_jax.errors import UserError

BLOCK_BYTES = 2**20  # bytes per read
MAX_BYTES = 2**30  # limit on the size of the elements; TFDS needs TensorFlow to prepare a larger split
GZIPPED = b'\x1f\x8b'
# Two zero bytes, the element type (8: unsigned byte), and the number of dimensions.
MAGIC = {1: b'\x00\x00\x08\x01', 3: b'\x00\x00\x08\x03'}
NAME = re.compile(r'(?P<prefix>|.*-)(train|t10k|test)-(images[-.]idx3|labels[-.]idx1)-ubyte(\.gz)?')


def is_transposed(prefix: str, transpose: str = 'auto') -> bool:
    """Returns whether rows and columns of the images in a file are swapped.

    Args:
      prefix: How the name of the file starts; see `find_prefix`.
      transpose: 'yes' or 'no', or 'auto': if it is one of EMNIST's files.
    """
    return transpose == 'yes' or (transpose == 'auto' and prefix.lower().startswith('emnist-'))


def find(directory: Path, name: str, prefix: str = '') -> Path:
    """Returns the path of a file in `directory`, plain or gzipped.

    Args:
      directory: Where to look.
      name: The name of the file in MNIST, such as 't10k-images-idx3-ubyte'; a dot before 'idx' is accepted, and
        'test' instead of 't10k'.
      prefix: What precedes this name, such as 'emnist-digits-'; see `find_prefix`.

    Raises:
      UserError: there is no such file, or there are several that differ by more than '.gz'.
    """
    names = [name.replace('t10k', test) for test in ('t10k', 'test')]
    spellings = [prefix + spelling for name in names for spelling in (name, name.replace('-idx', '.idx'))]
    paths = [directory / f'{spelling}{suffix}' for spelling in spellings for suffix in ('', '.gz')]
    found = list(filter(Path.is_file, paths))
    if len({path.name.removesuffix('.gz') for path in found}) > 1:
        raise UserError(
            f'config.dataset.raw_dir must contain the files of one dataset, got both {found[0].name} and '
            f'{found[-1].name} in {str(directory)!r}; move those to use to a directory of their own'
        )
    if found:
        return found[0]
    expected = prefix + names[1 if prefix else 0]  # EMNIST's names have a prefix, and 'test'.
    raise UserError(f'raw file {expected} (or {expected}.gz) is missing from {str(directory)!r}')


def find_prefix(directory: Path) -> str:
    """Returns the common prefix of the names in `directory`: '' for MNIST's names, 'emnist-digits-' for EMNIST's.

    Raises:
      UserError: the directory has the files of several datasets, and none without a prefix.
    """
    matches = [NAME.fullmatch(path.name) for path in sorted(directory.iterdir()) if not path.name.startswith('.')]
    prefixes = sorted({match['prefix'] for match in matches if match})
    if len(prefixes) > 1 and '' not in prefixes:
        names = ', '.join(f'{prefix}...' for prefix in prefixes[:10])
        raise UserError(
            f'config.dataset.raw_dir must contain the files of one dataset, got {names} in {str(directory)!r}; '
            'move those to use to a directory of their own'
        )
    return prefixes[0] if prefixes else ''


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
    header, elements, shape = _read(path, dimensions)
    if sha256 is not None and (digest := _sha256(header, elements)) != sha256:
        raise UserError(f'raw file {str(path)!r} must have the SHA-256 {sha256}, got {digest}')
    return np.frombuffer(elements, np.uint8).reshape(shape)


def digest(path: Path, dimensions: int) -> str:
    """Returns the SHA-256 of the uncompressed contents of an IDX file; see `read`."""
    header, elements, _ = _read(path, dimensions)
    return _sha256(header, elements)


def _sha256(header: bytes, elements: bytearray) -> str:
    sha256 = hashlib.sha256(header)
    sha256.update(elements)
    return sha256.hexdigest()


def _read(path: Path, dimensions: int) -> tuple[bytes, bytearray, tuple[int, ...]]:
    """Returns header, elements and shape of an IDX file."""
    try:
        with open(path, 'rb') as file:
            gzipped = file.read(2) == GZIPPED
            file.seek(0)
            return _parse(path, gzip.GzipFile(fileobj=file) if gzipped else file, dimensions)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f'raw file {str(path)!r} is truncated or damaged: {error}') from None
    except OSError as error:
        raise UserError(f'raw file {str(path)!r} cannot be read: {error.strerror}') from None


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
