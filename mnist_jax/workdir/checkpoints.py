"""What a workdir keeps of a run so that it can go on or be evaluated: `config.json`, digests, Orbax checkpoints."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from orbax.checkpoint import v1 as ocp

from mnist_jax import files
from mnist_jax.config import (
    ConfigDict,
    check_config,
    check_resumable,
    config_from_json,
    config_sha256,
    config_to_json,
    fill_added_fields,
)
from mnist_jax.errors import UserError, first_line
from mnist_jax.workdir.checkpoint_writer import CheckpointWriter
from mnist_jax.workdir.snapshot import Snapshot


class DamagedError(UserError):
    """A checkpoint that cannot be read, or is not what was written."""


class Checkpoints:
    """The config and the checkpoints in a workdir.

    Leaves are saved as host arrays, so that a checkpoint knows nothing of the devices that computed it.
    """

    def __init__(self, workdir: Path):
        self.workdir = workdir
        self._config = workdir / 'config.json'
        self._digests = workdir / 'digests.json'
        self._directory = (workdir / 'checkpoints').absolute()
        self._written: dict[Path, str] = {}

    def read_config(self) -> ConfigDict | None:
        """The config of the run in this workdir, or None where there is none; UserError where it is another's."""
        config, problem = self._read_config()
        if config is None and self._config.exists():
            raise UserError(f'{problem}; the command that trained the run writes it anew')
        return config

    def _read_config(self) -> tuple[ConfigDict | None, str]:
        """The config of the run, or else what is wrong with its file."""
        path = str(self._config)
        if not self._config.exists():
            return None, f'{path!r} is missing'
        try:
            config = fill_added_fields(config_from_json(files.read_json(self._config)))
            check_config(config)
        except (OSError, ValueError, UserError, RecursionError) as error:
            return None, f'{path!r} is damaged: {error}'
        if self._begun('config') not in (None, config_sha256(config)):
            return None, f'{path!r} was changed, and is not of the run beside it (sha256)'
        return config, ''

    def check_config(self, config: ConfigDict) -> None:
        """Raise a UserError unless the run in this workdir is of `config`, with more epochs perhaps.

        Without a config.json that is good, its digest decides.
        """
        saved, problem = self._read_config()
        if saved is not None:
            check_resumable(saved, config)
        elif self._begun('config') == config_sha256(config):
            logging.warning('%s; it is written anew', problem)
        else:
            raise UserError(
                f'{problem}, and the config that is given is not that of the run (sha256); give that one, or another '
                '--workdir'
            )

    def write_config(self, config: ConfigDict, data: Mapping[str, str]) -> None:
        """Write `config.json`, and `digests.json`: the sha256 of what the run computes, and of each prepared split."""
        digests = {'config': config_sha256(config), 'data': dict(data)}
        self._written = {self._digests: json.dumps(digests, indent=2) + '\n', self._config: config_to_json(config)}
        for path, text in self._written.items():
            files.write_text(path, text)

    def _keep_config(self) -> None:
        """Write anew what vanished of what `write_config` wrote."""
        for path, text in self._written.items():
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                files.write_text(path, text)
                logging.warning('%s had vanished, and was written anew', path)

    def _begun(self, what: str) -> Any:
        """A digest of what the run was begun with, or None where it is not known."""
        if not self._digests.exists():
            return None
        try:
            return files.read_json(self._digests)[what]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f'{str(self._digests)!r} is damaged: {error}; remove it to go on without it') from None

    def check_data(self, data: Mapping[str, str]) -> None:
        """Raise a UserError where this run has checkpoints and was begun with other data."""
        if self.steps() and self._begun('data') not in (None, dict(data)):
            raise UserError(
                f'the data set is not the one that the run in {str(self.workdir)!r} was begun with: '
                f'{self._digests.name} has the sha256 of its splits; give that data set, or another --workdir'
            )

    def steps(self) -> list[int]:
        """The steps of which there are checkpoints, in order."""
        if not self._directory.is_dir():
            return []
        return sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdecimal())

    def create_directory(self) -> None:
        """Create the directory of the checkpoints."""
        # Orbax looks for what it has written with a pattern, and so finds nothing there.
        if set(str(self._directory)) & set('[]\\'):
            raise UserError(f'{str(self._directory)!r} has a [, ] or \\ in its name; give another --workdir')
        files.make_directory(self._directory, 'the place of the checkpoints')

    def open(self, prepare: Callable[[], None]) -> CheckpointWriter:
        """What saves checkpoints here; a context manager that waits for the last one at its end.

        Before each save, `prepare` is called, and what vanished of config.json and the digests is written anew.
        """

        def prepare_all() -> None:
            prepare()
            self._keep_config()

        return CheckpointWriter(self._directory, prepare_all)

    def restore(self, step: int, like: Snapshot) -> Snapshot:
        """What the checkpoint at `step` holds; `like` has its structure, shapes and types.

        Raises:
          DamagedError: it cannot be read, or its digest is another than when it was written.
        """
        path = self._directory / str(step)
        _check_plain(path)
        try:
            found = ocp.load(path, jax.tree.map(_zeros, like.with_digest(bytes(32))))
        except Exception as error:  # Orbax and TensorStore raise what they like for a damaged file.
            # TensorStore appends its whole specification in brackets.
            reason = first_line(error).split(' [tensorstore_spec')[0]
            raise DamagedError(f'the checkpoint {str(path)!r} is damaged, or not of this config: {reason}') from None
        snapshot = Snapshot(*found['snapshot'])
        if snapshot.sha256 != found['sha256'].tobytes():
            raise DamagedError(
                f'the checkpoint {str(path)!r} is damaged: its contents are not those that were saved (sha256)'
            )
        if snapshot.state.step != step:
            raise DamagedError(f'the checkpoint {str(path)!r} is damaged: it is of step {snapshot.state.step}')
        return snapshot

    def restore_newest(self, steps: Sequence[int], like: Snapshot) -> tuple[Snapshot, list[int]]:
        """The newest snapshot of `steps` that is good, and the steps of the damaged ones, which are newer."""
        damaged: list[int] = []
        for step in reversed(steps):
            try:
                return self.restore(step, like), damaged
            except DamagedError as error:
                logging.warning('%s', error)
                damaged.append(step)
        raise UserError(
            f'no checkpoint in {str(self._directory)!r} can be used; give another --workdir, or remove this one to '
            'begin anew'
        )

    def move_to_damaged(self, steps: Sequence[int]) -> None:
        """Move damaged checkpoints to `damaged/`, out of the way of those that follow."""
        for step in steps:
            place = self.workdir / 'damaged'
            files.make_directory(place, 'the place of damaged checkpoints')
            number = len(list(place.iterdir()))
            (self._directory / str(step)).rename(place / f'{step}-{number}')


def _check_plain(checkpoint: Path) -> None:
    """Raise a DamagedError for a link, or for what would be waited for for ever, such as a pipe."""
    for path in (checkpoint, *checkpoint.rglob('*')):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise DamagedError(f'the checkpoint {str(checkpoint)!r} is damaged: {str(path)!r} is no plain file')


def _zeros(leaf: Any) -> Any:
    return np.zeros(leaf.shape, leaf.dtype) if hasattr(leaf, 'shape') else leaf
