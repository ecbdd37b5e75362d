"""The base class of datasets that are downloaded from their publishers, and how their raw files are found."""

import contextlib
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from mnist_jax import files
from mnist_jax.data.builder import MAX_SPLIT_BYTES, Description, OpenBuilder
from mnist_jax.data.downloads import download_verified
from mnist_jax.errors import UserError, comma_separated, first_line

DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError)


class Published(OpenBuilder):
    """A dataset whose raw files are downloaded unless `raw_dir` is set; subclasses set where to find them.

    Files in `raw_dir` are used as they are; those that are downloaded must have the digests in `FILES`.
    """

    IMAGE_SHAPE: tuple[int, ...] = ()
    URL = ''  # the directory that the files are downloaded from
    FILES: Mapping[str, str] = {}  # their names and digests; see `download_verified`

    def __init__(self, *, raw_dir: Path | None, data_dir: str, description: Description | None, **fields: Any):
        """Downloads the raw files if they are needed, then reads them; see `OpenBuilder`."""
        if raw_dir is None and description is None:
            raw_dir = Path(data_dir) / 'downloads' / self.name
            hint = (
                f'elsewhere, download {", ".join(f"{self.URL}/{name}" for name in self.FILES)}, and set '
                f'--config.dataset.raw_dir to the directory that holds {"them" if len(self.FILES) > 1 else "it"}'
            )
            download_verified(raw_dir, self.URL, self.FILES, hint)
        super().__init__(raw_dir=raw_dir, data_dir=data_dir, description=description, **fields)
        if self.SHAPE != self.IMAGE_SHAPE:
            raise UserError(f'the images in {str(raw_dir)!r} must have the shape {self.IMAGE_SHAPE}, got {self.SHAPE}')

    @classmethod
    def variant(cls, raw_dir: Path | None, split_seed: int, **options: Any) -> str:
        """Returns a name made of the options and the digest of `raw_dir`; nothing is drawn at random."""
        return super().variant(raw_dir, 0, **options)

    @classmethod
    def locate(cls, raw_dir: Path | None, **options: Any) -> Path | None:
        """Returns where the raw files are; None if they are to be downloaded."""
        return None if raw_dir is None else super().locate(raw_dir)


@contextlib.contextmanager
def find_files(raw_dir: Path, names: Sequence[str], archive: str = '', hint: str = '') -> Iterator[dict[str, Path]]:
    """Finds raw files in a directory, at any depth, or in an archive, from which they are extracted temporarily.

    Args:
      raw_dir: The directory that holds the files or the archive, or the archive.
      names: The names of the files; each may be gzipped, with '.gz' after its name.
      archive: The name of the archive, a .zip or .tar.gz file.
      hint: The end of the error message if a file is missing.

    Yields:
      The paths of the files by their names.

    Raises:
      UserError: a file is missing, two directories have it, or the archive is damaged.
    """
    with tempfile.TemporaryDirectory() as extracted:
        if raw_dir.is_file() and not archive:
            raise UserError(
                f'config.dataset.raw_dir must be the directory with {comma_separated(names)}, got the file '
                f'{str(raw_dir)!r}'
            )
        path = raw_dir if raw_dir.is_file() else raw_dir / archive
        if path.is_file():
            try:
                _extract(path, names, Path(extracted))
            except DAMAGED as error:
                if isinstance(error, OSError) and error.errno is not None:  # The disk is full, for example.
                    raise
                reason = first_line(error).rstrip(':')
                raise UserError(
                    f'raw file {str(path)!r} must be an archive like {archive}, got a damaged one or another file '
                    f'({reason})'
                ) from None
        found: dict[str, Path] = {}
        # Only visible files identify the prepared data.
        for file in sorted(files.visible_files(Path(extracted) if path.is_file() else raw_dir)):
            name = file.name.removesuffix('.gz')
            if name not in names or not file.is_file():
                continue
            if name in found and found[name].parent != file.parent:
                raise UserError(
                    f'config.dataset.raw_dir must contain {name} in one directory, got both '
                    f'{str(found[name].parent)!r} and {str(file.parent)!r}; set it to one of them'
                )
            found[name] = file
        missing = [name for name in names if name not in found]
        if missing:
            what = f'{archive}, or its files' if archive else 'the files of the dataset'
            raise UserError(
                f'config.dataset.raw_dir must contain {what}, got {str(raw_dir)!r} without '
                f'{comma_separated(missing)}{hint}'
            )
        yield found


def _extract(path: Path, names: Sequence[str], directory: Path) -> None:
    """Extracts the files with these names, or with '.gz' after them, from an archive into a directory."""

    def save(name: str, size: int, file: IO[bytes] | None) -> None:
        if size > MAX_SPLIT_BYTES:
            raise UserError(f'{name!r} in {str(path)!r} must have at most {MAX_SPLIT_BYTES:,} bytes, got {size:,}')
        assert file is not None  # It is a regular file.
        with file, open(directory / name, 'wb') as copy:
            shutil.copyfileobj(file, copy)

    def is_wanted(name: str) -> bool:
        return name.removesuffix('.gz') in names

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if is_wanted(name := PurePosixPath(info.filename).name):
                    save(name, info.file_size, archive.open(info))
        return
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isfile() and is_wanted(name := PurePosixPath(member.name).name):
                save(name, member.size, tar.extractfile(member))
