"""k-fold cross-validation: one run a fold, and their mean."""

import json
import statistics
from pathlib import Path
from typing import Any

from absl import logging

from mnist_jax import files, text_tables
from mnist_jax.config import ConfigDict, check_config
from mnist_jax.distributed import processes
from mnist_jax.errors import UserError
from mnist_jax.train import train
from mnist_jax.workdir.checkpoints import Checkpoints
from mnist_jax.workdir.metrics_log import read_metrics

NUMBERS = ('validation_accuracy', 'validation_loss', 'test_accuracy', 'test_loss')


def cross_validate(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Train `config.folds` runs, each validated with another part of the training split; or go on with what is there.

    Each lives in a directory `fold-N` of the workdir, and `folds.json` holds their results, the mean and the standard
    deviation. Returns what `folds.json` holds.
    """
    check_config(config)
    if not config.epochs:
        raise UserError('config.epochs=0 is wrong: cross-validation needs an epoch at least')
    if Checkpoints(workdir).steps():
        raise UserError(f'--workdir {str(workdir)!r} holds a run without folds; give another --workdir')
    folds = []
    for number in range(1, config.folds + 1):
        logging.info('Fold %d of %d', number, config.folds)
        fold = config.copy_and_resolve_references()
        fold.fold = number
        place = workdir / f'fold-{number}'
        folds.append(_result(number, train(fold, place, whole=workdir), place))
    result = {'folds': folds, 'mean': {}, 'standard_deviation': {}}
    for name in NUMBERS:
        values = [fold[name] for fold in folds]
        result['mean'][name] = statistics.mean(values)
        result['standard_deviation'][name] = statistics.stdev(values)
    if processes.is_main():
        files.write_text(workdir / 'folds.json', json.dumps(result, indent=2) + '\n')
        print(_text(result), flush=True)
    return result


def _result(number: int, tested: dict[str, Any], workdir: Path) -> dict[str, Any]:
    """The numbers of a fold: those of the validation are of the epoch whose parameters are the run's result."""
    rows = [row for row in read_metrics(workdir) if row['step'] == tested['step']]
    if not rows or 'validation_accuracy' not in rows[-1]:
        raise UserError(
            f'{str(workdir / "metrics.csv")!r} has no validation of step {tested["step"]}; remove {str(workdir)!r}, '
            'and run again to train that fold anew'
        )
    validated = rows[-1]
    return {
        'fold': number,
        'step': tested['step'],
        'validation_accuracy': validated['validation_accuracy'],
        'validation_loss': validated['validation_loss'],
        'test_accuracy': tested['accuracy'],
        'test_loss': tested['loss'],
        'params_sha256': tested['params_sha256'],
    }


def _text(result: dict[str, Any]) -> str:
    rows = [['fold', *(name.replace('_', ' ') for name in NUMBERS)]]
    rows += [[str(fold['fold']), *(text_tables.number(fold[name]) for name in NUMBERS)] for fold in result['folds']]
    rows.append(['mean', *(text_tables.number(result['mean'][name]) for name in NUMBERS)])
    rows.append(['deviation', *(text_tables.number(result['standard_deviation'][name]) for name in NUMBERS)])
    return '\n'.join(text_tables.titled(rows))
