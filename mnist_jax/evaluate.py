"""Evaluate a state on a split; the training loop and `--mode=eval` share this core."""

import json
from pathlib import Path
from typing import Any

from absl import logging

from mnist_jax import checkpoint, files, metrics, parallel
from mnist_jax.errors import UserError
from mnist_jax.experiment import Experiment, make_experiment
from mnist_jax.metrics import Totals
from mnist_jax.step import TrainState


def evaluate_split(experiment: Experiment, state: TrainState, name: str) -> Totals:
    """The sums of `step.eval_step` over every example of the split configured as `name`."""
    split = experiment.source.split(name)
    totals: Totals = {}
    for batch in experiment.eval_batches(split):
        totals = metrics.add(totals, parallel.fetch(experiment.eval_step(state, batch)))
    counted = int(totals['count'])
    if counted != len(split.label):
        raise AssertionError(f'{counted} of the {len(split.label)} examples of the {name} split were evaluated')
    return totals


def evaluate_test(experiment: Experiment, state: TrainState, workdir: Path) -> dict[str, Any]:
    """Evaluate on the test split, write `eval.json`, tell the result and return it."""
    totals = evaluate_split(experiment, state, 'test')
    result = {
        'dataset': experiment.source.name,
        'split': experiment.source.specs['test'],
        'step': int(state.step),
        'count': int(totals['count']),
        **metrics.means(totals),
        'correct': int(totals['correct']),
        'confusion_matrix': totals['confusion_matrix'].astype(int).tolist(),
        'params_sha256': checkpoint.params_sha256(state),
    }
    files.write_text(workdir / 'eval.json', _rows_on_lines(result))
    logging.info(
        'test accuracy %.4f  loss %.4f  (%s, split %r, %s examples, step %s)',
        result['accuracy'],
        result['loss'],
        result['dataset'],
        result['split'],
        f'{result["count"]:,}',
        f'{result["step"]:,}',
    )
    return result


def _rows_on_lines(result: dict[str, Any]) -> str:
    """JSON with a field a line and a row of the confusion matrix a line."""
    lines = []
    for name, value in result.items():
        text = json.dumps(value, allow_nan=False)
        if name == 'confusion_matrix':
            text = '[\n    ' + ',\n    '.join(map(json.dumps, value)) + '\n  ]'
        lines.append(f'  {json.dumps(name)}: {text}')
    return '{\n' + ',\n'.join(lines) + '\n}\n'


def evaluate_workdir(workdir: Path, step: str | None = None) -> dict[str, Any]:
    """Evaluate a checkpoint of a workdir, which is all that this needs.

    Args:
      workdir: of the run.
      step: a number, 'latest', 'best', or None for the one that training evaluated at its end.
    """
    if not workdir.is_dir():
        problem = 'is a file' if workdir.exists() else 'does not exist'
        raise UserError(f'--workdir {str(workdir)!r} {problem}; give the workdir of a run')
    checkpoints = checkpoint.Checkpoints(workdir)
    config = checkpoints.read_config()
    if config is None or not checkpoints.steps():
        missing = 'config.json' if config is None else 'checkpoint'
        raise UserError(f'--workdir {str(workdir)!r} holds no {missing}; train first, with --config and this --workdir')
    experiment = make_experiment(config)
    chosen = result_step(experiment, checkpoints) if step is None else _chosen_step(experiment, checkpoints, step)
    return evaluate_test(experiment, checkpoints.restore(chosen, experiment.abstract_snapshot).state, workdir)


def result_step(experiment: Experiment, checkpoints: checkpoint.Checkpoints) -> int:
    """The step whose parameters the run ends with: of the latest checkpoint, or of the best where that is restored."""
    best = _best_step(experiment, checkpoints) if experiment.callbacks.early_stopping.restore_best else -1
    return best if best >= 0 else checkpoints.steps()[-1]


def _best_step(experiment: Experiment, checkpoints: checkpoint.Checkpoints) -> int:
    latest = checkpoints.restore(checkpoints.steps()[-1], experiment.abstract_snapshot)
    return latest.callbacks.early_stopping.best_step


def _chosen_step(experiment: Experiment, checkpoints: checkpoint.Checkpoints, step: str) -> int:
    kept = checkpoints.steps()
    if step == 'latest':
        return kept[-1]
    best = _best_step(experiment, checkpoints)
    if step == 'best':
        if best < 0:
            raise UserError("--step=best: no epoch of this run was validated; 'latest' is there")
        return best
    if not step.isdecimal() or int(step) not in kept:
        raise UserError(f'--step={step!r} is not there; the choices are: latest, best, {", ".join(map(str, kept))}')
    return int(step)
