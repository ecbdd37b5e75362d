"""Restores a trained model from its workdir and applies it to images."""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mnist_jax.config import ConfigDict
from mnist_jax.data import image_files
from mnist_jax.data.batches import pad_rows
from mnist_jax.data.builder import Description, seems_scaled
from mnist_jax.data.framing import FramedImage, frame_image
from mnist_jax.data.records import Examples
from mnist_jax.distributed.devices import start_backend, to_host
from mnist_jax.distributed.stored_programs import stored
from mnist_jax.errors import NonFiniteError, UserError
from mnist_jax.files import check_directory, user_path
from mnist_jax.inference import packaged
from mnist_jax.kernels.sums import PyTree
from mnist_jax.learning.step import inference_variables
from mnist_jax.models.layer_table import Layer, list_layers, record_outputs
from mnist_jax.training.plan import Plan, make_plan
from mnist_jax.workdir.checkpoints import Checkpoints, held_by
from mnist_jax.workdir.finished_runs import ENSEMBLE_FILE
from mnist_jax.workdir.provenance import changed_code
from mnist_jax.workdir.snapshot import Snapshot, count_parameters, params_sha256

MAX_BATCH = 256  # images per call of the compiled model
EXAMPLES_AT_ONCE = 4096  # of a split, which may be on disk


def open_workdir(workdir: Path, field: str = '--workdir') -> tuple[Checkpoints, ConfigDict]:
    """Returns the checkpoints and the config of the run in `workdir`.

    Args:
      workdir: The directory.
      field: What error messages call it.

    Raises:
      UserError: `workdir` is not a directory, or it lacks a config or a checkpoint.
    """
    check_directory(workdir, field, 'the directory of a run')
    checkpoints = Checkpoints(workdir)
    config = checkpoints.read_config()
    if config is None and (workdir / ENSEMBLE_FILE).is_file():
        raise UserError(
            f'{field} must be the directory of a run, got {str(workdir)!r}, an ensemble, which '
            'only --mode=eval, predict, serve, export and stress accept as their --workdir, and stress as a --run'
        )
    if packaged.holds_weights(workdir):
        raise UserError(
            f'{field} must be the directory of a run with checkpoints, got {str(workdir)!r}, which has only weights'
        )
    if config is None and (held := held_by(workdir)):
        raise UserError(f'{field} must be the directory of a run, got {str(workdir)!r}, which holds {held}')
    if config is None or not checkpoints.steps():
        missing = 'config.json' if config is None else 'checkpoint'
        raise UserError(
            f'{field} must be the directory of a trained run, got {str(workdir)!r}, which contains no {missing}; '
            'train first, with --config and this --workdir'
        )
    return checkpoints, config


def restore_snapshot(checkpoints: Checkpoints, plan: Plan, step: str | None = None, field: str = '--step') -> Snapshot:
    """Restores a checkpoint.

    Args:
      checkpoints: The checkpoints of the run.
      plan: The parts of the run.
      step: A number, 'latest' or 'best'; None for the checkpoint that the run ended with.
      field: What error messages call `step`.

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    steps = checkpoints.steps()
    if step is not None and step in map(str, steps):  # The latest one may be damaged.
        return checkpoints.restore(int(step), plan.abstract_snapshot)
    latest = checkpoints.restore(steps[-1], plan.abstract_snapshot)
    if step is None and not plan.finished(latest):
        logging.warning(
            'The run in %s is not finished: %d of %d epochs are trained',
            checkpoints.workdir,
            latest.epoch.number,
            plan.config.epochs,
        )
    number = result_step(plan, latest) if step is None else _find_step(steps, latest, step, field)
    return latest if number == latest.state.step else checkpoints.restore(number, plan.abstract_snapshot)


def result_step(plan: Plan, latest: Snapshot) -> int:
    """Returns the step with which the run ends: the latest, or the best one if `early_stopping.restore_best` is set."""
    best = latest.callbacks.early_stopping.best_step
    return best if plan.callbacks.early_stopping.restore_best and best >= 0 else int(latest.state.step)


def _find_step(steps: Sequence[int], latest: Snapshot, step: str, field: str) -> int:
    """Returns the number of `step`, which must be one of `steps`, those with a checkpoint."""
    choices = {'latest': steps[-1], **{str(number): number for number in steps}}
    best = latest.callbacks.early_stopping.best_step
    if best >= 0:
        choices['best'] = best
    if step not in choices:
        reason = ': no epoch of this run was validated' if step == 'best' else ''
        raise UserError(f'{field} must be one of {", ".join(choices)}, got {step!r}{reason}')
    return choices[step]


class RestoredModel:
    """A model with the parameters of a run, on one device; works without the dataset.

    Attributes:
      workdir: The directory of the run.
      plan: The parts of the run that need no data.
      snapshot: The restored checkpoint, in host memory.
    """

    def __init__(self, workdir: Path, plan: Plan, snapshot: Snapshot):
        self.workdir, self.plan = workdir, plan
        self.snapshot = snapshot._replace(state=to_host(snapshot.state))

    @classmethod
    def load(cls, workdir: str | Path, step: str | None = None, field: str = '--workdir') -> Self:
        """Restores the run in `workdir`, which error messages call `field`, at `step`; see `restore_snapshot`."""
        workdir = user_path(workdir, field)
        only_weights = packaged.holds_weights(workdir)
        checkpoints, config = packaged.open_directory(workdir) if only_weights else open_workdir(workdir, field)
        plan = make_plan(config, checkpoints.read_description())
        start_backend(1, plan.xla_products, deterministic=config.deterministic)
        if only_weights:
            if step is not None:
                raise UserError(f'a step must not be given for weights without checkpoints, got {step!r}')
            return cls(workdir, plan, packaged.read_weights(plan, workdir))
        snapshot = restore_snapshot(checkpoints, plan, step)
        for changed in changed_code(workdir, plan.own_code, int(snapshot.state.step)):
            logging.warning('The code of %s has changed since the run in %s was started', changed, workdir)
        return cls(workdir, plan, snapshot)

    @property
    def class_names(self) -> Sequence[str]:
        """The names of the classes, in the order of the probabilities."""
        return self.plan.source.class_names

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The height, width and channels of the model's images."""
        return self.plan.source.image_shape

    @property
    def members(self) -> Sequence['RestoredModel']:
        """The runs that predict together: this one; several in an ensemble."""
        return [self]

    @functools.cached_property
    def params_sha256(self) -> str:
        """The digest of what determines the predictions."""
        return params_sha256(self.snapshot.state.variables)

    @property
    def parameter_count(self) -> int:
        """The number of parameters and batch statistics."""
        return count_parameters(self.snapshot.state.variables)

    @property
    def params(self) -> PyTree:
        """The parameters: nested dicts of NumPy arrays."""
        return self.snapshot.state.variables.params

    @functools.cached_property
    def variables(self) -> PyTree:
        """The variables that `Plan.infer` takes."""
        return inference_variables(self.snapshot.state.variables, self.plan.dtype)

    @functools.cached_property
    def layers(self) -> list[Layer]:
        """The layers in call order."""
        return list_layers(self.plan.model, self.image_shape)

    def predict(self, images: np.ndarray | Sequence[np.ndarray], *, allow_dark: bool = False) -> np.ndarray:
        """Returns the probabilities of the classes, float32 NxK.

        Args:
          images: NxHxWxC, or NxHxW if C is 1, with the pixel values of the dataset (0 to 255 for most), not scaled.
          allow_dark: Whether all pixels may be at most 1. Otherwise such images are refused, because they seem to be
            scaled.

        Raises:
          UserError: the shape is wrong, or a pixel value is out of range.
          NonFiniteError: a probability is not finite, because the run has diverged.
        """
        images_NxHxWxC = self._check_images(images, allow_dark)
        parts = [np.zeros((0, len(self.class_names)), np.float32)]
        for start in range(0, len(images_NxHxWxC), MAX_BATCH):
            part = images_NxHxWxC[start : start + MAX_BATCH]
            # Pad to a power of two, so that few batch sizes are compiled.
            padding = (1 << (len(part) - 1).bit_length()) - len(part)
            probabilities_BxK = self._compiled_probabilities(self.variables, pad_rows(part, padding))
            parts.append(np.asarray(probabilities_BxK)[: len(part)])
        probabilities_NxK = np.concatenate(parts)
        if not np.isfinite(probabilities_NxK).all():
            raise NonFiniteError(
                f'the probabilities must be finite, got NaN with the parameters of step '
                f'{int(self.snapshot.state.step):,}: the run has diverged; an earlier --step may be usable'
            )
        return probabilities_NxK

    def predict_examples(self, examples: Examples) -> np.ndarray:
        """Returns the probabilities of the classes, float32 NxK, of all examples of a split."""
        starts = range(0, examples.size, EXAMPLES_AT_ONCE)
        parts = [
            self.predict(
                examples.take(np.arange(start, min(start + EXAMPLES_AT_ONCE, examples.size))).image, allow_dark=True
            )
            for start in starts
        ]
        return np.concatenate(parts)

    def logits(self, images: jax.typing.ArrayLike) -> jax.Array:
        """Returns the logits, float32 NxK, computed as the steps compute them.

        Pixels are scaled, converted to the compute dtype of the config, and normalized with the batch statistics of the
        run. This is a JAX function of the images: it can be jitted and differentiated, which `predict` cannot.

        Args:
          images: NxHxWxC, or NxHxW if C is 1, with the pixel values of the dataset (0 to 255 for most), not scaled. To
            differentiate with respect to them, pass float32.

        Raises:
          UserError: the shape is wrong, or a pixel value is out of range. Inside `jax.jit` and `jax.grad`, values are
            unknown and not checked.
        """
        if not isinstance(images, jax.core.Tracer):
            return self._compiled_logits(self.variables, self._check_images(np.asarray(images)))
        self._check_shape(images)
        return self._compiled_logits(self.variables, images.reshape(-1, *self.image_shape))

    @functools.cached_property
    def _compiled_logits(self) -> Callable[[PyTree, np.ndarray | jax.Array], jax.Array]:
        return jax.jit(self.plan.infer)

    def _check_images(self, images: np.ndarray | Sequence[np.ndarray], allow_dark: bool = False) -> np.ndarray:
        """Returns `images` as an array NxHxWxC, uint8 or float32."""
        try:
            array = np.asarray(images)
        except ValueError:
            size = ' x '.join(map(str, self.image_shape))
            raise UserError(f'images must all be {size}, got different shapes') from None
        self._check_shape(array)
        array = array.reshape(-1, *self.image_shape)
        max_pixel = self.plan.source.max_pixel
        if array.size and not 0 <= array.min() <= array.max() <= max_pixel:  # also true for NaN
            raise UserError(f'pixels must be from 0 to {max_pixel}, got {array.min():g} to {array.max():g}')
        if not allow_dark and seems_scaled(array, max_pixel):
            raise UserError(
                f'pixels must be from 0 to {max_pixel}, got {array.min():g} to {array.max():g}, '
                f'which seem to be scaled already; multiply them by {max_pixel}'
            )
        return array if array.dtype == np.uint8 else array.astype(np.float32)

    def _check_shape(self, images: np.ndarray | jax.Array) -> None:
        """Raises a UserError unless `images` are numbers of shape NxHxWxC, or NxHxW if C is 1."""
        shape, size = images.shape, self.image_shape
        numeric = any(jnp.issubdtype(images.dtype, kind) for kind in (jnp.integer, jnp.floating))
        if (shape[1:] != size and (*shape[1:], 1) != size) or not numeric:
            raise UserError(
                f'images must be numeric, of shape N x {" x ".join(map(str, size))}, got shape {shape} and type '
                f'{images.dtype}'
            )

    def read_image(self, path: Path) -> FramedImage:
        """Reads an image file, and prepares it like the training images: frames it, or fits it to their size.

        Raises:
          UserError: the file cannot be read.
          ValueError: the image is to be framed, and it is blank.
        """
        with image_files.without_warnings():
            if self._description.framing is not None:
                return self.frame(image_files.read(path))
            return self._fit(image_files.read_pixels(path, self.image_shape[-1]))

    def prepare(self, pixels: np.ndarray) -> FramedImage:
        """Prepares an image like the training images: frames it, or fits it to their size.

        Args:
          pixels: HxW gray levels, or HxWx3 red, green and blue, from 0 to 255.

        Raises:
          ValueError: the image is to be framed, and it is blank.
        """
        if pixels.ndim == 2:
            return self.frame(pixels)
        rgb_HxWx3 = np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)
        if self._description.framing is not None:
            return self.frame(image_files.to_grays(rgb_HxWx3))
        return self._fit(image_files.with_channels(rgb_HxWx3, self.image_shape[-1]))

    def frame(self, grays_HxW: np.ndarray) -> FramedImage:
        """Prepares gray levels, from 0 to 255, like the training images; see `framing.frame_image`.

        If the images of the dataset are not framed, fits the image to their size, as `image_files.fit_pixels` does.

        Raises:
          ValueError: the image is to be framed, and it is blank.
        """
        description = self._description
        if description.framing is not None:
            return frame_image(grays_HxW, self.image_shape, description.framing, description.max_pixel)
        grays_HxWx1 = np.rint(np.clip(grays_HxW, 0, 255)).astype(np.uint8)[..., None]
        return self._fit(np.repeat(grays_HxWx1, self.image_shape[-1], axis=-1))

    def _fit(self, pixels_HxWxC: np.ndarray) -> FramedImage:
        height, width, _ = self.image_shape
        fit = self._description.fit
        fitted_HxWxC = image_files.fit_pixels(pixels_HxWxC, (height, width), fit)
        size = ' x '.join(map(str, pixels_HxWxC.shape[:2]))
        return FramedImage(fitted_HxWxC, 'unchanged' if fitted_HxWxC is pixels_HxWxC else f'from {size} ({fit})')

    @property
    def _description(self) -> Description:
        return self.plan.source.data.description

    def inference_function(self) -> Callable[[jax.Array], jax.Array]:
        """Returns a function from images BxHxWxC to probabilities BxK, with the parameters as constants.

        The function is a new one every time, because JAX caches traces per function, and a trace made inside
        `ops.portable()` differs from one made outside.
        """
        return lambda image_BxHxWxC: self._probabilities(self.variables, image_BxHxWxC)

    def _probabilities(self, variables: PyTree, image_BxHxWxC: jax.Array) -> jax.Array:
        return jax.nn.softmax(self.plan.infer(variables, image_BxHxWxC))

    @functools.cached_property
    def _compiled_probabilities(self) -> Callable[[PyTree, np.ndarray], jax.Array]:
        jitted = jax.jit(self._probabilities)
        return stored(jitted, self.plan.program_key('probabilities'), jax.local_devices()[:1])

    def feature_maps(self, image_HxWxC: np.ndarray, *, allow_dark: bool = False) -> dict[str, np.ndarray]:
        """Returns the output of every layer for one image, by layer name in call order: HxWxC, or features.

        `allow_dark` is that of `predict`. Layers inside a transformation such as `nn.vmap` are left out.
        """
        image_1xHxWxC = self._check_images(np.asarray(image_HxWxC)[None], allow_dark)
        outputs = self._compiled_layer_outputs(self.variables, image_1xHxWxC)
        names = [layer.name for layer in self.layers if layer.name in outputs]
        return {name: np.asarray(outputs[name][0], np.float32) for name in names}

    @functools.cached_property
    def _compiled_layer_outputs(self) -> Callable[[PyTree, np.ndarray], dict[str, jax.Array]]:
        def layer_outputs(variables: PyTree, image_BxHxWxC: jax.Array) -> dict[str, jax.Array]:
            with record_outputs() as outputs:
                self.plan.infer(variables, image_BxHxWxC)
            return {
                '/'.join(path): output.array for path, output in outputs.items() if isinstance(output.array, jax.Array)
            }

        return jax.jit(layer_outputs)

    def last_features(self, images: np.ndarray) -> np.ndarray | None:
        """Returns what the last layer gets for each image, float32 NxF; None if it does not get vectors.

        Args:
          images: As for `predict`.
        """
        images_NxHxWxC = self._check_images(images, allow_dark=True)
        starts = range(0, len(images_NxHxWxC), MAX_BATCH)
        parts = [self._compiled_features(self.variables, images_NxHxWxC[start : start + MAX_BATCH]) for start in starts]
        if not parts or any(part is None for part in parts):
            return None
        return np.concatenate([np.asarray(part, np.float32) for part in parts])

    @functools.cached_property
    def _compiled_features(self) -> Callable[[PyTree, np.ndarray], jax.Array | None]:
        def features(variables: PyTree, image_BxHxWxC: jax.Array) -> jax.Array | None:
            with record_outputs() as outputs:
                self.plan.infer(variables, image_BxHxWxC)
            # The last two are those of the last layer and of the model.
            arrays = [output.array for output in list(outputs.values())[:-2]]
            vectors = [array for array in arrays if getattr(array, 'ndim', 0) == 2]
            return vectors[-1] if vectors and isinstance(vectors[-1], jax.Array) else None

        return jax.jit(features)

    def filters(self) -> np.ndarray | None:
        """Returns the kernel of the first layer that has one, if it can be shown as images.

        The shape is hxwxCxF for a convolution and HxWxCxF for a dense layer applied to the pixels. Returns None if the
        first kernel is neither.
        """
        kernel = self._first_kernel()
        if kernel is not None and kernel.ndim == 2 and len(kernel) == math.prod(self.image_shape):
            return kernel.reshape(*self.image_shape, -1)
        return kernel if kernel is not None and kernel.ndim == 4 else None

    def _first_kernel(self) -> np.ndarray | None:
        for layer in self.layers:
            params = self.params
            for name in layer.name.split('/'):
                params = params.get(name, {})
            if 'kernel' in params:
                return np.asarray(params['kernel'])
        return None
