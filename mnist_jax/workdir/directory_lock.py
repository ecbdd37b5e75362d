"""The lock of a directory, which keeps other processes from writing to it, also those of other hosts."""

import contextlib
import datetime
import functools
import os
import platform
import re
import tempfile
import threading
import time
from pathlib import Path

from absl import logging

from mnist_jax.errors import UserError
from mnist_jax.files import TEMPORARY_PREFIX, lock_file

LOCK_RENEWAL_SECONDS = 20.0  # seconds between two renewals of a directory's lock
LOCK_EXPIRY_SECONDS = 120.0  # seconds after which the lock of a process on another host is stale if it is not renewed
LOCK_POLL_SECONDS = 1.0  # seconds between two looks at the lock of a process on another host
BOOT_ID = Path('/proc/sys/kernel/random/boot_id')  # on Linux; differs between hosts that have the same name


class InUseError(UserError):
    """Another process holds the lock of a directory."""


class DirectoryLock:
    """A context manager that locks a directory for this process, with a file `lock` in it.

    The kernel releases the lock when the process ends, so a killed process leaves nothing to clean up except the
    temporary files that it was writing; taking the lock removes these.

    On a network file system, the lock of the kernel may be limited to one host. So the file names the process that
    holds it and its host, and is renewed while the process runs. The lock of another host is respected until it has
    not been renewed for `LOCK_EXPIRY_SECONDS`.
    """

    def __init__(self, directory: Path, label: str):
        """`label` names the directory in error messages."""
        self._directory, self._label = directory, label
        self._path = directory / 'lock'
        self._descriptor = -1
        self._contents = b''
        self._released = threading.Event()

    def __enter__(self) -> 'DirectoryLock':
        self._acquire()
        for leftover in self._directory.glob(f'{TEMPORARY_PREFIX}*'):
            leftover.unlink(missing_ok=True)
        self._released.clear()
        threading.Thread(target=self._keep_renewed, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._released.set()
        with contextlib.suppress(OSError):  # The disk may be gone by now.
            if _read_start(self._descriptor) == self._contents:
                os.truncate(self._descriptor, 0)
        os.close(self._descriptor)

    def renew(self) -> None:
        """Locks the directory again if it was moved or deleted, creating a new one under the same name if needed.

        Raises:
          UserError: another process holds the lock.
        """
        try:
            contents = self._read_path()
            unchanged = os.path.samestat(os.stat(self._path), os.fstat(self._descriptor))
        except FileNotFoundError:
            unchanged = False
        if not unchanged:
            self._directory.mkdir(parents=True, exist_ok=True)
            previous = self._descriptor
            self._acquire()
            os.close(previous)
        elif contents != self._contents:
            raise UserError(
                f'{self._name} is in use by {_holder(contents)}; this process did not renew its lock for '
                f'{LOCK_EXPIRY_SECONDS:.0f} seconds, or both were started at the same time'
            )

    @property
    def _name(self) -> str:
        return f'{self._label} {str(self._directory)!r}'

    def _keep_renewed(self) -> None:
        """Updates the modification time of the lock until it is released, or taken over."""
        while not self._released.wait(LOCK_RENEWAL_SECONDS):
            with contextlib.suppress(OSError):  # `renew` reports it.
                if self._read_path() == self._contents:
                    os.utime(self._path)

    def _read_path(self) -> bytes:
        """Returns the contents of the lock; opening the file makes a network file system fetch them."""
        with open(self._path, 'rb', buffering=0) as file:
            return _read_start(file.fileno())

    def _acquire(self) -> None:
        """Locks the file and writes its contents; raises a UserError if another process holds the lock."""
        # Do not follow a link: its target would be overwritten.
        if self._path.is_symlink() or (self._path.exists() and not self._path.is_file()):
            raise UserError(f'{self._name} cannot be locked: {str(self._path)!r} must be a regular file; remove it')
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            self._check_free(descriptor)
        except UserError:
            os.close(descriptor)
            raise
        start = datetime.datetime.now().isoformat(' ', 'seconds')
        contents = f'process {os.getpid()} on {platform.node()}, since {start}\nmachine {_machine()}\n'
        os.truncate(descriptor, 0)
        with contextlib.suppress(OSError):  # On a full disk, the lock is held without naming its holder.
            os.pwrite(descriptor, contents.encode(), 0)
            os.fsync(descriptor)
        self._descriptor, self._contents = descriptor, _read_start(descriptor)

    def _check_free(self, descriptor: int) -> None:
        """Raises a UserError if another process holds the lock: that of the kernel, or that in the file."""
        hint = 'wait until it ends, or use another directory'
        supported = True
        first, start = None, 0.0  # the modification time that was seen first, and when
        while True:
            held = False
            try:
                lock_file(descriptor)
            except BlockingIOError:  # NFS keeps the lock of a host that has crashed, perhaps until it starts again.
                held = True
            except OSError as error:
                if supported:
                    supported = False
                    logging.warning(
                        '%s is on a file system that does not support locks, so a second run that is started in it at '
                        'the same moment is noticed only at its first checkpoint (%s)',
                        self._name,
                        error,
                    )
            contents = self._read_path()
            machine = re.search(rb'^machine (.+)$', contents, re.MULTILINE)
            if machine is None or (supported and machine[1].decode(errors='replace') == _machine()):
                if held:
                    raise InUseError(f'{self._name} is in use by {_holder(contents)}; {hint}')
                return  # It was released, or a process of this host was killed.
            modified = os.fstat(descriptor).st_mtime
            now = _time_of_file_system(self._directory)
            # A time in the future must not extend the wait.
            age = max(now - modified, 0.0 if first is None else now - start)
            # A process of this host that waits too, and has the lock of the kernel, comes first.
            if age >= LOCK_EXPIRY_SECONDS + held * 3 * LOCK_POLL_SECONDS:
                break
            if first is None:
                first, start = modified, now
                logging.warning(
                    '%s is in use by %s; waiting until it renews its lock, for at most %d seconds',
                    self._name,
                    _holder(contents),
                    LOCK_EXPIRY_SECONDS - age,
                )
            elif modified != first:
                raise InUseError(f'{self._name} is in use by {_holder(contents)}; {hint}')
            time.sleep(LOCK_POLL_SECONDS)
        logging.warning(
            '%s was in use by %s, which has not renewed its lock for %d seconds; taking it over',
            self._name,
            _holder(contents),
            age,
        )


def _read_start(descriptor: int) -> bytes:
    return os.pread(descriptor, 1000, 0)


def _holder(contents: bytes) -> str:
    """Returns the process that the contents of a lock name."""
    return (contents.decode(errors='replace').strip().splitlines() or ['another process'])[0]


@functools.cache
def _machine() -> str:
    """Returns an identifier of the running operating system: processes with the same one see each other's locks."""
    return BOOT_ID.read_text().strip() if BOOT_ID.exists() else platform.node()


def _time_of_file_system(directory: Path) -> float:
    """Returns the time by the clock of the file system of a directory, which may not be the clock of this host."""
    with tempfile.TemporaryFile(dir=directory, prefix=TEMPORARY_PREFIX) as file:
        return os.fstat(file.fileno()).st_mtime
