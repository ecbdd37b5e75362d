"""The model that comes with the package and predicts handwritten digits without prior training.

Its directory holds what a workdir holds, with the weights in one file instead of checkpoints.
"""

import io
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnist_jax import files
from mnist_jax.config import ConfigDict
from mnist_jax.errors import UserError
from mnist_jax.learning.state import TrainState
from mnist_jax.learning.transfer import leaves_by_path
from mnist_jax.training.plan import Plan
from mnist_jax.workdir.checkpoints import Checkpoints
from mnist_jax.workdir.finished_runs import read_run
from mnist_jax.workdir.results import read_result
from mnist_jax.workdir.snapshot import EpochProgress, Snapshot, params_sha256

PACKAGED = Path(__file__).with_name('handwriting')
WEIGHTS = 'weights.npz'
STEP = 'step'  # the name of the number of updates in WEIGHTS, next to the paths of the variables
RUN_FILES = ('config.json', 'dataset.json', 'digests.json', 'eval.json', 'provenance.json')
MAX_BYTES = 2**20  # of WEIGHTS
REMEDY = 'install mnist_jax again'


def write_weights(snapshot: Snapshot, workdir: Path, directory: Path = PACKAGED) -> None:
    """Makes the model that comes with the package from a finished run.

    Args:
      snapshot: The restored checkpoint of the run.
      workdir: The directory of the run.
      directory: Where to write.

    Raises:
      UserError: the weights need more than `MAX_BYTES`.
    """
    arrays: dict[str, Any] = {**leaves_by_path(snapshot.state.variables), STEP: np.asarray(snapshot.state.step)}
    data = io.BytesIO()
    np.savez(data, **arrays)
    if data.tell() > MAX_BYTES:
        raise UserError(f'the weights must be at most {MAX_BYTES:,} bytes, got {data.tell():,}')
    files.make_directory(directory, 'directory')
    files.write_bytes(directory / WEIGHTS, data.getvalue())
    for name in RUN_FILES:
        shutil.copyfile(workdir / name, directory / name)


def holds_weights(directory: Path) -> bool:
    """Returns whether a directory holds weights like those of the packaged model, and no checkpoints."""
    return (directory / WEIGHTS).is_file() and not (directory / 'checkpoints').is_dir()


def open_directory(directory: Path) -> tuple[Checkpoints, ConfigDict]:
    """Returns the checkpoints and the config of a directory with weights; raises a UserError if it has no config."""
    checkpoints = Checkpoints(directory)
    config = checkpoints.read_config()
    if config is None:
        raise UserError(f'{str(directory / WEIGHTS)!r} must have a config.json next to it; {REMEDY}')
    return checkpoints, config


def read_weights(plan: Plan, directory: Path) -> Snapshot:
    """Returns the end of the run whose weights are in `directory`, without the state of its optimizer.

    Raises:
      UserError: the file is damaged, or does not fit the config.
    """
    path = directory / WEIGHTS
    variables = plan.abstract_snapshot.state.variables
    try:
        arrays: dict[str, Any] = files.read_arrays(path)
    except OSError as error:
        raise UserError(f'{str(path)!r} cannot be read: {error}') from None
    except ValueError as error:
        raise UserError(f'{str(path)!r} is damaged: {error}; {REMEDY}') from None
    expected = {name: (leaf.shape, leaf.dtype) for name, leaf in leaves_by_path(variables).items()}
    found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    if found != {**expected, STEP: ((), np.dtype(np.int32))}:
        raise UserError(f'{str(path)!r} must have the weights of the config next to it; {REMEDY}')
    variables = jax.tree.unflatten(jax.tree.structure(variables), [arrays[name] for name in expected])
    if params_sha256(variables) != read_result(directory)['params_sha256']:
        raise UserError(f'{str(path)!r} must be the weights that eval.json next to it describes; {REMEDY}')
    state = TrainState(
        step=arrays[STEP],
        params=variables.params,
        batch_stats=variables.batch_stats,
        opt_state=(),
        learning_rate_scale=np.ones((), np.float32),
    )
    return Snapshot(state, plan.callbacks.init(), EpochProgress(number=plan.config.epochs))


def describe(directory: Path) -> str:
    """Returns which model comes with the package and how it was trained, as one line; '' for other directories."""
    if directory != PACKAGED:
        return ''
    for name in (*RUN_FILES, WEIGHTS):
        if not (PACKAGED / name).is_file():
            raise UserError(f'{str(PACKAGED / name)!r} is missing; {REMEDY}')
    try:
        run = read_run(PACKAGED, PACKAGED.name)
    except UserError as error:
        raise UserError(f'the model in {str(PACKAGED)!r} is damaged ({error}); {REMEDY}') from None
    result = run.result
    return (
        f'model: {PACKAGED.name}, which comes with mnist_jax: {run.config.model.name} trained on {result["dataset"]}, '
        f'{result["parameters"]:,} parameters, params_sha256 {result["params_sha256"][:12]}; '
        f'--config=configs/{PACKAGED.name}.py trains it again, with the same bits on a CPU'
    )
