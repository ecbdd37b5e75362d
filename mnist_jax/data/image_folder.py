"""Image files in one directory per class."""

import concurrent.futures
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from mnist_jax import files
from mnist_jax.data import image_files
from mnist_jax.data.arrays import SPLITS, ImageStacks, make_contents, natural_order
from mnist_jax.data.builder import Contents, OpenBuilder
from mnist_jax.errors import UserError, comma_separated
from mnist_jax.factory import Rate, Width

SHOWN = 5  # unreadable files that an error or a warning names
THREADS = 4  # Pillow decodes without Python's lock.


class _Image(NamedTuple):
    """An image file and its class."""

    path: Path
    label: int


class ImageFolder(OpenBuilder):
    """A directory of images: one directory per class, or `train` and `test` with one directory per class each.

    The images of a split are ordered by their names, then by their classes.
    """

    @classmethod
    def read(
        cls,
        raw_dir: Path,
        split_seed: int,
        *,
        image_size: Sequence[Width] = (),
        channels: image_files.Channels = 'auto',
        fit: image_files.Fit = 'resize',
        test_fraction: Rate = 0.2,
        skip_unreadable: bool = False,
    ) -> Contents:
        """Reads all images.

        Args:
          raw_dir: The directory.
          split_seed: Seed of the split into training and test images.
          image_size: Height and width; () if all images have the same size, which is kept.
          channels: Whether the images become gray or colored; 'auto': colored if one file is, as WebP always is.
          fit: How images of other sizes are fitted; see `image_files.fit_pixels`.
          test_fraction: The fraction of each class to draw for testing if there are no directories of splits.
          skip_unreadable: Whether to leave out files that cannot be read, with a warning.
        """
        class_names, files_of_splits = _find_images(raw_dir)
        prepare = image_files.preparation(image_size, channels, fit)
        read = functools.partial(_read, prepare=prepare)
        stacks = ImageStacks()
        labels: dict[str, list[int]] = {split: [] for split in files_of_splits}
        unreadable: list[str] = []
        with image_files.without_warnings(), concurrent.futures.ThreadPoolExecutor(THREADS) as executor:
            for split, files_of_split in files_of_splits.items():
                results = executor.map(read, files_of_split)
                for image, result in zip(files_of_split, results, strict=True):
                    if isinstance(result, UserError):
                        unreadable.append(str(result))
                        continue
                    try:
                        stacks.add(split, result, image.path)
                    except UserError:
                        executor.shutdown(cancel_futures=True)  # Do not read the rest.
                        raise
                    labels[split].append(image.label)
        _report_unreadable(raw_dir, unreadable, skip_unreadable)
        for split, files_of_split in files_of_splits.items():
            if not labels[split]:
                raise UserError(
                    f'the split {split!r} of {str(raw_dir)!r} must have at least one readable image, got '
                    f'{len(files_of_split):,} that cannot be read'
                )
        arrays = {split: np.array(numbers) for split, numbers in labels.items()}
        return make_contents(raw_dir, stacks.arrays(), arrays, test_fraction, split_seed, class_names)


def _find_images(raw_dir: Path) -> tuple[list[str], dict[str, list[_Image]]]:
    """Returns the names of the classes, and the image files of each split in order."""
    if not raw_dir.is_dir():
        raise UserError(
            f'config.dataset.raw_dir must be a directory with one directory per class, got the file {str(raw_dir)!r}'
        )
    splits = {
        name: directory for name, names in SPLITS.items() if (directory := _find_split(raw_dir, names)) is not None
    }
    splits = splits or {'train': raw_dir}
    if 'train' not in splits:
        raise UserError(
            f"config.dataset.raw_dir must have a directory 'train', got only {comma_separated(splits)} in "
            f'{str(raw_dir)!r}'
        )
    others = sorted(set(_directories(raw_dir)) - {raw_dir, *splits.values()}) if raw_dir not in splits.values() else []
    if others:
        raise UserError(
            f'{str(raw_dir)!r} must have only the directories of splits (train, validation, test) or only those of '
            f'classes, got {splits["train"].name!r} and {others[0].name!r}'
        )
    by_class = {split: {path.name: path for path in _directories(directory)} for split, directory in splits.items()}
    class_names = sorted(set().union(*by_class.values()), key=natural_order)
    if not class_names:
        hint = f'; a directory called {splits["train"].name!r} is that of a split' if splits['train'] != raw_dir else ''
        raise UserError(
            f'{str(splits["train"])!r} must have one directory per class, got none (config.dataset.raw_dir){hint}'
        )
    for name in class_names:
        if name != name.encode(errors='replace').decode():
            raise UserError(f'the name of each directory of a class must be UTF-8, got {name!r} in {str(raw_dir)!r}')
    found = {split: _images_of(directories, class_names) for split, directories in by_class.items()}
    counts = np.bincount([image.label for images in found.values() for image in images], minlength=len(class_names))
    empty = [name for name, count in zip(class_names, counts, strict=True) if not count]
    if empty:
        raise UserError(
            f'each directory of a class in {str(raw_dir)!r} must have at least one image, got none in '
            f'{comma_separated(empty[:10])}; directories of splits must be called train, validation and test'
        )
    for split, directory in splits.items():
        if not found[split]:
            logging.warning(
                '%s is not used as the %s split: it has no images in directories of classes', directory, split
            )
        else:
            _report_loose(directory)
    return class_names, {split: images for split, images in found.items() if images}


def labeled_files(directory: Path, class_names: Sequence[str]) -> tuple[list[Path], np.ndarray]:
    """Returns the files in directories that are named after classes, and the labels of their images.

    Args:
      directory: A directory with at most one directory per class.
      class_names: The names of the classes, in the order of the labels. A directory has an underscore for a slash.

    Raises:
      UserError: there is no file, or a directory has another name.
    """
    directories = {path.name: path for path in _directories(directory)}
    class_names = [name.replace('/', '_') for name in class_names]
    unknown = [name for name in sorted(directories) if name not in class_names]
    if unknown:
        raise UserError(
            f'the directories in {str(directory)!r} must be named after the classes {comma_separated(class_names[:10])}'
            f'{", ..." if len(class_names) > 10 else ""}, got {unknown[0]!r}'
        )
    images = _images_of(directories, class_names)
    if not images:
        raise UserError(f'{str(directory)!r} must have images in directories named after classes, got none')
    _report_loose(directory)
    return [image.path for image in images], np.array([image.label for image in images])


def _images_of(directories: Mapping[str, Path], class_names: Sequence[str]) -> list[_Image]:
    """Returns the files in the directories of classes, ordered by their names, then by their classes."""
    images = [
        _Image(path, label)
        for label, name in enumerate(class_names)
        if name in directories
        for path in files.visible_files(directories[name])
    ]
    return sorted(images, key=lambda image: (image.path.name, image.label, str(image.path)))


def _find_split(raw_dir: Path, names: Sequence[str]) -> Path | None:
    return next((path for path in sorted(_directories(raw_dir)) if path.name.lower() in names), None)


def _directories(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.is_dir() and not files.is_ignored(path.name)]


def _read(image: _Image, prepare: image_files.Preparation) -> np.ndarray | UserError:
    """Returns the pixels HxWxC of an image; or what is wrong with it."""
    try:
        return prepare(image.path)
    except UserError as error:
        return error


def _report_loose(directory: Path) -> None:
    loose = [path for path in directory.iterdir() if path.suffix.lower() in image_files.SUFFIXES]
    if loose:
        logging.warning('Ignoring %d images of %s that are in no directory of a class', len(loose), directory)


def _report_unreadable(raw_dir: Path, reasons: Sequence[str], skip: bool) -> None:
    if not reasons:
        return
    shown = '; '.join(reasons[:SHOWN]) + (f'; and {len(reasons) - SHOWN:,} more' if len(reasons) > SHOWN else '')
    if not skip:
        raise UserError(
            f'all files in {str(raw_dir)!r} must be images, or config.dataset.skip_unreadable=True leaves out the '
            f'others, got {len(reasons):,} that {"are" if reasons[1:] else "is"} not: {shown}'
        )
    logging.warning('Leaving out %d files of %s: %s', len(reasons), raw_dir, shown)
