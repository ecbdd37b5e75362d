"""The model that comes with the package, and predicts handwritten digits without any training before.

Its directory holds what a workdir holds, with the weights in one file instead of checkpoints.
"""

import io
import shutil
import zipfile
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
from mnist_jax.workdir.snapshot import EpochProgress, Snapshot

PACKAGED = Path(__file__).with_name('handwriting')
WEIGHTS = 'weights.npz'
STEP = 'step'  # the name of the number of updates in WEIGHTS, next to the paths of the variables
RUN_FILES = ('config.json', 'dataset.json', 'digests.json', 'eval.json', 'provenance.json')
MAX_BYTES = 2**20  # of WEIGHTS


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
    # In this order, without compression and with a fixed time, so that the same weights are the same bytes.
    np.savez(data, **arrays)
    if data.tell() > MAX_BYTES:
        raise UserError(f'the weights must be at most {MAX_BYTES:,} bytes, got {data.tell():,}')
    files.make_directory(directory, 'directory')
    files.write_bytes(directory / WEIGHTS, data.getvalue())
    for name in RUN_FILES:
        shutil.copyfile(workdir / name, directory / name)


def open_directory(directory: Path) -> tuple[Checkpoints, ConfigDict]:
    """Returns what reads the run files in a directory with weights, and the config; raises a UserError without one."""
    checkpoints = Checkpoints(directory)
    config = checkpoints.read_config()
    if config is None:
        raise UserError(f'{str(directory / WEIGHTS)!r} must have a config.json next to it; install mnist_jax again')
    return checkpoints, config


def read_weights(plan: Plan, directory: Path) -> Snapshot:
    """Returns the end of the run whose weights are in `directory`, without the state of its optimizer.

    Raises:
      UserError: the file is damaged, or does not fit the config.
    """
    path = directory / WEIGHTS
    abstract = plan.abstract_snapshot.state.variables
    try:
        with np.load(io.BytesIO(files.read_bytes(path)), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f'{str(path)!r} is damaged: {error}; install mnist_jax again') from None
    shapes = {name: leaf.shape for name, leaf in leaves_by_path(abstract).items()}
    if {name: array.shape for name, array in arrays.items() if name != STEP} != shapes or STEP not in arrays:
        raise UserError(f'{str(path)!r} must have the weights of the config next to it; install mnist_jax again')
    variables = jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in shapes])
    state = TrainState(
        step=arrays[STEP],
        params=variables.params,
        batch_stats=variables.batch_stats,
        opt_state=(),
        learning_rate_scale=np.ones((), np.float32),
    )
    return Snapshot(state, plan.callbacks.init(), EpochProgress(number=plan.config.epochs))


def describe() -> str:
    """Returns which model comes with the package, and how it was trained, as one line."""
    run = read_run(PACKAGED, PACKAGED.name)
    result = run.result
    return (
        f'model: {PACKAGED.name}, which comes with mnist_jax: {run.config.model.name} trained on {result["dataset"]}, '
        f'{result["parameters"]:,} parameters, params_sha256 {result["params_sha256"][:12]}; '
        f'--config=configs/{PACKAGED.name}.py trains it again, with the same bits'
    )
