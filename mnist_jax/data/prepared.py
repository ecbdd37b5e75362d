"""A dataset that TFDS prepares once and that is then read in slices, into memory or on demand."""

import contextlib
import functools
import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mnist_jax import files
from mnist_jax.data.builder import ArrayBuilder, Description, OpenBuilder
from mnist_jax.data.content_digests import kept_sha256
from mnist_jax.data.records import RecordFiles, Split, Stream
from mnist_jax.errors import UserError, comma_separated, first_line
from mnist_jax.factory import code_sha256, package_name

MAX_SPLITS_IN_MEMORY = 4

_splits_in_memory: dict[tuple, Split] = {}
"""Whole splits, by their name and the time of change and size of the files of their dataset; the oldest first."""


class PreparedDataset:
    """A dataset as its builder prepares it.

    Args:
      name: The name of the dataset in the config.
      make_builder: The class of its builder.
      data_dir: The directory of prepared datasets; '' for TFDS's default.
      raw_dir: The directory or the file with the raw data; '' for the builder's default, such as a download.
      split_seed: Seed of the splits that the builder draws at random.
      options: What else an `OpenBuilder` reads from the config.
      description: The description of the dataset if it is known, so that no data is needed for it.
    """

    def __init__(
        self,
        name: str,
        make_builder: type[ArrayBuilder],
        data_dir: str,
        raw_dir: str,
        split_seed: int,
        options: Mapping[str, Any] | None = None,
        description: Description | None = None,
    ):
        self.name = name
        self.options = options or {}
        self._known_description = description
        self.make_builder = make_builder
        self._data_dir = files.user_path(
            data_dir or tfds.core.constants.DATA_DIR, 'config.dataset.data_dir' if data_dir else 'TFDS_DATA_DIR'
        )
        self._raw_dir = files.user_path(raw_dir, 'config.dataset.raw_dir') if raw_dir else None
        self._split_seed = split_seed
        self._checked: set[str] = set()  # the splits on disk whose digests were checked

    @functools.cached_property
    def _variant(self) -> str:
        # Users may change the code of their own builders without a new VERSION.
        own = [part for part in self.make_builder.__mro__ if issubclass(part, ArrayBuilder) and not package_name(part)]
        return '-'.join(filter(None, [self._raw_variant, code_sha256(own)[:8]]))

    @functools.cached_property
    def _raw_variant(self) -> str:
        return self._find_raw_variant()

    def _find_raw_variant(self) -> str:
        return self.make_builder.variant(self._raw_dir, self._split_seed, **self.options)

    def _check_unchanged(self) -> None:
        if self._raw_dir is not None and self._data_dir.resolve().is_relative_to(self._raw_dir.resolve()):
            return  # Preparing the data writes files to the directory of the raw files.
        if self._find_raw_variant() != self._raw_variant:
            raise UserError('the raw files of config.dataset must not change while they are read; run again')

    @functools.cached_property
    def _path(self) -> Path:
        return self._data_dir / self.make_builder.name / self._variant / str(self.make_builder.VERSION)

    @functools.cached_property
    def _builder(self) -> ArrayBuilder:
        open_fields: dict[str, Any] = {}
        if issubclass(self.make_builder, OpenBuilder):
            open_fields = {'options': self.options, 'description': self._prepared_description()}
        try:
            return self.make_builder(
                raw_dir=self._raw_dir,
                data_dir=str(self._data_dir),
                split_seed=self._split_seed,
                variant=self._variant,
                check_unchanged=self._check_unchanged,
                **open_fields,
            )
        except UserError:  # The raw files are invalid.
            raise
        except Exception as error:  # TFDS reads the prepared data, and raises whatever its parsers raise.
            if not self._path.exists():
                raise
            raise self._damaged('its metadata', first_line(error)) from None

    def _prepared_description(self) -> Description | None:
        """Returns the description that is stored with the prepared data; None if it is not prepared."""
        if not self._path.exists():
            return None
        try:
            metadata = files.read_json(self._path / 'metadata.json')
            if not isinstance(metadata, dict) or 'description' not in metadata:
                raise ValueError("it must be a JSON object with 'description'")
            return Description.from_json(metadata['description'])
        except (OSError, ValueError) as error:
            raise self._damaged('metadata.json', first_line(error)) from None

    @functools.cached_property
    def description(self) -> Description:
        """What a model has to know of the dataset. That of an `OpenBuilder` is found by preparing it."""
        make_builder = self.make_builder
        if self._known_description is not None:
            return self._known_description
        if not issubclass(make_builder, OpenBuilder):
            framing = make_builder.framing(self._raw_dir)
            return Description(make_builder.SHAPE, make_builder.CLASS_NAMES, make_builder.MAX_PIXEL, framing)
        self.prepare()
        description = self._prepared_description()
        assert description is not None  # It is prepared.
        return description

    def prepare(self) -> None:
        """Prepares the dataset if that has not been done yet; one process does it while the others wait.

        TFDS writes to a temporary directory and renames it at the end, so a killed process leaves nothing that looks
        like prepared data. The lock is released when the process ends, and the next process deletes the temporary
        directory.
        """
        if self._path.exists():
            return
        directory = self._data_dir / self.make_builder.name
        files.make_directory(directory, 'config.dataset.data_dir')
        with files.locked(directory / 'prepare.lock'):
            if self._path.exists():
                return
            for leftover in self._path.parent.glob('incomplete.*'):
                shutil.rmtree(leftover, ignore_errors=True)
            tfds.disable_progress_bar()
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    self._builder.download_and_prepare()  # deletes its temporary directory if it raises a UserError
            finally:
                with contextlib.suppress(OSError):  # Delete what remains empty if the raw data was refused.
                    self._path.parent.rmdir()

    def load(self, field: str, spec: str) -> Split:
        """Reads the examples of a split into memory.

        Args:
          field: What error messages call the split, such as 'config.dataset.train'.
          spec: The split in TFDS's slicing notation, such as 'train[:90%]'.

        Raises:
          UserError: there is no such split, it is empty, or it is damaged.
        """
        ranges = self._ranges(field, spec)
        parts = [self._load_split(name).take(slice(indices.start, indices.stop)) for name, indices in ranges]
        return Split(*map(np.concatenate, zip(*parts, strict=True))) if len(parts) > 1 else parts[0]

    def stream(self, field: str, spec: str) -> Stream:
        """Returns the examples of a split, to be read on demand; see `load`.

        Their digest is checked by reading them once; it is kept as long as their files do not change.
        """
        ranges = self._ranges(field, spec)
        for name, _ in ranges:
            self._check_streamed(name)
        record_files = [self._open_files(name) for name, _ in ranges]
        starts = np.cumsum([0, *map(len, record_files)])
        parts = [start + np.array(indices, np.int64) for start, (_, indices) in zip(starts, ranges, strict=False)]
        return Stream(record_files, np.concatenate(parts))

    def size(self, field: str, spec: str) -> int:
        """Returns the number of examples of a split without reading them; see `load`."""
        return sum(len(indices) for _, indices in self._ranges(field, spec))

    def indices(self, field: str, spec: str) -> np.ndarray:
        """Returns the index of each example of a split among all prepared ones, without reading them; see `load`."""
        splits = self._splits()
        starts = dict(zip(splits, np.cumsum([0, *(split.num_examples for split in splits.values())]), strict=False))
        ranges = self._ranges(field, spec)
        return np.concatenate([starts[name] + np.array(indices, np.int64) for name, indices in ranges])

    def _ranges(self, field: str, spec: str) -> list[tuple[str, range]]:
        """Returns the ranges of examples that make up a slice: names of prepared splits, and indices in them."""
        if not spec:
            raise UserError(f"{field} must be a split in TFDS's slicing notation, such as 'train[:90%]', got ''")
        splits = self._splits()
        try:
            parts = tfds.core.ReadInstruction.from_spec(spec).to_absolute(splits)
        except (ValueError, AssertionError, KeyError) as error:
            raise UserError(
                f'{field} must be one of the splits {comma_separated(splits)} of {self.name}, or a slice such as '
                f"'train[:90%]', got {spec!r} ({first_line(error)})"
            ) from None
        ranges = [(part.splitname, range(splits[part.splitname].num_examples)[part.from_ : part.to]) for part in parts]
        if not any(indices for _, indices in ranges):
            raise UserError(f'{field} must have at least one example, got {spec!r}, which is empty')
        return ranges

    @property
    def metadata(self) -> files.JsonObject:
        """What the builder stored with the prepared data, such as the digests of the splits."""
        return self._builder.info.metadata

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of each prepared split."""
        return {name: self.metadata['sha256'][name] for name in self._splits()}

    def _splits(self) -> Mapping[str, tfds.core.SplitInfo]:
        try:
            splits, digests = self._builder.info.splits, self.metadata['sha256']
            complete = set(splits) == set(digests)
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged('its metadata', first_line(error)) from None
        if not splits or not complete:
            raise self._damaged('its metadata', 'dataset_info.json or metadata.json is missing or incomplete')
        return splits

    def _load_split(self, name: str) -> Split:
        """Returns a whole prepared split; a process that trains several runs reads it once."""
        stats = [(path, path.stat()) for path in sorted(self._path.iterdir())]
        key = (name, *((path, stat.st_mtime_ns, stat.st_size) for path, stat in stats))
        if key in _splits_in_memory:
            return _splits_in_memory[key]
        split = self._open_files(name).read_all()
        self._check_sha256(name, split.sha256)
        for array in split:
            array.flags.writeable = False
        while len(_splits_in_memory) >= MAX_SPLITS_IN_MEMORY:
            del _splits_in_memory[next(iter(_splits_in_memory))]
        _splits_in_memory[key] = split
        return split

    def _check_streamed(self, name: str) -> None:
        """Checks the digest of a split that is not read into memory, once."""
        if name in self._checked:
            return
        record_files = self._open_files(name)
        statuses = [(str(path), path.stat()) for path in sorted(self._path.iterdir())]
        stream = Stream([record_files], np.arange(len(record_files)))
        self._check_sha256(name, kept_sha256(f'prepared-{name}', statuses, lambda: stream.sha256))
        self._checked.add(name)

    def _check_sha256(self, name: str, sha256: str) -> None:
        if sha256 != self.metadata['sha256'].get(name):
            raise self._damaged(f'split {name!r}', 'its contents do not match the SHA-256 stored with it')

    def _open_files(self, name: str) -> RecordFiles:
        return RecordFiles(
            list(map(str, self._builder.info.splits[name].filepaths)),
            lambda: self._builder.as_data_source(split=name),
            lambda error: self._damaged(f'split {name!r}', first_line(error)),
        )

    def _damaged(self, part: str, reason: str) -> UserError:
        path = str(self._path)
        return UserError(
            f'the prepared dataset {self.name} is damaged ({part}): {reason}; delete {path!r} and run again'
        )
