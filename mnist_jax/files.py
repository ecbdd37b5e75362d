"""Files that are written whole or not at all, and read within bounds; directories with one writer."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from absl import logging

from mnist_jax.errors import UserError

MOST = 16 * 2**20  # bytes of a text file that this program writes; a larger one is not of it


def write_text(path: Path, text: str) -> None:
    """Write `text` as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, contents: bytes) -> None:
    """Write `contents` under a temporary name, flush it to the disk, then rename it to `path`."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.', suffix='.tmp')
    try:
        with os.fdopen(descriptor, 'wb') as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_bytes(path: Path) -> bytes:
    """The contents of a file; ValueError or OSError where this program cannot have written it."""
    if not path.is_file():
        raise FileNotFoundError(f'{str(path)!r} is no file')
    with open(path, 'rb') as file:
        contents = file.read(MOST + 1)
    if len(contents) > MOST:
        raise ValueError(f'it is larger than {MOST:,} bytes')
    return contents


def read_json(path: Path) -> Any:
    """The value of a JSON file, as `read_bytes`."""
    try:
        return json.loads(read_bytes(path).decode())
    except RecursionError:
        raise ValueError('it is nested too deeply') from None


@contextlib.contextmanager
def held(directory: Path, what: str) -> Iterator[None]:
    """Hold `directory` for this process; that another one does so is the user's error.

    The kernel ends the hold with the process: one that was killed leaves nothing to clear up, but for the files that
    it was writing, which are removed here.
    """
    with _open_lock(directory / 'lock', what) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(200).strip() or 'another process'
            raise UserError(
                f'{what} {str(directory)!r} is in use by {holder}; wait for its end, or give another'
            ) from None
        except OSError as error:
            logging.warning(
                '%s has a file system without locks: nothing prevents a second run there (%s)', directory, error
            )
        for leftover in directory.glob('.*.tmp'):
            leftover.unlink(missing_ok=True)
        began = datetime.datetime.now().isoformat(' ', 'seconds')
        file.truncate(0)
        file.write(f'process {os.getpid()} on {platform.node()}, since {began}')
        file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # The disk may be gone by now.
                file.truncate(0)


def _open_lock(path: Path, what: str) -> TextIO:
    try:
        return open(path, 'a+')
    except OSError as error:
        raise UserError(f'{what} cannot be used: {str(path)!r}: {error.strerror}; remove it') from None


def reserve(directory: Path, size: int) -> None:
    """Raise an OSError unless so many bytes can be written in `directory`, which is made anew where it vanished."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory) as file:
        if not hasattr(os, 'posix_fallocate'):  # As on macOS: that a file can be made must do.
            return
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # A file system that knows no such thing.
                raise


def make_directory(path: Path, what: str) -> None:
    """Create `path` and its parents; that it cannot be a writable directory is the user's error."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (FileExistsError, NotADirectoryError):
        raise UserError(f'{what} {str(path)!r} is, or lies below, a file; give a directory') from None
    except OSError as error:
        raise UserError(f'{what} {str(path)!r} is not writable ({error.strerror}); give another directory') from None
