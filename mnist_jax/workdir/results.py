"""The result of an evaluation: `eval.json` and `predictions.npz` in a workdir, and the same as text."""

import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mnist_jax import files, text_tables
from mnist_jax.errors import UserError
from mnist_jax.files import JsonObject
from mnist_jax.learning import metrics

LINE_WIDTH = 118  # maximum length of a line of JSON, in characters
MAX_PRINTED_CLASSES = 30  # in a confusion matrix as text
HEADER_BYTES = 4096  # upper bound on the header of an array in an .npz file
# The fields of eval.json that other modules read, and their types.
FIELDS = {
    'dataset': str,
    'split': str,
    'split_sha256': str,
    'step': int,
    'count': int,
    'correct': int,
    'parameters': int,
    'loss': float,
    'accuracy': float,
    'params_sha256': str,
    'confusion_matrix': list,
}


def result_paths(workdir: Path, suffix: str | None = None) -> tuple[Path, Path]:
    """Returns the paths of the result and of the predictions.

    Args:
      workdir: The directory of the run.
      suffix: Names an evaluation other than the one at the end of training, as in `eval-SUFFIX.json`.
    """
    workdir = files.user_path(workdir, 'workdir')
    ending = f'-{suffix}' if suffix else ''
    return workdir / f'eval{ending}.json', workdir / f'predictions{ending}.npz'


def write_result(
    workdir: Path, suffix: str | None, result: JsonObject, labels: np.ndarray, probabilities_NxK: np.ndarray
) -> None:
    """Writes both files of `result_paths`, each atomically."""
    result_path, predictions_path = result_paths(workdir, suffix)
    text = _to_json(result) + '\n'  # Before anything is written: the two files belong together.
    arrays = io.BytesIO()
    np.savez(arrays, label=labels, prediction=probabilities_NxK.argmax(-1), probabilities=probabilities_NxK)
    files.write_bytes(predictions_path, arrays.getvalue())
    files.write_text(result_path, text)


def _to_json(value: object, indent: int = 0) -> str:
    """Returns JSON that puts each container on one line if it fits, and otherwise each of its items on its own line."""
    text = json.dumps(value, allow_nan=False)
    if not isinstance(value, dict | list | tuple) or (len(text) + indent <= LINE_WIDTH and indent):
        return text
    inner = ' ' * (indent + 2)
    if isinstance(value, dict):
        items = [f'{json.dumps(name)}: {_to_json(item, indent + 2)}' for name, item in value.items()]
        opening, closing = '{}'
    else:
        items = [_to_json(item, indent + 2) for item in value]
        opening, closing = '[]'
    return f'{opening}\n{inner}' + f',\n{inner}'.join(items) + f'\n{" " * indent}{closing}'


def read_result(workdir: Path, suffix: str | None = None) -> JsonObject:
    """Reads what `write_result` wrote; raises a UserError if it is missing or damaged."""
    path, _ = result_paths(workdir, suffix)
    if not path.is_file():
        raise UserError(f'{str(workdir)!r} has no {path.name}; it is written when training ends, and by --mode=eval')
    try:
        return _check_result(files.read_json(path))
    except KeyError as error:
        raise UserError(f'{str(path)!r} is damaged: it has no {error}; --mode=eval rewrites it') from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f'{str(path)!r} is damaged: {error}; --mode=eval rewrites it') from None


def _check_result(result: object) -> JsonObject:
    """Returns the result with recomputed statistics; raises a ValueError, KeyError or TypeError if it is invalid."""
    if not isinstance(result, dict):
        raise ValueError('it must be a JSON object')
    wrong = [
        f'{name} must be of type {kind.__name__}, got {type(result[name]).__name__}'
        for name, kind in FIELDS.items()
        if not isinstance(result[name], kind) or isinstance(result[name], bool)
    ]
    if wrong:
        raise ValueError('; '.join(wrong))
    class_names = [str(name) for name in result['statistics']['by_class']]
    rows = result['confusion_matrix']
    if [len(row) for row in rows] != [len(class_names)] * len(class_names) or not class_names:
        raise ValueError(f'its confusion matrix must be {len(class_names)} x {len(class_names)}')
    if not all(type(count) is int and 0 <= count < 2**53 for row in rows for count in row):
        raise ValueError('its confusion matrix must contain non-negative integers')
    matrix = np.array(rows, np.int64)
    if not 0 < matrix.sum() == result['count'] or np.trace(matrix) != result['correct']:
        raise ValueError('its count and correct must match its confusion matrix')
    if result['accuracy'] != result['correct'] / result['count']:
        raise ValueError(f'accuracy must be correct / count, got {result["accuracy"]}')
    if not math.isfinite(result['loss']):
        raise ValueError(f'loss must be finite, got {result["loss"]}')
    cross_entropy = result.get('cross_entropy', 0.0)  # Results of older versions lack it.
    if type(cross_entropy) is not float or not math.isfinite(cross_entropy):
        raise ValueError(f'cross_entropy must be a finite number, got {cross_entropy}')
    # These raise if their fields are invalid.
    caveats(result), _uncertainty_lines(result.get('uncertainty')), _top_k_lines(result)
    return {**result, 'statistics': metrics.statistics(matrix, class_names)}


def read_predictions(workdir: Path, result: JsonObject) -> tuple[np.ndarray, np.ndarray]:
    """Returns the labels N and the predicted classes N of the examples that `result` covers."""
    label, prediction = _read_arrays(workdir, result, 'label', 'prediction')
    classes = len(result['confusion_matrix'])
    valid = all(_are_classes(array, classes, result['count']) for array in (label, prediction))
    if not valid or (label == prediction).sum() != result['correct']:
        raise _mismatch(workdir)
    return label, prediction


def _are_classes(array_N: np.ndarray, classes: int, count: int) -> bool:
    integers = array_N.dtype.kind in 'iu' and array_N.shape == (count,)
    return integers and 0 <= array_N.min() <= array_N.max() < classes


def read_probabilities(workdir: Path, result: JsonObject) -> np.ndarray:
    """Returns the class probabilities NxK of the examples that `result` covers."""
    (probabilities,) = _read_arrays(workdir, result, 'probabilities')
    shape = (result['count'], len(result['confusion_matrix']))
    valid = probabilities.shape == shape and probabilities.dtype == np.float32
    # NaN fails both comparisons.
    if not valid or not (probabilities >= 0).all() or not np.allclose(probabilities.sum(-1), 1, atol=1e-3):
        raise _mismatch(workdir)
    return probabilities


def _mismatch(workdir: Path) -> UserError:
    result_path, predictions_path = result_paths(workdir)
    return UserError(f'{str(predictions_path)!r} does not match {result_path.name}; --mode=eval rewrites both')


def _read_arrays(workdir: Path, result: JsonObject, *names: str) -> list[np.ndarray]:
    _, path = result_paths(workdir)
    # An array has one int64 per example, or one float32 per class and example.
    max_bytes = result['count'] * max(8, 4 * len(result['confusion_matrix'])) + HEADER_BYTES
    try:
        if not path.is_file():
            raise FileNotFoundError('it is not a regular file')
        with zipfile.ZipFile(path) as archive:
            for name in names:
                if archive.getinfo(f'{name}.npy').file_size > max_bytes:  # Checked before anything is unpacked.
                    raise ValueError(f'{name} must have at most {max_bytes:,} bytes for {result["count"]:,} examples')
        with np.load(path, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except Exception as error:  # A damaged zip file raises arbitrary errors.
        raise UserError(f'{str(path)!r} is missing or damaged ({error}); --mode=eval rewrites it') from None


def caveats(result: JsonObject) -> dict[str, str]:
    """Returns what a reader of the result must know, by its short name, such as overlaps of splits."""
    # Results of older versions lack these fields.
    origin, teachers = result.get('origin'), result.get('teachers', [])
    shared = [result, *([origin] if origin else []), *teachers]
    overlaps = describe_overlaps([overlap for run in shared for overlap in run.get('overlaps', [])])
    changes = [
        f'changed from that of {change["epochs_before"]:,} to that of {change["epochs_after"]:,} epochs at step '
        f'{change["step"]:,}'
        for change in result.get('reschedules', [])
    ]
    bits = (
        ''
        if result.get('deterministic', True)
        else 'may not be reproducible: kernels were selected by their measured time'
    )
    start = ''
    if origin:
        start = (
            f'from step {origin["step"]:,} of {origin["workdir"]} (parameters {origin["params_sha256"][:12]}), '
            f'{origin["taken"]} of {origin["arrays"]} arrays'
        )
    changed = result.get('changed_code', [])
    described = ', '.join(f'{run["workdir"]} (parameters {run["params_sha256"][:12]})' for run in teachers)
    texts = {
        'overlap': overlaps,
        'schedule': '; '.join(changes),
        'bits': bits,
        'origin': start,
        'teachers': described,
        'code': f'that of {", ".join(changed)} has changed since the run was started' if changed else '',
    }
    return {name: text for name, text in texts.items() if text}


def describe_overlaps(overlaps: Sequence[JsonObject]) -> str:
    """Returns the overlaps of splits in words; '' if there are none."""
    return '; '.join(
        f'{overlap["first"]} holds {overlap["examples"]:,} examples more than once'
        if overlap['first'] == overlap['second']
        else f'{overlap["first"]} and {overlap["second"]} share {overlap["examples"]:,} examples'
        for overlap in overlaps
    )


def format_result(result: JsonObject) -> str:
    """Returns the result as text: overall, by class, the confusion matrix, and the most frequent errors."""
    statistics = result['statistics']
    overall = statistics['overall']
    lower, upper = overall['accuracy_interval']
    class_names = list(statistics['by_class'])
    examples = text_tables.counted(result['count'], 'example')
    lines = [
        f'{result["dataset"]}, split {result["split"]!r}, {examples}, step {result["step"]:,}',
        '',
        f'accuracy   {result["accuracy"]:.4f} (95% confidence interval {lower:.4f} to {upper:.4f})',
        *_top_k_lines(result),
        f'loss       {result["loss"]:.4f}; cross-entropy {text_tables.number(result.get("cross_entropy"))}',
        *(
            f'{f"{name} weights":<15} accuracy {other["accuracy"]:.4f}, loss {text_tables.number(other["loss"])}; '
            f'this result is about the {result["weights"]} weights'
            for name, other in result.get('other_weights', {}).items()
        ),
        *_uncertainty_lines(result.get('uncertainty')),
        *_run_lines(result),
        f'kappa      {text_tables.number(overall["kappa"])}',
        f'baseline   {overall["no_information_rate"]:.4f} (always predicting the largest class); p-value of '
        f'accuracy > baseline: {_format_p_value(overall["p_value"])}',
        f"symmetry   p-value {_format_p_value(overall['symmetry_p_value'])} (Bowker's test of the confusion matrix)",
        *(f'{name:<10} {text}' for name, text in caveats(result).items()),
        '',
    ]
    lines += text_tables.titled([*class_rows(statistics), *mean_rows(statistics)])
    if len(class_names) <= MAX_PRINTED_CLASSES:
        lines += ['', 'confusion matrix (rows: truth, columns: prediction)', '']
        matrix = [[name, *map(str, row)] for name, row in zip(class_names, result['confusion_matrix'], strict=True)]
        lines += text_tables.titled([['', *class_names], *matrix])
    else:
        lines += ['', f'confusion matrix: {len(class_names)} x {len(class_names)}, in eval.json and in the report']
    errors = error_rows(statistics)
    if errors[1:]:
        lines += ['', 'most frequent errors', '', *text_tables.titled(errors, left=2)]
    return '\n'.join(lines)


def _top_k_lines(result: JsonObject) -> list[str]:
    return [f'{f"top {k}":<10} {accuracy:.4f}' for k, accuracy in result.get('top_k', {}).items()]


def _uncertainty_lines(uncertainty: JsonObject | None) -> list[str]:
    """Returns what validation examples say about the probabilities, as text."""
    if uncertainty is None:
        return []
    sets = '; '.join(
        f'{row["coverage"]:.0%}: {row["covered"]:.4f} covered, {row["mean_size"]:.2f} classes'
        for row in uncertainty['prediction_sets']
    )
    return [
        f'sharpness  temperature {uncertainty["temperature"]:.3f}, fitted on '
        f'{uncertainty["validation_examples"]:,} validation examples; cross-entropy with it '
        f'{uncertainty["cross_entropy_with_temperature"]:.4f}',
        f'sets       {sets}',
    ]


def _run_lines(result: JsonObject) -> list[str]:
    """Returns the runs of an ensemble, compared with it, as text."""
    if 'runs' not in result:
        return []
    views = f', {result["views"]} views of each image' if result['views'] > 1 else ''
    runs = f'{text_tables.counted(len(result["runs"]), "run")}'
    return [f'ensemble   mean of the {result["combine"]} of {runs}{views}'] + [
        f'  alone    {run["accuracy"]:.4f}  {run["workdir"]}, step {run["step"]:,}; right only in the ensemble: '
        f'{run["only_first"]}, only alone: {run["only_second"]}, p-value {_format_p_value(run["p_value"])}'
        for run in result['runs']
    ]


def class_rows(statistics: JsonObject) -> list[list[str]]:
    """Returns the statistics of each class as rows below a header."""
    return [['class', *metrics.COLUMNS.values()], *_rows(statistics['by_class'])]


def mean_rows(statistics: JsonObject) -> list[list[str]]:
    """Returns the means over the classes as rows: with equal weights, and weighted by the support of each class."""
    return _rows({'macro mean': statistics['macro'], 'weighted mean': statistics['weighted']})


def _rows(statistics_by_name: Mapping[str, JsonObject]) -> list[list[str]]:
    return [
        [name, *(text_tables.number(statistics[key]) for key in metrics.COLUMNS)]
        for name, statistics in statistics_by_name.items()
    ]


def error_rows(statistics: JsonObject) -> list[list[str]]:
    """Returns the most frequent errors as rows below a header."""
    rows = [
        [error['truth'], error['prediction'], str(error['count']), f'{error["share"]:.2%}']
        for error in statistics['top_confusions']
    ]
    return [['truth', 'prediction', 'count', 'share of truth'], *rows]


def _format_p_value(value: float | None) -> str:
    if value is None:
        return 'NA'
    # R prints values below the spacing of double precision at 1 in this way.
    return f'{value:.2g}' if value >= np.finfo(float).eps else '< 2.2e-16'
