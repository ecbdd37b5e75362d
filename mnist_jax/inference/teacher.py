"""The targets of distillation: the mean probabilities of other runs for the training examples, computed once."""

import functools
import io
import json
import operator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from mnist_jax import files
from mnist_jax.errors import UserError
from mnist_jax.files import JsonObject, user_path
from mnist_jax.inference.origin import seen_examples
from mnist_jax.inference.restored import RestoredModel, open_workdir, restore_snapshot
from mnist_jax.training.experiment import Experiment
from mnist_jax.training.plan import make_plan

FILE = 'teacher.npz'
FIELD = 'config.distillation.workdirs'


class Teacher(NamedTuple):
    """What several runs predict for the training examples.

    Attributes:
      probabilities: float32 NxK, the mean over the runs.
      runs: The workdir and the digest of the parameters of each run, and the examples that it was trained on although
        they are validation or test examples of the new run.
      is_new: Whether its file has yet to be written.
    """

    probabilities: np.ndarray
    runs: list[JsonObject]
    is_new: bool = False

    @property
    def contents(self) -> bytes:
        """The contents of the file that `read_teacher` reads."""
        arrays = io.BytesIO()
        np.savez(arrays, probabilities=self.probabilities, runs=np.array(json.dumps(self.runs)))
        return arrays.getvalue()


def read_teacher(workdir: Path) -> Teacher | None:
    """Returns the teacher of the run in `workdir`; None if there is none, or if its file is damaged."""
    path = workdir / FILE
    if not path.is_file():
        return None
    try:
        arrays = files.read_arrays(path)
        return Teacher(arrays['probabilities'], json.loads(str(arrays['runs'])))
    except (OSError, ValueError, KeyError):
        logging.warning('%s is damaged', path)
        return None


def make_teacher(experiment: Experiment, workdir: Path, resumed: bool) -> Teacher | None:
    """Returns the teacher of a run; None without distillation.

    Args:
      experiment: The experiment of the run.
      workdir: Its workdir.
      resumed: Whether the run has started already: then it is the teacher in its workdir, unless that is damaged.

    Raises:
      UserError: a run of `config.distillation.workdirs` does not exist, or has other images or classes.
    """
    workdirs = experiment.config.distillation.workdirs
    if not workdirs:
        return None
    examples, classes = experiment.source.split('train'), len(experiment.source.class_names)
    teacher = read_teacher(workdir) if resumed else None
    if teacher is not None and teacher.probabilities.shape == (examples.size, classes):
        return teacher
    models = [_restore(experiment, text) for text in workdirs]
    runs = [_describe(experiment, model) for model in models]
    total_NxK = functools.reduce(operator.add, (model.predict_examples(examples) for model in models))
    return Teacher(total_NxK / np.float32(len(models)), runs, is_new=True)


def _restore(experiment: Experiment, text: str) -> RestoredModel:
    path = user_path(text, FIELD)
    checkpoints, config = open_workdir(path, FIELD)
    plan = make_plan(config, checkpoints.read_description())
    for what, own, other in (
        ('classes', list(experiment.source.class_names), list(plan.source.class_names)),
        ('image shape', experiment.source.image_shape, plan.source.image_shape),
    ):
        if own != other:
            raise UserError(f'{FIELD} must be runs with the {what} of this one, {own}, got {other} in {str(path)!r}')
    return RestoredModel(path, plan, restore_snapshot(checkpoints, plan))


def _describe(experiment: Experiment, model: RestoredModel) -> JsonObject:
    run = {'workdir': str(model.workdir.resolve()), 'params_sha256': model.params_sha256}
    overlaps = seen_examples(experiment, model.plan, model.workdir, FIELD)
    return {**run, 'overlaps': overlaps} if overlaps else run
