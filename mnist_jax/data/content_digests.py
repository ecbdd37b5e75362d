"""Digests of raw files and of the code that reads them: they identify the data that is prepared from them."""

import contextlib
import hashlib
import itertools
import os
import re
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mnist_jax import files
from mnist_jax.errors import UserError, WriteError

# How to resume or evaluate a run whose raw files are elsewhere now; the end of error messages.
MOVED = '; if the raw files were moved after training, run the training command again with the new raw_dir'

MANY_FILES = 1000  # Reading as many takes longer than a tenth of a second.
SETTLED_SECONDS = 10.0


def raw_sha256(raw_dir: Path, recursive: bool = True) -> str:
    """Returns the digest of a file, or of the names and contents of all visible files in a directory.

    Reading 70,000 small files takes seconds, so the digest of a directory with many files is kept; see `kept_sha256`.
    """
    try:
        found = _walk(raw_dir, recursive) if raw_dir.is_dir() else [('.', str(raw_dir), raw_dir.stat())]

        def compute() -> str:
            digest = hashlib.sha256()
            for name, path, _ in found:
                with open(path, 'rb') as file:
                    contents = hashlib.file_digest(file, 'sha256').hexdigest()
                digest.update(os.fsencode(f'{name}\0{contents}\0'))
            return digest.hexdigest()

        if len(found) <= MANY_FILES:
            return compute()
        return kept_sha256('raw', [(name, status) for name, _, status in found], compute)
    except OSError as error:
        raise UserError(
            f'config.dataset.raw_dir must be readable, got {str(raw_dir)!r} '
            f'({error.strerror}: {error.filename!r}){MOVED}'
        ) from None


def kept_sha256(kind: str, statuses: Sequence[tuple[str, os.stat_result]], compute: Callable[[], str]) -> str:
    """Returns a digest of files from the cache directory, or computes it and keeps it there.

    Args:
      kind: What the digest is of; it distinguishes digests of the same files.
      statuses: The name and the status of each file; the digest is kept under their names, sizes, times of change and
        inodes.
      compute: Returns the digest.
    """
    listing = hashlib.sha256()
    for name, status in statuses:
        listing.update(
            os.fsencode(f'{name}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\0{status.st_ino}\0')
        )
    # A file that changed a moment ago may change again without another time of change.
    settled = time.time() - max((status.st_ctime for _, status in statuses), default=0.0) > SETTLED_SECONDS
    directory = files.cache_directory() if settled else None
    if directory is None:
        return compute()
    path = directory / f'{kind}-{listing.hexdigest()[:32]}'
    if path.is_file() and re.fullmatch('[0-9a-f]{64}', text := path.read_text(errors='replace')):
        return text
    digest = compute()
    with contextlib.suppress(WriteError):  # The next start only takes longer.
        files.write_text(path, digest)
    return digest


def _walk(directory: Path, recursive: bool) -> list[tuple[str, str, os.stat_result]]:
    """Returns all regular files in a directory, perhaps recursively, except `files.is_ignored`, in the order of `Path`.

    Returns:
      The relative path, the path and the status of each file.
    """
    found = []
    for parent, directories, names in files.walk(directory):
        directories[:] = [name for name in directories if recursive and not files.is_ignored(name)]
        relative = os.path.relpath(parent, directory)
        for name in itertools.filterfalse(files.is_ignored, names):
            path = os.path.join(parent, name)
            with contextlib.suppress(FileNotFoundError):  # a broken link
                status = os.stat(path)
                if stat.S_ISREG(status.st_mode):
                    found.append((name if relative == '.' else f'{relative}/{name}', path, status))
    return sorted(found, key=lambda item: item[0].split('/'))
