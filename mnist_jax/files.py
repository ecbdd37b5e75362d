"""Paths that users give, atomic writes, bounded reads, locks of files and the cache directory."""

import contextlib
import errno
import functools
import hashlib
import io
import itertools
import json
import os
import platform
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from mnist_jax.errors import UserError, WriteError

try:
    import fcntl
except ImportError:  # Only POSIX systems have it.
    fcntl = None  # type: ignore[assignment]

JsonObject = dict[str, Any]
"""A JSON object, as `json.loads` returns it."""

TEMPORARY_PREFIX = '.mnist_jax-'  # prefix of the names of temporary files
IGNORED = ('__MACOSX', 'Thumbs.db', 'desktop.ini')  # files of operating systems
UMASK = os.umask(0)  # It can only be read by changing it, which other threads would notice later.
os.umask(UMASK)
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
        os.chmod(temporary, 0o666 & ~UMASK)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise WriteError(error.errno, error.strerror, str(path)) from None
        raise


def keep_damaged(path: Path) -> Path:
    """Copies a damaged file to `NAME.damaged.EXTENSION`, or with a number if that exists; returns the copy.

    What is not a regular file is moved.
    """
    numbers = itertools.chain([''], map('-{}'.format, itertools.count(1)))
    names = (path.with_suffix(f'.damaged{number}{path.suffix}') for number in numbers)
    copy = next(name for name in names if not os.path.lexists(name))
    if path.is_file():
        shutil.copyfile(path, copy)
    else:
        path.replace(copy)
    return copy


def read_bytes(path: Path) -> bytes:
    """Reads a file of at most `MAX_BYTES`.

    Raises:
      FileNotFoundError: `path` is not a regular file, so reading it could block.
      ValueError: the file is too large for this program to have written it.
    """
    _check_regular(path)
    with open(path, 'rb') as file:
        contents = file.read(MAX_BYTES + 1)
    if len(contents) > MAX_BYTES:
        raise ValueError(f'it is larger than {MAX_BYTES:,} bytes')
    return contents


def _check_regular(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f'{str(path)!r} is not a regular file')


def read_json(path: Path) -> object:
    """Reads a JSON file with `read_bytes`; raises a ValueError if it is not valid JSON."""
    try:
        return json.loads(read_bytes(path).decode())
    except RecursionError:
        raise ValueError('it is nested too deeply') from None


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads an .npz file.

    Raises:
      FileNotFoundError: `path` is not a regular file, so reading it could block.
      ValueError: it is damaged, or contains pickled objects.
    """
    _check_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                name.removesuffix('.npy'): np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)
                for name in archive.namelist()
            }
    except Exception as error:  # A damaged zip file raises arbitrary errors.
        raise ValueError(f'it is not an intact archive of arrays: {error}') from None


def printable(name: str) -> str:
    """Replaces each character that cannot be printed or encoded in UTF-8 with a question mark."""
    return ''.join(character if character.isprintable() else '?' for character in name)


def lock_file(descriptor: int, wait: bool = False) -> None:
    """Locks an open file until it is closed, also by the death of this process.

    Args:
      descriptor: The descriptor of the file.
      wait: Whether to wait while another process holds the lock.

    Raises:
      BlockingIOError: another process holds the lock, and `wait` is False.
      OSError: the file system or the operating system does not support locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, 'the operating system does not support locks')
    fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Context manager: holds the lock of the file `path`, which is created, where locks are supported."""
    with open(path, 'w') as file:
        try:
            lock_file(file.fileno(), wait=True)
        except OSError as error:
            logging.warning('%s cannot be locked (%s); do not run this program twice at the same time', path, error)
        yield


@functools.cache
def processor_features() -> str:
    """Returns the instruction sets of this processor as the system lists them, or else the name of the platform."""
    cpuinfo = Path('/proc/cpuinfo')
    features = re.findall(r'^(?:flags|Features)\s*:.*$', cpuinfo.read_text() if cpuinfo.exists() else '', re.MULTILINE)
    return features[0] if features else platform.platform()


@functools.cache
def cache_directory() -> Path | None:
    """Returns this user's directory for compiled programs, or None if there is no writable one.

    Each kind of processor has its own directory, because different machines may share a home directory.
    """
    # If the user has no home directory, as in some containers, '~' is not expanded.
    home = os.path.expanduser(os.environ.get('XDG_CACHE_HOME') or '~/.cache')
    if home.startswith('~'):
        return None
    directory = Path(home) / 'mnist_jax' / hashlib.sha256(processor_features().encode()).hexdigest()[:12]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return directory if os.access(directory, os.W_OK) else None


def walk(directory: str | Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yields what `os.walk` yields for a directory, and follows links to directories, except to one that is above them.

    Raises:
      OSError: a directory cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    above = {str(directory): {os.path.realpath(directory)}}
    for parent, directories, names in os.walk(directory, onerror=fail, followlinks=True):
        for name in list(directories):
            path = os.path.join(parent, name)
            real_path = os.path.realpath(path)
            if real_path in above[parent]:
                directories.remove(name)
            above[path] = above[parent] | {real_path}
        yield parent, directories, names


def check_directory(path: Path, field: str, what: str) -> None:
    """Raises a UserError unless `path`, the value of `field`, which must be `what`, is a directory."""
    if not path.is_dir():
        problem = 'is a file' if path.exists() else 'does not exist'
        raise UserError(f'{field} must be {what}, got {str(path)!r}, which {problem}')


def is_ignored(name: str) -> bool:
    """Returns whether the name is that of a hidden file or directory, or of one of an operating system."""
    return name.startswith('.') or name in IGNORED


def visible_files(directory: Path) -> list[Path]:
    """Returns the files in a directory, recursively, except for those whose name `is_ignored`; see `walk`."""
    found = []
    for parent, directories, names in walk(directory):
        directories[:] = [name for name in directories if not is_ignored(name)]
        found += [Path(parent, name) for name in names if not is_ignored(name)]
    return found


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


def check_no_file(path: Path, label: str) -> None:
    """Raises a UserError if `path`, a directory that `make_directory` will create after long work, is a file."""
    if path.exists() and not path.is_dir():
        raise UserError(f'{label} must be a directory, but {str(path)!r} is a file')


def check_parent(path: Path, field: str) -> None:
    """Raises a UserError unless the directory of a file to be written exists or can be created."""
    make_directory(next(parent for parent in path.absolute().parents if parent.exists()), f'the parent of {field}')


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
