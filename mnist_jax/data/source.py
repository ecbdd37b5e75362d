"""What a run trains on, validates with and is tested on: parts of a prepared data set."""

import functools
from collections.abc import Sequence

import numpy as np

from mnist_jax.data import digits, idx_builders, kaggle, partition
from mnist_jax.data.builder import ArrayBuilder
from mnist_jax.data.images import Framing
from mnist_jax.data.prepared import Prepared
from mnist_jax.data.records import Examples
from mnist_jax.errors import UserError, check_fraction, check_integer

SPLITS = ('train', 'validation', 'test')  # what the examples of a run are for


class Source:
    """A data set, and the parts of it that a run trains on, validates with and is tested on.

    Args:
      name, make_builder, data_dir, raw_dir: as for `Prepared`.
      train, validation, test: splits by these names, in TFDS's slicing ('train[:90%]'); '' for no validation.
      validation_fraction: this share of `train`, drawn at random, is for validation instead; 0 for none.
      split_seed: of what is drawn at random.
      in_memory: whether the examples are read once, or stay on the disk and are read as they are needed.
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
        in_memory: bool = True,
        fold: tuple[int, int] | None = None,
    ):
        check_fraction('dataset.validation_fraction', validation_fraction)
        check_integer('dataset.split_seed', split_seed)
        chosen = {'dataset.validation': validation, 'dataset.validation_fraction': validation_fraction, 'folds': fold}
        ways = [field for field, value in chosen.items() if value]
        if len(ways) > 1:
            raise UserError(f"{ways[0]} and {ways[1]} both say what validates; leave one of them out: '', 0.0 or 0")
        self.name = name
        self.specs = {'train': train, 'validation': validation, 'test': test}
        self.validated = bool(ways)
        self.data = Prepared(name, make_builder, data_dir, raw_dir, split_seed)
        self._fraction = validation_fraction
        self._split_seed = split_seed
        self._read = self.data.slice if in_memory else self.data.stream
        self._fold = fold
        self._parts: dict[str, Examples | None] = {}
        self.image_shape: tuple[int, ...] = make_builder.SHAPE
        self.class_names: Sequence[str] = make_builder.CLASS_NAMES
        self.max_pixel: int = make_builder.MAX_PIXEL
        self.framing: Framing = make_builder.FRAMING

    def split(self, name: str) -> Examples | None:
        """The examples that are for `name` (train, validation, test), or None where there is no validation."""
        if name not in self._parts:
            self._parts[name] = self._read_part(name)
        return self._parts[name]

    def other(self, spec: str) -> Examples:
        """The examples of another split, in TFDS's slicing, as --split says it."""
        return self._read('--split', spec)

    def _read_part(self, name: str) -> Examples | None:
        if name in self._division:
            return self._read('dataset.train', self.specs['train']).part(self._division[name])
        if name == 'validation' and not self.specs[name]:
            return None
        return self._read(f'dataset.{name}', self.specs[name])

    def count(self, name: str) -> int:
        """How many examples are for `name` (train, test); reads none of them, but for folds."""
        if name in self._division:
            return len(self._division[name])
        return self.data.size(f'dataset.{name}', self.specs[name])

    @functools.cached_property
    def _division(self) -> dict[str, np.ndarray]:
        """Which examples of the configured `train` train, and which validate, where these are drawn from it."""
        if self._fold is not None:
            which, count = self._fold
            fold = partition.folds(self._read('dataset.train', self.specs['train']).label, count, self._split_seed)
            if count > len(fold):
                raise UserError(f'config.folds={count} is more than the {len(fold):,} examples of dataset.train')
            return {'train': np.flatnonzero(fold != which - 1), 'validation': np.flatnonzero(fold == which - 1)}
        if not self._fraction:
            return {}
        count = self.data.size('dataset.train', self.specs['train'])
        kept, drawn = partition.at_random(count, self._fraction, self._split_seed)
        if not len(drawn) or not len(kept):
            raise UserError(
                f'dataset.validation_fraction={self._fraction} of {count:,} examples leaves '
                f'{len(kept):,} to train on and {len(drawn):,} to validate with; at least one of each is wanted'
            )
        return {'train': kept, 'validation': drawn}


BUILDERS: dict[str, type[ArrayBuilder]] = {
    'mnist': idx_builders.MnistIdx,
    'fashion_mnist': idx_builders.FashionMnistIdx,
    'digits': digits.Digits,
    'kaggle_digits': kaggle.KaggleDigits,
}
SOURCES = {name: functools.partial(Source, name, builder) for name, builder in BUILDERS.items()}
