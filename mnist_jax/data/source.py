"""The training, validation and test examples of a run, as parts of a prepared dataset."""

import copy
import functools
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from mnist_jax.data import (
    batches,
    characters,
    color_images,
    csv_builder,
    digits,
    idx_builders,
    idx_folder,
    image_folder,
    kaggle,
    npz,
    parquet,
    partition,
    tfds_folder,
)
from mnist_jax.data.builder import ArrayBuilder, Description, OpenBuilder
from mnist_jax.data.normalization import Normalization, measure
from mnist_jax.data.prepared import PreparedDataset
from mnist_jax.data.records import Examples
from mnist_jax.errors import UserError, check_fraction, check_integer
from mnist_jax.factory import Finite


class Overlap(NamedTuple):
    """The number of examples that two splits share; if both are the same, of those that it holds more than once."""

    first: str
    second: str
    examples: int


class Source:
    """A dataset, and the parts of it that a run uses for training, validation and testing.

    Validation examples come from `validation`, `validation_fraction` or `fold`; a source without any of these has no
    validation split.

    Args:
      name, make_builder, data_dir, raw_dir: See `PreparedDataset`.
      train: The training split in TFDS's slicing notation, such as 'train[:90%]'.
      validation: The validation split in the same notation; '' for none.
      test: The test split in the same notation.
      validation_fraction: The fraction of `train` to draw at random for validation; 0 for none.
      split_seed: Seed of all random splits.
      in_memory: Whether to read the examples into memory; otherwise they stay on disk and are read on demand.
      normalize: 'unit' divides pixels by the largest pixel value; 'standard' also subtracts the mean of each channel of
        the training split, and divides by its standard deviation; 'none' leaves pixels as they are.
      balance: 'loss' weights the loss of an example by the inverse size of its class; 'sampling' draws equally many
        examples of each class for an epoch; 'none' does neither.
      class_weights: Factors of the loss of each class; () for 1.
      on_device: Whether to keep the examples in the memory of the devices; 'auto': on accelerators, if they fit.
      fold: (N, count): validate on fold N, from 1, of `count` stratified folds of `train`, and train on the others.
      options, description: See `PreparedDataset`.
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
        on_device: Literal['auto', 'on', 'off'] = 'auto',
        normalize: Literal['unit', 'standard', 'none'] = 'unit',
        balance: Literal['none', 'loss', 'sampling'] = 'none',
        class_weights: Sequence[Finite] = (),
        fold: tuple[int, int] | None = None,
        options: Mapping[str, Any] | None = None,
        description: Description | None = None,
    ):
        check_fraction('config.dataset.validation_fraction', validation_fraction)
        check_integer('config.dataset.split_seed', split_seed)
        selections = {
            'config.dataset.validation': validation,
            'config.dataset.validation_fraction': validation_fraction,
            'config.folds': fold,
        }
        selected = [field for field, value in selections.items() if value]
        if len(selected) > 1:
            raise UserError(
                f'{selected[0]} and {selected[1]} must not both select the validation examples; unset one of them '
                "('', 0.0 or 0)"
            )
        if on_device == 'on' and not in_memory:
            raise UserError("config.dataset.in_memory must be True if config.dataset.on_device is 'on', got False")
        self.name = name
        self.on_device = on_device if in_memory else 'off'
        self._normalize = normalize
        self._balance = balance
        self._class_weights = class_weights
        self.specs = {'train': train, 'validation': validation, 'test': test}
        self.validated = bool(selected)
        self.data = PreparedDataset(name, make_builder, data_dir, raw_dir, split_seed, options, description)
        self._fraction = validation_fraction
        self._split_seed = split_seed
        self._read: Callable[[str, str], Examples] = self.data.load if in_memory else self.data.stream
        self._fold = fold
        self._examples: dict[str, Examples] = {}

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width and channels of the images."""
        return self.data.description.image_shape

    @property
    def class_names(self) -> Sequence[str]:
        """The names of the classes, in the order of the labels."""
        return self.data.description.class_names

    @property
    def max_pixel(self) -> int:
        """The pixel value that maps to 1.0."""
        return self.data.description.max_pixel

    @functools.cached_property
    def normalization(self) -> Normalization:
        """How pixels become inputs; 'standard' reads the training split, unless the description is given."""
        description = self.data.description
        if self._normalize == 'none':
            return Normalization(1)
        if self._normalize == 'unit':
            return Normalization(description.max_pixel)
        if description.mean:
            return Normalization(description.max_pixel, description.mean, description.deviation)
        return measure(self.split('train'), description.max_pixel)

    @functools.cached_property
    def class_weights(self) -> np.ndarray | None:
        """The factor of the loss of each class, float32; None if all are 1.

        Weights that balance the classes have a mean of 1 over the training examples, N / (K n) for a class of n of the
        N examples, where K classes have examples. They are the 'balanced' weights of scikit-learn; the weight of a
        class without examples is 1.
        """
        count = len(self.class_names)
        if self._class_weights and len(self._class_weights) != count:
            raise UserError(
                f'config.dataset.class_weights must have one number for each of the {count} classes, or be (), got '
                f'{len(self._class_weights)} number(s)'
            )
        if self._class_weights and not any(self._class_weights):
            raise UserError('config.dataset.class_weights must not all be 0')
        if not self._class_weights and self._balance != 'loss':
            return None
        weights = np.array(self._class_weights or (1.0,) * count, np.float64)
        if self._balance == 'loss':
            sizes = np.bincount(self.split('train').label, minlength=count)
            weights *= np.where(sizes, sizes.sum() / (np.maximum(sizes, 1) * np.count_nonzero(sizes)), 1.0)
        return weights.astype(np.float32)

    @property
    def replaces(self) -> bool:
        """Whether the training examples of an epoch are drawn with replacement."""
        return self._balance == 'sampling'

    def train_order(self, seed: int, epoch: int) -> np.ndarray:
        """Returns the indices of the training examples of an epoch, from 0, in their order."""
        if self.replaces:
            return batches.balanced_order(self.split('train').label, seed, epoch)
        return batches.permutation(seed, epoch, self.count('train'))

    @property
    def description(self) -> Description:
        """What a model has to know of the dataset, with the measured normalization."""
        _, mean, deviation = self.normalization
        return self.data.description._replace(mean=mean, deviation=deviation)

    @property
    def split_names(self) -> tuple[str, ...]:
        """The names that `split` takes: train, validation (if `validated`) and test."""
        return ('train', 'validation', 'test') if self.validated else ('train', 'test')

    def split(self, name: str) -> Examples:
        """Returns the examples of one of the `split_names`; reads them at most once."""
        if name not in self._examples:
            indices = self._train_and_validation.get(name)
            if indices is None:
                self._examples[name] = self._read_configured(name)
            else:
                self._examples[name] = self._read_configured('train').subset(indices)
        return self._examples[name]

    def _read_configured(self, name: str) -> Examples:
        return self._read(f'config.dataset.{name}', self.specs[name])

    def read_slice(self, spec: str) -> Examples:
        """Returns the examples of any split in TFDS's slicing notation; error messages call it --split."""
        return self._read('--split', spec)

    def count(self, name: str) -> int:
        """Returns the number of examples of a split without reading them, unless there are folds."""
        if name in self._train_and_validation:
            return len(self._train_and_validation[name])
        return self.data.size(f'config.dataset.{name}', self.specs[name])

    def with_data_of(self, source: 'Source') -> 'Source':
        """Returns this source, except that it reads the prepared data of another one, which has the same digests."""
        other = copy.copy(self)
        other.data, other._read, other._examples = source.data, source._read, {}
        return other

    def overlaps(self, split: str | None = None) -> list[Overlap]:
        """Returns the overlaps of the training and validation examples and a split, without reading images.

        Args:
          split: The split; None for the test split of the config.
        """
        indices = {name: self.indices(name) for name in self.split_names if name != 'test' or split is None}
        if split not in (None, 'validation'):
            indices[f'--split={split}'] = self.data.indices('--split', split)
        counts = {name: np.bincount(array) for name, array in indices.items()}
        overlaps = [Overlap(name, name, int((count > 1).sum())) for name, count in counts.items()]
        for (first, count), (second, other) in itertools.combinations(counts.items(), 2):
            size = min(len(count), len(other))
            overlaps.append(Overlap(first, second, int(((count[:size] > 0) & (other[:size] > 0)).sum())))
        return [overlap for overlap in overlaps if overlap.examples]

    def doubts(self) -> list[str]:
        """Returns what may be wrong about the choice of the splits."""
        doubts = []
        if 'validation' in self.data.digests and self._fold is None:
            own = self.data.indices('config.dataset.validation', 'validation')
            if not any(np.isin(own, self.indices(name)).any() for name in self.split_names):
                doubts.append(
                    'the split validation of the dataset is not used; to use it, add '
                    '--config.dataset.validation=validation --config.dataset.validation_fraction=0.0'
                )
        if self._train_and_validation:
            parts = {name: set(self.split(name).label.tolist()) for name in ('train', 'validation')}
            for name, labels in parts.items():
                missing = sorted(set().union(*parts.values()) - labels)
                if missing:
                    names = ', '.join(self.class_names[label] for label in missing[:10])
                    doubts.append(f'no {name} example was drawn of the class{"es" * (len(missing) > 1)} {names}')
        return doubts

    def indices(self, name: str) -> np.ndarray:
        """Returns the index of each example of one of the `split_names` among all prepared examples."""
        drawn = self._train_and_validation.get(name)
        field = name if drawn is None else 'train'
        indices = self.data.indices(f'config.dataset.{field}', self.specs[field])
        return indices if drawn is None else indices[drawn]

    def positions_in_train(self, name: str) -> np.ndarray:
        """Returns the position in `config.dataset.train` of each example of a split that is drawn from it."""
        return self._train_and_validation[name]

    @functools.cached_property
    def _train_and_validation(self) -> dict[str, np.ndarray]:
        """The indices in `dataset.train` of both splits if validation examples are drawn from it; otherwise empty."""
        if self._fold is not None:
            number, count = self._fold
            folds = partition.assign_folds(self._read_configured('train').label, count, self._split_seed)
            if count > len(folds):
                raise UserError(
                    f'config.folds must be at most the {len(folds):,} examples of config.dataset.train, got {count}'
                )
            return {'train': np.flatnonzero(folds != number - 1), 'validation': np.flatnonzero(folds == number - 1)}
        if not self._fraction:
            return {}
        count = self.data.size('config.dataset.train', self.specs['train'])
        train, validation = partition.random_split(count, self._fraction, self._split_seed)
        if not len(train) or not len(validation):
            raise UserError(
                'config.dataset.validation_fraction must leave at least one example for training and one for '
                f'validation, got {self._fraction}, which leaves {len(train):,} and {len(validation):,} of {count:,} '
                'examples'
            )
        return {'train': train, 'validation': validation}


def source_of(name: str, make_builder: type[ArrayBuilder]) -> Callable[..., Source]:
    """Returns the constructor of a source; its arguments are those of `Source` and the options of an `OpenBuilder`."""
    constructor = functools.partial(Source, name, make_builder)
    declared = make_builder.options() if issubclass(make_builder, OpenBuilder) else {}

    def construct(*arguments: Any, **fields: Any) -> Source:
        options = {name: fields.pop(name, option.default) for name, option in declared.items()}
        return constructor(*arguments, **{**fields, 'options': options})

    shared = dict(inspect.signature(constructor, eval_str=True).parameters)
    del shared['options']
    construct.__signature__ = inspect.Signature([*shared.values(), *declared.values()])  # type: ignore[attr-defined]
    return construct


BUILDERS: dict[str, type[ArrayBuilder]] = {
    'mnist': idx_builders.MnistIdx,
    'fashion_mnist': idx_builders.FashionMnistIdx,
    'digits': digits.Digits,
    'kaggle_digits': kaggle.KaggleDigits,
    'emnist': characters.EmnistIdx,
    'kmnist': characters.KmnistIdx,
    'kuzushiji49': characters.Kuzushiji49Npz,
    'cifar10': color_images.Cifar10Binary,
    'cifar100': color_images.Cifar100Binary,
    'svhn_cropped': color_images.SvhnCroppedMat,
    'image_folder': image_folder.ImageFolder,
    'idx': idx_folder.IdxFolder,
    'csv': csv_builder.Csv,
    'npz': npz.Npz,
    'parquet': parquet.Parquet,
    'tfds': tfds_folder.TfdsFolder,
}
SOURCES = {name: source_of(name, builder) for name, builder in BUILDERS.items()}
