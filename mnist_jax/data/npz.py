"""Arrays in NumPy's files: one .npz file, or a directory of .npy or .npz files."""

import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mnist_jax.data.arrays import SPLITS, make_contents, split_of, to_images, to_labels, words_of
from mnist_jax.data.builder import Contents, OpenBuilder
from mnist_jax.data.image_files import PARSER_ERRORS
from mnist_jax.errors import UserError, comma_separated, first_line
from mnist_jax.factory import Rate

# A name such as x_train, train_images or kmnist-train-imgs contains one word for the split and one for the kind.
IMAGES, LABELS = ('x', 'images', 'imgs', 'image', 'data'), ('y', 'labels', 'label', 'targets', 'target')
ONLY_ARRAY = 'arr_0'  # the name that NumPy gives to an array without one; then that of the file counts


class Npz(OpenBuilder):
    """A .npz file with x_train, y_train, x_test and y_test or similar names, or a directory with such .npy files."""

    RECURSIVE = False

    @classmethod
    def read(cls, raw_dir: Path, split_seed: int, *, test_fraction: Rate = 0.2) -> Contents:
        """Reads all images and labels.

        Args:
          raw_dir: The file, or the directory.
          split_seed: Seed of the split into training and test images.
          test_fraction: The fraction of each class to draw for testing if there are no test images.
        """
        arrays: dict[str, np.ndarray] = {}
        for name, array in _read_arrays(raw_dir):
            if name in arrays:
                raise UserError(f'all arrays in {str(raw_dir)!r} must have different names, got {name!r} twice')
            arrays[name] = array
        pairs = {split: pair for split in SPLITS if (pair := _find_pair(raw_dir, arrays, split))}
        if 'train' not in pairs and (pair := _find_pair(raw_dir, arrays, None)):
            pairs['train'] = pair
        if 'train' not in pairs:
            raise UserError(
                f'config.dataset.raw_dir must contain arrays such as x_train, y_train, x_test and y_test, got '
                f'{comma_separated(list(arrays)[:10])} in {str(raw_dir)!r}'
            )
        images = {split: to_images(_label(raw_dir, name), arrays[name]) for split, (name, _) in pairs.items()}
        labels = {split: to_labels(_label(raw_dir, name), arrays[name]) for split, (_, name) in pairs.items()}
        return make_contents(raw_dir, images, labels, test_fraction, split_seed)


def _label(raw_dir: Path, name: str) -> str:
    return f'the array {name!r} in {str(raw_dir)!r}'


def _read_arrays(raw_dir: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the names and the arrays of a file, or of all .npy and .npz files in a directory."""
    if not raw_dir.is_dir():
        yield from read_file(raw_dir)
        return
    paths = sorted(path for path in raw_dir.iterdir() if path.suffix in ('.npy', '.npz') and path.name[0] != '.')
    if not paths:
        raise UserError(f'config.dataset.raw_dir must contain .npy or .npz files, got {str(raw_dir)!r} without any')
    for path in paths:
        for name, array in read_file(path):
            # In train.npz and test.npz, the name of the file says which split its x and y are.
            names_split = path.suffix == '.npy' or any(_is_kind(name, (*IMAGES, *LABELS), split) for split in SPLITS)
            split = None if names_split or name == path.stem else split_of(path.stem)
            yield (name if split is None else f'{split}_{name}'), array


def read_file(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the names and the arrays of a .npy or .npz file."""
    try:
        contents = np.load(path, allow_pickle=False)
        if isinstance(contents, np.ndarray):
            yield path.stem, contents
            return
        with contents:
            for name in contents.files:
                array = contents[name]
                if not isinstance(array, np.ndarray):
                    raise ValueError(f'its member {name!r} is not an array')
                yield (path.stem if name == ONLY_ARRAY else name), array
    except (*PARSER_ERRORS, RuntimeError, zipfile.BadZipFile, zlib.error, tokenize.TokenError) as error:
        raise UserError(
            f'raw file {str(path)!r} must be a .npy or .npz file of numbers or texts, not of Python objects'
            f'{"" if "pickle" in str(error) else f" ({first_line(error)})"}'
        ) from None


def _find_pair(raw_dir: Path, arrays: Mapping[str, np.ndarray], split: str | None) -> tuple[str, str] | None:
    """Returns the names of the images and the labels of a split; None if it has neither.

    Args:
      raw_dir: Where the arrays are from, for error messages.
      arrays: All arrays.
      split: The split; None for arrays that name none.
    """
    names = []
    for kind in (IMAGES, LABELS):
        found = [name for name in arrays if _is_kind(name, kind, split)]
        if len(found) > 1:
            raise UserError(
                f'{str(raw_dir)!r} must contain one array of {kind[1]} per split, got {comma_separated(found[:10])}'
            )
        names += found
    if len(names) == 1:
        missing = 'images' if _is_kind(names[0], LABELS, split) else 'labels'
        raise UserError(f'{str(raw_dir)!r} must contain {missing} to match {names[0]!r}, got {comma_separated(arrays)}')
    return (names[0], names[1]) if names else None


def _is_kind(name: str, kind: Sequence[str], split: str | None) -> bool:
    """Returns whether an array holds the images or the labels, as `kind` calls them, of a split."""
    return bool(words_of(name) & set(kind)) and split_of(name) == split
