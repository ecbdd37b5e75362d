"""The start of a run: its own initial variables, or what it takes from another run."""

from pathlib import Path

import numpy as np
from absl import logging

from mnist_jax import text_tables
from mnist_jax.data.source import Overlap
from mnist_jax.errors import UserError
from mnist_jax.files import JsonObject, user_path
from mnist_jax.inference.restored import open_workdir, restore_snapshot
from mnist_jax.learning.state import start_from
from mnist_jax.learning.transfer import Transfer, take_variables, transfer_row
from mnist_jax.models.layer_table import list_layers
from mnist_jax.training.experiment import Experiment
from mnist_jax.training.plan import Plan, make_plan
from mnist_jax.workdir.checkpoints import Checkpoints
from mnist_jax.workdir.results import describe_overlaps
from mnist_jax.workdir.snapshot import Snapshot, params_sha256

FIELD = 'config.init.workdir'


def initial_snapshot(experiment: Experiment, workdir: Path | None = None) -> tuple[Snapshot, JsonObject | None]:
    """Returns the snapshot before the first step; and what the run starts from, if that is another run.

    Args:
      experiment: The experiment of the run.
      workdir: Its workdir; None if it has none.

    Raises:
      UserError: there is no such run, or none of its parameters fits.
    """
    snapshot, init = experiment.first_snapshot(), experiment.config.init
    if not init.workdir:
        return snapshot, None
    path = user_path(init.workdir, FIELD)
    if workdir is not None and path.exists() and path.resolve() == workdir.resolve():
        raise UserError(f'{FIELD} must be another run than --workdir, got {str(path)!r} for both')
    checkpoints, config = open_workdir(path, FIELD)
    plan = make_plan(config, checkpoints.read_description())
    start = restore_snapshot(checkpoints, plan, init.step or None, 'config.init.step')
    variables, transfers = take_variables(snapshot.state.variables, start.state.variables, init.skip)
    state = start_from(snapshot.state, variables, experiment.optimizer)
    origin: JsonObject = {
        'workdir': str(path.resolve()),
        'step': int(start.state.step),
        'params_sha256': params_sha256(start.state.variables),
        'taken': sum(transfer.taken for transfer in transfers),
        'arrays': len(transfers),
    }
    logging.info('origin    step %s of %s', f'{origin["step"]:,}', path)
    rows = [['array', 'shape', 'start'], *map(transfer_row, transfers)]
    for line in text_tables.titled(rows, left=3):
        logging.info('%s', line)
    _warn_of_differences(experiment, plan, transfers)
    if overlaps := seen_examples(experiment, plan, path, FIELD):
        origin['overlaps'] = overlaps
    return snapshot._replace(state=state), origin


def _warn_of_differences(experiment: Experiment, origin: Plan, transfers: list[Transfer]) -> None:
    """Warns if what was taken from `origin` means something else in the new run, although its shape fits."""
    own, other = list(experiment.source.class_names), list(origin.source.class_names)
    layers = list_layers(experiment.model, experiment.source.image_shape)
    last = layers[-1].name if layers else ''
    if own != other and any(transfer.taken and transfer.path.startswith(f'{last}/') for transfer in transfers):
        logging.warning(
            'the last layer is taken from a run with other classes, %s instead of %s; to initialize it at random, '
            'add --config.init.skip=%s',
            _some(other),
            _some(own),
            last,
        )
    normalize, other_normalize = (run.config.dataset.get('normalize') for run in (experiment, origin))
    if other_normalize not in (None, normalize):
        logging.warning(
            'the run that this one starts from has another scale of the inputs: config.dataset.normalize=%r, not %r',
            other_normalize,
            normalize,
        )


def _some(names: list[str]) -> str:
    return ', '.join(names[:5]) + ', ...' * (len(names) > 5)


def seen_examples(experiment: Experiment, plan: Plan, workdir: Path, field: str) -> list[JsonObject]:
    """Returns which validation and test examples of a run another one was trained on, and warns of them.

    Args:
      experiment: The experiment of the run.
      plan: The plan of the other run.
      workdir: Its workdir.
      field: The config field that names it.

    Returns:
      Overlaps as in `eval.json`; none if the other run has other data.
    """
    source = experiment.source
    if plan.source.name != source.name or not Checkpoints(workdir).has_data(source.data.digests):
        return []
    trained = plan.source.with_data_of(source).indices('train')  # The files of the other run may be gone.
    name = f'the training split of {field}={workdir}'
    counts = {
        split: np.intersect1d(trained, source.indices(split)).size for split in source.split_names if split != 'train'
    }
    overlaps = [Overlap(name, split, count)._asdict() for split, count in counts.items() if count]
    if overlaps:
        logging.warning('overlap   %s', describe_overlaps(overlaps))
    return overlaps
