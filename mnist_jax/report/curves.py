"""Learning curves of one or several runs, and a comparison of their test accuracies."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mnist_jax.config import config_fields
from mnist_jax.learning.losses import WEIGHTING_FIELDS
from mnist_jax.report import figures
from mnist_jax.report.figures import ReportFigure
from mnist_jax.workdir.finished_runs import FinishedRun

METRICS = {'loss': 'mean loss per example', 'accuracy': 'accuracy'}
SPLITS = {'train': ('training', figures.BLUE), 'validation': ('validation', figures.ORANGE)}
MAX_MARKERS = 200  # epochs; a longer curve is drawn without a marker per epoch


@figures.styled
def learning_curves(run: FinishedRun) -> ReportFigure:
    """Draws loss, accuracy and learning rate by epoch.

    Marks the best epoch, changes of the learning rate, and the last epoch if the run stopped early.
    """
    figure, (axes,) = figures.new_figure(11, 3.2, ncols=3)
    tooltips: dict[str, str] = {}
    for axis, (metric, label) in zip(axes, METRICS.items(), strict=False):
        for split, (split_label, color) in SPLITS.items():
            _draw_curve(axis, run, f'{split}_{metric}', color, split_label, tooltips)
        axis.set(title=metric.capitalize(), ylabel=label)
    _draw_curve(axes[2], run, 'learning_rate', figures.GREEN, 'learning rate', tooltips)
    axes[2].set(title='Learning rate', ylabel='learning rate', yscale='log')
    for index, axis in enumerate(axes):
        _mark_epochs(axis, run, labeled=index == 0)
        _label_epochs(axis)
        figures.add_grid(axis)
    axes[0].legend(fontsize=9, loc='upper right', frameon=True, facecolor=figures.BACKGROUND, edgecolor='none')
    about = (
        'Training loss and accuracy are averages over the steps of an epoch, each measured before its update. '
        + _describe(run)
    )
    return ReportFigure('Learning curves', about, figure, tooltips)


def _label_epochs(axis: Axes) -> None:
    axis.set_xlabel('epoch')
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_curve(axis: Axes, run: FinishedRun, name: str, color: str, label: str, tooltips: dict[str, str]) -> None:
    """Draws one column of metrics.csv, if the run has it, and adds a tooltip per epoch.

    Values that are not finite leave a gap in the line and are crosses on the upper edge.
    """
    rows = [row for row in run.epochs if name in row]
    if not rows:
        return
    epochs, values = _epochs_and_values(rows, name)
    axis.plot(epochs, values, color=color, label=label, linewidth=1.8)
    for row in rows:
        gid = f'point-{name}-{row["epoch"]:.0f}'
        if not math.isfinite(row[name]):
            (cross,) = axis.plot([row['epoch']], [1], 'x', color=color, transform=axis.get_xaxis_transform(), gid=gid)
            cross.set_clip_on(False)
        elif len(rows) <= MAX_MARKERS:
            axis.plot([row['epoch']], [row[name]], 'o', color=color, markersize=4, gid=gid)
        else:
            continue
        tooltips[gid] = f'epoch {row["epoch"]:.0f}, {label}: {row[name]:.5g}'


def _epochs_and_values(rows: Sequence[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Returns the coordinates of a curve, with NaN, which Matplotlib leaves out, for each value that is not finite."""
    values = [row[name] if math.isfinite(row[name]) else math.nan for row in rows]
    return [row['epoch'] for row in rows], values


def best_epoch(run: FinishedRun) -> int | None:
    """Returns the epoch whose checkpoint is kept as the best, or None if the run lacks the monitored metric."""
    _, state = run.early_stopping
    return next((int(row['epoch']) for row in run.epochs if row['step'] == state.best_step), None)


def learning_rate_changes(run: FinishedRun) -> list[int]:
    """Returns the first epoch at each new learning rate; empty if a schedule changes the rate in every epoch."""
    if run.config.schedule.name != 'constant':
        return []
    rates = [row['learning_rate'] for row in run.epochs]
    return [index + 1 for index in range(1, len(rates)) if rates[index] != rates[index - 1]]


def _mark_epochs(axis: Axes, run: FinishedRun, labeled: bool) -> None:
    """Draws vertical lines at the noteworthy epochs; only `labeled` ones appear in the legend."""
    best = best_epoch(run)
    if best is not None:
        axis.axvline(best, color=figures.TEXT, linestyle='--', linewidth=1, label='best epoch' if labeled else None)
    for index, epoch in enumerate(learning_rate_changes(run)):
        label = 'learning rate reduced' if labeled and not index else None
        axis.axvline(epoch, color=figures.GREEN, linestyle=':', linewidth=1, label=label)
    if run.stopped_early:
        label = 'stopped early' if labeled else None
        axis.axvline(len(run.epochs), color=figures.ORANGE, linestyle='-.', linewidth=1, label=label)


def _describe(run: FinishedRun) -> str:
    """Returns the marks of the learning curves in words."""
    sentences = []
    best, changes = best_epoch(run), learning_rate_changes(run)
    diverged = [row['epoch'] for row in run.epochs if not math.isfinite(row.get('validation_loss', 0))]
    if diverged:
        epochs = f'epoch{"s" if len(diverged) > 1 else ""} {", ".join(f"{epoch:.0f}" for epoch in diverged)}'
        sentences.append(f'The validation loss of {epochs} is not finite.')
    if best is not None:
        sentences.append(f'The best epoch by {run.config.early_stopping.monitor.replace("_", " ")} is epoch {best}.')
    if run.stopped_early:
        sentences.append(f'The run stopped early, after epoch {len(run.epochs)} of {run.config.epochs}.')
    if changes:
        epochs = f'epoch{"s" if len(changes) > 1 else ""} {", ".join(map(str, changes))}'
        sentences.append(f'The learning rate was reduced at {epochs}.')
    return ' '.join(sentences)


def _loss_fields(run: FinishedRun) -> tuple[str, ...]:
    """Returns the config fields that define the training loss, and their values."""
    names = ('loss.', 'distillation.', *WEIGHTING_FIELDS)
    return tuple(f'{name}={value!r}' for name, value in config_fields(run.config) if name.startswith(names))


@figures.styled
def curves_of_runs(runs: Sequence[FinishedRun]) -> ReportFigure:
    """Draws the training loss of several runs, and their validation accuracy if any run has one.

    Losses of different functions cannot be compared: if the runs differ in theirs, draws the training accuracy instead.
    """
    validated = any('validation_accuracy' in row for run in runs for row in run.epochs)
    same_loss = len({_loss_fields(run) for run in runs}) == 1
    names = ('train_loss' if same_loss else 'train_accuracy', 'validation_accuracy' if validated else 'train_accuracy')
    metrics = list(dict.fromkeys(names))
    figure, (axes,) = figures.new_figure(11, 3.6, ncols=len(metrics))
    tooltips: dict[str, str] = {}
    for axis, metric in zip(axes, metrics, strict=True):
        label = metric.replace('train', 'training').replace('_', ' ')
        for index, run in enumerate(runs):
            epochs, values = _epochs_and_values([row for row in run.epochs if metric in row], metric)
            gid = f'line-{metric}-{index}'
            colors = len(figures.SERIES_COLORS)
            color, dash = figures.SERIES_COLORS[index % colors], ('-', '--', ':')[index // colors % 3]
            axis.plot(epochs, values, dash, color=color, label=figures.literal_text(run.name), linewidth=1.8, gid=gid)
            tooltips[gid] = f'{run.name}: final {label} {values[-1]:.5g}' if values else run.name
        axis.set(title=label.capitalize(), ylabel=label)
        _label_epochs(axis)
        figures.add_grid(axis)
    axes[0].legend(fontsize=9, loc='upper right', frameon=True, facecolor=figures.BACKGROUND, edgecolor='none')
    about = 'One line per run that has the metric.'
    if not same_loss:
        about += ' The losses are not shown, because the runs minimize different functions.'
    return ReportFigure('Learning curves', about, figure, tooltips)


@figures.styled
def accuracies(runs: Sequence[FinishedRun]) -> ReportFigure:
    """Draws the test accuracy of each run with its confidence interval, and against its training time."""
    figure, ((left, right),) = figures.new_figure(11, 1.2 + 0.35 * max(6, len(runs)), ncols=2, sharex=True)
    tooltips: dict[str, str] = {}
    for index, run in enumerate(runs):
        accuracy = run.result['accuracy']
        lower, upper = run.result['statistics']['overall']['accuracy_interval']
        color = figures.SERIES_COLORS[index % len(figures.SERIES_COLORS)]
        tooltip = f'{run.name}: {accuracy:.4f} ({lower:.4f} to {upper:.4f}), {run.seconds_text}'
        for axis, side, height in ((left, 'left', index), (right, 'right', run.seconds)):
            if height is None:
                continue
            gid = f'run-{index}-{side}'
            axis.plot([lower, upper], [height, height], color=color, linewidth=1.5)
            axis.plot([accuracy], [height], 'o', color=color, markersize=8, gid=gid)
            tooltips[gid] = tooltip
    left.set_yticks(range(len(runs)), [figures.literal_text(run.name) for run in runs])
    left.invert_yaxis()
    left.set_title('Test accuracy')
    right.set_title('Test accuracy and training time')
    right.set_ylabel('training time, s')
    for axis in (left, right):
        axis.set_xlabel('test accuracy')
        figures.add_grid(axis)
    about = 'One point per run; the bars are exact (Clopper-Pearson) 95% confidence intervals.'
    return ReportFigure('Test accuracy', about, figure, tooltips)


@figures.styled
def learning_rate_search(rates: np.ndarray, losses: np.ndarray, smoothed: np.ndarray, suggested: float) -> ReportFigure:
    """Draws the loss against the learning rate, which rises from update to update."""
    figure, ((axis,),) = figures.new_figure(8, 4)
    axis.plot(rates, losses, color=figures.BLUE, alpha=0.3, linewidth=1, label='loss of a batch')
    axis.plot(rates, smoothed, color=figures.BLUE, linewidth=1.8, label='moving average')
    axis.axvline(suggested, color=figures.ORANGE, linestyle='--', linewidth=1.4, label=f'suggested: {suggested:.2g}')
    low, high = smoothed.min(), max(smoothed[0], np.median(losses))
    margin = 0.15 * max(high - low, 1e-6)
    axis.set(xscale='log', xlabel='learning rate', ylabel='loss', ylim=(low - margin, high + 3 * margin))
    axis.set_title('Learning-rate search')
    axis.legend(fontsize=9)
    figures.add_grid(axis)
    about = (
        'The suggested learning rate is where the loss falls fastest, but at most a third of that of the smallest loss.'
    )
    return ReportFigure('Learning-rate search', about, figure, {})
