"""Host batches {image, label, mask, index}: padded to one size, in an order that only (seed, epoch) decides."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mnist_jax.data.records import Examples, Split

Batch = dict[str, np.ndarray]
"""image: uint8 BxHxWxC; label: int32 B; mask: float32 B, 0 for padding; index: int32 B, the place in the split."""

# How examples are read from the disk: so many in one go, by so many threads, so many goes ahead of the training.
# With more of either, memory varies more; with smaller goes, reading costs the CNN a tenth of its speed on two cores.
READ_AT_ONCE, READERS, READ_AHEAD = 2048, 1, 2


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of the examples in an epoch."""
    return np.random.default_rng((seed, epoch)).permutation(np.arange(count, dtype=np.int32))


def steps_per_epoch(count: int, batch_size: int) -> int:
    """How many batches hold `count` examples; the last one may be smaller."""
    return -(-count // batch_size)


def train_batches(
    examples: Examples, seed: int, epoch: int, batch_size: int, padded_size: int, rows: slice, first: int = 0
) -> Iterator[Batch]:
    """The batches of an epoch, each of `padded_size` rows of which at most `batch_size` are examples.

    Only their `rows` are loaded: the share of this process. `first` is the batch, from 0, to begin with.
    """
    order = permutation(seed, epoch, examples.size)[first * batch_size :]
    return _batches(examples, order, batch_size, padded_size, rows)


def eval_batches(examples: Examples, batch_size: int, padded_size: int, rows: slice) -> Iterator[Batch]:
    """Every example once, in order; else as `train_batches`."""
    return _batches(examples, np.arange(examples.size, dtype=np.int32), batch_size, padded_size, rows)


def _batches(examples: Examples, order: np.ndarray, batch_size: int, padded_size: int, rows: slice) -> Iterator[Batch]:
    share = len(range(padded_size)[rows])
    indices = [order[start : start + batch_size][rows] for start in range(0, len(order), batch_size)]
    for index, split in zip(indices, _read(examples, indices), strict=True):
        padding = share - len(index)
        yield {
            'image': padded(split.image, padding),
            'label': padded(split.label, padding),
            'mask': padded(np.ones(len(index), np.float32), padding),
            'index': padded(index, padding),
        }


def padded(rows: np.ndarray, padding: int) -> np.ndarray:
    """The rows, and so many of zeros after them."""
    return np.pad(rows, [(0, padding)] + [(0, 0)] * (rows.ndim - 1)) if padding else rows


def _read(examples: Examples, indices: Sequence[np.ndarray]) -> Iterator[Split]:
    """The examples at each of `indices`; from the disk, those of several batches in one go and ahead of their use."""
    if isinstance(examples, Split):
        yield from map(examples.take, indices)
        return
    batches = -(-READ_AT_ONCE // max([1, *map(len, indices[:1])]))  # There are none left where all were trained.
    groups = [indices[start : start + batches] for start in range(0, len(indices), batches)]
    for group, split in zip(groups, _ahead(lambda group: examples.take(np.concatenate(group)), groups), strict=True):
        ends = np.cumsum([len(index) for index in group])
        for index, end in zip(group, ends, strict=True):
            yield split.take(slice(end - len(index), end))


def _ahead(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """`map(function, items)`, computed by threads some items ahead."""
    with concurrent.futures.ThreadPoolExecutor(READERS) as readers:
        pending: collections.deque[concurrent.futures.Future] = collections.deque()
        for item in items:
            pending.append(readers.submit(function, item))
            if len(pending) > READ_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
