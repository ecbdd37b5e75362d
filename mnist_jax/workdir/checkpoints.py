"""What a workdir keeps so that a run can be resumed or evaluated: `config.json`, digests, Orbax checkpoints."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from absl import logging
from orbax.checkpoint import v1 as ocp

from mnist_jax import files
from mnist_jax.config import (
    ConfigDict,
    check_resumable,
    config_from_json,
    config_sha256,
    config_to_json,
    fill_added_fields,
)
from mnist_jax.config_checks import check_config
from mnist_jax.errors import UserError, first_line
from mnist_jax.workdir.checkpoint_writer import CheckpointWriter
from mnist_jax.workdir.snapshot import Snapshot


class DamagedCheckpointError(UserError):
    """A checkpoint cannot be read, or is not what was written."""


class Checkpoints:
    """The config and the checkpoints in a workdir.

    Leaves are saved as host arrays, so that checkpoints do not depend on the devices.
    """

    def __init__(self, workdir: Path):
        self.workdir = workdir
        self._config_path = workdir / 'config.json'
        self._digests_path = workdir / 'digests.json'
        self._directory = (workdir / 'checkpoints').absolute()
        self._written: dict[Path, str] = {}

    def read_config(self) -> ConfigDict | None:
        """Returns the config of the run in this workdir, or None if there is none.

        Raises:
          UserError: `config.json` is damaged or was changed.
        """
        config, problem = self._read_config()
        if config is None and self._config_path.exists():
            raise UserError(f'{problem}; to rewrite it, run the training command again')
        return config

    def _read_config(self) -> tuple[ConfigDict | None, str]:
        """Returns the config of the run and '', or None and what is wrong with its file."""
        path = str(self._config_path)
        if not self._config_path.exists():
            return None, f'{path!r} is missing'
        try:
            config = fill_added_fields(config_from_json(files.read_json(self._config_path)))
            check_config(config)
        except (OSError, ValueError, UserError, RecursionError) as error:
            return None, f'{path!r} is damaged: {error}'
        if self._saved_digest('config') not in (None, config_sha256(config)):
            return None, f'{path!r} was changed: its SHA-256 does not match {self._digests_path.name}'
        return config, ''

    def check_config(self, config: ConfigDict) -> ConfigDict:
        """Raises a UserError unless the run in this workdir has this config, apart from `CHANGEABLE_FIELDS`.

        If `config.json` is missing or damaged, compares its digest instead.

        Returns:
          The config that was saved, or `config` if it cannot be read.
        """
        saved, problem = self._read_config()
        if saved is not None:
            check_resumable(saved, config)
        elif self._saved_digest('config') == config_sha256(config):
            logging.warning('%s; it will be rewritten', problem)
        else:
            raise UserError(
                f'{problem}, and the config that was passed is not the config of the run (their SHA-256 digests '
                'differ); pass the config of the run, or use another --workdir'
            )
        return config if saved is None else saved

    def write_config(self, config: ConfigDict, data: Mapping[str, str]) -> None:
        """Writes `config.json` and `digests.json`.

        Args:
          config: The config of the run; its digest leaves out `CHANGEABLE_FIELDS`.
          data: The SHA-256 of each prepared split.
        """
        digests = {'config': config_sha256(config), 'data': dict(data)}
        self._written = {
            self._digests_path: json.dumps(digests, indent=2) + '\n',
            self._config_path: config_to_json(config),
        }
        for path, text in self._written.items():
            files.write_text(path, text)

    def _rewrite_missing(self) -> None:
        """Rewrites the files of `write_config` that are missing."""
        for path, text in self._written.items():
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                files.write_text(path, text)
                logging.warning('%s was missing and has been rewritten', path)

    def _saved_digest(self, name: Literal['config', 'data']) -> object:
        """Returns a digest from the start of the run, or None if it is unknown."""
        if not self._digests_path.exists():
            return None
        try:
            digests = files.read_json(self._digests_path)
            if not isinstance(digests, dict) or name not in digests:
                raise ValueError(f'it must be a JSON object with {name!r}')
            return digests[name]
        except (OSError, ValueError) as error:
            raise UserError(
                f'{str(self._digests_path)!r} is damaged: {error}; delete it to continue without it'
            ) from None

    def check_data(self, data: Mapping[str, str]) -> None:
        """Raises a UserError if this run has checkpoints and was started with different data."""
        if self.steps() and self._saved_digest('data') not in (None, dict(data)):
            raise UserError(
                f'the dataset must be the one that the run in {str(self.workdir)!r} was started with (the SHA-256 '
                f'digests of its splits are in {self._digests_path.name}); use that dataset, or another --workdir'
            )

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, in order."""
        if not self._directory.is_dir():
            return []
        return sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdecimal())

    def create_directory(self) -> None:
        """Creates the directory of the checkpoints."""
        # Orbax globs for its files, and these characters break the glob.
        if set(str(self._directory)) & set('[]\\'):
            raise UserError(f'--workdir must not contain [, ] or \\ in its path, got {str(self.workdir.absolute())!r}')
        files.make_directory(self._directory, '--workdir: the checkpoint directory')

    def open(self, prepare: Callable[[], None]) -> CheckpointWriter:
        """Returns the writer of this workdir's checkpoints, a context manager.

        Args:
          prepare: Called before each save; then missing files of `write_config` are rewritten.
        """

        def prepare_workdir() -> None:
            prepare()
            self._rewrite_missing()

        return CheckpointWriter(self._directory, prepare_workdir)

    def restore(self, step: int, abstract_snapshot: Snapshot) -> Snapshot:
        """Restores the checkpoint at `step`.

        Args:
          step: A step that has a checkpoint.
          abstract_snapshot: A snapshot with the structure, shapes and dtypes to restore.

        Raises:
          DamagedCheckpointError: it cannot be read, or its digest is not the one that was saved with it.
        """
        path = self._directory / str(step)
        _check_regular_files(path)
        try:
            restored = ocp.load(path, jax.tree.map(_zeros, abstract_snapshot.with_digest(bytes(32))))
        except Exception as error:  # For a damaged file, Orbax and TensorStore raise arbitrary errors.
            # TensorStore appends its whole specification in brackets.
            reason = first_line(error).split(' [tensorstore_spec')[0]
            raise DamagedCheckpointError(
                f'checkpoint {str(path)!r} is damaged, or was saved with another config: {reason}'
            ) from None
        snapshot = Snapshot(*restored['snapshot'])
        if snapshot.sha256 != restored['sha256'].tobytes():
            raise DamagedCheckpointError(
                f'checkpoint {str(path)!r} is damaged: its contents do not match the SHA-256 that was saved with them'
            )
        if snapshot.state.step != step:
            raise DamagedCheckpointError(
                f'checkpoint {str(path)!r} is damaged: it must be at step {step}, got step {snapshot.state.step}'
            )
        return snapshot

    def restore_newest(self, steps: Sequence[int], abstract_snapshot: Snapshot) -> tuple[Snapshot, list[int]]:
        """Restores the newest intact checkpoint of `steps`; also returns the steps of the newer, damaged ones."""
        damaged: list[int] = []
        for step in reversed(steps):
            try:
                return self.restore(step, abstract_snapshot), damaged
            except DamagedCheckpointError as error:
                logging.warning('%s', error)
                damaged.append(step)
        raise UserError(
            f'no checkpoint in {str(self._directory)!r} can be restored; use another --workdir, or delete this one to '
            'start over'
        )

    def move_to_damaged(self, steps: Sequence[int]) -> None:
        """Moves damaged checkpoints to `damaged/`, so that new ones can take their places."""
        for step in steps:
            directory = self.workdir / 'damaged'
            files.make_directory(directory, '--workdir: the directory of damaged checkpoints')
            count = len(list(directory.iterdir()))
            (self._directory / str(step)).rename(directory / f'{step}-{count}')


def _check_regular_files(checkpoint: Path) -> None:
    """Raises a DamagedCheckpointError for a link, or anything that would block forever, such as a FIFO."""
    for path in (checkpoint, *checkpoint.rglob('*')):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise DamagedCheckpointError(
                f'checkpoint {str(checkpoint)!r} is damaged: {str(path)!r} is not a regular file'
            )


def _zeros(leaf: object) -> object:
    return np.zeros(leaf.shape, leaf.dtype) if hasattr(leaf, 'shape') and hasattr(leaf, 'dtype') else leaf
