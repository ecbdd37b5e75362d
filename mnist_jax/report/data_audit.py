"""What looks wrong in the examples of a dataset: duplicates, blank and outlying images, classes without examples."""

import contextlib
import csv
import hashlib
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from mnist_jax import files
from mnist_jax.data import similarity
from mnist_jax.data.records import Split
from mnist_jax.data.similarity import Pairs
from mnist_jax.errors import WriteError
from mnist_jax.report import figures
from mnist_jax.report.figures import ReportFigure

OUTLIERS_PER_CLASS = 10  # that are listed; those with the highest scores are drawn
MAX_LISTED_PAIRS = 10_000
MAX_PAIRS, PAIR_COLUMNS = 12, 6
MAX_OUTLIERS, OUTLIER_COLUMNS = 24, 8
MAX_NAMES = 10  # of classes in a cell
ABOUT_DUPLICATES = (
    'How many examples are the same as an earlier one, or nearly so: with a correlation of the pixels of at least '
    f'{similarity.NEAR_CORRELATION}.'
)
ARRAYS = ('searched', 'pairs', 'correlation', 'blank', 'outliers', 'outlier_scores')
CACHE_VERSION = 1  # Increment it if the results for the same examples change.
FINDINGS_HEADER = (
    'finding', 'split', 'index', 'class', 'score', 'other_split', 'other_index', 'other_class',
)  # fmt: skip


class Example(NamedTuple):
    """An example by its place in the dataset."""

    split: str
    position: int  # in the split
    class_name: str
    image: np.ndarray  # HxWxC

    def __str__(self) -> str:
        return f'{self.split} {self.position:,}'


class DataAudit(NamedTuple):
    """The findings about the examples of several splits. An index counts the examples of all splits, in their order."""

    splits: Mapping[str, Split]
    class_names: Sequence[str]
    pairs: Pairs | None  # of nearly the same images; None if too many images are similar to look for them
    blank: np.ndarray  # indices
    outliers: np.ndarray  # indices: for each class the most outlying images, in descending order of their scores
    outlier_scores: np.ndarray  # see `similarity.outlier_scores`

    @property
    def starts(self) -> np.ndarray:
        """The index of the first example of each split."""
        return np.cumsum([0, *(split.size for split in self.splits.values())])[:-1]

    def split_numbers(self, indices: np.ndarray) -> np.ndarray:
        """Returns the number of the split, from 0, of each of these examples."""
        return np.searchsorted(self.starts, indices, side='right') - 1

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Returns the labels of these examples."""
        return np.concatenate([split.label for split in self.splits.values()])[indices]

    def example(self, index: int) -> Example:
        """Returns the example with this index."""
        number = int(self.split_numbers(np.array(index)))
        name, split = list(self.splits.items())[number]
        position = int(index - self.starts[number])
        return Example(name, position, self.class_names[split.label[position]], split.image[position])


def audit(splits: Mapping[str, Split], class_names: Sequence[str]) -> DataAudit:
    """Returns the findings about `splits`, which takes seconds for 70,000 images; they are kept in the cache."""
    digests = ' '.join(split.sha256 for split in splits.values())
    key = hashlib.sha256(f'{CACHE_VERSION} {digests}'.encode()).hexdigest()[:32]
    directory = files.cache_directory()
    path = directory and directory / f'audit-{key}.npz'
    try:
        arrays = files.read_arrays(path) if path else {}
    except (OSError, ValueError):  # It is missing or damaged.
        arrays = {}
    if arrays.keys() != set(ARRAYS):
        arrays = _examine(splits)
        contents = io.BytesIO()
        np.savez_compressed(contents, allow_pickle=False, **arrays)
        if path:
            with contextlib.suppress(WriteError):  # The next audit only takes longer.
                files.write_bytes(path, contents.getvalue())
    pairs = Pairs(arrays['pairs'], arrays['correlation']) if arrays['searched'] else None
    return DataAudit(splits, class_names, pairs, arrays['blank'], arrays['outliers'], arrays['outlier_scores'])


def _examine(splits: Mapping[str, Split]) -> dict[str, np.ndarray]:
    """Returns the findings as `ARRAYS`."""
    images, labels = (np.concatenate(arrays) for arrays in zip(*splits.values(), strict=True))
    pairs = similarity.near_duplicates(images)
    scores = similarity.outlier_scores(images, labels)
    order = np.argsort(-scores, kind='stable')  # NaN comes last.
    order = order[: np.count_nonzero(~np.isnan(scores))]
    rank_in_class = np.zeros(len(order), int)
    for label in np.unique(labels[order]):
        members = labels[order] == label
        rank_in_class[members] = np.arange(np.count_nonzero(members))
    # The most outlying image of each class, then the second one of each class, and so on.
    outliers = order[np.argsort(rank_in_class, kind='stable')][: np.count_nonzero(rank_in_class < OUTLIERS_PER_CLASS)]
    return {
        'searched': np.array(pairs is not None),
        'pairs': pairs.indices if pairs else np.zeros((0, 2), int),
        'correlation': pairs.correlation if pairs else np.zeros(0),
        'blank': similarity.blank_images(images),
        'outliers': outliers,
        'outlier_scores': scores[outliers],
    }


def split_table(audit: DataAudit) -> list[list[str]]:
    """Returns, for each split, its classes without examples and its number of blank images."""
    rows = [['split', 'examples', 'blank images', 'classes without examples']]
    blank = np.bincount(audit.split_numbers(audit.blank), minlength=len(audit.splits))
    for (name, split), blank_images in zip(audit.splits.items(), blank, strict=True):
        sizes = np.bincount(split.label, minlength=len(audit.class_names))
        missing = [class_name for class_name, size in zip(audit.class_names, sizes, strict=True) if not size]
        names = ', '.join(missing[:MAX_NAMES]) + (f' and {len(missing) - MAX_NAMES} more' * (len(missing) > MAX_NAMES))
        rows.append([name, f'{split.size:,}', f'{blank_images:,}', names or 'none'])
    return rows


def duplicate_table(audit: DataAudit) -> list[list[str]]:
    """Counts the examples that are the same as an earlier one, or nearly so, within each split and across splits.

    A split counts as later than those before it. Each example is counted once, however many others it equals.
    """
    rows = [['where', 'same pixels', 'with a different label', 'nearly the same', 'with a different label']]
    labels_by_image = {name: _group_labels(split) for name, split in audit.splits.items()}
    for number, (name, groups) in enumerate(labels_by_image.items()):
        count = sum(len(labels) - 1 for labels in groups.values())
        differing = sum(label != labels[0] for labels in groups.values() for label in labels[1:])
        rows.append([f'within {name}', f'{count:,}', f'{differing:,}', *_count_near(audit, number, number)])
    numbered = enumerate(labels_by_image.items())
    for (number, (name, first)), (other_number, (other_name, second)) in itertools.combinations(numbered, 2):
        shared = [(first[image], labels) for image, labels in second.items() if image in first]
        count = sum(len(labels) for _, labels in shared)
        differing = sum(label not in first_labels for first_labels, labels in shared for label in labels)
        near = _count_near(audit, number, other_number)
        rows.append([f'{other_name} examples in {name}', f'{count:,}', f'{differing:,}', *near])
    return rows


def _group_labels(split: Split) -> dict[bytes, list[int]]:
    """Returns the labels of all examples, grouped by the bytes of their images."""
    labels: dict[bytes, list[int]] = {}
    for image, label in zip(split.image, split.label.tolist(), strict=True):
        labels.setdefault(image.tobytes(), []).append(label)
    return labels


def _count_near(audit: DataAudit, first: int, second: int) -> list[str]:
    """Counts the examples of the split `second` that are nearly the same as one of the split `first`.

    Returns:
      How many there are, and how many of them have another label than such an example.
    """
    if audit.pairs is None:
        return ['not searched', 'not searched']
    indices = audit.pairs.indices
    pairs = indices[(audit.split_numbers(indices) == (first, second)).all(axis=1)]
    differing = pairs[np.diff(audit.labels(pairs))[:, 0] != 0]
    return [f'{len(np.unique(found[:, 1])):,}' for found in (pairs, differing)]


def findings(audit: DataAudit) -> Iterator[list[str]]:
    """Yields rows of `FINDINGS_HEADER`: duplicates, pairs of nearly the same images, blank images and outliers.

    A duplicate is listed with the first image that has the same pixels.
    """
    first = similarity.same_images(np.concatenate([split.image for split in audit.splits.values()]))
    for index in np.flatnonzero(first != np.arange(len(first)))[:MAX_LISTED_PAIRS]:
        yield ['duplicate', *_place(audit.example(index)), '', *_place(audit.example(first[index]))]
    for pair, correlation in itertools.islice(zip(*audit.pairs or ([], []), strict=True), MAX_LISTED_PAIRS):
        one, other = map(audit.example, pair)
        yield ['near-duplicate', *_place(other), f'{correlation:.5f}', *_place(one)]
    for index in audit.blank:
        yield ['blank', *_place(audit.example(index)), '', '', '', '']
    for index, score in zip(audit.outliers, audit.outlier_scores, strict=True):
        yield ['outlier', *_place(audit.example(index)), f'{score:.3f}', '', '', '']


def _place(example: Example) -> list[str]:
    return [example.split, str(example.position), example.class_name]


def write_findings(audit: DataAudit, path: Path) -> None:
    """Writes `findings` as a CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([FINDINGS_HEADER, *findings(audit)])
    files.write_text(path, text.getvalue())


@figures.styled
def draw_near_duplicates(audit: DataAudit) -> ReportFigure | None:
    """Draws pairs of nearly the same images; returns None if there are none.

    Those with different labels come first, then those across splits, then those with the highest correlation.
    """
    if audit.pairs is None or not len(audit.pairs.indices):
        return None
    indices, correlations = audit.pairs
    same_split, same_label = (
        np.diff(values)[:, 0] == 0 for values in (audit.split_numbers(indices), audit.labels(indices))
    )
    drawn = np.lexsort((-correlations, same_split, same_label))[:MAX_PAIRS]
    rows = -(-len(drawn) // PAIR_COLUMNS)
    figure, axes = figures.new_figure(11, 1.3 * rows, nrows=rows, ncols=2 * PAIR_COLUMNS)
    tooltips: dict[str, str] = {}
    for axis in axes.ravel():
        axis.set_axis_off()
    for number, pair in enumerate(drawn):
        one, other = map(audit.example, indices[pair])
        for axis, example in zip(axes.ravel()[2 * number :], (one, other), strict=False):
            gid = f'pair-{number}-{example.split}-{example.position}'
            _draw(axis, example, gid, fontsize=7)
            tooltips[gid] = (
                f'{one}, class {one.class_name}, and {other}, class {other.class_name}: {correlations[pair]:.4f}'
            )
    about = (
        f'{len(drawn):,} of {len(indices):,} pairs of images whose pixels have a correlation of at least '
        f'{similarity.NEAR_CORRELATION}, but which are not the same: first those with different labels, then those '
        'across splits.'
    )
    return ReportFigure('Near-duplicates', about, figure, tooltips)


@figures.styled
def draw_outliers(audit: DataAudit) -> ReportFigure | None:
    """Draws the most outlying images of the classes; returns None if all classes are too small to score."""
    if not len(audit.outliers):
        return None
    indices = audit.outliers[:MAX_OUTLIERS]
    rows = -(-len(indices) // OUTLIER_COLUMNS)
    figure, axes = figures.new_figure(11, 1.75 * rows, nrows=rows, ncols=OUTLIER_COLUMNS)
    tooltips: dict[str, str] = {}
    for axis in axes.ravel():
        axis.set_axis_off()
    for axis, index, score in zip(axes.ravel(), indices, audit.outlier_scores, strict=False):
        example = audit.example(index)
        gid = f'outlier-{example.split}-{example.position}'
        _draw(axis, example, gid, fontsize=8)
        tooltips[gid] = f'{example}, class {example.class_name}: {score:.2f} times as far as usual'
    about = (
        'Images that are far from most others of their class, the most outlying one of each class first. Hover over an '
        'image to see its distance, relative to the median of its class. It may be rare, damaged or wrongly labeled.'
    )
    return ReportFigure('Outlying images', about, figure, tooltips)


def _draw(axis: Axes, example: Example, gid: str, fontsize: float) -> None:
    pixels = example.image[..., 0] if example.image.shape[-1] == 1 else example.image / max(example.image.max(), 1)
    axis.imshow(pixels, cmap='gray', interpolation='none', gid=gid)
    caption = f'{figures.literal_text(figures.shorten(example.class_name))}\n{example}'
    axis.set_title(caption, fontsize=fontsize, loc='center')
