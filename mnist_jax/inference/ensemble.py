"""Several runs as one model, and predictions averaged over shifted and mirrored images.

An ensemble is a directory with `ensemble.json`, which names its runs. It is used like the workdir of a run for
evaluation, prediction, serving and export.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax import files
from mnist_jax.errors import UserError
from mnist_jax.files import JsonObject, user_path
from mnist_jax.inference.packaged import holds_weights
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.kernels.sums import PyTree, tree_sum
from mnist_jax.workdir.checkpoints import Checkpoints
from mnist_jax.workdir.finished_runs import ENSEMBLE_FILE

COMBINATIONS = ('probabilities', 'logits')
MAX_SHIFT = 8  # pixels; (2 x 8 + 1)^2 views


class Views(NamedTuple):
    """The changed copies of an image whose predictions are averaged.

    Attributes:
      shift: All shifts by up to this many pixels along each axis are views; what comes in is 0.
      flip: Whether the mirror images of all views are views too.
    """

    shift: int = 0
    flip: bool = False

    @property
    def number(self) -> int:
        """The number of views."""
        return (2 * self.shift + 1) ** 2 * (1 + self.flip)

    def map(self, function: Callable[[jax.Array], jax.Array], image_BxHxWxC: jax.Array) -> list[jax.Array]:
        """Returns what `function` returns for each view of images, whose first view is the images themselves."""
        if self.number == 1:
            return [function(image_BxHxWxC)]
        size = self.shift
        padded = jnp.pad(image_BxHxWxC, ((0, 0), (size, size), (size, size), (0, 0)))
        moves = sorted(
            itertools.product(range(-size, size + 1), repeat=2), key=lambda move: (max(map(abs, move)), move)
        )

        def of_shift(start_2: jax.Array) -> list[jax.Array]:
            view = jax.lax.dynamic_slice(padded, (0, start_2[0], start_2[1], 0), image_BxHxWxC.shape)
            return [function(view), function(view[:, :, ::-1])] if self.flip else [function(view)]

        # In a loop, the function is compiled once, not for each of up to 578 views.
        outputs = jax.lax.map(of_shift, jnp.array(moves, jnp.int32) + size)
        return [output for outputs_VxBxK in outputs for output in outputs_VxBxK]


class Ensemble(RestoredModel):
    """Several runs that predict together; its layers and feature maps are those of the first run.

    Attributes:
      combine: What is averaged: 'probabilities' or 'logits'.
      views: The views of each image.
    """

    def __init__(
        self,
        workdir: Path,
        members: Sequence[RestoredModel],
        combine: str = 'probabilities',
        views: Views = Views(),  # noqa: B008  # It is immutable.
    ):
        super().__init__(workdir, members[0].plan, members[0].snapshot)
        self._members, self.combine, self.views = list(members), combine, views
        for member in members[1:]:
            self._check_same('classes', member, list(self.class_names), list(member.class_names))
            self._check_same('image shape', member, self.image_shape, member.image_shape)
            own, other = self.plan.source.data.description, member.plan.source.data.description
            self._check_same('framing', member, (own.framing, own.fit), (other.framing, other.fit))

    def _check_same(self, what: str, member: RestoredModel, expected: object, got: object) -> None:
        if expected != got:
            raise UserError(
                f'--run: all runs of an ensemble must have the same {what}: {expected} in '
                f'{str(self.members[0].workdir)!r}, got {got} in {str(member.workdir)!r}'
            )

    @classmethod
    def load_runs(
        cls, workdir: Path, runs: Sequence[str | Path], step: str | None, combine: str, views: Views
    ) -> 'Ensemble':
        """Restores the runs; `step` is the checkpoint of each of them, see `restored.restore_snapshot`."""
        if combine not in COMBINATIONS:
            raise UserError(f'--combine must be {" or ".join(COMBINATIONS)}, got {combine!r}')
        if not 0 <= views.shift <= MAX_SHIFT:
            raise UserError(f'--shift must be from 0 to {MAX_SHIFT}, got {views.shift}')
        return cls(workdir, [RestoredModel.load(run, step, '--run') for run in runs], combine, views)

    @classmethod
    def load(cls, workdir: str | Path, step: str | None = None, field: str = '--workdir') -> Self:
        """Restores the ensemble in `workdir`, which error messages call `field`.

        Raises:
          UserError: `ensemble.json` is damaged, or a run no longer has the parameters that it had.
        """
        workdir = user_path(workdir, field)
        if step is not None:
            raise UserError(
                f'--step must not be set for an ensemble, whose ensemble.json names the steps, got {step!r}'
            )
        path = workdir / ENSEMBLE_FILE
        try:
            saved: Any = files.read_json(path)
            runs = [(Path(run['workdir']), int(run['step']), str(run['params_sha256'])) for run in saved['runs']]
            views, combine = Views(saved['shift'], saved['flip']), saved['combine']
            valid = type(views.shift) is int and 0 <= views.shift <= MAX_SHIFT and type(views.flip) is bool
            if not runs or not valid or combine not in COMBINATIONS:
                raise ValueError('its runs, combine, shift or flip are invalid')
        except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
            raise UserError(
                f'{str(path)!r} is damaged: {error}; delete it, and write it again with --mode=eval and --run'
            ) from None
        for run, number, _ in runs:
            if (steps := Checkpoints(run).steps()) and number not in steps:
                raise UserError(
                    f'{str(run)!r}, a run in {str(path)!r}, must have a checkpoint of step {number}, got those of '
                    f'{", ".join(map(str, steps))}: it was trained further; make a new ensemble, in another directory'
                )
        members = [
            RestoredModel.load(run, None if holds_weights(run) else str(number), f'each run in {str(path)!r}')
            for run, number, _ in runs
        ]
        for member, (_, _, digest) in zip(members, runs, strict=True):
            if member.params_sha256 != digest:
                raise UserError(
                    f'the parameters of {str(member.workdir)!r} must have the SHA-256 {digest}, as in {str(path)!r}, '
                    f'got {member.params_sha256}'
                )
        return cls(workdir, members, combine, views)

    def save(self) -> None:
        """Writes `ensemble.json`.

        Raises:
          UserError: `workdir` holds another ensemble, with results of its own.
        """
        path, text = self.workdir / ENSEMBLE_FILE, json.dumps(self.description(), indent=2) + '\n'
        if path.exists() and files.read_bytes(path).decode(errors='replace') != text:
            raise UserError(f'--workdir {str(self.workdir)!r} holds another ensemble; use another --workdir')
        files.make_directory(self.workdir, '--workdir')
        files.write_text(path, text)

    def description(self) -> JsonObject:
        """Returns the contents of `ensemble.json`."""
        return {
            'runs': [
                {
                    'workdir': str(member.workdir.resolve()),
                    'step': int(member.snapshot.state.step),
                    'params_sha256': member.params_sha256,
                }
                for member in self.members
            ],
            'combine': self.combine,
            'shift': self.views.shift,
            'flip': self.views.flip,
        }

    @property
    def members(self) -> Sequence[RestoredModel]:
        return self._members

    @functools.cached_property
    def params_sha256(self) -> str:
        """The digest of the parameters of all runs, and of how they are combined."""
        identity = {**self.description(), 'runs': [member.params_sha256 for member in self.members]}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    @property
    def parameter_count(self) -> int:
        return sum(member.parameter_count for member in self.members)

    def feature_maps(self, image_HxWxC: np.ndarray, *, allow_dark: bool = False) -> dict[str, np.ndarray]:
        return self.members[0].feature_maps(image_HxWxC, allow_dark=allow_dark)

    def last_features(self, images: np.ndarray) -> np.ndarray | None:
        return self.members[0].last_features(images)

    @functools.cached_property
    def variables(self) -> PyTree:
        """The variables of all runs."""
        return [member.variables for member in self.members]

    def _combined(self, member: RestoredModel, variables: PyTree, image_BxHxWxC: jax.Array) -> jax.Array:
        logits_BxK = member.plan.infer(variables, image_BxHxWxC)
        return logits_BxK if self.combine == 'logits' else jax.nn.softmax(logits_BxK)

    def _probabilities(self, variables: PyTree, image_BxHxWxC: jax.Array) -> jax.Array:
        outputs = []
        for member, own in zip(self.members, variables, strict=True):
            outputs += self.views.map(functools.partial(self._combined, member, own), image_BxHxWxC)
        mean_BxK = tree_sum(outputs) / len(outputs)
        return jax.nn.softmax(mean_BxK) if self.combine == 'logits' else mean_BxK

    @functools.cached_property
    def _compiled_probabilities(self) -> Callable[[PyTree, np.ndarray], jax.Array]:
        return jax.jit(self._probabilities)

    @functools.cached_property
    def _compiled_logits(self) -> Callable[[PyTree, np.ndarray | jax.Array], jax.Array]:
        """The logarithms of the probabilities, because an ensemble has no logits."""
        tiny = np.finfo(np.float32).tiny  # The gradient of the logarithm of 0 is not finite.
        return jax.jit(lambda variables, image: jnp.log(jnp.maximum(self._probabilities(variables, image), tiny)))


def check_data(models: Sequence[RestoredModel]) -> None:
    """Raises a UserError unless the data of several models is the same, and that which they were trained with."""
    for model in models:
        model.plan.source.data.prepare()
        digests = model.plan.source.data.digests
        Checkpoints(model.workdir).check_data(digests)
        if digests != models[0].plan.source.data.digests:
            raise UserError(
                f'--run: all runs must have the same data, but the SHA-256 digests of that of {str(model.workdir)!r} '
                f'are not those of {str(models[0].workdir)!r}'
            )


def load_model(workdir: str | Path, step: str | None = None) -> RestoredModel:
    """Restores the run or the ensemble in `workdir`."""
    is_ensemble = (user_path(workdir, '--workdir') / ENSEMBLE_FILE).is_file()
    return Ensemble.load(workdir, step) if is_ensemble else RestoredModel.load(workdir, step)
