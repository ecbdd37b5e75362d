"""Evaluate a run: a snapshot on its test split, or a checkpoint of a workdir on any split."""

from pathlib import Path
from typing import Any

import jax

from mnist_jax.data.records import Examples
from mnist_jax.data.source import Source
from mnist_jax.distributed import processes
from mnist_jax.errors import UserError
from mnist_jax.inference.restored import open_workdir, restore_snapshot
from mnist_jax.learning import metrics
from mnist_jax.training.evaluation import evaluate_split
from mnist_jax.training.experiment import Experiment, make_experiment
from mnist_jax.workdir.results import format_result, write_result
from mnist_jax.workdir.snapshot import Snapshot, params_sha256


def evaluate_test(
    experiment: Experiment, snapshot: Snapshot, workdir: Path, split: str | None = None, part: str | None = None
) -> dict[str, Any]:
    """Evaluate on the configured test split, or on `split`; write the result as that of `part`, tell and return it."""
    state = snapshot.state
    source = experiment.source
    spec = split or source.specs['test']
    examples = source.split('test') if split is None else _examples(source, split)
    totals, probabilities_NxK = evaluate_split(experiment, state, examples)
    matrix = totals['confusion_matrix'].astype(int)
    result = {
        'dataset': source.name,
        'split': spec,
        'split_sha256': examples.sha256,
        'step': int(state.step),
        'skipped_steps': snapshot.epoch.skipped,
        'count': int(totals['count']),
        **metrics.means(totals),
        'correct': int(totals['correct']),
        'parameters': sum(leaf.size for leaf in jax.tree.leaves((state.params, state.batch_stats))),
        'params_sha256': params_sha256(state),
        'confusion_matrix': matrix.tolist(),
        'statistics': metrics.statistics(matrix, source.class_names),
    }
    if processes.is_main():
        try:
            write_result(workdir, part, result, examples.label, probabilities_NxK)
        finally:  # The disk may be full.
            print(format_result(result), flush=True)
    return result


def _examples(source: Source, split: str) -> Examples:
    """Those that validate the run, for 'validation'; else a split in TFDS's slicing."""
    if split != 'validation':
        return source.other(split)
    examples = source.split('validation')
    if examples is None:
        raise UserError("--split='validation': this run was not validated; 'test' and 'train' are there")
    return examples


def evaluate_workdir(workdir: Path, step: str | None = None, split: str | None = None) -> dict[str, Any]:
    """Evaluate a checkpoint of a workdir, which is all that this needs.

    Args:
      workdir: of the run.
      step: a number, 'latest', 'best', or None for the one that training evaluated at its end.
      split: which to evaluate on, in TFDS's slicing, or 'validation'; None for the configured test split.

    A step or a split that is asked for has files of its own, such as `eval-step45-holdout.json`: `eval.json` is the
    result of the run.
    """
    checkpoints, config = open_workdir(workdir)
    experiment = make_experiment(config)
    checkpoints.check_data(experiment.source.data.digests)
    snapshot = restore_snapshot(checkpoints, experiment, step)
    part = '-'.join(name for name in (step and f'step{snapshot.state.step}', split) if name)
    return evaluate_test(experiment, snapshot, workdir, split, part)
