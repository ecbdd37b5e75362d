"""Paths that users give, atomic writes, bounded reads, directory locks and the cache directory."""

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

from mnist_jax.errors import UserError, WriteError

JsonObject = dict[str, Any]
"""A JSON object, as `json.loads` returns it."""

TEMPORARY_PREFIX = '.mnist_jax-'  # prefix of the names of temporary files
MAX_BYTES = 16 * 2**20  # size limit of a text file that this program writes; a larger file is not ours


def user_path(path: str | Path, field: str) -> Path:
    """Returns a path that a user gave, with `~` expanded; every such path comes through here.

    Args:
      path: A path or a glob pattern: the value of a flag, of a config field, or of an argument of a function.
      field: What error messages call it, such as the name of the flag.

    Raises:
      UserError: it is not on a local file system, or it is in the home directory of an unknown user.
    """
    text = os.fspath(path)
    if '\0' in text:
        raise UserError(f'{field} must not contain a NUL character, got {text!r}')
    # A `Path` has lost the second slash. A drive letter of Windows is not a scheme.
    if re.match(r'[A-Za-z][A-Za-z0-9+.-]+:/', text):
        raise UserError(
            f'{field} must be a local path, got {text!r}; mount the bucket, for example with gcsfuse or rclone, or '
            'copy it'
        )
    expanded = os.path.expanduser(text)
    if expanded.startswith('~') and not os.path.exists(text):
        raise UserError(
            f'{field} must not start with ~ unless it names a home directory, got {text!r}; for a file of this name, '
            f'use {f"./{text}"!r}'
        )
    # `Path` drops a leading './', without which the name would be expanded next time.
    return Path(expanded).absolute() if text.startswith('./~') else Path(expanded)


def write_text(path: Path, text: str) -> None:
    """Writes `text` atomically; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, contents: bytes) -> None:
    """Writes a file atomically: under a temporary name, flushed to disk, then renamed to `path`.

    Raises:
      WriteError: the file cannot be written; the error names `path`, not the temporary file.
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
            raise WriteError(error.errno, error.strerror, str(path)) from None
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_bytes(path: Path) -> bytes:
    """Reads a file of at most `MAX_BYTES`.

    Raises:
      FileNotFoundError: `path` is not a regular file, so reading it could block.
      ValueError: the file is too large for this program to have written it.
    """
    if not path.is_file():
        raise FileNotFoundError(f'{str(path)!r} is not a regular file')
    with open(path, 'rb') as file:
        contents = file.read(MAX_BYTES + 1)
    if len(contents) > MAX_BYTES:
        raise ValueError(f'it is larger than {MAX_BYTES:,} bytes')
    return contents


def read_json(path: Path) -> object:
    """Reads a JSON file with `read_bytes`; raises a ValueError if it is not valid JSON."""
    try:
        return json.loads(read_bytes(path).decode())
    except RecursionError:
        raise ValueError('it is nested too deeply') from None


def printable(name: str) -> str:
    """Replaces each character that cannot be printed or encoded in UTF-8 with a question mark."""
    return ''.join(character if character.isprintable() else '?' for character in name)


class DirectoryLock:
    """A context manager that locks a directory for this process, with a file `lock` in it.

    The kernel releases the lock when the process ends, so a killed process leaves nothing to clean up except the
    temporary files that it was writing; taking the lock removes these.
    """

    def __init__(self, directory: Path, label: str):
        """`label` names the directory in error messages."""
        self._directory, self._label = directory, label
        self._path = directory / 'lock'
        self._descriptor = -1

    def __enter__(self) -> 'DirectoryLock':
        self._descriptor = self._acquire()
        for leftover in self._directory.glob(f'{TEMPORARY_PREFIX}*'):
            leftover.unlink(missing_ok=True)
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):  # The disk may be gone by now.
            os.truncate(self._descriptor, 0)
        os.close(self._descriptor)

    def renew(self) -> None:
        """Locks the directory again if it was moved or deleted, creating a new one under the same name if needed."""
        try:
            unchanged = os.path.samestat(os.stat(self._path), os.fstat(self._descriptor))
        except FileNotFoundError:
            unchanged = False
        if not unchanged:
            self._directory.mkdir(parents=True, exist_ok=True)
            previous, self._descriptor = self._descriptor, self._acquire()
            os.close(previous)

    def _acquire(self) -> int:
        """Returns the descriptor of the locked file; raises a UserError if another process holds the lock."""
        name = f'{self._label} {str(self._directory)!r}'
        # Do not follow a link: its target would be overwritten.
        if self._path.is_symlink() or (self._path.exists() and not self._path.is_file()):
            raise UserError(f'{name} cannot be locked: {str(self._path)!r} must be a regular file; remove it')
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors='replace').strip() or 'another process'
            os.close(descriptor)
            raise UserError(f'{name} is in use by {holder}; wait until it ends, or use another directory') from None
        except OSError as error:
            logging.warning(
                '%s is on a file system that does not support locks, so nothing prevents a second run in it (%s)',
                name,
                error,
            )
        start = datetime.datetime.now().isoformat(' ', 'seconds')
        os.truncate(descriptor, 0)
        with contextlib.suppress(OSError):  # On a full disk, the lock is held without naming its holder.
            os.pwrite(descriptor, f'process {os.getpid()} on {platform.node()}, since {start}'.encode(), 0)
        return descriptor


@functools.cache
def cache_directory() -> Path | None:
    """Returns this user's directory for compiled programs, or None if there is no writable one.

    Each kind of processor has its own directory, because different machines may share a home directory.
    """
    cpuinfo = Path('/proc/cpuinfo')
    features = re.findall(r'^(?:flags|Features)\s*:.*$', cpuinfo.read_text() if cpuinfo.exists() else '', re.MULTILINE)
    processor = features[0] if features else platform.platform()
    # If the user has no home directory, as in some containers, '~' is not expanded.
    home = os.path.expanduser(os.environ.get('XDG_CACHE_HOME') or '~/.cache')
    if home.startswith('~'):
        return None
    directory = Path(home) / 'mnist_jax' / hashlib.sha256(processor.encode()).hexdigest()[:12]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return directory if os.access(directory, os.W_OK) else None


def reserve(directory: Path, size: int) -> None:
    """Raises an OSError unless `size` bytes can be written in `directory`, which is created if it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory) as file:
        if not hasattr(os, 'posix_fallocate'):  # On macOS, for example; being able to create a file must suffice.
            return
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # The file system does not support it.
                raise


def make_directory(path: Path, label: str) -> None:
    """Creates `path` and its parents; raises a UserError if it cannot be a writable directory.

    Args:
      path: The directory.
      label: What error messages call it, such as the name of a flag.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f'{label} must be a path in UTF-8, got {str(path)!r}') from None
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (FileExistsError, NotADirectoryError):
        raise UserError(f'{label} must be a directory, but {str(path)!r} or one of its parents is a file') from None
    except OSError as error:
        raise UserError(f'{label} must be a writable directory, got {str(path)!r} ({error.strerror})') from None
