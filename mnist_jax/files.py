"""Files that are written whole or not at all."""

import os
import tempfile
from pathlib import Path

from mnist_jax.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write `text` as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, contents: bytes) -> None:
    """Write `contents` under a temporary name, flush it to the disk, then rename it to `path`."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
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
