"""Files that are written whole or not at all, and read within bounds; directories: with one writer, of the cache."""

import contextlib
import datetime
import errno
import fcntl
import functools
import hashlib
import json
import os
import platform
import re
import tempfile
from pathlib import Path
from typing import Any

from absl import logging

from mnist_jax.errors import UserError

JsonObject = dict[str, Any]
"""A JSON object, as `json.loads` returns it."""

TEMPORARY_PREFIX = '.mnist_jax-'  # How the names of files begin that are being written.
MAX_BYTES = 16 * 2**20  # bytes of a text file that this program writes; a larger one is not of it


def write_text(path: Path, text: str) -> None:
    """Write `text` as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, contents: bytes) -> None:
    """Write `contents` under a temporary name, flush it to the disk, then rename it to `path`.

    Raises:
      OSError: with the name of `path`.
    """
    temporary = ''
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY_PREFIX)
        with os.fdopen(descriptor, 'wb') as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from None
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
        contents = file.read(MAX_BYTES + 1)
    if len(contents) > MAX_BYTES:
        raise ValueError(f'it is larger than {MAX_BYTES:,} bytes')
    return contents


def read_json(path: Path) -> Any:
    """The value of a JSON file, as `read_bytes`."""
    try:
        return json.loads(read_bytes(path).decode())
    except RecursionError:
        raise ValueError('it is nested too deeply') from None


def printable(name: str) -> str:
    """A name from a disk or a file, with a question mark for what cannot be shown or written as UTF-8."""
    return ''.join(character if character.isprintable() else '?' for character in name)


class DirectoryLock:
    """Holds a directory for this process, in a file `lock` there: a context manager.

    The kernel ends the hold with the process: one that was killed leaves nothing to clear up, but for the files that
    it was writing, which are removed here.
    """

    def __init__(self, directory: Path, what: str):
        """`what` is how an error calls the directory."""
        self._directory, self._what = directory, what
        self._path = directory / 'lock'
        self._descriptor = -1

    def __enter__(self) -> 'DirectoryLock':
        self._descriptor = self._take()
        for leftover in self._directory.glob(f'{TEMPORARY_PREFIX}*'):
            leftover.unlink(missing_ok=True)
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):  # The disk may be gone by now.
            os.truncate(self._descriptor, 0)
        os.close(self._descriptor)

    def renew(self) -> None:
        """Hold the directory that has this name now, where it was moved or removed and made anew."""
        try:
            same = os.path.samestat(os.stat(self._path), os.fstat(self._descriptor))
        except FileNotFoundError:
            same = False
        if not same:
            self._directory.mkdir(parents=True, exist_ok=True)
            before, self._descriptor = self._descriptor, self._take()
            os.close(before)

    def _take(self) -> int:
        """The descriptor of the locked file; UserError where another process holds the directory."""
        where = f'{self._what} {str(self._directory)!r}'
        # Not through a link: what lies behind would be overwritten.
        if self._path.is_symlink() or (self._path.exists() and not self._path.is_file()):
            raise UserError(f'{where} cannot be used: {self._path.name!r} in it is no plain file; remove that')
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors='replace').strip() or 'another process'
            os.close(descriptor)
            raise UserError(f'{where} is in use by {holder}; wait for its end, or give another') from None
        except OSError as error:
            logging.warning('%s has a file system without locks: nothing prevents a second run (%s)', where, error)
        began = datetime.datetime.now().isoformat(' ', 'seconds')
        os.truncate(descriptor, 0)
        with contextlib.suppress(OSError):  # On a full disk, it is held without saying so.
            os.pwrite(descriptor, f'process {os.getpid()} on {platform.node()}, since {began}'.encode(), 0)
        return descriptor


@functools.cache
def cache_directory() -> Path | None:
    """Where this user's compiled programs are kept for this kind of processor; None where nothing can be.

    A directory for each kind, since a home directory may be shared by machines that differ.
    """
    cpuinfo = Path('/proc/cpuinfo')
    features = re.findall(r'^(?:flags|Features)\s*:.*$', cpuinfo.read_text() if cpuinfo.exists() else '', re.MULTILINE)
    processor = features[0] if features else platform.platform()
    # Where a user has no home at all, as in some containers, '~' stays as it is.
    home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    if home.startswith('~'):
        return None
    directory = Path(home) / 'mnist_jax' / hashlib.sha256(processor.encode()).hexdigest()[:12]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return directory if os.access(directory, os.W_OK) else None


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
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f'{what} {str(path)!r} has a name that is no UTF-8; give another directory') from None
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (FileExistsError, NotADirectoryError):
        raise UserError(f'{what} {str(path)!r} is, or lies below, a file; give a directory') from None
    except OSError as error:
        raise UserError(f'{what} {str(path)!r} is not writable ({error.strerror}); give another directory') from None
