"""What a workdir keeps so that a run can be resumed or evaluated: `config.json`, digests, Orbax checkpoints."""

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
    fill_missing_fields,
    unknown_fields,
)
from mnist_jax.config_checks import check_config
from mnist_jax.data.builder import Description
from mnist_jax.errors import UserError, comma_separated, first_line
from mnist_jax.factory import defaults
from mnist_jax.workdir.checkpoint_writer import CheckpointWriter
from mnist_jax.workdir.config_sections import SECTIONS
from mnist_jax.workdir.snapshot import SavedSnapshot, Snapshot


class DamagedCheckpointError(UserError):
    """A checkpoint cannot be read, or is not what was written."""


HELD = {
    'config.json': 'a run',
    'ensemble.json': 'an ensemble',
    'fold-*': 'a cross-validation',
    'study.json': 'a study',
    'population.json': 'a population',
    'member-*': 'a population',
    'weights.npz': 'weights without checkpoints',
}
"""What a directory holds, by the name of a file in it."""


def held_by(workdir: Path, except_for: str = '') -> str | None:
    """Returns what a directory holds, one of `HELD`; None if it holds nothing, or only `except_for`."""
    return next((held for pattern, held in HELD.items() if held != except_for and any(workdir.glob(pattern))), None)


def check_holds_only(workdir: Path, kind: str) -> None:
    """Raises a UserError if the directory holds something else than `kind`, one of `HELD`."""
    if held := held_by(workdir, kind):
        raise UserError(f'--workdir {str(workdir)!r} holds {held}; use another --workdir for {kind}')


class Checkpoints:
    """The config and the checkpoints in a workdir.

    Leaves are saved as host arrays, so that checkpoints do not depend on the devices.
    """

    def __init__(self, workdir: Path):
        self.workdir = workdir
        self._config_path = workdir / 'config.json'
        self._digests_path = workdir / 'digests.json'
        self._description_path = workdir / 'dataset.json'
        self._directory = (workdir / 'checkpoints').absolute()
        self._written: dict[Path, bytes] = {}

    def read_config(self) -> ConfigDict | None:
        """Returns the config of the run in this workdir, or None if there is none.

        Raises:
          UserError: `config.json` is damaged, was changed, or has fields of another version of the program.
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
        digest = self._saved_digest('config')
        config, problem, unknown = None, '', list[str]()
        try:
            saved = config_from_json(files.read_json(self._config_path))
            unchanged = digest in (None, config_sha256(saved))
            if not unchanged:
                problem = f'{path!r} was changed: its SHA-256 does not match {self._digests_path.name}'
            elif digest is not None:
                unknown = unknown_fields(saved)
            config = fill_missing_fields(saved)
            check_config(config)
        except (OSError, ValueError, UserError, RecursionError) as error:
            problem = f'{path!r} is damaged: {error}'
        if unknown:
            raise UserError(
                f'{path!r} is from another version of the program: this one has no {comma_separated(unknown)}; use the '
                'version that wrote it'
            )
        return None if problem else config, problem

    def check_config(self, config: ConfigDict) -> ConfigDict:
        """Raises a UserError unless the run in this workdir has this config, apart from `CHANGEABLE_FIELDS`.

        If `config.json` is missing or damaged, compares its digest instead.

        Returns:
          The config that was saved, or `config` if it cannot be read.
        """
        saved, problem = self._read_config()
        if saved is not None:
            check_resumable(saved, config, _default_values(config))
        elif not self._digests_path.exists():
            raise UserError(
                f'{problem}, and {self._digests_path.name} is missing, so that nothing says what the config of the run '
                'is; restore one of the two files, or use another --workdir'
            )
        elif self._saved_digest('config') == config_sha256(config):
            logging.warning('%s; it will be rewritten', problem)
        else:
            raise UserError(
                f'{problem}, and the config that was passed is not the config of the run (their SHA-256 digests '
                'differ); pass the config of the run, or use another --workdir'
            )
        return config if saved is None else saved

    def read_description(self) -> Description | None:
        """Returns the description of the dataset of the run; None if a version without descriptions started the run.

        Raises:
          UserError: `dataset.json` is damaged.
        """
        if not self._description_path.exists():
            return None
        try:
            value = files.read_json(self._description_path)
            # Older versions did not save the digest.
            if self._saved_digest('description', '') not in ('', _description_sha256(value)):
                raise ValueError(f'its SHA-256 is not the one in {self._digests_path.name}')
            return Description.from_json(value)
        except (OSError, ValueError) as error:
            raise UserError(
                f'{str(self._description_path)!r} is damaged: {error}; to rewrite it, run the training command again'
            ) from None

    def write_config(
        self, config: ConfigDict, data: Mapping[str, str], description: Description, teachers: Sequence[str] = ()
    ) -> None:
        """Writes `config.json`, `digests.json` and `dataset.json`.

        Args:
          config: The config of the run; its digest leaves out `CHANGEABLE_FIELDS`.
          data: The SHA-256 of each prepared split.
          description: The description of the dataset.
          teachers: The SHA-256 of the parameters of each run of `config.distillation.workdirs`.
        """
        described = json.dumps(description.to_json(), indent=2) + '\n'
        digests = {
            'config': config_sha256(config),
            'data': dict(data),
            'description': _description_sha256(json.loads(described)),
            'teachers': list(teachers),
        }
        texts = {
            self._digests_path: json.dumps(digests, indent=2) + '\n',
            self._description_path: described,
            self._config_path: config_to_json(config),
        }
        for path, text in texts.items():
            files.write_text(path, text)
        self.keep(*texts)

    def keep(self, *paths: Path) -> None:
        """Remembers the contents of these files: with each checkpoint, those that are missing are written again."""
        self._written.update((path, path.read_bytes()) for path in paths)

    def _rewrite_missing(self) -> None:
        """Rewrites the files of `keep` that are missing."""
        for path, contents in self._written.items():
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                files.write_bytes(path, contents)
                logging.warning('%s was missing and has been rewritten', path)

    def _saved_digest(self, name: str, default: object = None) -> object:
        """Returns a digest from the start of the run, or `default` if it is unknown.

        Raises:
          UserError: the file is damaged, or it has no digest of this name and `default` is None.
        """
        if not self._digests_path.exists():
            return default
        try:
            digests = files.read_json(self._digests_path)
            if not isinstance(digests, dict) or (name not in digests and default is None):
                raise ValueError(f'it must be a JSON object with {name!r}')
            return digests.get(name, default)
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

    def has_data(self, data: Mapping[str, str]) -> bool:
        """Returns whether this run is known to have been started with data of these digests."""
        try:
            return self._saved_digest('data') == dict(data)
        except UserError:
            return False

    def check_class_names(self, description: Description) -> None:
        """Raises a UserError if this run has checkpoints and was started with other names of classes."""
        try:
            saved = self.read_description() if self.steps() else None
        except UserError:  # `write_config` rewrites it.
            return
        if saved is not None and tuple(saved.class_names) != tuple(description.class_names):
            raise UserError(
                f'the classes of the dataset must be those that the run in {str(self.workdir)!r} was started with, '
                f'{", ".join(saved.class_names)}, got {", ".join(description.class_names)}'
            )

    def check_teachers(self, teachers: Sequence[str]) -> None:
        """Raises a UserError if this run has checkpoints and was started with teachers of other parameters."""
        if self.steps() and self._saved_digest('teachers', []) not in ([], list(teachers)):
            raise UserError(
                'config.distillation.workdirs must have the parameters that the run in '
                f'{str(self.workdir)!r} was started with (their SHA-256 digests are in {self._digests_path.name}), got '
                'others; restore its teacher.npz, or use another --workdir'
            )

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, in order."""
        if not self._directory.is_dir():
            return []
        return sorted(int(path.name) for path in self._directory.iterdir() if _is_step(path.name))

    def check_path(self) -> None:
        """Raises a UserError if Orbax could not find the files of checkpoints in this workdir."""
        if set(str(self._directory)) & set('[]*?\\'):  # Orbax globs for its files, and these characters break the glob.
            raise UserError(
                f'--workdir must not contain [, ], *, ? or \\ in its path, got {str(self.workdir.absolute())!r}'
            )

    def create_directory(self) -> None:
        """Creates the directory of the checkpoints."""
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

    def restore(
        self, step: int, abstract_snapshot: Snapshot, make_first: Callable[[], Snapshot] | None = None
    ) -> Snapshot:
        """Restores the checkpoint at `step`, which may be one of another version of this program.

        Args:
          step: A step that has a checkpoint.
          abstract_snapshot: A snapshot with the structure, shapes and dtypes to restore.
          make_first: Returns the snapshot before the first step; needed to resume, see `SavedSnapshot.for_resuming`.
            None restores what inference needs, see `SavedSnapshot.for_inference`.

        Raises:
          DamagedCheckpointError: it cannot be read, or its digest is not the one that was saved with it.
          UserError: it is intact, but not one of this config and version.
        """
        path = self._directory / str(step)
        saved = _load(path, abstract_snapshot)
        missing: list[str] = []
        try:
            if make_first is None:
                snapshot = saved.for_inference(abstract_snapshot)
            else:
                snapshot, missing = saved.for_resuming(abstract_snapshot, make_first)
        except UserError as error:
            raise UserError(
                f'checkpoint {str(path)!r} was saved with another config, or by another version of the program: {error}'
            ) from None
        if snapshot.state.step != step:
            raise DamagedCheckpointError(
                f'checkpoint {str(path)!r} is damaged: it must be at step {step}, got step {snapshot.state.step}'
            )
        if missing:
            logging.warning(
                'checkpoint %r was saved by an older version, without %s; resuming with the values of a new run',
                str(path),
                ', '.join(missing),
            )
        return snapshot

    def restore_newest(
        self, steps: Sequence[int], abstract_snapshot: Snapshot, make_first: Callable[[], Snapshot]
    ) -> tuple[Snapshot, list[int]]:
        """Restores the newest intact checkpoint of `steps`; also returns the steps of the newer, damaged ones."""
        damaged: list[int] = []
        for step in reversed(steps):
            try:
                return self.restore(step, abstract_snapshot, make_first), damaged
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
            targets = (directory / f'{step}-{number}' for number in itertools.count())
            (self._directory / str(step)).rename(next(target for target in targets if not target.exists()))


def _is_step(name: str) -> bool:
    return name.isdecimal() and name == str(int(name))


def _default_values(config: ConfigDict) -> dict[str, Any]:
    """Returns the defaults of the fields that the sections of `config` may leave out, by dotted name."""
    values: dict[str, Any] = {}
    for name, section in SECTIONS.items():
        part = config.get(name, {}).get('name')
        # Without its table entry, the config is invalid, which `check_config` or `build` reports.
        if constructor := section.table.get(part) if isinstance(part, str) else None:
            values |= {f'{name}.{field}': value for field, value in defaults(constructor).items()}
    return values


def _load(path: Path, abstract_snapshot: Snapshot) -> SavedSnapshot:
    """Reads a checkpoint, whatever its structure, and checks its digest."""
    _check_regular_files(path)
    try:
        tree = ocp.load(path)
        saved, digest = SavedSnapshot(tree['snapshot']), np.asarray(tree['sha256']).tobytes()
        intact = saved.matches(digest, abstract_snapshot)
    except Exception as error:  # For a damaged file, Orbax and TensorStore raise arbitrary errors.
        # TensorStore appends its whole specification in brackets.
        reason = first_line(error).split(' [tensorstore_spec')[0]
        raise DamagedCheckpointError(f'checkpoint {str(path)!r} is damaged: {reason}') from None
    if not intact:
        raise DamagedCheckpointError(
            f'checkpoint {str(path)!r} is damaged: its contents do not match the SHA-256 that was saved with them'
        )
    return saved


def _check_regular_files(checkpoint: Path) -> None:
    """Raises a DamagedCheckpointError for a link, or anything that would block forever, such as a FIFO."""
    for path in (checkpoint, *checkpoint.rglob('*')):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise DamagedCheckpointError(
                f'checkpoint {str(checkpoint)!r} is damaged: {str(path)!r} is not a regular file'
            )


def _description_sha256(value: object) -> str:
    """Returns the digest of a description as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
