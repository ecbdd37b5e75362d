"""Look at a data set before training: pictures of it, and a table of its splits, shapes and duplicates."""

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mnist_jax import files, text_tables
from mnist_jax.config import ConfigDict
from mnist_jax.data.records import Split
from mnist_jax.data.source import SPLITS
from mnist_jax.errors import UserError
from mnist_jax.training.experiment import Experiment, make_experiment

EXAMPLES = 12  # of each class
STATISTICS = {'mean': np.mean, 'median': np.median, 'standard deviation': np.std}


def explore(config: ConfigDict, workdir: Path) -> str:
    """Write the pictures and `explore.txt` of the configured data set to `workdir`; prints and returns the text."""
    if not config.dataset.in_memory:
        raise UserError('--mode=explore looks at all examples in memory: it needs --config.dataset.in_memory=True')
    experiment = make_experiment(config)
    source = experiment.source
    found = {name: source.split(name) for name in SPLITS}
    splits = {name: split for name, split in found.items() if split is not None}
    files.make_directory(workdir, '--workdir')
    names, most = source.class_names, source.max_pixel
    pictures = {
        'examples': examples(splits['train'], names, most),
        'numbers': numbers(splits['train'].image[0], f'the first training example: {names[splits["train"].label[0]]}'),
        'class_shares': class_shares(splits, names),
        'class_statistics': class_statistics(splits['train'], names, most),
    }
    for name, figure in pictures.items():
        picture = io.BytesIO()
        figure.savefig(picture, format='png', dpi=100, bbox_inches='tight')
        files.write_bytes(workdir / f'{name}.png', picture.getvalue())
    sections = {
        f'{source.name}: examples of each class': _class_table(splits, names),
        'Pixels': _pixel_table(splits),
        'Shapes and types on the way of a batch': _pipeline_table(experiment, splits['train']),
        'Duplicates: examples whose pixels are those of an earlier one': _duplicate_table(splits),
    }
    lines = itertools.chain.from_iterable(
        [title, '', *text_tables.titled(rows), ''] for title, rows in sections.items()
    )
    text = '\n'.join([*lines, f'Pictures: {", ".join(f"{name}.png" for name in pictures)} in {workdir}', ''])
    files.write_text(workdir / 'explore.txt', text)
    print(text, flush=True)
    return text


def examples(split: Split, names: Sequence[str], max_pixel: int) -> Figure:
    """The first examples of each class, a class a row."""
    figure = Figure(figsize=(EXAMPLES, len(names)))
    axes = figure.subplots(len(names), EXAMPLES, squeeze=False)
    for label, row in enumerate(axes):
        _title_row(row, names[label])
        for axis, image in itertools.zip_longest(row, split.image[split.label == label][:EXAMPLES]):
            _show(axis, image, max_pixel)
    return figure


def numbers(image_HxWxC: np.ndarray, title: str) -> Figure:
    """One image as a grid of its pixel values."""
    height, width, _ = image_HxWxC.shape
    figure = Figure(figsize=(0.36 * width, 0.36 * height))
    axis = figure.subplots()
    pixels = image_HxWxC.mean(axis=-1)
    axis.imshow(pixels, cmap='gray_r')
    for (row, column), value in np.ndenumerate(pixels):
        colour = 'white' if value > pixels.max() / 2 else 'black'
        axis.text(column, row, f'{value:.0f}', ha='center', va='center', size=7, color=colour)
    axis.set_title(title)
    axis.set_xlabel('column, pixels')
    axis.set_ylabel('row, pixels')
    return figure


def class_shares(splits: Mapping[str, Split], names: Sequence[str]) -> Figure:
    """The share of each class in each split, as bars."""
    figure = Figure(figsize=(10, 4))
    axis = figure.subplots()
    width = 0.8 / len(splits)
    for number, (name, split) in enumerate(splits.items()):
        shares = np.bincount(split.label, minlength=len(names)) / len(split.label)
        places = np.arange(len(names)) + (number - (len(splits) - 1) / 2) * width
        axis.bar(places, 100 * shares, width, label=f'{name} ({len(split.label):,})')
    axis.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) < 3 else 30)
    axis.set_xlabel('class')
    axis.set_ylabel('share of the split, %')
    axis.set_title('Class shares')
    axis.legend(loc='upper left', bbox_to_anchor=(1, 1))
    return figure


def class_statistics(split: Split, names: Sequence[str], max_pixel: int) -> Figure:
    """Pixel by pixel, the mean, median and standard deviation of each class as images."""
    figure = Figure(figsize=(len(names) * 1.1, 1.2 * len(STATISTICS)))
    axes = figure.subplots(len(STATISTICS), len(names), squeeze=False)
    for row, (title, statistic) in zip(axes, STATISTICS.items(), strict=True):
        _title_row(row, title)
        for label, axis in enumerate(row):
            images = split.image[split.label == label]
            _show(axis, statistic(images, axis=0) if len(images) else None, max_pixel)
    for name, axis in zip(names, axes[0], strict=True):
        axis.set_title(name, size=9)
    return figure


def _title_row(row: Sequence[Axes], title: str) -> None:
    row[0].text(-0.15, 0.5, title, transform=row[0].transAxes, ha='right', va='center')


def _show(axis: Axes, image_HxWxC: np.ndarray | None, max_pixel: int) -> None:
    axis.set_axis_off()
    if image_HxWxC is not None:
        pixels = image_HxWxC[..., 0] if image_HxWxC.shape[-1] == 1 else image_HxWxC / max_pixel
        axis.imshow(pixels, cmap='gray_r', vmin=0, vmax=max_pixel)


def _class_table(splits: Mapping[str, Split], names: Sequence[str]) -> list[list[str]]:
    counts = {name: np.bincount(split.label, minlength=len(names)) for name, split in splits.items()}
    rows = [['class', *itertools.chain.from_iterable((name, 'share') for name in splits)]]
    for label, name in enumerate(names):
        rows.append([name, *_counts_and_shares((count[label], count.sum()) for count in counts.values())])
    rows.append(['all', *_counts_and_shares((count.sum(), count.sum()) for count in counts.values())])
    return rows


def _counts_and_shares(pairs: Iterable[tuple[int, int]]) -> list[str]:
    return list(itertools.chain.from_iterable((f'{count:,}', f'{count / total:.2%}') for count, total in pairs))


def _pixel_table(splits: Mapping[str, Split]) -> list[list[str]]:
    rows = [['split', 'least', 'greatest', 'mean', 'standard deviation', 'share of zeros']]
    for name, split in splits.items():
        pixels = split.image
        spread = [f'{pixels.mean():.3f}', f'{pixels.std():.3f}', f'{(pixels == 0).mean():.2%}']
        rows.append([name, str(pixels.min()), str(pixels.max()), *spread])
    return rows


def _pipeline_table(experiment: Experiment, split: Split) -> list[list[str]]:
    batch = next(experiment.train_batches(0))
    state = experiment.create_state()
    logits = experiment.model.apply({'params': state.params, 'batch_stats': state.batch_stats}, split.image[:1] / 1.0)
    devices, *several, share = batch['label'].shape
    stages: list[tuple[str, Any]] = [
        ('training split in memory', split.image),
        ('its labels', split.label),
        (
            f'batch of {experiment.config.batch_size} on {devices} device(s), padded to {devices * share}'
            + ''.join(f', {count} batches a call' for count in several),
            batch['image'],
        ),
        ('its labels', batch['label']),
        ('its mask: 0 for padding', batch['mask']),
        ('its index: the place in the split', batch['index']),
    ]
    rows = [['stage', 'shape', 'type']]
    rows += [[title, _shape(array.shape), str(array.dtype)] for title, array in stages]
    chunk = (experiment.train_layout[0], *split.image.shape[1:])
    rows.append([f'chunk on a device, divided by {experiment.source.max_pixel}', _shape(chunk), 'float32'])
    rows.append(['logits of a chunk', _shape((chunk[0], logits.shape[-1])), str(logits.dtype)])
    return rows


def _shape(shape: Sequence[int]) -> str:
    return ' x '.join(f'{size:,}' for size in shape)


def _duplicate_table(splits: Mapping[str, Split]) -> list[list[str]]:
    """For each split, and across each pair of them: how many, and how many of these have another label."""
    labels = {name: _labels_by_image(split) for name, split in splits.items()}
    rows = [['where', 'duplicates', 'with another label']]
    for name, found in labels.items():
        repeated = list(itertools.chain.from_iterable(same[1:] for same in found.values()))
        other = sum(label != same[0] for same in found.values() for label in same[1:])
        rows.append([f'within {name}', f'{len(repeated):,}', f'{other:,}'])
    for (name, first), (other_name, second) in itertools.combinations(labels.items(), 2):
        shared = [(first[image], same) for image, same in second.items() if image in first]
        count = sum(len(same) for _, same in shared)
        other = sum(label not in known for known, same in shared for label in same)
        rows.append([f'of {other_name} in {name}', f'{count:,}', f'{other:,}'])
    return rows


def _labels_by_image(split: Split) -> dict[bytes, list[int]]:
    found: dict[bytes, list[int]] = {}
    for image, label in zip(split.image, split.label.tolist(), strict=True):
        found.setdefault(image.tobytes(), []).append(label)
    return found
