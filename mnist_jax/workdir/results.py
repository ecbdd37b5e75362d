"""The results of an evaluation: `eval.json` and `predictions.npz` in a workdir, and as text for people."""

import io
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mnist_jax import files, text_tables
from mnist_jax.errors import UserError, comma_separated
from mnist_jax.learning import metrics

LINE = 118  # characters of a line of JSON
# Of eval.json, what other parts of the program read, and its types.
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


def result_paths(workdir: Path, part: str | None = None) -> tuple[Path, Path]:
    """Where result and predictions lie: of what training evaluated at its end, or of another `part`, by its name."""
    suffix = f'-{part}' if part else ''
    return workdir / f'eval{suffix}.json', workdir / f'predictions{suffix}.npz'


def write_result(
    workdir: Path, part: str | None, result: dict[str, Any], labels: np.ndarray, probabilities_NxK: np.ndarray
) -> None:
    """Write both files, each whole or not at all."""
    result_path, predictions_path = result_paths(workdir, part)
    arrays = io.BytesIO()
    np.savez(arrays, label=labels, prediction=probabilities_NxK.argmax(-1), probabilities=probabilities_NxK)
    files.write_bytes(predictions_path, arrays.getvalue())
    files.write_text(result_path, _json(result) + '\n')


def _json(value: Any, indent: int = 0) -> str:
    """JSON in which what fits on a line is on one, and the rest an item a line."""
    text = json.dumps(value, allow_nan=False)
    if not isinstance(value, dict | list | tuple) or (len(text) + indent <= LINE and indent):
        return text
    inner = ' ' * (indent + 2)
    if isinstance(value, dict):
        items = [f'{json.dumps(name)}: {_json(item, indent + 2)}' for name, item in value.items()]
        begin, end = '{}'
    else:
        items = [_json(item, indent + 2) for item in value]
        begin, end = '[]'
    return f'{begin}\n{inner}' + f',\n{inner}'.join(items) + f'\n{" " * indent}{end}'


def read_result(workdir: Path, part: str | None = None) -> dict[str, Any]:
    """The result that `write` wrote; UserError where it is missing or is no such result."""
    path, _ = result_paths(workdir, part)
    if not path.is_file():
        raise UserError(f'{str(workdir)!r} holds no {path.name}; it is written when a training ends, or by --mode=eval')
    try:
        return _checked(files.read_json(path))
    except KeyError as error:
        raise UserError(f'{str(path)!r} is damaged: it has no {error}; --mode=eval writes it anew') from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f'{str(path)!r} is damaged: {error}; --mode=eval writes it anew') from None


def _checked(found: Any) -> dict[str, Any]:
    """What was read, its statistics computed anew; ValueError, KeyError or TypeError where it is no result."""
    wrong = [
        name for name, kind in FIELDS.items() if not isinstance(found[name], kind) or isinstance(found[name], bool)
    ]
    if wrong:
        raise ValueError(f'{comma_separated(wrong)} is wrong')
    names = [str(name) for name in found['statistics']['by_class']]
    rows = found['confusion_matrix']
    if [len(row) for row in rows] != [len(names)] * len(names) or not names:
        raise ValueError(f'its confusion matrix is not {len(names)} x {len(names)}')
    if not all(type(count) is int and 0 <= count < 2**53 for row in rows for count in row):
        raise ValueError('its confusion matrix has a cell that is no count')
    matrix = np.array(rows, np.int64)
    if not 0 < matrix.sum() == found['count'] or np.trace(matrix) != found['correct']:
        raise ValueError('its counts are not those of its confusion matrix')
    if found['accuracy'] != found['correct'] / found['count'] or not math.isfinite(found['loss']):
        raise ValueError('its accuracy or its loss is wrong')
    return {**found, 'statistics': metrics.statistics(matrix, names)}


def read_predictions(workdir: Path, result: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predicted classes of the examples whose `result` is given, both of shape N."""
    label, prediction = _read_arrays(workdir, result, 'label', 'prediction')
    path = result_paths(workdir)[1]
    classes = len(result['confusion_matrix'])
    fits = all(_are_classes(array, classes, result['count']) for array in (label, prediction))
    if not fits or (label == prediction).sum() != result['correct']:
        raise UserError(f'{str(path)!r} does not fit eval.json beside it; --mode=eval writes both anew')
    return label, prediction


def _are_classes(array_N: np.ndarray, classes: int, count: int) -> bool:
    whole = array_N.dtype.kind in 'iu' and array_N.shape == (count,)
    return whole and 0 <= array_N.min() <= array_N.max() < classes


def read_probabilities(workdir: Path, result: Mapping[str, Any]) -> np.ndarray:
    """The probabilities NxK of the classes of these examples."""
    (found,) = _read_arrays(workdir, result, 'probabilities')
    fits = found.shape == (result['count'], len(result['confusion_matrix'])) and found.dtype == np.float32
    # What is not a number is not close to 1 either.
    if not fits or not (found >= 0).all() or not np.allclose(found.sum(-1), 1, atol=1e-3):
        path = str(result_paths(workdir)[1])
        raise UserError(f'{path!r} does not fit eval.json beside it; --mode=eval writes both anew')
    return found


def _read_arrays(workdir: Path, result: Mapping[str, Any], *names: str) -> list[np.ndarray]:
    _, path = result_paths(workdir)
    most = result['count'] * max(8, 4 * len(result['confusion_matrix']))  # bytes: an int64, or float32s, an example
    try:
        if not path.is_file():
            raise FileNotFoundError('it is no file')
        with zipfile.ZipFile(path) as archive:
            for name in names:
                if archive.getinfo(f'{name}.npy').file_size > most + 4096:  # and a header; nothing is unpacked
                    raise ValueError(f'{name} is larger than the results of {result["count"]} examples')
        with np.load(path, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except Exception as error:  # A damaged zip file raises what it likes.
        raise UserError(f'{str(path)!r} is missing or damaged ({error}); --mode=eval writes it anew') from None


def format_result(result: dict[str, Any]) -> str:
    """The result for people: overall, by class, the confusion matrix, the most frequent errors."""
    found = result['statistics']
    overall = found['overall']
    lower, upper = overall['accuracy_interval']
    names = list(found['by_class'])
    lines = [
        f'{result["dataset"]}, split {result["split"]!r}, {result["count"]:,} examples, step {result["step"]:,}',
        '',
        f'accuracy   {result["accuracy"]:.4f} (95 % interval {lower:.4f} to {upper:.4f})',
        f'loss       {result["loss"]:.4f}',
        f'kappa      {text_tables.number(overall["kappa"])}',
        f'chance     {overall["no_information_rate"]:.4f}, the share of the largest class; P-value of the accuracy '
        f'over it: {_p_value(overall["p_value"])}',
        f"symmetry   P-value {_p_value(overall['symmetry_p_value'])} (Bowker's test of the confusion matrix)",
        '',
    ]
    lines += text_tables.titled([*class_rows(found), *mean_rows(found)])
    lines += ['', 'confusion matrix: a row for each truth, a column for each prediction', '']
    matrix = [[name, *map(str, row)] for name, row in zip(names, result['confusion_matrix'], strict=True)]
    lines += text_tables.titled([['', *names], *matrix])
    errors = error_rows(found)
    if errors[1:]:
        lines += ['', 'most frequent errors', '', *text_tables.titled(errors, left=2)]
    return '\n'.join(lines)


def class_rows(statistics: Mapping[str, Any]) -> list[list[str]]:
    """The statistics of each class, below a head."""
    return [['class', *metrics.COLUMNS.values()], *_rows(statistics['by_class'])]


def mean_rows(statistics: Mapping[str, Any]) -> list[list[str]]:
    """Their means over the classes, each counting the same and each as often as it occurs."""
    return _rows({'macro mean': statistics['macro'], 'weighted': statistics['weighted']})


def _rows(by_name: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    return [[name, *(text_tables.number(row[key]) for key in metrics.COLUMNS)] for name, row in by_name.items()]


def error_rows(statistics: Mapping[str, Any]) -> list[list[str]]:
    """The most frequent errors, below a head."""
    rows = [
        [error['truth'], error['prediction'], str(error['count']), f'{error["share"]:.2%}']
        for error in statistics['top_confusions']
    ]
    return [['truth', 'taken for', 'times', 'of that truth'], *rows]


def _p_value(value: float | None) -> str:
    if value is None:
        return 'NA'
    # What R prints for less than the spacing of double precision at 1.
    return f'{value:.2g}' if value >= np.finfo(float).eps else '< 2.2e-16'
