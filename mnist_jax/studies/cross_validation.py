"""k-fold cross-validation: one run per fold, and the mean and standard deviation of their results."""

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path

from absl import logging

from mnist_jax import files, text_tables
from mnist_jax.config import ConfigDict
from mnist_jax.config_checks import check_config
from mnist_jax.distributed import processes
from mnist_jax.errors import UserError
from mnist_jax.files import JsonObject
from mnist_jax.train import train
from mnist_jax.workdir.checkpoints import check_holds_only
from mnist_jax.workdir.metrics_log import read_metrics

METRICS = ('validation_accuracy', 'validation_loss', 'test_accuracy', 'test_loss')


def cross_validate(config: ConfigDict, workdir: str | Path, reschedule: bool = False) -> JsonObject:
    """Trains `config.folds` runs, each validated on a different part of the training split, or resumes them.

    The run of fold N is in the directory `fold-N` of the workdir. Prints the results, their mean and their standard
    deviation as a table, and writes them to `folds.json`.

    Args:
      config: The config of the cross-validation.
      workdir: Its directory.
      reschedule: See `train.train`.

    Returns:
      The contents of `folds.json`.
    """
    check_config(config)
    workdir = files.user_path(workdir, '--workdir')
    if not config.epochs:
        raise UserError('config.epochs must be at least 1 for cross-validation, got 0')
    check_holds_only(workdir, 'a cross-validation')
    folds = []
    for fold in range(1, config.folds + 1):
        logging.info('Fold %d of %d', fold, config.folds)
        fold_config = config.copy_and_resolve_references()
        fold_config.fold = fold
        fold_workdir = workdir / f'fold-{fold}'
        result = train(fold_config, fold_workdir, lock_directory=workdir, reschedule=reschedule)
        folds.append(_summarize_fold(fold, result, fold_workdir))
    values = {name: [fold[name] for fold in folds] for name in METRICS}
    summary: JsonObject = {
        'folds': folds,
        'mean': {name: _statistic(statistics.mean, values[name]) for name in METRICS},
        'standard_deviation': {name: _statistic(statistics.stdev, values[name]) for name in METRICS},
    }
    if processes.is_main():
        files.write_text(workdir / 'folds.json', json.dumps(summary, indent=2, allow_nan=False) + '\n')
        print(_format_summary(summary), flush=True)
    return summary


def _summarize_fold(fold: int, result: JsonObject, workdir: Path) -> JsonObject:
    """Returns the validation and test metrics of a fold, both at the step that the run ends with."""
    rows = [row for row in read_metrics(workdir) if row['step'] == result['step']]
    if not rows or 'validation_accuracy' not in rows[-1]:
        raise UserError(
            f'{str(workdir / "metrics.csv")!r} must have validation metrics for step {result["step"]}; remove '
            f'{str(workdir)!r} and run the same command again to retrain this fold'
        )
    return {
        'fold': fold,
        'step': result['step'],
        'validation_accuracy': rows[-1]['validation_accuracy'],
        'validation_loss': loss if math.isfinite(loss := rows[-1]['validation_loss']) else None,
        'test_accuracy': result['accuracy'],
        'test_loss': result['loss'],
        'params_sha256': result['params_sha256'],
        'reschedules': result['reschedules'],
    }


def _statistic(function: Callable[[list[float]], float], values: list[float | None]) -> float | None:
    """Returns a statistic of the folds, or None, which JSON and the table can show, if a fold's loss is not finite."""
    numbers = [value for value in values if value is not None]
    return function(numbers) if len(numbers) == len(values) else None


def _format_summary(summary: JsonObject) -> str:
    def row(title: str, values: JsonObject) -> list[str]:
        return [title, *(text_tables.number(values[name]) for name in METRICS)]

    rows = [['fold', *(name.replace('_', ' ') for name in METRICS)]]
    rows += [row(str(fold['fold']), fold) for fold in summary['folds']]
    rows += [row('mean', summary['mean']), row('std. dev.', summary['standard_deviation'])]
    return '\n'.join(text_tables.titled(rows))
