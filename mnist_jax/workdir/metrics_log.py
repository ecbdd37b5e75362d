"""The progress of a run, for people and programs: log lines, the progress bar and `metrics.csv`."""

import csv
import io
import logging as python_logging
import math
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from absl import logging
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
    'validation_balanced_accuracy',
    'validation_macro_f1',
    'learning_rate',
    'seconds',
    'images_per_second',
)
"""The columns that this version writes; columns of other versions are kept when a run resumes."""
REQUIRED = (
    'epoch',
    'step',
    'train_loss',
    'train_accuracy',
    'learning_rate',
    'seconds',
    'images_per_second',
)
"""The columns that runs of every version have; all others may be empty or missing."""
FINITE = ('epoch', 'step', 'seconds', 'images_per_second')
"""The columns that are never NaN or infinite. Losses are, if a run diverges."""


def configure_logging() -> None:
    """Logs to standard error as plain text: all messages of this program, and the warnings and errors of libraries."""
    package = str(Path(__file__).parent.parent)

    def is_shown(record: python_logging.LogRecord) -> bool:
        if 'tensorflow_datasets' in record.pathname:  # It warns about every configuration that is not its own.
            return record.levelno >= python_logging.ERROR
        if 'orbax' in record.pathname:  # It logs a failed write many times, with tracebacks, before it raises.
            return record.levelno >= python_logging.CRITICAL
        if 'tensorboardX' in record.pathname:  # It warns about NaN without saying where; the epoch's line shows it.
            return record.levelno >= python_logging.ERROR
        return record.levelno >= python_logging.WARNING or record.pathname.startswith(package)

    logging.use_absl_handler()
    handler = logging.get_absl_handler()
    handler.python_handler.setStream(sys.stderr)  # The stream at import time may have been closed.
    handler.addFilter(is_shown)
    handler.setFormatter(python_logging.Formatter('%(asctime)s %(message)s', datefmt='%H:%M:%S'))
    logging.set_verbosity(logging.INFO)
    python_logging.getLogger('asyncio').setLevel(python_logging.CRITICAL)  # For the same reason as Orbax.
    sys.unraisablehook = _unraisable
    warnings.filterwarnings('ignore', 'coroutine .* was never awaited', RuntimeWarning)


def _unraisable(unraisable: 'sys.UnraisableHookArgs') -> None:
    """Reports an unraisable exception, except those of TensorStore after Orbax has given up on a disk."""
    if 'Event loop is closed' not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def read_metrics(workdir: str | Path) -> list[dict[str, float]]:
    """Returns the rows of `metrics.csv` as numbers, without empty fields; [] if there is no such file.

    Only the `COLUMNS` of this version are returned. A column that an older version did not write is missing.
    """
    path = files.user_path(workdir, 'workdir') / 'metrics.csv'
    rows, damaged = _read_rows(path)
    if damaged:
        raise UserError(
            f'{str(path)!r} is damaged: only {len(rows)} of its rows can be read; delete it to see everything else'
        )
    return [{name: float(row[name]) for name in COLUMNS if row.get(name)} for row in rows]


def _read_rows(path: Path) -> tuple[list[dict[str, str]], bool]:
    """Returns the valid rows, and whether the file is damaged: whether it has invalid rows, or none at all."""
    if not path.exists():
        return [], False
    try:
        rows = list(csv.DictReader(io.StringIO(files.read_bytes(path).decode(errors='replace'), newline='')))
    except (FileNotFoundError, ValueError, csv.Error):  # Other errors, such as that of a network, are not damage.
        return [], True
    valid = [row for row in rows if _is_valid(row)]
    return valid, len(valid) < len(rows) or not rows


def _is_valid(row: Mapping[str, str]) -> bool:
    if not all(isinstance(text, str) for text in row.values()):  # It has too few or too many fields.
        return False
    try:
        if min(int(row['epoch']), int(row['step'])) < 1:
            return False
        numbers = {name: float(row[name]) for name in COLUMNS if name in REQUIRED or row.get(name)}
        return all(math.isfinite(numbers[name]) for name in FINITE)
    except (ValueError, KeyError):
        return False


OnEpoch = Callable[[Mapping[str, float | None]], None]


class MetricsLog:
    """Writes the metrics of each epoch to the workdir and to the terminal."""

    def __init__(
        self, workdir: Path, epochs: int, step: int, writes: bool = True, on_epoch: OnEpoch = lambda row: None
    ):
        """Opens the log.

        Args:
          workdir: The directory of the run.
          epochs: The number of epochs of the run.
          step: The step at which the run starts or resumes; rows of later steps, whose work was lost, are dropped.
          writes: If false, nothing is written or logged.
          on_epoch: Called with each row that is written.
        """
        self._writes, self._epochs, self._on_epoch = writes, epochs, on_epoch
        if not writes:
            return
        self._csv_path = workdir / 'metrics.csv'
        rows, damaged = _read_rows(self._csv_path)
        self._rows = [row for row in rows if int(row['step']) <= step]
        self._has_unwritten = False
        self._columns = list(dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)]))
        if damaged:
            kept = ', '.join(row['epoch'] for row in self._rows) or 'none'
            backup = files.keep_damaged(self._csv_path)
            logging.warning(
                '%s was damaged; copied it to %s, and kept the rows of these epochs: %s', self._csv_path, backup, kept
            )
            # Now, not after the next epoch, which may never come: the run may be finished, or be killed.
            if self._rows:
                self._has_unwritten = True
                self.complete()
            else:
                self._csv_path.unlink(missing_ok=True)

    @staticmethod
    def create_directory(workdir: Path) -> None:
        """Creates the TensorBoard directory; raises a UserError if it or `metrics.csv` cannot be written."""
        path = workdir / 'metrics.csv'
        if path.exists() and not path.is_file():
            raise UserError(f'{str(path)!r} must be a regular file, because the metrics are written there; move it')
        files.make_directory(workdir / 'tensorboard', '--workdir: the TensorBoard directory')

    def progress(self, epoch: int, steps: int) -> 'ProgressBar':
        """Returns a progress bar for an epoch of `steps` steps; it is hidden unless standard error is a terminal."""
        is_shown = self._writes and sys.stderr.isatty()
        return ProgressBar(f'epoch {epoch:>{len(str(self._epochs))}}/{self._epochs}', steps, is_shown)

    def write_epoch(self, row: Mapping[str, float | None]) -> None:
        """Records a finished epoch: a log line and a row of `metrics.csv`."""
        if not self._writes:
            return
        self._rows.append({name: '' if row[name] is None else str(row[name]) for name in COLUMNS})
        self._has_unwritten = True
        self.complete()
        self._on_epoch(row)
        logging.info('%s', _format_epoch(row, self._epochs))

    def complete(self) -> None:
        """Writes the rows that could not be written so far, if there are any; logs why if they still cannot be."""
        if not self._writes or not self._has_unwritten:
            return
        try:
            self._write_rows()
        except OSError as error:  # The next epoch, or the end of the run, tries again.
            logging.error('%s cannot be written: %s', self._csv_path, error.strerror)

    def _write_rows(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator='\n')
        writer.writeheader()
        writer.writerows(self._rows)
        files.write_text(self._csv_path, text.getvalue())
        self._has_unwritten = False


def _format_epoch(row: Mapping[str, float | None], epochs: int) -> str:
    parts = [
        f'epoch {row["epoch"]:>{len(str(epochs))}}/{epochs}',
        f'loss {row["train_loss"]:.4f}',
        f'accuracy {row["train_accuracy"]:.4f}',
    ]
    if row['validation_loss'] is not None:
        parts += [f'validation loss {row["validation_loss"]:.4f}', f'accuracy {row["validation_accuracy"]:.4f}']
    return '  '.join([*parts, f'{row["seconds"]:.1f} s', f'{row["images_per_second"]:,.0f} images/s'])


class ProgressBar:
    """The progress bar of an epoch: loss, accuracy, images/s and the remaining time."""

    def __init__(self, title: str, steps: int, shown: bool):
        self._bar = tqdm(
            total=steps,
            desc=title,
            leave=False,
            disable=not shown,
            bar_format='{desc} {percentage:3.0f}% {bar} {n_fmt}/{total_fmt}{postfix} [{elapsed}<{remaining}]',
        )

    def update(self, means: Mapping[str, float], images: float, steps: int) -> None:
        """Shows the mean metrics of the epoch so far, after this many images and steps."""
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
