"""Evaluates a run: a snapshot on the test split, or a checkpoint in a workdir on any split; and ensembles of runs."""

import hashlib
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mnist_jax.config import ConfigDict, config_sha256
from mnist_jax.data import image_folder
from mnist_jax.data.records import Examples
from mnist_jax.data.source import Source
from mnist_jax.distributed import processes
from mnist_jax.errors import NonFiniteError, UserError
from mnist_jax.files import JsonObject, check_directory, printable, user_path
from mnist_jax.inference import ensemble
from mnist_jax.inference.calibration import assess, cross_entropy
from mnist_jax.inference.ensemble import Ensemble
from mnist_jax.inference.restored import MAX_BATCH, RestoredModel, open_workdir, restore_snapshot
from mnist_jax.inference.teacher import read_teacher
from mnist_jax.learning import metrics
from mnist_jax.training.evaluation import evaluate_split
from mnist_jax.training.experiment import Experiment, make_experiment
from mnist_jax.workdir.finished_runs import ENSEMBLE_FILE
from mnist_jax.workdir.provenance import changed_code, read_epochs, read_origin, read_provenance
from mnist_jax.workdir.results import format_result, write_result
from mnist_jax.workdir.snapshot import Snapshot, count_parameters, params_sha256


def evaluate_snapshot(
    experiment: Experiment, snapshot: Snapshot, workdir: Path, split: str | None = None, suffix: str | None = None
) -> JsonObject:
    """Evaluates on the test split of the config, or on `split`; writes, prints and returns the result.

    Args:
      experiment: The experiment of the run.
      snapshot: What to evaluate.
      workdir: Where `eval.json` and `predictions.npz` are written.
      split: A split in TFDS's slicing notation, or 'validation'.
      suffix: Added to the names of the files, as in `eval-SUFFIX.json`.

    Raises:
      NonFiniteError: the loss is not finite; nothing is written.
    """
    state, source = snapshot.state, experiment.source
    variables = state.variables  # Everything in the result is about these, except for 'other_weights'.
    examples = source.split('test') if split is None else _examples(source, split)
    totals, probabilities_NxK = evaluate_split(experiment, variables, examples)
    means = metrics.means(totals)
    if not all(map(math.isfinite, means.values())):
        raise NonFiniteError(
            f'the loss on split {split or source.specs["test"]!r} must be finite, got {means["loss"]} with the '
            f'parameters of step {int(state.step):,}: the run has diverged; nothing is written. To evaluate an earlier '
            'checkpoint, use --mode=eval with --step'
        )
    matrix = totals['confusion_matrix'].astype(int)
    result = {
        'dataset': source.name,
        'split': split or source.specs['test'],
        'split_sha256': examples.sha256,
        'step': int(state.step),
        **_about_weights(experiment, snapshot, examples),
        'skipped_steps': snapshot.epoch.skipped,
        'count': int(totals['count']),
        **means,
        'cross_entropy': float(totals['cross_entropy']) / float(totals['count']),
        'correct': int(totals['correct']),
        **_about(
            count_parameters(variables),
            params_sha256(variables),
            matrix,
            examples.label,
            probabilities_NxK,
            source.class_names,
        ),
        'deterministic': experiment.replicas.deterministic and _trained_deterministically(workdir),
        'overlaps': [overlap._asdict() for overlap in source.overlaps(split)],
        'reschedules': _reschedules(workdir, int(state.step)),
        'origin': read_origin(workdir),
        'own_code': experiment.own_code,
        'changed_code': changed_code(workdir, experiment.own_code, int(state.step)),
        **_teachers(experiment, workdir),
    }
    if split is None and source.validated:
        validation = source.split('validation')
        _, validation_NxK = evaluate_split(experiment, variables, validation)
        if np.isfinite(validation_NxK).all():
            result['uncertainty'] = assess(probabilities_NxK, examples.label, validation_NxK, validation.label)
    if processes.is_main():
        try:
            write_result(workdir, suffix, result, examples.label, probabilities_NxK)
        finally:  # The disk may be full: print the result either way.
            print(format_result(result), flush=True)
    return result


def _about(
    parameters: int,
    digest: str,
    matrix: np.ndarray,
    label_N: np.ndarray,
    probabilities_NxK: np.ndarray,
    class_names: Sequence[str],
) -> JsonObject:
    """Returns the part of a result that follows from the parameters, of this number and digest, and predictions."""
    return {
        'top_k': metrics.top_k_accuracies(probabilities_NxK, label_N),
        'parameters': parameters,
        'params_sha256': digest,
        'confusion_matrix': matrix.tolist(),
        'statistics': metrics.statistics(matrix, class_names),
    }


def _about_weights(experiment: Experiment, snapshot: Snapshot, examples: Examples) -> JsonObject:
    """Returns which weights a result is about, and the evaluation of the others, if the run averages them."""
    state = snapshot.state
    if state.average is None:
        return {}
    name = 'average' if state.average.evaluated else 'last'
    others = {}
    for other, variables in state.choices.items():
        if other != name:
            totals, _ = evaluate_split(experiment, variables, examples)
            means = metrics.means(totals)
            others[other] = {
                'loss': means['loss'] if math.isfinite(means['loss']) else None,
                'accuracy': means['accuracy'],
                'params_sha256': params_sha256(variables),
            }
    return {'weights': name, 'other_weights': others}


def _teachers(experiment: Experiment, workdir: Path) -> JsonObject:
    teacher = read_teacher(workdir) if experiment.config.distillation.workdirs else None
    return {} if teacher is None else {'teachers': teacher.runs}


def _reschedules(workdir: Path, step: int) -> list[JsonObject]:
    """Returns the changes of the number of epochs up to `step` that changed the learning rate; see `train.train`."""
    return [
        {'step': second[0], 'epochs_before': first[1], 'epochs_after': second[1]}
        for first, second in itertools.pairwise(read_epochs(workdir))
        if second[0] < step
    ]


def _trained_deterministically(workdir: Path) -> bool:
    return all(start.get('deterministic', True) for start in read_provenance(workdir))


def _examples(source: Source, split: str) -> Examples:
    if split != 'validation':
        return source.read_slice(split)
    if not source.validated:
        raise UserError(
            "--split must be a split of the dataset for a run without validation examples, got 'validation'"
        )
    return source.split('validation')


def evaluate_workdir(workdir: str | Path, step: str | None = None, split: str | None = None) -> JsonObject:
    """Evaluates a checkpoint of a workdir; needs only the workdir and the dataset.

    `eval.json` is the result of the run. Asking for a specific step or split writes separate files, such as
    `eval-step45-holdout.json`.

    Args:
      workdir: The workdir of the run.
      step: A step number, 'latest', 'best', or None for the checkpoint that training evaluated at its end.
      split: A split in TFDS's slicing notation, or 'validation'; None for the test split of the config.
    """
    workdir = user_path(workdir, '--workdir')
    if (workdir / ENSEMBLE_FILE).is_file():
        return evaluate_ensemble(Ensemble.load(workdir, step), split)
    checkpoints, config = open_workdir(workdir)
    experiment = make_experiment(config, checkpoints.read_description(), fewer_devices=True)
    checkpoints.check_data(experiment.source.data.digests)
    snapshot = restore_snapshot(checkpoints, experiment, step)
    processes.check_identical(
        {
            'the run in --workdir': f'{config_sha256(config)} {snapshot.state.step} {snapshot.sha256.hex()}',
            'dataset': str(experiment.source.data.digests),
            '--step': str(step),
            '--split': str(split),
        }
    )
    suffix = '-'.join(name for name in (step and f'step{snapshot.state.step}', split) if name)
    return evaluate_snapshot(experiment, snapshot, workdir, split, suffix)


def evaluate_ensemble(model: Ensemble, split: str | None = None) -> JsonObject:
    """Evaluates an ensemble, and each of its runs alone; writes, prints and returns the result.

    Args:
      model: The ensemble. Its workdir gets `eval.json` and `predictions.npz`.
      split: See `evaluate_workdir`.

    Raises:
      UserError: the runs have different splits, so the test examples of one may be training examples of another.
    """
    source = model.plan.source
    for member in model.members[1:]:
        own, other = (_splits(run.plan.config) for run in (model, member))
        for field, value in own.items():
            if value != other[field]:
                name = 'config.fold and config.folds' if field == 'fold' else f'config.dataset.{field}'
                raise UserError(
                    f'--run: all runs of an ensemble must have the same {name}: {value!r} in '
                    f'{str(model.members[0].workdir)!r}, got {other[field]!r} in {str(member.workdir)!r}'
                )
    ensemble.check_data(model.members)
    examples = source.split('test') if split is None else _examples(source, split)
    label_N = examples.label
    model.save()  # Before the work: --workdir may hold another ensemble.
    probabilities_NxK = model.predict_examples(examples)
    runs = [
        {
            'workdir': str(member.workdir),
            'step': int(member.snapshot.state.step),
            **metrics.paired(probabilities_NxK, member.predict_examples(examples), label_N),
        }
        for member in model.members
    ]
    result = {
        'dataset': source.name,
        'split': split or source.specs['test'],
        'split_sha256': examples.sha256,
        'step': max(run['step'] for run in runs),
        **_from_predictions(model, probabilities_NxK, label_N),
        'combine': model.combine,
        'views': model.views.number,
        'runs': runs,
        'overlaps': [overlap._asdict() for overlap in source.overlaps(split)],
    }
    if split is None and source.validated:
        validation = source.split('validation')
        validation_NxK = model.predict_examples(validation)
        result['uncertainty'] = assess(probabilities_NxK, label_N, validation_NxK, validation.label)
    write_result(model.workdir, split, result, label_N, probabilities_NxK)
    print(format_result(result), flush=True)
    return result


def _splits(config: ConfigDict) -> JsonObject:
    """Returns the fields that determine the splits of a run."""
    names = ('name', 'train', 'validation', 'test', 'validation_fraction', 'split_seed')
    return {**{name: config.dataset[name] for name in names}, 'fold': (config.fold, config.folds)}


def _from_predictions(model: RestoredModel, probabilities_NxK: np.ndarray, label_N: np.ndarray) -> JsonObject:
    """Returns the part of a result that follows from a model and its predictions, if the loss is the cross-entropy."""
    classes = len(model.class_names)
    matrix = np.zeros((classes, classes), int)
    np.add.at(matrix, (label_N, probabilities_NxK.argmax(-1)), 1)
    loss = cross_entropy(probabilities_NxK, label_N)
    return {
        'count': len(label_N),
        'loss': loss,
        'accuracy': int(np.trace(matrix)) / len(label_N),
        'cross_entropy': loss,
        'correct': int(np.trace(matrix)),
        **_about(model.parameter_count, model.params_sha256, matrix, label_N, probabilities_NxK, model.class_names),
    }


def evaluate_folder(workdir: str | Path, directory: str | Path, step: str | None = None) -> JsonObject:
    """Evaluates a checkpoint on image files in directories named after the classes of the run.

    The images are prepared as for prediction; all of them must be usable. Needs only the workdir and these files.
    Writes `eval-input-NAME.json` and `predictions-input-NAME.npz` in the workdir, where NAME is that of `directory`.

    Args:
      workdir: The workdir of the run.
      directory: The directory.
      step: See `evaluate_workdir`.

    Raises:
      UserError: a directory is not named after a class, or a file cannot be read.
    """
    directory = user_path(directory, '--input').absolute()
    check_directory(directory, '--input', 'a directory with one directory per class')
    model = ensemble.load_model(workdir, step)
    paths, label_N = image_folder.labeled_files(directory, model.class_names)
    parts, digest = [], hashlib.sha256()
    for start in range(0, len(paths), MAX_BATCH):
        images = [_prepare(model, path) for path in paths[start : start + MAX_BATCH]]
        digest.update(np.ascontiguousarray(images).data)
        parts.append(model.predict(np.stack(images), allow_dark=True))
    probabilities_NxK = np.concatenate(parts)
    result = {
        'dataset': printable(str(directory)),
        'split': printable(directory.name),
        'split_sha256': digest.hexdigest(),
        'step': int(model.snapshot.state.step),
        **_from_predictions(model, probabilities_NxK, label_N),
    }
    suffix = '-'.join(name for name in (step and f'step{result["step"]}', 'input', directory.name) if name)
    write_result(model.workdir, suffix, result, label_N, probabilities_NxK)
    print(format_result(result), flush=True)
    return result


def _prepare(model: RestoredModel, path: Path) -> np.ndarray:
    try:
        return model.read_image(path).image
    except ValueError as error:  # It is blank.
        raise UserError(f'image {str(path)!r}: {error}') from None
