"""Images and labels in Parquet files, as Hugging Face lays them out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnist_jax import files
from mnist_jax.data import image_files
from mnist_jax.data.arrays import ImageStacks, group_by_split, make_contents, to_labels
from mnist_jax.data.builder import Contents, OpenBuilder
from mnist_jax.errors import UserError, comma_separated, first_line
from mnist_jax.factory import Rate, Width

IMAGES, LABELS = ('image', 'img', 'images'), ('label', 'labels', 'fine_label', 'target', 'class')


class Parquet(OpenBuilder):
    """A .parquet file, or a directory with such files; they or their directories are named after the splits."""

    @classmethod
    def read(
        cls,
        raw_dir: Path,
        split_seed: int,
        *,
        image_column: str = '',
        label_column: str = '',
        image_size: Sequence[Width] = (),
        channels: image_files.Channels = 'auto',
        fit: image_files.Fit = 'resize',
        test_fraction: Rate = 0.2,
    ) -> Contents:
        """Reads all files.

        Args:
          raw_dir: The file, or the directory, which is searched recursively; see `group_by_split`. All files of a split
            must be in one directory.
          split_seed: Seed of the split into training and test images.
          image_column: The column of the images: encoded, as bytes or as {bytes, path}; '': one of `IMAGES`.
          label_column: The column of the labels: integers or texts; '': one of `LABELS`.
          image_size, channels, fit: As for `ImageFolder`.
          test_fraction: The fraction of each class to draw for testing if there are no test files.
        """
        paths = [raw_dir]
        if raw_dir.is_dir():
            paths = [path for path in files.visible_files(raw_dir) if path.suffix == '.parquet']
        if not paths:
            raise UserError(f'config.dataset.raw_dir must contain .parquet files, got {str(raw_dir)!r} without any')
        prepare = image_files.preparation(image_size, channels, fit)
        stacks = ImageStacks()
        labels = {}
        class_names: list[str] = []
        for split, files_of_split in group_by_split(raw_dir, paths).items():
            first, *others = {path.parent: None for path in files_of_split}
            if others:  # of another version of the dataset, for example
                raise UserError(
                    f'config.dataset.raw_dir must contain the files of the split {split!r} in one directory, got both '
                    f'{str(first)!r} and {str(others[0])!r}; set it to one of them'
                )
            columns = [_read_columns(path, image_column, label_column) for path in files_of_split]
            if not any(column.images for column in columns):
                raise UserError(f'the split {split!r} of {str(raw_dir)!r} must have at least one image, got none')
            class_names = class_names or columns[0].class_names
            for path, column in zip(files_of_split, columns, strict=True):
                if column.class_names != class_names:
                    raise UserError(
                        f'the Parquet files in {str(raw_dir)!r} must name the same classes, got '
                        f'{", ".join(class_names[:5]) or "no names"} and, in {path.name!r}, '
                        f'{", ".join(column.class_names[:5]) or "no names"}'
                    )
            with image_files.without_warnings():
                for path, column in zip(files_of_split, columns, strict=True):
                    for row, cell in enumerate(column.images):
                        label = f'the image in row {row} of {str(path)!r}'
                        stacks.add(split, _decode(raw_dir, path, label, cell, prepare), label)
            labels[split] = np.concatenate([column.labels for column in columns if column.images])
        return make_contents(raw_dir, stacks.arrays(), labels, test_fraction, split_seed, class_names)


class _Columns(NamedTuple):
    """The columns of a file."""

    images: list[Any]  # encoded
    labels: np.ndarray
    class_names: list[str]  # [] if the file does not name them


def _read_columns(path: Path, image_column: str, label_column: str) -> _Columns:
    import pyarrow.parquet  # Importing it takes time, and only preparing the data needs it.

    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns = file.schema_arrow.names
        image = _find_column(path, columns, 'image_column', image_column, IMAGES)
        label = _find_column(path, columns, 'label_column', label_column, LABELS)
        table = file.read(columns=[image, label])
        metadata = file.schema_arrow.metadata or {}
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f'raw file {str(path)!r} must be a Parquet file: {first_line(error)}') from None
    values = table.column(label).to_pylist()
    wrong = next((value for value in values if not isinstance(value, int | float | str | bytes)), 0)
    if wrong != 0:
        raise UserError(f'the column {label!r} of {str(path)!r} must have integers or texts, got {str(wrong)[:40]}')
    labels = to_labels(f'the column {label!r} of {str(path)!r}', np.array(values))
    names = _class_names(metadata, label) if labels.dtype.kind == 'i' else []
    return _Columns(table.column(image).to_pylist(), labels, names)


def _find_column(path: Path, columns: list[str], field: str, name: str, choices: tuple[str, ...]) -> str:
    found = [column for column in ((name,) if name else choices) if column in columns]
    if not found:
        raise UserError(
            f'config.dataset.{field} must be a column of {str(path)!r}, one of {comma_separated(columns[:20])}, got '
            f'{name!r}'
        )
    return found[0]


def _decode(raw_dir: Path, path: Path, label: str, cell: Any, prepare: image_files.Preparation) -> np.ndarray:
    contents = cell.get('bytes') if isinstance(cell, dict) else cell
    if contents is None and isinstance(cell, dict) and cell.get('path'):
        name = str(cell['path'])
        if '\0' in name:
            raise UserError(f'the path of {label} must not contain a NUL character, got {name!r}')
        image = path.parent / name
        # Only the digest of the visible files below raw_dir identifies the prepared data.
        if not raw_dir.is_dir() or not image.resolve().is_relative_to(raw_dir.resolve()):
            raise UserError(f'the path of {label} must lie below config.dataset.raw_dir, a directory, got {name!r}')
        if any(map(files.is_ignored, image.resolve().relative_to(raw_dir.resolve()).parts)):
            raise UserError(f'the path of {label} must not be that of a hidden file, got {name!r}')
        return prepare(image)
    if not isinstance(contents, bytes):
        raise UserError(f'{label} must be the bytes of an image file, got {type(contents).__name__}')
    return prepare(contents, label)


def _class_names(metadata: dict[bytes, bytes], column: str) -> list[str]:
    """Returns the names of the classes that Hugging Face stores in the metadata; [] if there are none."""
    try:
        features = json.loads(metadata[b'huggingface'])['info']['features']
        return [str(name) for name in features[column]['names']]
    except (KeyError, TypeError, ValueError):
        return []
