"""What a person and a program see of a run: lines, the progress bar, `metrics.csv`, TensorBoard."""

import csv
import io
import logging as python_logging
import math
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging
from tensorboardX import SummaryWriter
from tqdm import tqdm

from mnist_jax import files
from mnist_jax.errors import UserError

COLUMNS = (
    'epoch',
    'step',
    'train_loss',
    'train_accuracy',
    'validation_loss',
    'validation_accuracy',
    'learning_rate',
    'seconds',
    'images_per_second',
)

OPTIONAL = ('validation_loss', 'validation_accuracy')


def configure_logging() -> None:
    """Show this program's lines, and of the libraries' what is at least a warning, as plain text on standard error."""
    package = str(Path(__file__).parent.parent)

    def shown(record: python_logging.LogRecord) -> bool:
        if 'tensorflow_datasets' in record.pathname:  # It warns of every configuration that is not its own.
            return record.levelno >= python_logging.ERROR
        if 'orbax' in record.pathname:  # What it cannot write it tells many times, with tracebacks, and then raises.
            return record.levelno >= python_logging.CRITICAL
        return record.levelno >= python_logging.WARNING or record.pathname.startswith(package)

    handler = logging.get_absl_handler()
    handler.python_handler.setStream(sys.stderr)  # That at its import may have been closed.
    handler.addFilter(shown)
    handler.setFormatter(python_logging.Formatter('%(asctime)s %(message)s', datefmt='%H:%M:%S'))
    logging.set_verbosity(logging.INFO)
    python_logging.getLogger('asyncio').setLevel(python_logging.CRITICAL)  # For the same.
    sys.unraisablehook = _unraisable
    warnings.filterwarnings('ignore', 'coroutine .* was never awaited', RuntimeWarning)


def _unraisable(raised: Any) -> None:
    """What was raised where nobody can catch it, but for what TensorStore still does after Orbax gave up on a disk."""
    if 'Event loop is closed' not in str(raised.exc_value):
        sys.__unraisablehook__(raised)


def read_metrics(workdir: Path) -> list[dict[str, float]]:
    """The rows of `metrics.csv` as numbers, without the fields that are empty; none where there is no such file."""
    path = workdir / 'metrics.csv'
    rows, damaged = _read_rows(path)
    if damaged:
        raise UserError(
            f'{str(path)!r} is damaged: {len(rows)} of its lines are rows of metrics, others are not; '
            'without the file, all else is told'
        )
    return [{name: float(text) for name, text in row.items() if text} for row in rows]


def _read_rows(path: Path) -> tuple[list[dict[str, str]], bool]:
    """The good rows, and whether there is anything else."""
    if not path.exists():
        return [], False
    try:
        rows = list(csv.DictReader(io.StringIO(files.read_bytes(path).decode(errors='replace'), newline='')))
    except (ValueError, csv.Error):
        return [], True
    good = [row for row in rows if _is_good(row)]
    return good, len(good) < len(rows) or not rows


def _is_good(row: Mapping[str | None, Any]) -> bool:
    try:
        int(row['epoch']), int(row['step'])
        numbers = [float(row[name]) for name in COLUMNS if row[name] or name not in OPTIONAL]
        return tuple(row) == COLUMNS and all(map(math.isfinite, numbers))
    except (ValueError, TypeError, KeyError):
        return False


class MetricsLog:
    """Writes the metrics of a run's epochs to its workdir and to the terminal."""

    def __init__(self, workdir: Path, epochs: int, step: int, writes: bool = True):
        """`step` is where the run begins or goes on; rows of later steps, of a lost piece of work, are dropped.

        One that does not write keeps silent too.
        """
        self._writes, self._epochs = writes, epochs
        if not writes:
            return
        self._csv = workdir / 'metrics.csv'
        rows, damaged = _read_rows(self._csv)
        self._rows = [row for row in rows if int(row['step']) <= step]
        if damaged:
            left = ', '.join(row['epoch'] for row in self._rows) or 'none'
            logging.warning('%s was damaged; rows of these epochs are left: %s', self._csv, left)
        self._tensorboard = SummaryWriter(str(workdir / 'tensorboard'), purge_step=step + 1 if step else None)

    @staticmethod
    def create_directory(workdir: Path) -> None:
        """Create the place of TensorBoard's files; UserError where they or the metrics cannot be written."""
        path = workdir / 'metrics.csv'
        if path.exists() and not path.is_file():
            raise UserError(f'{str(path)!r} is no plain file, and the metrics are to be there; move it')
        files.make_directory(workdir / 'tensorboard', "the place of TensorBoard's files")

    def progress(self, epoch: int, steps: int) -> 'ProgressBar':
        """A progress bar for an epoch of `steps` steps; nothing where standard error is no terminal."""
        shown = self._writes and sys.stderr.isatty()
        return ProgressBar(f'epoch {epoch:>{len(str(self._epochs))}}/{self._epochs}', steps, shown)

    def write_epoch(self, row: Mapping[str, float | int | None]) -> None:
        """Record a finished epoch: a line, a row of `metrics.csv`, and TensorBoard's scalars."""
        if not self._writes:
            return
        self._rows.append({name: '' if row[name] is None else str(row[name]) for name in COLUMNS})
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator='\n')
        writer.writeheader()
        writer.writerows(self._rows)
        try:
            files.write_text(self._csv, text.getvalue())
            for name in COLUMNS[2:]:
                if row[name] is not None:
                    self._tensorboard.add_scalar(name, row[name], row['step'])
            self._tensorboard.flush()
        except OSError as error:  # All rows are written anew after the next epoch.
            logging.error('%s cannot be written: %s', self._csv, error.strerror)
        logging.info('%s', _line(row, self._epochs))

    def close(self) -> None:
        """Finish TensorBoard's file."""
        try:
            if self._writes:
                self._tensorboard.close()
        except OSError as error:
            logging.error("TensorBoard's file cannot be written: %s", error.strerror)


def _line(row: Mapping[str, float | int | None], epochs: int) -> str:
    parts = [
        f'epoch {row["epoch"]:>{len(str(epochs))}}/{epochs}',
        f'loss {row["train_loss"]:.4f}',
        f'accuracy {row["train_accuracy"]:.4f}',
    ]
    if row['validation_loss'] is not None:
        parts += [f'validation loss {row["validation_loss"]:.4f}', f'accuracy {row["validation_accuracy"]:.4f}']
    return '  '.join([*parts, f'{row["seconds"]:.1f} s', f'{row["images_per_second"]:,.0f} images/s'])


class ProgressBar:
    """The progress bar of an epoch: loss, accuracy, images/s and the time left."""

    def __init__(self, title: str, steps: int, shown: bool):
        self._bar = tqdm(
            total=steps,
            desc=title,
            leave=False,
            disable=not shown,
            bar_format='{desc} {percentage:3.0f}% {bar} {n_fmt}/{total_fmt}{postfix} [{elapsed}<{remaining}]',
        )

    def update(self, means: Mapping[str, float], images: float, steps: int) -> None:
        """So far: the means of the epoch, how many images and steps it had."""
        if not self._bar.disable:
            speed = images / max(self._bar.format_dict['elapsed'], 1e-9)
            self._bar.set_postfix_str(
                f'loss {means["loss"]:.4f} accuracy {means["accuracy"]:.4f} {speed:,.0f} images/s', refresh=False
            )
            self._bar.update(steps - self._bar.n)

    def __enter__(self) -> 'ProgressBar':
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
