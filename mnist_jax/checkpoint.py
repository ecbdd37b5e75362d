"""What a workdir keeps of a run so that it can go on or be evaluated: `config.json` and Orbax checkpoints."""

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from mnist_jax import config as configs
from mnist_jax import files
from mnist_jax.errors import UserError, first_line
from mnist_jax.step import TrainState


def params_sha256(state: TrainState) -> str:
    """The digest of parameters and batch statistics, leaf by leaf in sorted order of their paths."""
    leaves = jax.tree_util.tree_leaves_with_path((state.params, state.batch_stats))
    found = hashlib.sha256()
    for _, leaf in sorted((jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in leaves):
        found.update(leaf.tobytes())
    return found.hexdigest()


class Checkpoints:
    """The config and the checkpoints in a workdir.

    Leaves are saved as host arrays, so that a checkpoint knows nothing of the devices that computed it.
    """

    def __init__(self, workdir: Path):
        self.workdir = workdir
        self._config = workdir / 'config.json'
        self._directory = (workdir / 'checkpoints').absolute()

    def read_config(self) -> configs.ConfigDict | None:
        """The config of the run in this workdir, or None where there is none."""
        if not self._config.exists():
            return None
        try:
            config = configs.from_json(self._config.read_text(encoding='utf-8'))
            configs.check(config)
        except (OSError, ValueError, UserError) as error:
            raise UserError(f'{str(self._config)!r} is damaged: {error}') from None
        return config

    def write_config(self, config: configs.ConfigDict) -> None:
        """Make the workdir and write `config.json`."""
        files.write_text(self._config, configs.to_json(config))

    def latest_step(self) -> int | None:
        """The step of the latest checkpoint, or None where there is none."""
        if not self._directory.is_dir():
            return None
        return max((int(path.name) for path in self._directory.iterdir() if path.name.isdecimal()), default=None)

    def open(self) -> ocp.training.Checkpointer:
        """Orbax's checkpointer, which makes the directory and keeps the latest checkpoint."""
        return ocp.training.Checkpointer(
            self._directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(1),
            cleanup_tmp_directories=True,
        )

    def restore(self, step: int, like: Any) -> TrainState:
        """The state of the checkpoint at `step`; `like` has its structure, shapes and types."""
        path = self._directory / str(step)
        try:
            return ocp.load(path, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like))
        except Exception as error:  # Orbax and TensorStore raise what they like for a damaged file.
            # TensorStore appends its whole specification in brackets.
            reason = first_line(error).split(' [tensorstore_spec')[0]
            raise UserError(f'the checkpoint {str(path)!r} is damaged, or not of this config: {reason}') from None


def save(checkpointer: ocp.training.Checkpointer, state: TrainState) -> None:
    """Begin to save `state` under its step; it is written in the background, and whole or not at all."""
    host_state = jax.tree.map(np.array, state)
    checkpointer.save_async(int(host_state.step), host_state)
