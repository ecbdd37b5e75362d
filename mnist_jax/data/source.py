"""A data set, prepared once under TFDS's data directory, and its splits as arrays in host memory."""

import contextlib
import fcntl
import functools
import io
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from mnist_jax import files
from mnist_jax.data import digits, idx_builders, kaggle, partition, records
from mnist_jax.data.builder import ArrayBuilder, digest
from mnist_jax.data.records import Split
from mnist_jax.errors import UserError, check_range, first_line, listed

NAMES = ('train', 'validation', 'test')  # what the examples of a run are for


class Source:
    """A prepared data set, and the parts of it that a run trains on, validates with and is tested on.

    Args:
      name: of the data set, as in the config.
      make_builder: its class of builders.
      data_dir: where prepared data sets live; '' is TFDS's own choice.
      raw_dir: where the raw files lie; '' is with the package, or the network.
      train, validation, test: splits by these names, in TFDS's slicing ('train[:90%]'); '' for no validation.
      validation_fraction: this share of `train`, drawn at random, is for validation instead; 0 for none.
      split_seed: of what is drawn at random.
      fold: (which, of how many): one such part of `train` in turn, stratified, is for validation instead.
    """

    def __init__(
        self,
        name: str,
        make_builder: type[ArrayBuilder],
        data_dir: str,
        raw_dir: str,
        train: str,
        validation: str,
        test: str,
        validation_fraction: float = 0.0,
        split_seed: int = 0,
        fold: tuple[int, int] | None = None,
    ):
        check_range('dataset.validation_fraction', validation_fraction, 0.0, math.nextafter(1.0, 0.0))
        check_range('dataset.split_seed', split_seed, 0, 2**31 - 1)
        chosen = {'dataset.validation': validation, 'dataset.validation_fraction': validation_fraction, 'folds': fold}
        ways = [field for field, value in chosen.items() if value]
        if len(ways) > 1:
            raise UserError(f'{ways[0]} and {ways[1]} both say what validates; leave one of them out')
        self.name = name
        self.specs = {'train': train, 'validation': validation, 'test': test}
        self.validated = bool(ways)
        self._make_builder = make_builder
        self._raw_dir = Path(raw_dir).expanduser() if raw_dir else None
        self._data_dir = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
        self._fraction = validation_fraction
        self._split_seed = split_seed
        self._fold = fold
        self._whole: dict[str, Split] = {}  # by the name of the prepared split
        self._parts: dict[str, Split | None] = {}  # by what they are for
        self.image_shape: tuple[int, ...] = make_builder.SHAPE
        self.class_names: Sequence[str] = make_builder.CLASS_NAMES
        self.max_pixel: int = make_builder.MAX_PIXEL

    @functools.cached_property
    def _path(self) -> Path:
        variant = self._make_builder.variant(self._raw_dir, self._split_seed)
        return self._data_dir / self._make_builder.name / variant / str(self._make_builder.VERSION)

    @functools.cached_property
    def _builder(self) -> ArrayBuilder:
        try:
            return self._make_builder(raw_dir=self._raw_dir, data_dir=str(self._data_dir), split_seed=self._split_seed)
        except UserError:
            raise
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
        """The examples that are for `name` (train, validation, test), or None where there is no validation."""
        if name not in self._parts:
            self._parts[name] = self._read_part(name)
        return self._parts[name]

    def _read_part(self, name: str) -> Split | None:
        if name in self._division:
            whole, places = self.slice('dataset.train', self.specs['train']), self._division[name]
            return Split(*(column[places] for column in whole))
        if name == 'validation' and not self.specs[name]:
            return None
        return self.slice(f'dataset.{name}', self.specs[name])

    def count(self, name: str) -> int:
        """How many examples are for `name` (train, test); reads none of them, but for folds."""
        if name in self._division:
            return len(self._division[name])
        return sum(len(places) for _, places in self._runs(f'dataset.{name}', self.specs[name]))

    @functools.cached_property
    def _division(self) -> dict[str, np.ndarray]:
        """Which examples of the configured `train` train, and which validate, where these are drawn from it."""
        if self._fold is not None:
            which, count = self._fold
            fold = partition.folds(self.slice('dataset.train', self.specs['train']).label, count, self._split_seed)
            if count > len(fold):
                raise UserError(f'config.folds={count} is more than the {len(fold):,} examples of dataset.train')
            return {'train': np.flatnonzero(fold != which - 1), 'validation': np.flatnonzero(fold == which - 1)}
        if not self._fraction:
            return {}
        count = sum(len(places) for _, places in self._runs('dataset.train', self.specs['train']))
        kept, drawn = partition.at_random(count, self._fraction, self._split_seed)
        if not len(drawn) or not len(kept):
            raise UserError(
                f'dataset.validation_fraction={self._fraction} of {count:,} examples leaves '
                f'{len(kept):,} to train on and {len(drawn):,} to validate with; at least one of each is wanted'
            )
        return {'train': kept, 'validation': drawn}

    def slice(self, field: str, spec: str) -> Split:
        """The examples of a split in TFDS's slicing; `field` is what an error calls it."""
        parts = [
            Split(*(column[places.start : places.stop] for column in self._whole_split(whole)))
            for whole, places in self._runs(field, spec)
        ]
        return Split(*map(np.concatenate, zip(*parts, strict=True))) if len(parts) > 1 else parts[0]

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
                f"{listed(splits)}, and slices such as 'train[:90%]'"
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

    def _whole_split(self, name: str) -> Split:
        if name not in self._whole:
            self._whole[name] = self._read(name)
        return self._whole[name]

    def _read(self, name: str) -> Split:
        builder = self._builder
        try:
            split = records.decode(builder.as_data_source(split=name))
        except Exception as error:  # array_record and protobuf raise what they like for a damaged file.
            raise self._damaged(f'split {name!r}', first_line(error)) from None
        if digest(split.image, split.label) != builder.info.metadata['sha256'].get(name):
            raise self._damaged(f'split {name!r}', 'its contents are not those that were prepared (sha256)')
        return split

    def _damaged(self, part: str, reason: str) -> UserError:
        path = str(self._path)
        return UserError(f'the prepared {self.name} is damaged, {part}: {reason}; remove {path!r} and run again')


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, 'w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


BUILDERS: dict[str, type[ArrayBuilder]] = {
    'mnist': idx_builders.MnistIdx,
    'fashion_mnist': idx_builders.FashionMnistIdx,
    'digits': digits.Digits,
    'kaggle_digits': kaggle.KaggleDigits,
}
SOURCES = {name: functools.partial(Source, name, builder) for name, builder in BUILDERS.items()}
