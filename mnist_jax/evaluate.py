"""Evaluate a state on a split; the training loop and `--mode=eval` share this core."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnist_jax import metrics, parallel, processes, results
from mnist_jax.data.records import Examples
from mnist_jax.data.source import Source
from mnist_jax.errors import Interrupted, UserError
from mnist_jax.experiment import Experiment, make_experiment
from mnist_jax.interruption import Request
from mnist_jax.metrics import Totals
from mnist_jax.snapshot import Snapshot, params_sha256
from mnist_jax.step import TrainState
from mnist_jax.trained import open_workdir, restore


def evaluate_split(
    experiment: Experiment, state: TrainState, split: Examples, request: Request | None = None
) -> tuple[Totals, np.ndarray]:
    """The sums of `step.eval_step` over every example of the split, and the probabilities NxK of their classes.

    Raises:
      Interrupted: `request` asks for it.
    """
    totals: Totals = {}
    probabilities = []
    for sums, probabilities_BxK in batch_results(experiment, state, split):
        if request is not None and (signal := processes.agreed(request)[0]):
            raise Interrupted(signal, 'in the validation')
        totals = metrics.add(totals, sums)
        probabilities.append(probabilities_BxK[: experiment.eval_batch_size])  # The rest is padding.
    counted = int(totals['count'])
    if counted != split.size:
        raise AssertionError(f'{counted} of the {split.size} examples of a split were evaluated')
    return totals, np.concatenate(probabilities)[:counted]


def batch_results(experiment: Experiment, state: TrainState, split: Examples) -> Iterator[Any]:
    """What `step.eval_step` returns for each batch, in host memory; fetched while the next one is computed."""
    computed = (experiment.eval_step(state, batch) for batch in experiment.eval_batches(split))
    waiting = next(computed)
    for now in computed:
        yield parallel.fetch(waiting)
        waiting = now
    yield parallel.fetch(waiting)


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
            results.write(workdir, part, result, examples.label, probabilities_NxK)
        finally:  # The disk may be full.
            print(results.text(result), flush=True)
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
    snapshot = restore(checkpoints, experiment, step)
    part = '-'.join(name for name in (step and f'step{snapshot.state.step}', split) if name)
    return evaluate_test(experiment, snapshot, workdir, split, part)
