"""Learning curves of a run or of several, and their accuracies side by side."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mnist_jax.learning.callbacks import EarlyStopping
from mnist_jax.report import style
from mnist_jax.report.style import Picture
from mnist_jax.workdir.comparison import FinishedRun

METRICS = ('loss', 'accuracy')
KINDS = {'train': (style.BLUE, 'training'), 'validation': (style.ORANGE, 'validation')}
MAX_POINTS = 200  # with a marker each


@style.styled
def learning_curves(run: FinishedRun) -> Picture:
    """Loss, accuracy and learning rate by epoch; the best one, an early end and changes of the rate are marked."""
    figure, axes = style.new(11, 3.2, ncols=3)
    tips: dict[str, str] = {}
    for axis, metric in zip(axes, METRICS, strict=False):
        for kind, (colour, title) in KINDS.items():
            _line(axis, run, f'{kind}_{metric}', colour, title, tips)
        axis.set_title(f'{metric} by epoch')
        axis.set_ylabel(metric + (', share of the examples' if metric == 'accuracy' else ', mean over the examples'))
    _line(axes[2], run, 'learning_rate', style.GREEN, 'learning rate', tips)
    axes[2].set_yscale('log')
    axes[2].set_title('learning rate by epoch')
    axes[2].set_ylabel('learning rate')
    for number, axis in enumerate(axes):
        _marks(axis, run, number == 0)
        _count_epochs(axis)
        style.grid(axis)
    axes[0].legend(fontsize=9, loc='upper right', frameon=True, facecolor=style.GROUND, edgecolor='none')
    about = (
        f'The training loss and accuracy of an epoch are means over its steps, each before its update. {_story(run)}'
    )
    return Picture('Learning curves', about, figure, tips)


def _count_epochs(axis: Axes) -> None:
    axis.set_xlabel('epoch')
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _line(axis: Axes, run: FinishedRun, name: str, colour: str, title: str, tips: dict[str, str]) -> None:
    rows = [row for row in run.epochs if name in row]
    if not rows:
        return
    epochs, values = [row['epoch'] for row in rows], [row[name] for row in rows]
    axis.plot(epochs, values, color=colour, label=title, linewidth=1.8)
    for row in rows if len(rows) <= MAX_POINTS else []:
        gid = f'point-{name}-{row["epoch"]:.0f}'
        axis.plot([row['epoch']], [row[name]], 'o', color=colour, markersize=4, gid=gid)
        tips[gid] = f'epoch {row["epoch"]:.0f}, {title}: {row[name]:.5g}'


def best_epoch(run: FinishedRun) -> int | None:
    """The epoch whose checkpoint is kept as the best, or None where its metric was never there."""
    rule = EarlyStopping(**run.config.early_stopping)
    state = rule.init()
    for row in run.epochs:
        state = rule.update(state, {'step': row['step'], rule.monitor.name: row.get(rule.monitor.name)})
    return next((int(row['epoch']) for row in run.epochs if row['step'] == state.best_step), None)


def changes(run: FinishedRun) -> list[int]:
    """The epochs from which on the learning rate was another, where it is constant but for such steps."""
    if run.config.schedule.name != 'constant':
        return []
    rates = [row['learning_rate'] for row in run.epochs]
    return [number + 1 for number in range(1, len(rates)) if rates[number] != rates[number - 1]]


def stopped_early(run: FinishedRun) -> bool:
    """Whether early stopping ended the run before its last epoch."""
    return bool(run.config.early_stopping.patience) and len(run.epochs) < run.config.epochs


def _marks(axis: Axes, run: FinishedRun, labelled: bool) -> None:
    best = best_epoch(run)
    if best is not None:
        axis.axvline(best, color=style.INK, linestyle='--', linewidth=1, label='best epoch' if labelled else None)
    for number, epoch in enumerate(changes(run)):
        label = 'lower learning rate' if labelled and not number else None
        axis.axvline(epoch, color=style.GREEN, linestyle=':', linewidth=1, label=label)
    if stopped_early(run):
        label = 'stopped early' if labelled else None
        axis.axvline(len(run.epochs), color=style.ORANGE, linestyle='-.', linewidth=1, label=label)


def _story(run: FinishedRun) -> str:
    said = []
    best = best_epoch(run)
    if best is not None:
        said.append(f'Epoch {best} is the best by {run.config.early_stopping.monitor.replace("_", " ")}.')
    if stopped_early(run):
        said.append(f'The run stopped early, after epoch {len(run.epochs)} of {run.config.epochs}.')
    if changes(run):
        said.append(f'The learning rate changed with epoch {", ".join(map(str, changes(run)))}.')
    return ' '.join(said)


@style.styled
def curves_of(runs: Sequence[FinishedRun]) -> Picture:
    """Training loss, and validation accuracy where there is one, of several runs."""
    validated = any('validation_accuracy' in row for run in runs for row in run.epochs)
    names = ('train_loss', 'validation_accuracy' if validated else 'train_accuracy')
    figure, axes = style.new(11, 3.6, ncols=2)
    tips: dict[str, str] = {}
    for axis, name in zip(axes, names, strict=True):
        for number, run in enumerate(runs):
            rows = [row for row in run.epochs if name in row]
            gid = f'line-{name}-{number}'
            colour, dash = style.SERIES[number % len(style.SERIES)], ('-', '--', ':')[number // len(style.SERIES) % 3]
            epochs, values = [row['epoch'] for row in rows], [row[name] for row in rows]
            axis.plot(epochs, values, dash, color=colour, label=style.words(run.name), linewidth=1.8, gid=gid)
            tips[gid] = f'{run.name}: {name.replace("_", " ")} {values[-1]:.5g} in the end' if values else run.name
        axis.set_title(f'{name.replace("_", " ")} by epoch')
        _count_epochs(axis)
        axis.set_ylabel(name.replace('_', ' '))
        style.grid(axis)
    axes[0].legend(fontsize=9, loc='upper right', frameon=True, facecolor=style.GROUND, edgecolor='none')
    return Picture('Learning curves', 'One line for each run that has the metric.', figure, tips)


@style.styled
def accuracies(runs: Sequence[FinishedRun]) -> Picture:
    """Test accuracy with its interval, and against the time of training."""
    figure, (left, right) = style.new(11, 1.2 + 0.35 * max(6, len(runs)), ncols=2, sharex=True)
    tips: dict[str, str] = {}
    for number, run in enumerate(runs):
        accuracy = run.result['accuracy']
        lower, upper = run.result['statistics']['overall']['accuracy_interval']
        colour = style.SERIES[number % len(style.SERIES)]
        told = f'{run.name}: {accuracy:.4f} ({lower:.4f} to {upper:.4f}), {run.seconds_told}'
        for axis, height in ((left, number), (right, run.seconds)):
            if height is None:
                continue
            gid = f'run-{number}-{"left" if axis is left else "right"}'
            axis.plot([lower, upper], [height, height], color=colour, linewidth=1.5)
            axis.plot([accuracy], [height], 'o', color=colour, markersize=8, gid=gid)
            tips[gid] = told
    left.set_yticks(range(len(runs)), [style.words(run.name) for run in runs])
    left.invert_yaxis()
    left.set_title('Test accuracy with its 95 % interval')
    right.set_title('Accuracy and time of training')
    right.set_ylabel('time of training, s')
    for axis in (left, right):
        axis.set_xlabel('accuracy, share of the test examples')
        style.grid(axis)
    return Picture('Accuracies', 'A point for each run; the bars are the exact 95 % intervals.', figure, tips)
