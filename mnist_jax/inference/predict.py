"""Predict the classes of images that a person has: files, folders, IDX files, Kaggle's test CSV."""

import csv
import glob
import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mnist_jax import files, text_tables
from mnist_jax.data import idx, images, kaggle
from mnist_jax.errors import UserError
from mnist_jax.factory import choose
from mnist_jax.inference.restored import MAX_BATCH, RestoredModel

SHOWN = 3  # classes of each image in the table


class Input(NamedTuple):
    """Images that were given together."""

    names: Sequence[str]
    read: Callable[[slice], list[images.Framed]]  # those of so many names


class Prediction(NamedTuple):
    """What is predicted for an image."""

    name: str
    label: str
    probabilities: dict[str, float]  # by class
    done: str  # what was done to the image before


def predict(workdir: Path, inputs: Sequence[str], output: Path | None = None, step: str | None = None) -> None:
    """Predict the class of every image; prints a table, or writes `output`, a .csv or .jsonl file.

    Args:
      workdir: of the run.
      inputs: image files, directories of them, IDX files of images, or one CSV as Kaggle's test.csv, whose predictions
        are written as Kaggle wants them, to `submission.csv` in the current directory if no output is given; patterns
        of such paths too.
      output: where to write.
      step: as for `trained.restore`.
    """
    paths = list(itertools.chain.from_iterable(map(_matching, inputs)))
    submission = any(path.suffix.lower() == '.csv' for path in paths)
    if submission and len(paths) > 1:
        raise UserError('--input: a CSV is predicted by itself; give it alone')
    output = Path('submission.csv') if submission and output is None else output
    writers = {'.csv': _submission} if submission else WRITERS
    write = _writer(output, paths, writers) if output else None
    trained = RestoredModel.load(workdir, step)
    predictions = list(_predictions(trained, [(_csv if submission else _input)(path, trained) for path in paths]))
    if write is None:
        print('\n'.join(_table(predictions)), flush=True)
        return
    files.make_directory(output.parent, '--output: the directory')
    files.write_text(output, write(predictions))
    print(f'{len(predictions):,} predictions are in {output}', flush=True)


def _writer(output: Path, inputs: Sequence[Path], writers: Mapping[str, Callable]) -> Callable:
    """What makes the text of `output`; UserError where that must not be written."""
    if output.is_dir():
        raise UserError(f'--output={str(output)!r} is a directory; give a file')
    if output.exists() and any(output.samefile(path) for path in inputs):
        raise UserError(f'--output={str(output)!r} is the input too; give another file')
    return choose(f'--output={str(output)!r}: its ending', output.suffix.lower(), writers)


def _matching(pattern: str) -> list[Path]:
    """The paths that a pattern or a path names; a directory is all images in it and below."""
    found = [Path(pattern)] if Path(pattern).exists() else [Path(match) for match in sorted(glob.glob(pattern))]
    if not found:
        raise UserError(f'--input={pattern!r} does not exist; give images, directories, IDX files or a CSV')
    paths = []
    for path in found:
        inside = sorted(each for each in path.rglob('*') if each.suffix.lower() in images.SUFFIXES and each.is_file())
        if path.is_dir() and not inside:
            raise UserError(f'--input={str(path)!r} is a directory without images ({", ".join(images.SUFFIXES)})')
        if not path.is_dir() and not path.is_file():
            raise UserError(f'--input={str(path)!r} is no plain file')
        paths += inside if path.is_dir() else [path]
    return paths


def _input(path: Path, trained: RestoredModel) -> Input:
    """An IDX file or an image, as its first bytes say."""
    with open(path, 'rb') as file:
        start = file.read(4)
    if start == idx.MAGIC[3] or start[:2] == idx.GZIPPED:
        array_NxHxW = idx.read(path, dimensions=3)
        if not array_NxHxW.size:
            raise UserError(f'--input={str(path)!r} is an IDX file without images')
        names = [f'{files.printable(path.name)}[{number}]' for number in range(len(array_NxHxW))]
        return Input(names, lambda part: _of_array(array_NxHxW[part], names[part], trained))
    return Input(
        [files.printable(str(path))], lambda part: [_framed(images.read(path), f'image {str(path)!r}', trained)]
    )


def _csv(path: Path, trained: RestoredModel) -> Input:
    """A CSV as Kaggle's test.csv."""
    if trained.image_shape != (kaggle.SIDE, kaggle.SIDE, 1):
        raise UserError(f'--input={str(path)!r} holds images of 28 x 28, and the model takes {trained.image_shape}')
    array_NxHxWxC = kaggle.read_unlabelled(path)
    names = [str(number) for number in range(1, len(array_NxHxWxC) + 1)]  # Kaggle counts from 1.
    return Input(names, lambda part: [images.Framed(image, '') for image in array_NxHxWxC[part]])


def _of_array(array_NxHxW: np.ndarray, names: Sequence[str], trained: RestoredModel) -> list[images.Framed]:
    if array_NxHxW.shape[1:] == trained.image_shape[:2]:  # As a data set, they are what they are.
        most, wanted = array_NxHxW.max(initial=0), trained.plan.source.max_pixel
        if most > wanted:
            raise UserError(f'{names[0]} and more have pixels up to {most}; the model takes 0 to {wanted}')
        return [images.Framed(image[..., None], '') for image in array_NxHxW]
    return [_framed(image.astype(np.float32), name, trained) for name, image in zip(names, array_NxHxW, strict=True)]


def _framed(greys_HxW: np.ndarray, what: str, trained: RestoredModel) -> images.Framed:
    try:
        return trained.frame(greys_HxW)
    except ValueError as error:
        raise UserError(f'{what}: {error}') from None


def _predictions(trained: RestoredModel, inputs: Sequence[Input]) -> Iterator[Prediction]:
    """Predict group by group: no more images than that are in memory."""
    names = trained.class_names
    with tqdm(total=sum(len(given.names) for given in inputs), unit='image', leave=False, disable=None) as progress:
        for group in _groups(inputs):
            framed = list(itertools.chain.from_iterable(given.read(part) for given, part in group))
            titles = list(itertools.chain.from_iterable(given.names[part] for given, part in group))
            probabilities_NxK = trained.predict(np.stack([each.image for each in framed]))
            for title, each, row in zip(titles, framed, probabilities_NxK, strict=True):
                of_class = dict(zip(names, row.tolist(), strict=True))
                yield Prediction(title, names[int(row.argmax())], of_class, each.done)
            progress.update(len(framed))


def _groups(inputs: Sequence[Input]) -> Iterator[list[tuple[Input, slice]]]:
    """Parts of the inputs, about `MAX_AT_ONCE` images together."""
    group, size = [], 0
    for given in inputs:
        for start in range(0, len(given.names), MAX_BATCH):
            part = slice(start, min(start + MAX_BATCH, len(given.names)))
            group.append((given, part))
            size += part.stop - part.start
            if size >= MAX_BATCH:
                yield group
                group, size = [], 0
    if group:
        yield group


def _table(predictions: Sequence[Prediction]) -> list[str]:
    rows = [['image', 'class', 'probability', 'next', '', 'prepared']]
    for each in predictions:
        likely = sorted(each.probabilities, key=each.probabilities.get, reverse=True)[1:SHOWN]
        others = [f'{name} {each.probabilities[name]:.4f}' for name in likely]
        rows.append([each.name, each.label, f'{each.probabilities[each.label]:.4f}', *others, each.done])
    return text_tables.titled(rows, left=6)


def _submission(predictions: Sequence[Prediction]) -> str:
    return '\n'.join(['ImageId,Label', *(f'{each.name},{each.label}' for each in predictions), ''])


def _comma_separated(predictions: Sequence[Prediction]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['image', 'class', *(f'probability {name}' for name in predictions[0].probabilities), 'prepared'])
    for each in predictions:
        writer.writerow([each.name, each.label, *each.probabilities.values(), each.done])
    return text.getvalue()


def _json_lines(predictions: Sequence[Prediction]) -> str:
    fields = ('image', 'class', 'probabilities', 'prepared')
    return ''.join(json.dumps(dict(zip(fields, each, strict=True))) + '\n' for each in predictions)


WRITERS = {'.csv': _comma_separated, '.jsonl': _json_lines}
