"""Predicts the classes of a user's own images: image files, directories, IDX files, and Kaggle's test CSV.

An image that cannot be predicted is skipped and reported, unless no other is left.
"""

import csv
import glob
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mnist_jax import files, text_tables
from mnist_jax.data import csv_tables, idx, image_files, kaggle
from mnist_jax.data.builder import seems_scaled
from mnist_jax.data.framing import FramedImage
from mnist_jax.errors import UserError
from mnist_jax.factory import choose
from mnist_jax.inference import packaged
from mnist_jax.inference.ensemble import load_model
from mnist_jax.inference.restored import MAX_BATCH, RestoredModel

TOP_CLASSES = 3  # classes per image in the table
SKIPPED_STATUS = 3  # the exit status if images were skipped
MAC_METADATA = '__MACOSX'  # the directory of an archive in which macOS stores metadata


class InputImages(NamedTuple):
    """The images of one input path."""

    names: Sequence[str]
    # Reads the images of a slice of `names`; an error takes the place of an image that cannot be predicted.
    read: Callable[[slice], Sequence[FramedImage | UserError]]


class Prediction(NamedTuple):
    """The prediction for one image."""

    name: str
    label: str
    probabilities: dict[str, float]  # by class
    preprocessing: str  # how the image was preprocessed


def predict(
    workdir: str | Path,
    inputs: Sequence[str],
    output: str | Path | None = None,
    step: str | None = None,
    strict: bool = False,
) -> int:
    """Predicts the class of every image, and prints a table or writes a file.

    Args:
      workdir: The directory of the run.
      inputs: Paths or glob patterns: image files, directories of image files, IDX files of images, or a single
        CSV in the format of Kaggle's test.csv.
      output: The .csv or .jsonl file to write; None prints a table. The predictions of a CSV are written in Kaggle's
        submission format, by default to `submission.csv` in the current directory.
      step: The checkpoint; see `restore_snapshot`.
      strict: Whether to raise an error instead of skipping a file or an image.

    Returns:
      The exit status: 0, or `SKIPPED_STATUS` if something was skipped, which standard error lists line by line.
    """
    output = files.user_path(output, '--output') if output else None
    skipped = _Skipped(strict)
    paths = [path for pattern in inputs for path in _find_files(pattern, skipped, output)]
    is_csv = any(csv_tables.is_table(path) for path in paths)
    if is_csv and len(paths) > 1:
        raise UserError(f'--input must be a single path if it is a CSV, got {len(paths)} paths')
    if is_csv and output is None:
        output = Path('submission.csv')
    format_predictions = _choose_format(output, paths, is_csv)
    if output is not None:
        files.check_parent(output, '--output')  # before hours of predictions
    about = packaged.describe(Path(workdir))
    model = load_model(workdir, step)
    opened = [(_open_csv if is_csv else _open_file)(path, model) for path in paths]
    predictions = list(_predict_all(model, opened, skipped))
    if not predictions:
        reason = skipped.reasons[-1]
        raise UserError(reason if len(skipped.reasons) == 1 else f'no input could be predicted; the last one: {reason}')
    text = format_predictions(predictions)
    if about:
        print(about, file=sys.stderr)
    if output is None:
        print(text, flush=True)
    else:
        files.make_directory(output.parent, 'the parent of --output')
        files.write_text(output, text)
        remark = f' ({predictions[0].preprocessing})' if is_csv and predictions[0].preprocessing else ''
        print(
            f'wrote {text_tables.counted(len(predictions), "prediction")} to {files.printable(str(output))}{remark}',
            flush=True,
        )
    for reason in skipped.reasons:
        print(f'skipped: {reason}', file=sys.stderr)
    return SKIPPED_STATUS if skipped.reasons else 0


class _Skipped:
    """Collects why files and images are skipped, one line for each; raises the first reason if `strict`."""

    def __init__(self, strict: bool):
        self._strict = strict
        self.reasons: list[str] = []

    def add(self, reason: object) -> None:
        if self._strict:
            raise UserError(str(reason))
        self.reasons.append(files.printable(str(reason)))


def _find_files(pattern: str, skipped: _Skipped, output: Path | None) -> list[Path]:
    """Returns the files that a path or a pattern names; a directory stands for all images in it, recursively."""
    pattern = str(files.user_path(pattern, '--input'))
    matches = [Path(pattern)]
    if not Path(pattern).exists():
        matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    if len(matches) > 1:
        matches = [path for path in matches if not _is_same(path, output)]  # the predictions of an earlier call
    if not matches:
        raise UserError(
            f'--input must be an image, a directory, an IDX file or a CSV, got {pattern!r}, which does not exist'
        )
    paths = []
    for path in matches:
        if path.is_dir():
            inside = _list_images(path, skipped, output)
            if not inside:
                suffixes = ', '.join(image_files.SUFFIXES)
                raise UserError(
                    f'--input must contain images ({suffixes}), got the directory {str(path)!r} without any'
                )
            paths += inside
        elif path.is_file():
            paths.append(path)
        else:
            raise UserError(f'--input must be a regular file or a directory, got {str(path)!r}')
    return list(dict.fromkeys(paths))  # A pattern with ** matches both a directory and what is in it.


def _is_same(path: Path, output: Path | None) -> bool:
    return output is not None and path.exists() and output.exists() and path.samefile(output)


def _list_images(directory: Path, skipped: _Skipped, output: Path | None) -> list[Path]:
    """Returns the image files in a directory, recursively and sorted; all others, except `output`, are skipped."""
    images = []
    for path in sorted(_walk(directory, skipped)):
        parts = path.relative_to(directory).parts
        if _is_same(path, output):
            continue  # the predictions of an earlier call
        if any(part.startswith('.') for part in parts):
            skipped.add(f'{str(path)!r} is hidden: its name, or that of its directory, starts with a dot')
        elif MAC_METADATA in parts:
            skipped.add(f'{str(path)!r} is metadata of macOS, not an image')
        elif not path.is_file():
            skipped.add(f'{str(path)!r} is not a regular file')
        elif path.suffix.lower() not in (*image_files.SUFFIXES, *image_files.HEIC_SUFFIXES):
            skipped.add(f'{str(path)!r} is not an image: its name must end with {", ".join(image_files.SUFFIXES)}')
        else:
            images.append(path)
    return images


def _walk(directory: Path, skipped: _Skipped) -> Iterator[Path]:
    """Yields everything in a directory, recursively, that is not itself a directory to look into."""

    def report(error: OSError) -> None:
        skipped.add(f'directory {error.filename!r} cannot be read: {error.strerror}')

    for parent, directories, names in os.walk(directory, onerror=report):
        links = [name for name in directories if os.path.islink(os.path.join(parent, name))]
        yield from (Path(parent, name) for name in (*names, *links))


def _choose_format(output: Path | None, inputs: Sequence[Path], is_csv: bool) -> Callable[[Sequence[Prediction]], str]:
    """Returns the function that formats the predictions for `output`; raises a UserError if it must not be written."""
    if output is None:
        return _format_table
    if output.is_dir():
        raise UserError(f'--output must be a file, got the directory {str(output)!r}')
    if output.exists() and any(output.samefile(path) for path in inputs):
        raise UserError(f'--output must not be an input file, got {str(output)!r}')
    return choose('the suffix of --output', output.suffix.lower(), {'.csv': _format_submission} if is_csv else FORMATS)


def _open_file(path: Path, model: RestoredModel) -> InputImages:
    """Opens an IDX file or an image file; its first bytes tell which it is."""
    try:
        with open(path, 'rb') as file:
            start = file.read(4)
    except OSError:  # Reading it as an image says what is wrong.
        start = b''
    is_idx = start == idx.MAGIC[3] or start[:2] == idx.GZIPPED
    if not is_idx or path.suffix.lower() in image_files.SUFFIXES:
        return InputImages([files.printable(str(path))], lambda part: [_read_image(path, model)])
    array_NxHxW = idx.read(path, dimensions=3)
    match = idx.NAME.fullmatch(path.name)
    transpose = model.plan.source.data.options.get('transpose', 'auto')
    transposed = idx.is_transposed(match['prefix'] if match else '', transpose)
    if transposed:
        array_NxHxW = array_NxHxW.swapaxes(1, 2)
    if not array_NxHxW.size:
        raise UserError(f'--input must contain images, got the IDX file {str(path)!r} without any')
    names = [f'{files.printable(path.name)}[{index}]' for index in range(len(array_NxHxW))]
    # Images of another shape than the model's are framed; framing takes gray levels up to 255.
    max_pixel = model.plan.source.max_pixel if (*array_NxHxW.shape[1:], 1) == model.image_shape else 255
    array_NxHxW, remark = _scale_binary(array_NxHxW, max_pixel)
    about = 'transposed (rows and columns were swapped)' if transposed else ''
    remark = ', '.join(filter(None, (about, remark)))
    return InputImages(names, lambda part: _frame_array(array_NxHxW[part], names[part], model, remark))


def _open_csv(path: Path, model: RestoredModel) -> InputImages:
    """Opens a CSV in the format of Kaggle's test.csv."""
    shape = (kaggle.SIDE, kaggle.SIDE, 1)
    if model.image_shape != shape:
        raise UserError(
            f'the model must take images of shape {shape} to predict the CSV {str(path)!r}, got {model.image_shape}'
        )
    array_NxHxWxC, remark = _scale_binary(kaggle.read_unlabeled(path), model.plan.source.max_pixel)
    names = [str(number) for number in range(1, len(array_NxHxWxC) + 1)]  # Kaggle counts from 1.
    return InputImages(names, lambda part: [FramedImage(image, remark) for image in array_NxHxWxC[part]])


def _scale_binary(images: np.ndarray, max_pixel: int) -> tuple[np.ndarray, str]:
    """Multiplies binary images, whose pixels are 0 and 1 where 0 to `max_pixel` is expected; also says so."""
    if not seems_scaled(images, max_pixel):
        return images, ''
    return images * np.uint8(max_pixel), f'multiplied by {max_pixel} (all pixels were 0 or 1)'


def _frame_array(
    array_NxHxW: np.ndarray, names: Sequence[str], model: RestoredModel, remark: str
) -> list[FramedImage | UserError]:
    """Takes images of the model's shape as they are, like those of its dataset, and frames all others."""
    if (*array_NxHxW.shape[1:], 1) != model.image_shape:
        return [
            _frame(image.astype(np.float32), name, model, remark)
            for name, image in zip(names, array_NxHxW, strict=True)
        ]
    largest, max_pixel = array_NxHxW.max(initial=0), model.plan.source.max_pixel
    if largest > max_pixel:
        raise UserError(f'pixels of {names[0]} to {names[-1]} must be from 0 to {max_pixel}, got {largest}')
    return [FramedImage(image[..., None], remark) for image in array_NxHxW]


def _read_image(path: Path, model: RestoredModel) -> FramedImage | UserError:
    try:
        return model.read_image(path)
    except UserError as error:
        return error
    except ValueError as error:
        return UserError(f'image {str(path)!r}: {error}')


def _frame(grays_HxW: np.ndarray, label: str, model: RestoredModel, remark: str = '') -> FramedImage | UserError:
    try:
        image, description = model.frame(grays_HxW)
    except ValueError as error:
        return UserError(f'{label}: {error}')
    return FramedImage(image, ', '.join(filter(None, (remark, description))))


def _predict_all(model: RestoredModel, inputs: Sequence[InputImages], skipped: _Skipped) -> Iterator[Prediction]:
    """Predicts group by group, so that only the images of one group are in memory."""
    class_names = model.class_names
    total = sum(len(source.names) for source in inputs)
    with tqdm(total=total, unit='image', leave=False, disable=None) as progress:
        for group in _groups(inputs):
            names: list[str] = []
            framed: list[FramedImage] = []
            for source, part in group:
                for name, image in zip(source.names[part], source.read(part), strict=True):
                    if isinstance(image, UserError):
                        skipped.add(image)
                    else:
                        names.append(name)
                        framed.append(image)
            progress.update(sum(part.stop - part.start for _, part in group))
            if not framed:
                continue
            probabilities_NxK = model.predict(np.stack([image for image, _ in framed]), allow_dark=True)
            for name, (_, preprocessing), row_K in zip(names, framed, probabilities_NxK, strict=True):
                probabilities = dict(zip(class_names, row_K.tolist(), strict=True))
                yield Prediction(name, class_names[int(row_K.argmax())], probabilities, preprocessing)


def _groups(inputs: Sequence[InputImages]) -> Iterator[list[tuple[InputImages, slice]]]:
    """Yields groups of slices of the inputs, with about `MAX_BATCH` images per group."""
    group: list[tuple[InputImages, slice]] = []
    size = 0
    for source in inputs:
        for start in range(0, len(source.names), MAX_BATCH):
            part = slice(start, min(start + MAX_BATCH, len(source.names)))
            group.append((source, part))
            size += part.stop - part.start
            if size >= MAX_BATCH:
                yield group
                group, size = [], 0
    if group:
        yield group


def _format_table(predictions: Sequence[Prediction]) -> str:
    shown = min(TOP_CLASSES, len(predictions[0].probabilities))
    rows = [['image', 'class', 'probability', 'next', *[''] * (shown - 2), 'prepared']]
    for name, label, probabilities, preprocessing in predictions:
        ranking = sorted(probabilities, key=lambda class_name: probabilities[class_name], reverse=True)
        others = [f'{class_name} {probabilities[class_name]:.4f}' for class_name in ranking[1:TOP_CLASSES]]
        rows.append([name, label, f'{probabilities[label]:.4f}', *others, preprocessing])
    return '\n'.join(text_tables.titled(rows, left=len(rows[0])))


def _format_submission(predictions: Sequence[Prediction]) -> str:
    text = io.StringIO()
    rows = [(prediction.name, prediction.label) for prediction in predictions]
    csv.writer(text, lineterminator='\n').writerows([('ImageId', 'Label'), *rows])
    return text.getvalue()


def _format_csv(predictions: Sequence[Prediction]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['image', 'class', *(f'probability {name}' for name in predictions[0].probabilities), 'prepared'])
    for name, label, probabilities, preprocessing in predictions:
        writer.writerow([name, label, *probabilities.values(), preprocessing])
    return text.getvalue()


def _format_json_lines(predictions: Sequence[Prediction]) -> str:
    fields = ('image', 'class', 'probabilities', 'prepared')
    return ''.join(json.dumps(dict(zip(fields, prediction, strict=True))) + '\n' for prediction in predictions)


FORMATS = {'.csv': _format_csv, '.jsonl': _format_json_lines}
