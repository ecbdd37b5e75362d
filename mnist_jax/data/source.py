"""A data set, prepared once under TFDS's data directory, and its splits as arrays in host memory."""

import contextlib
import fcntl
import functools
import io
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from mnist_jax import files
from mnist_jax.data import builders
from mnist_jax.errors import UserError, first_line, listed


class Split(NamedTuple):
    """The examples of a split in the order of their files."""

    image: np.ndarray  # uint8 NxHxWxC
    label: np.ndarray  # int32 N


class Source:
    """A prepared data set.

    Args:
      name: of the data set, as in the config.
      make_builder: its class of builders.
      data_dir: where prepared data sets live; '' is TFDS's own choice.
      raw_dir: where the raw files lie; '' is with the package, or the network.
      train, validation, test: splits by these names, in TFDS's slicing ('train[:90%]'); '' for no validation.
    """

    def __init__(
        self,
        name: str,
        make_builder: type[builders.IdxBuilder],
        data_dir: str,
        raw_dir: str,
        train: str,
        validation: str,
        test: str,
    ):
        self.name = name
        self.specs = {'train': train, 'validation': validation, 'test': test}
        self._make_builder = make_builder
        self._raw_dir = Path(raw_dir).expanduser() if raw_dir else None
        self._data_dir = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
        self._path = self._data_dir / make_builder.name / str(make_builder.VERSION)
        self._whole: dict[str, Split] = {}
        self.image_shape: tuple[int, ...] = make_builder.SHAPE
        self.num_classes: int = make_builder.NUM_CLASSES
        self.max_pixel: int = make_builder.MAX_PIXEL

    @functools.cached_property
    def _builder(self) -> builders.IdxBuilder:
        try:
            return self._make_builder(raw_dir=self._raw_dir, data_dir=str(self._data_dir))
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

    def split(self, name: str) -> Split | None:
        """The split configured as `name` (train, validation, test), or None where none is configured."""
        if name == 'validation' and not self.specs[name]:
            return None
        parts = [
            Split(*(column[places.start : places.stop] for column in self._whole_split(whole)))
            for whole, places in self._runs(name)
        ]
        return Split(*map(np.concatenate, zip(*parts, strict=True))) if len(parts) > 1 else parts[0]

    def count(self, name: str) -> int:
        """How many examples the split configured as `name` has; reads none of them."""
        return sum(len(places) for _, places in self._runs(name))

    def _runs(self, name: str) -> list[tuple[str, range]]:
        """The runs of examples that make up a configured split: of which prepared split, and where in it."""
        spec = self.specs[name]
        if not spec:
            raise UserError(f"dataset.{name} is empty; TFDS's slicing is wanted, for example 'train[:90%]'")
        splits = self._splits()
        try:
            parts = tfds.core.ReadInstruction.from_spec(spec).to_absolute(splits)
        except (ValueError, AssertionError, KeyError) as error:
            raise UserError(
                f'dataset.{name}={spec!r} is no split of {self.name} ({first_line(error)}); its splits are: '
                f"{listed(splits)}, and slices such as 'train[:90%]'"
            ) from None
        runs = [(part.splitname, range(splits[part.splitname].num_examples)[part.from_ : part.to]) for part in parts]
        if not any(places for _, places in runs):
            raise UserError(f'dataset.{name}={spec!r} has no examples; give a larger slice')
        return runs

    def _splits(self) -> Mapping[str, tfds.core.SplitInfo]:
        try:
            splits, digests = self._builder.info.splits, self._builder.info.metadata['sha256']
            known = set(splits) == set(digests)
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged('its description', first_line(error)) from None
        if not splits or not known:
            raise self._damaged('its description', 'dataset_info.json or metadata.json is missing or incomplete')
        return splits

    def _whole_split(self, name: str) -> Split:
        if name not in self._whole:
            self._whole[name] = self._read(name)
        return self._whole[name]

    def _read(self, name: str) -> Split:
        builder = self._builder
        try:
            split = _decode(builder.as_data_source(split=name))
        except Exception as error:  # array_record and protobuf raise what they like for a damaged file.
            raise self._damaged(f'split {name!r}', first_line(error)) from None
        if builders.digest(split.image, split.label) != builder.info.metadata['sha256'].get(name):
            raise self._damaged(f'split {name!r}', 'its contents are not those that were prepared (sha256)')
        return split

    def _damaged(self, part: str, reason: str) -> UserError:
        path = str(self._path)
        return UserError(f'the prepared {self.name} is damaged, {part}: {reason}; remove {path!r} and run again')


def _decode(data_source: Sequence) -> Split:
    """All examples of a TFDS data source as two arrays."""
    records = data_source.data_source.__getitems__(range(len(data_source)))
    split = _cut(records, first=data_source[0])
    if split is None:
        examples = data_source.__getitems__(range(len(data_source)))
        images, labels = zip(*((example['image'], example['label']) for example in examples), strict=True)
        split = Split(np.stack(images), np.array(labels, np.int32))
    return split


def _cut(records: Sequence[bytes], first: dict[str, np.ndarray]) -> Split | None:
    """Cut images and labels out of serialised examples that differ in nothing else, or None where they do.

    TFDS takes 60 us to decode an example, this 1 us: the first example, decoded by TFDS, shows where its pixels lie,
    and beside them one byte alone may differ between records, the label. `Source` checks the digest of the result.
    """
    pixels = first['image'].tobytes()
    start = records[0].find(pixels)
    if any(len(record) != len(records[0]) for record in records) or start != records[0].rfind(pixels):
        return None
    rows = np.frombuffer(b''.join(records), np.uint8).reshape(len(records), -1)
    around = np.delete(rows, np.s_[start : start + len(pixels)], axis=1)
    varying = np.flatnonzero((around != around[0]).any(axis=0))
    if len(varying) != 1 or around[0, varying[0]] != first['label']:
        return None
    images = rows[:, start : start + len(pixels)].reshape(-1, *first['image'].shape)
    return Split(np.ascontiguousarray(images), around[:, varying[0]].astype(np.int32))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, 'w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


SOURCES = {name: functools.partial(Source, name, builder) for name, builder in builders.BUILDERS.items()}
