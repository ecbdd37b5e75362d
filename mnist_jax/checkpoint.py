"""What a workdir keeps of a run so that it can go on or be evaluated: `config.json` and Orbax checkpoints."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from mnist_jax import config as configs
from mnist_jax import files
from mnist_jax.callbacks import CallbackStates
from mnist_jax.errors import UserError, first_line
from mnist_jax.step import TrainState


def params_sha256(state: TrainState) -> str:
    """The digest of parameters and batch statistics, leaf by leaf in sorted order of their paths."""
    leaves = jax.tree_util.tree_leaves_with_path((state.params, state.batch_stats))
    found = hashlib.sha256()
    for _, leaf in sorted((jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in leaves):
        found.update(leaf.tobytes())
    return found.hexdigest()


class Snapshot(NamedTuple):
    """What a checkpoint holds."""

    state: TrainState
    callbacks: CallbackStates


class Checkpoints:
    """The config and the checkpoints in a workdir.

    Leaves are saved as host arrays, so that a checkpoint knows nothing of the devices that computed it.
    """

    def __init__(self, workdir: Path):
        self.workdir = workdir
        self._config = workdir / 'config.json'
        self._data = workdir / 'data.json'
        self._directory = (workdir / 'checkpoints').absolute()

    def read_config(self) -> configs.ConfigDict | None:
        """The config of the run in this workdir, or None where there is none."""
        if not self._config.exists():
            return None
        try:
            config = configs.with_added_fields(configs.from_json(self._config.read_text(encoding='utf-8')))
            configs.check(config)
        except (OSError, ValueError, UserError) as error:
            raise UserError(f'{str(self._config)!r} is damaged: {error}') from None
        return config

    def write_config(self, config: configs.ConfigDict, data: Mapping[str, str]) -> None:
        """Write `config.json`, and `data.json`: the sha256 of each prepared split."""
        files.write_text(self._data, json.dumps(dict(data), indent=2) + '\n')
        files.write_text(self._config, configs.to_json(config))

    def check_data(self, data: Mapping[str, str]) -> None:
        """Raise a UserError where this run has checkpoints and was begun with other data."""
        if not self.steps() or not self._data.exists():
            return
        try:
            begun = json.loads(self._data.read_text(encoding='utf-8'))
        except (OSError, ValueError) as error:
            raise UserError(f'{str(self._data)!r} is damaged: {error}') from None
        if begun != dict(data):
            raise UserError(
                f'the data set is not the one that the run in {str(self.workdir)!r} was begun with: {self._data.name} '
                'has the sha256 of its splits; give that data set, or another --workdir'
            )

    def steps(self) -> list[int]:
        """The steps of which there are checkpoints, in order."""
        if not self._directory.is_dir():
            return []
        return sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdecimal())

    def open(self) -> 'Writer':
        """What saves checkpoints here; a context manager that waits for the last one at its end."""
        return Writer(self._directory)

    def restore(self, step: int, like: Snapshot) -> Snapshot:
        """What the checkpoint at `step` holds; `like` has its structure, shapes and types."""
        path = self._directory / str(step)
        try:
            return ocp.load(path, jax.tree.map(_zeros, like))
        except Exception as error:  # Orbax and TensorStore raise what they like for a damaged file.
            # TensorStore appends its whole specification in brackets.
            reason = first_line(error).split(' [tensorstore_spec')[0]
            raise UserError(f'the checkpoint {str(path)!r} is damaged, or not of this config: {reason}') from None


def _zeros(leaf: Any) -> Any:
    return np.zeros(leaf.shape, leaf.dtype) if hasattr(leaf, 'shape') else leaf


class Writer:
    """Saves snapshots under their steps; keeps the latest and the best."""

    def __init__(self, directory: Path):
        self._best_step = -1
        self._orbax = ocp.training.Checkpointer(
            directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=self,
            cleanup_tmp_directories=True,
        )

    def save(self, snapshot: Snapshot) -> None:
        """Begin to save; it is written in the background, and whole or not at all."""
        self._best_step = snapshot.callbacks.early_stopping.best_step
        host = snapshot._replace(state=jax.tree.map(np.array, snapshot.state))
        self._orbax.save_async(int(host.state.step), host)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Orbax's question: which of the checkpoints, in their order, are to be kept."""
        kept = (checkpoints[-1].step, self._best_step)
        return [checkpoint.step in kept for checkpoint in checkpoints]

    def __enter__(self) -> 'Writer':
        return self

    def __exit__(self, *exception: object) -> None:
        self._orbax.close()
