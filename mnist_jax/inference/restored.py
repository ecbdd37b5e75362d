"""A trained run: what its workdir holds, restored, and applied to images."""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from mnist_jax.config import ConfigDict
from mnist_jax.data import batches, images
from mnist_jax.distributed.devices import start_backend, to_host
from mnist_jax.errors import UserError
from mnist_jax.learning.step import infer, inference_variables
from mnist_jax.models.layer_table import Layer, list_layers, record_outputs
from mnist_jax.training.experiment import Plan, make_plan
from mnist_jax.workdir.checkpoints import Checkpoints
from mnist_jax.workdir.snapshot import Snapshot

MAX_BATCH = 256  # images


def open_workdir(workdir: Path) -> tuple[Checkpoints, ConfigDict]:
    """The checkpoints and the config of the run in `workdir`; UserError where there is none."""
    if not workdir.is_dir():
        problem = 'is a file' if workdir.exists() else 'does not exist'
        raise UserError(f'--workdir {str(workdir)!r} {problem}; give the workdir of a run')
    checkpoints = Checkpoints(workdir)
    config = checkpoints.read_config()
    if config is None or not checkpoints.steps():
        missing = 'config.json' if config is None else 'checkpoint'
        raise UserError(f'--workdir {str(workdir)!r} holds no {missing}; train first, with --config and this --workdir')
    return checkpoints, config


def restore_snapshot(checkpoints: Checkpoints, plan: Plan, step: str | None = None) -> Snapshot:
    """The snapshot at `step`: a number, 'latest', 'best', or None for the one that the run ends with."""
    latest = checkpoints.restore(checkpoints.steps()[-1], plan.abstract_snapshot)
    chosen = result_step(plan, latest) if step is None else _chosen_step(checkpoints.steps(), latest, step)
    return latest if chosen == latest.state.step else checkpoints.restore(chosen, plan.abstract_snapshot)


def result_step(plan: Plan, latest: Snapshot) -> int:
    """The step whose parameters the run ends with: the latest, or the best where that is restored."""
    best = latest.callbacks.early_stopping.best_step
    return best if plan.callbacks.early_stopping.restore_best and best >= 0 else int(latest.state.step)


def _chosen_step(kept: Sequence[int], latest: Snapshot, step: str) -> int:
    choices = {'latest': kept[-1], **{str(number): number for number in kept}}
    best = latest.callbacks.early_stopping.best_step
    if best >= 0:
        choices['best'] = best
    elif step == 'best':
        raise UserError("--step=best: no epoch of this run was validated; 'latest' is there")
    if step not in choices:
        raise UserError(f'--step={step!r} is not there; the choices are: {", ".join(choices)}')
    return choices[step]


class RestoredModel:
    """A model with the parameters of a run, on one device; its data set is not needed."""

    def __init__(self, workdir: Path, plan: Plan, snapshot: Snapshot):
        """`snapshot` is of the run that lives in `workdir`, and `plan` is its plan."""
        self.workdir, self.plan = workdir, plan
        self.snapshot = snapshot._replace(state=to_host(snapshot.state))

    @classmethod
    def load(cls, workdir: Path, step: str | None = None) -> Self:
        """The run in `workdir`; `step` is as for `restore`."""
        checkpoints, config = open_workdir(workdir)
        plan = make_plan(config)
        start_backend(1, config.dtype)
        return cls(workdir, plan, restore_snapshot(checkpoints, plan, step))

    @property
    def class_names(self) -> Sequence[str]:
        """The names of the classes, in the order of the probabilities."""
        return self.plan.source.class_names

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width and channels of the images that the model takes."""
        return self.plan.source.image_shape

    @functools.cached_property
    def variables(self) -> Any:
        """What `step.infer` needs beside images."""
        return inference_variables(self.snapshot.state, self.plan.inference['dtype'])

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The probabilities NxK, float32, of the classes of images of pixels from 0 to the data set's largest value.

        Args:
          images: NxHxWxC, or NxHxW where C is 1.

        Raises:
          UserError: they have another shape, or pixels out of that range.
        """
        images_NxHxWxC = self._checked(images)
        parts = [np.zeros((0, len(self.class_names)), np.float32)]
        for start in range(0, len(images_NxHxWxC), MAX_BATCH):
            part = images_NxHxWxC[start : start + MAX_BATCH]
            # As many as a power of two, so that few programs are compiled.
            padding = (1 << (len(part) - 1).bit_length()) - len(part)
            found = self._compiled(self.variables, batches.padded(part, padding))
            parts.append(np.asarray(found)[: len(part)])
        return np.concatenate(parts)

    def _checked(self, images: np.ndarray) -> np.ndarray:
        height, width, channels = self.image_shape
        try:
            found = np.asarray(images)
        except ValueError:
            raise UserError(f'the images differ in shape: all of {height} x {width} x {channels} are wanted') from None
        if found.ndim == 3 and channels == 1:
            found = found[..., None]
        if found.shape[1:] != self.image_shape or found.dtype.kind not in 'uif':
            raise UserError(
                f'images of shape {np.shape(images)} and type {found.dtype} are wrong: numbers of the shape '
                f'N x {height} x {width} x {channels} are wanted'
            )
        most = self.plan.source.max_pixel
        if found.size and not 0 <= found.min() <= found.max() <= most:  # Not what is not a number, either.
            raise UserError(f'pixels from {found.min():g} to {found.max():g} are wrong: 0 to {most} are wanted')
        if found.dtype.kind == 'f' and 0 < found.max(initial=0) <= 1 < most:
            raise UserError(f'pixels from {found.min():g} to {found.max():g} seem to be scaled: 0 to {most} are wanted')
        return found if found.dtype == np.uint8 else found.astype(np.float32)

    def frame(self, greys_HxW: np.ndarray) -> images.Framed:
        """`images.framed`, as the images are that this run was trained on."""
        source = self.plan.source
        return images.framed(greys_HxW, source.image_shape, source.framing, source.max_pixel)

    def probabilities(self) -> Callable[[jax.Array], jax.Array]:
        """The function of images BxHxWxC that `predict` computes, a new one each time, with the parameters in it."""
        return lambda image_BxHxWxC: self._of_variables(self.variables, image_BxHxWxC)

    def _of_variables(self, variables: Any, image_BxHxWxC: jax.Array) -> jax.Array:
        return jax.nn.softmax(infer(variables, image_BxHxWxC, **self.plan.inference))

    @functools.cached_property
    def _compiled(self) -> Any:
        return jax.jit(self._of_variables)

    def feature_maps(self, image_HxWxC: np.ndarray) -> dict[str, np.ndarray]:
        """What each layer makes of an image: by its path in the order of the calls, HxWxC or features."""
        (checked,) = self._checked(np.asarray(image_HxWxC)[None])
        found = self._outputs(self.variables, checked[None])
        return {layer.name: np.asarray(found[layer.name][0], np.float32) for layer in self.layers}

    @functools.cached_property
    def layers(self) -> list[Layer]:
        """The layers in the order of their calls."""
        return list_layers(self.plan.model, self.image_shape)

    @functools.cached_property
    def _outputs(self) -> Any:
        def outputs(variables: Any, image_BxHxWxC: jax.Array) -> dict[str, jax.Array]:
            with record_outputs() as found:
                infer(variables, image_BxHxWxC, **self.plan.inference)
            return {'/'.join(path): output for path, (_, output) in found.items()}

        return jax.jit(outputs)

    def filters(self) -> np.ndarray | None:
        """What the first layer looks for: hxwxCxF of a convolution, HxWxCxF of a dense layer on pixels, else None."""
        paths = (layer.name.split('/') for layer in self.layers)
        parameters = (functools.reduce(lambda tree, name: tree.get(name, {}), path, self.params) for path in paths)
        kernel = next((np.asarray(found['kernel']) for found in parameters if 'kernel' in found), np.zeros(()))
        if kernel.ndim == 2 and len(kernel) == math.prod(self.image_shape):
            return kernel.reshape(*self.image_shape, -1)
        return kernel if kernel.ndim == 4 else None

    @property
    def params(self) -> Any:
        """The parameters, a tree of arrays."""
        return self.snapshot.state.params
