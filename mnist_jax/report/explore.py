"""Describes a dataset before training: figures, and tables of its splits, shapes, duplicates and outliers."""

import io
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mnist_jax import files, text_tables
from mnist_jax.config import ConfigDict
from mnist_jax.data.normalization import Normalization
from mnist_jax.data.records import Split
from mnist_jax.errors import UserError
from mnist_jax.report import data_audit, figures
from mnist_jax.training.experiment import Experiment, make_experiment
from mnist_jax.training.plan import make_plan
from mnist_jax.workdir.checkpoints import check_holds_only

EXAMPLES_PER_CLASS = 12
AUGMENTED_EXAMPLES = 10
MAX_CLASSES = 30  # classes in the figures that show images of each
MAX_TICKS = 70  # names of classes along an axis
MAX_SIDE = 40  # pixels along a side of an image that is drawn as numbers
STATISTICS: dict[str, Callable[..., np.ndarray]] = {'mean': np.mean, 'median': np.median, 'standard deviation': np.std}


def explore(config: ConfigDict, workdir: str | Path) -> str:
    """Writes figures and `explore.txt` for the dataset of `config` to `workdir`; prints and returns the text."""
    workdir = files.user_path(workdir, '--workdir')
    if not config.dataset.in_memory:
        raise UserError('--config.dataset.in_memory must be True for --mode=explore, got False')
    check_holds_only(workdir, 'the figures of a dataset')
    config = config.copy_and_resolve_references()
    config.folds = config.fold = 0  # The training split as a whole.
    source = make_plan(config).source
    source.data.prepare()
    config.batch_size = max(1, min(config.batch_size, source.count('train')))
    experiment = make_experiment(config)
    source = experiment.source
    splits = {}
    for name in source.split_names:
        split = source.split(name)
        assert isinstance(split, Split)  # It is in memory.
        splits[name] = split
    files.make_directory(workdir, '--workdir')
    train, names, max_pixel = splits['train'], source.class_names, source.max_pixel
    drawn = {
        'examples': draw_examples(train, names, max_pixel),
        'numbers': draw_pixel_values(train.image[0], f'The first training example, class {names[train.label[0]]}'),
        'class_shares': draw_class_fractions(splits, names),
        'class_statistics': draw_class_statistics(train, names, max_pixel),
    }
    if experiment.parts.augment is not None:
        drawn['augmentation'] = draw_augmentation(experiment, train)
    for name, figure in drawn.items():
        contents = io.BytesIO()
        figures.show_dollars(figure)
        figure.savefig(contents, format='png', dpi=100, bbox_inches='tight')
        files.write_bytes(workdir / f'{name}.png', contents.getvalue())
    audit = data_audit.audit(splits, names)
    data_audit.write_findings(audit, workdir / 'findings.csv')
    audited = {'near_duplicates': data_audit.draw_near_duplicates(audit), 'outliers': data_audit.draw_outliers(audit)}
    for name, report_figure in audited.items():
        if report_figure is not None:
            files.write_bytes(workdir / f'{name}.png', figures.to_png(report_figure))
    tables = {
        f'{source.name}: examples per class': _class_table(splits, names),
        'Pixel values': _pixel_table(splits),
        'Shapes and types from the dataset to the model': _pipeline_table(experiment, train),
        'Blank images and missing classes': data_audit.split_table(audit),
        'Examples that are the same as an earlier example, or nearly so': data_audit.duplicate_table(audit),
    }
    lines = itertools.chain.from_iterable([title, '', *text_tables.titled(rows), ''] for title, rows in tables.items())
    written = [*drawn, *(name for name, figure in audited.items() if figure is not None)]
    listed = ', '.join(f'{name}.png' for name in written)
    text = '\n'.join([*lines, f'Figures in {workdir}: {listed}; near-duplicates and outliers: findings.csv', ''])
    files.write_text(workdir / 'explore.txt', text)
    print(text, flush=True)
    return text


def draw_examples(split: Split, names: Sequence[str], max_pixel: int) -> Figure:
    """Draws the first examples of the first `MAX_CLASSES` classes, one row per class."""
    names = names[:MAX_CLASSES]
    figure = Figure(figsize=(EXAMPLES_PER_CLASS, len(names)))
    axes = figure.subplots(len(names), EXAMPLES_PER_CLASS, squeeze=False)
    for label, row in enumerate(axes):
        _label_row(row, names[label])
        for axis, image in itertools.zip_longest(row, split.image[split.label == label][:EXAMPLES_PER_CLASS]):
            _draw_image(axis, image, max_pixel)
    return figure


def draw_augmentation(experiment: Experiment, split: Split) -> Figure:
    """Draws training examples, one per row: the image, and what augmentation makes of it in the first epochs."""
    count = min(AUGMENTED_EXAMPLES, split.size)
    images, index = split.image[:count].astype(np.float32), np.arange(count, dtype=np.int32)
    figure = Figure(figsize=(EXAMPLES_PER_CLASS, count))
    axes = figure.subplots(count, EXAMPLES_PER_CLASS, squeeze=False)
    columns = [images, *(experiment.augment(images, index, epoch) for epoch in range(EXAMPLES_PER_CLASS - 1))]
    for number, (column, images_of_column) in enumerate(zip(axes.T, columns, strict=True)):
        column[0].set_title('image' if number == 0 else f'epoch {number}', size=9)
        for axis, image in zip(column, images_of_column, strict=True):
            _draw_image(axis, image, experiment.source.max_pixel)
    return figure


def draw_pixel_values(image_HxWxC: np.ndarray, title: str) -> Figure:
    """Draws one image as a grid of its pixel values, of a large image the top left corner."""
    if max(image_HxWxC.shape[:2]) > MAX_SIDE:
        title += ', its top left corner'
    if image_HxWxC.shape[-1] > 1:
        title += ', means of the channels'
    image_HxWxC = image_HxWxC[:MAX_SIDE, :MAX_SIDE]
    height, width, _ = image_HxWxC.shape
    figure = Figure(figsize=(0.36 * width, 0.36 * height))
    axis = figure.subplots()
    pixels = image_HxWxC.mean(axis=-1)
    axis.imshow(pixels, cmap='gray_r')
    for (row, column), value in np.ndenumerate(pixels):
        color = 'white' if value > pixels.max() / 2 else 'black'
        axis.text(column, row, f'{value:.0f}', ha='center', va='center', size=7, color=color)
    axis.set_title(title)
    axis.set_xlabel('column')
    axis.set_ylabel('row')
    return figure


def draw_class_fractions(splits: Mapping[str, Split], names: Sequence[str]) -> Figure:
    """Draws the fraction of each class in each split as a bar chart."""
    figure = Figure(figsize=(10, 4))
    axis = figure.subplots()
    width = 0.8 / len(splits)
    for index, (name, split) in enumerate(splits.items()):
        fractions = np.bincount(split.label, minlength=len(names)) / len(split.label)
        x = np.arange(len(names)) + (index - (len(splits) - 1) / 2) * width
        axis.bar(x, 100 * fractions, width, label=f'{name} ({len(split.label):,})')
    every = -(-len(names) // MAX_TICKS)
    rotation = 90 if len(names) > MAX_CLASSES else 0 if max(map(len, names)) < 3 else 30
    axis.set_xticks(range(0, len(names), every), names[::every], rotation=rotation)
    axis.set_xlabel('class')
    axis.set_ylabel('percentage of the split')
    axis.set_title('Class distribution')
    axis.legend(loc='upper left', bbox_to_anchor=(1, 1))
    return figure


def draw_class_statistics(split: Split, names: Sequence[str], max_pixel: int) -> Figure:
    """Draws the mean, median and standard deviation of each pixel within the first `MAX_CLASSES` classes, as images."""
    names = names[:MAX_CLASSES]
    figure = Figure(figsize=(len(names) * 1.1, 1.2 * len(STATISTICS)))
    axes = figure.subplots(len(STATISTICS), len(names), squeeze=False)
    for row, (title, statistic) in zip(axes, STATISTICS.items(), strict=True):
        _label_row(row, title)
        for label, axis in enumerate(row):
            images = split.image[split.label == label]
            _draw_image(axis, statistic(images, axis=0) if len(images) else None, max_pixel)
    for name, axis in zip(names, axes[0], strict=True):
        axis.set_title(figures.shorten(name), size=9)
    return figure


def _label_row(row: Sequence[Axes], label: str) -> None:
    row[0].text(-0.15, 0.5, label, transform=row[0].transAxes, ha='right', va='center')


def _draw_image(axis: Axes, image_HxWxC: np.ndarray | None, max_pixel: int) -> None:
    axis.set_axis_off()
    if image_HxWxC is not None:
        pixels = image_HxWxC[..., 0] if image_HxWxC.shape[-1] == 1 else image_HxWxC / max_pixel
        axis.imshow(pixels, cmap='gray_r', vmin=0, vmax=max_pixel)


def _class_table(splits: Mapping[str, Split], names: Sequence[str]) -> list[list[str]]:
    counts = {name: np.bincount(split.label, minlength=len(names)) for name, split in splits.items()}
    rows = [['class', *itertools.chain.from_iterable((name, 'fraction') for name in splits)]]
    for label, name in enumerate(names):
        rows.append([name, *_counts_and_fractions((count[label], count.sum()) for count in counts.values())])
    rows.append(['all', *_counts_and_fractions((count.sum(), count.sum()) for count in counts.values())])
    return rows


def _counts_and_fractions(pairs: Iterable[tuple[int, int]]) -> list[str]:
    return list(itertools.chain.from_iterable((f'{count:,}', f'{count / total:.2%}') for count, total in pairs))


def _pixel_table(splits: Mapping[str, Split]) -> list[list[str]]:
    rows = [['split', 'minimum', 'maximum', 'mean', 'standard deviation', 'zeros']]
    for name, split in splits.items():
        pixels = split.image
        statistics = [f'{pixels.mean():.3f}', f'{pixels.std():.3f}', f'{(pixels == 0).mean():.2%}']
        rows.append([name, str(pixels.min()), str(pixels.max()), *statistics])
    return rows


def _pipeline_table(experiment: Experiment, split: Split) -> list[list[str]]:
    """Returns the shape and the type of the data at each stage from the training split to the logits."""
    batch = next(experiment.train_batches(0))
    state = experiment.create_state()
    variables = {'params': state.params, 'batch_stats': state.batch_stats}
    logits = np.asarray(experiment.model.apply(variables, split.image[:1] / 1.0))
    devices, rows_per_device = batch['label'].shape
    batch_title = (
        f'batch of {experiment.config.batch_size} on {devices} device(s), padded to {devices * rows_per_device}'
    )
    if experiment.steps_per_call > 1:
        batch_title += f', {experiment.steps_per_call} batches per call'
    stages = [
        ('training images in memory', split.image),
        ('training labels in memory', split.label),
        (batch_title, batch['image']),
        ('labels of the batch', batch['label']),
        ('mask of the batch: 0 for padding', batch['mask']),
        ('index of the batch: positions in the split', batch['index']),
    ]
    rows = [['stage', 'shape', 'type']]
    rows += [[title, _format_shape(array.shape), str(array.dtype)] for title, array in stages]
    chunk_size = experiment.parts.chunk_size
    chunk_shape = _format_shape((chunk_size, *split.image.shape[1:]))
    rows.append([f'chunk on a device, {_describe(experiment.source.normalization)}', chunk_shape, 'float32'])
    rows.append(['logits of a chunk', _format_shape((chunk_size, logits.shape[-1])), str(logits.dtype)])
    return rows


def _describe(normalization: Normalization) -> str:
    divided = f'divided by {normalization.max_pixel}' if normalization.max_pixel != 1 else 'not scaled'
    return f'{divided}, standardized' if normalization.mean else divided


def _format_shape(shape: Sequence[int]) -> str:
    return ' x '.join(f'{size:,}' for size in shape)
