"""A prepared data set: made once under TFDS's data directory, checked, and cut into slices in host memory."""

import contextlib
import fcntl
import functools
import io
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from mnist_jax import files
from mnist_jax.data.builder import ArrayBuilder
from mnist_jax.data.records import RecordFiles, Split, Stream
from mnist_jax.errors import UserError, comma_separated, first_line


class Prepared:
    """A data set as its builder prepares it.

    Args:
      name: of the data set, as in the config.
      make_builder: its class of builders.
      data_dir: where prepared data sets live; '' is TFDS's own choice.
      raw_dir: where the raw files lie; '' is with the package, or the network.
      split_seed: of what the builder draws at random.
    """

    def __init__(self, name: str, make_builder: type[ArrayBuilder], data_dir: str, raw_dir: str, split_seed: int):
        self.name = name
        self._make_builder = make_builder
        self._data_dir = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
        self._raw_dir = Path(raw_dir).expanduser() if raw_dir else None
        self._split_seed = split_seed
        self._splits_read: dict[str, Split] = {}

    @functools.cached_property
    def _variant(self) -> str:
        return self._make_builder.variant(self._raw_dir, self._split_seed)

    @functools.cached_property
    def _path(self) -> Path:
        return self._data_dir / self._make_builder.name / self._variant / str(self._make_builder.VERSION)

    @functools.cached_property
    def _builder(self) -> ArrayBuilder:
        try:
            return self._make_builder(
                raw_dir=self._raw_dir,
                data_dir=str(self._data_dir),
                split_seed=self._split_seed,
                variant=self._variant,
            )
        except Exception as error:  # TFDS reads what is prepared, and raises whatever its parsers do.
            raise self._damaged('its description', first_line(error)) from None

    def prepare(self) -> None:
        """Prepare the data set unless that is done; one process does it, others wait.

        TFDS writes into a directory of its own and renames it at the end, so a killed process leaves nothing that
        could be taken for a data set; the lock goes with the process, and the next one clears up.
        """
        if self._path.exists():
            return
        files.make_directory(self._path.parent, 'dataset.data_dir')
        with _locked(self._path.parent / 'prepare.lock'):
            if self._path.exists():
                return
            for leftover in self._path.parent.glob('incomplete.*'):
                shutil.rmtree(leftover, ignore_errors=True)
            tfds.disable_progress_bar()
            with contextlib.redirect_stdout(io.StringIO()):
                # After a UserError the builder has written nothing but its own directory, which it removes.
                self._builder.download_and_prepare()

    def slice(self, field: str, spec: str) -> Split:
        """The examples of a split in TFDS's slicing, read into memory; `field` is what an error calls it."""
        runs = self._runs(field, spec)
        parts = [self._split(whole).take(slice(places.start, places.stop)) for whole, places in runs]
        return Split(*map(np.concatenate, zip(*parts, strict=True))) if len(parts) > 1 else parts[0]

    def stream(self, field: str, spec: str) -> Stream:
        """The same, left on the disk; what is damaged there shows when it is read."""
        runs = self._runs(field, spec)
        files = [self._files(whole) for whole, _ in runs]
        first = np.cumsum([0, *map(len, files)])
        places = [start + np.array(places) for start, (_, places) in zip(first, runs, strict=False)]
        return Stream(files, np.concatenate(places))

    def size(self, field: str, spec: str) -> int:
        """How many examples a slice has; reads none of them."""
        return sum(len(places) for _, places in self._runs(field, spec))

    def _runs(self, field: str, spec: str) -> list[tuple[str, range]]:
        """The runs of examples that make up a slice: of which prepared split, and where in it."""
        if not spec:
            raise UserError(f"{field} is empty; TFDS's slicing is wanted, for example 'train[:90%]'")
        splits = self._splits()
        try:
            parts = tfds.core.ReadInstruction.from_spec(spec).to_absolute(splits)
        except (ValueError, AssertionError, KeyError) as error:
            raise UserError(
                f'{field}={spec!r} is no split of {self.name} ({first_line(error)}); its splits are: '
                f"{comma_separated(splits)}, and slices such as 'train[:90%]'"
            ) from None
        runs = [(part.splitname, range(splits[part.splitname].num_examples)[part.from_ : part.to]) for part in parts]
        if not any(places for _, places in runs):
            raise UserError(f'{field}={spec!r} has no examples; give a larger slice')
        return runs

    @property
    def digests(self) -> dict[str, str]:
        """The sha256 of each prepared split."""
        return {name: self._builder.info.metadata['sha256'][name] for name in self._splits()}

    def _splits(self) -> Mapping[str, tfds.core.SplitInfo]:
        try:
            splits, digests = self._builder.info.splits, self._builder.info.metadata['sha256']
            known = set(splits) == set(digests)
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged('its description', first_line(error)) from None
        if not splits or not known:
            raise self._damaged('its description', 'dataset_info.json or metadata.json is missing or incomplete')
        return splits

    def _split(self, name: str) -> Split:
        if name not in self._splits_read:
            self._splits_read[name] = self._read(name)
        return self._splits_read[name]

    def _read(self, name: str) -> Split:
        files = self._files(name)
        split = files.read(np.arange(len(files)))
        if split.sha256 != self._builder.info.metadata['sha256'].get(name):
            raise self._damaged(f'split {name!r}', 'its contents are not those that were prepared (sha256)')
        return split

    def _files(self, name: str) -> RecordFiles:
        return RecordFiles(
            lambda: self._builder.as_data_source(split=name),
            lambda error: self._damaged(f'split {name!r}', first_line(error)),
        )

    def _damaged(self, part: str, reason: str) -> UserError:
        path = str(self._path)
        return UserError(f'the prepared {self.name} is damaged, {part}: {reason}; remove {path!r} and run again')


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, 'w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
