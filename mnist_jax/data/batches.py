"""Host batches {image, label, mask, index}, padded to a fixed size, in an order that depends only on (seed, epoch)."""

import collections
import concurrent.futures
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from mnist_jax.data.records import Examples, Split

T = TypeVar('T')
R = TypeVar('R')

Batch = dict[str, np.ndarray]
"""image: uint8 BxHxWxC; label: int32 B; mask: float32 B, 0 for padding; index: int32 B, the index in the split.

The padding consists of copies of the first example of the split. Without image and label if the examples are on the
devices. If examples are drawn with replacement, also occurrence: int32 B, how often the example was drawn before in the
epoch.
"""

# How examples on disk are read: examples per read, threads, and reads to prefetch. Higher values make memory use vary
# more; with smaller reads, the CNN trains 10% slower on two cores.
READ_SIZE, READ_THREADS, READ_AHEAD = 2048, 1, 2


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """Returns the order of the examples in an epoch, int32."""
    return np.random.default_rng((seed, epoch)).permutation(np.arange(count, dtype=np.int32))


def balanced_order(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Returns the order of as many examples as there are, with equally many of each class, int32.

    The examples of a class come from an endless sequence of its permutations, of which each epoch takes the next part.
    So all examples of a class are used equally often, up to one.

    Args:
      labels: The label of each example.
      seed: Seed of the order.
      epoch: Number of the epoch, from 0.
    """
    classes, parts = np.unique(labels), []
    for number, label in enumerate(classes):
        indices = np.flatnonzero(labels == label).astype(np.int32)
        share = len(labels) // len(classes) + (number < len(labels) % len(classes))
        first, last = epoch * share, (epoch + 1) * share
        rounds = range(first // len(indices), -(-last // len(indices)))
        shuffled = [np.random.default_rng((seed, int(label), turn)).permutation(indices) for turn in rounds]
        start = first - rounds.start * len(indices)
        parts.append(np.concatenate(shuffled)[start : start + share])
    return np.random.default_rng((seed, epoch)).permutation(np.concatenate(parts))


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Returns the number of batches that hold `count` examples; the last one may be smaller."""
    return -(-count // batch_size)


def train_batches(
    examples: Examples,
    order: np.ndarray,
    batch_size: int,
    padded_size: int,
    rows: slice,
    first: int = 0,
    on_device: bool = False,
    replaced: bool = False,
) -> Iterator[Batch]:
    """Yields the batches of an epoch.

    Args:
      examples: The training split.
      order: The indices of the examples, in the order of the epoch.
      batch_size: Examples per batch; the last batch may have fewer.
      padded_size: Rows per batch: the examples, followed by padding.
      rows: The rows of each batch that this process loads; only these are yielded.
      first: Index of the first batch to yield, from 0.
      on_device: Whether to yield no images and labels, because the examples are on the devices.
      replaced: Whether `order` has examples several times, so that the batches say the occurrence of each.
    """
    columns = {'index': order, **({'occurrence': occurrences(order)} if replaced else {})}
    columns = {name: column[first * batch_size :] for name, column in columns.items()}
    return _batches(examples, columns, batch_size, padded_size, rows, on_device)


def occurrences(order: np.ndarray) -> np.ndarray:
    """Returns for each element how often it occurs before, int32."""
    by_value = np.argsort(order, kind='stable')
    _, starts = np.unique(order[by_value], return_index=True)
    counts = np.diff([*starts, len(order)])
    result = np.empty(len(order), np.int32)
    result[by_value] = np.arange(len(order)) - np.repeat(starts, counts)
    return result


def eval_batches(
    examples: Examples, batch_size: int, padded_size: int, rows: slice, on_device: bool = False
) -> Iterator[Batch]:
    """Yields every example once, in order; see `train_batches` for the arguments."""
    columns = {'index': np.arange(examples.size, dtype=np.int32)}
    return _batches(examples, columns, batch_size, padded_size, rows, on_device)


def _batches(
    examples: Examples, columns: Batch, batch_size: int, padded_size: int, rows: slice, on_device: bool
) -> Iterator[Batch]:
    """Yields the batches of the examples whose `index` is in `columns`, in this order."""
    local_size = len(range(padded_size)[rows])
    starts = range(0, len(columns['index']), batch_size)

    def local(column: np.ndarray, start: int) -> np.ndarray:
        part = column[start : start + batch_size][rows]
        return pad_rows(part, local_size - len(part))

    # The batches of an epoch are made one by one: millions of examples may have to stay on disk.
    indices = (local(columns['index'], start) for start in starts)
    splits = itertools.repeat(None, len(starts)) if on_device else _read(examples, indices, local_size)
    mask = np.broadcast_to(np.float32(1), len(columns['index']))  # takes no memory
    for start, split in zip(starts, splits, strict=True):
        batch = {name: local(column, start) for name, column in (('mask', mask), *columns.items())}
        yield batch if split is None else batch | split._asdict()


def pad_rows(array: np.ndarray, padding: int) -> np.ndarray:
    """Appends `padding` rows of zeros."""
    if not padding:
        return array
    padded = np.zeros((len(array) + padding, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded


def _read(examples: Examples, indices: Iterator[np.ndarray], size: int) -> Iterator[Split]:
    """Yields the examples of each batch of `size` examples; on disk, prefetches them, several batches per read."""
    if isinstance(examples, Split):
        yield from map(examples.take, indices)
        return
    batches_per_read = -(-READ_SIZE // size)
    groups = iter(lambda: list(itertools.islice(indices, batches_per_read)), [])
    for split in _map_ahead(lambda group: examples.take(np.concatenate(group)), groups):
        for start in range(0, len(split.label), size):
            yield split.take(slice(start, start + size))


def _map_ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yields `map(function, items)`, computed by threads up to `READ_AHEAD` items ahead."""
    with concurrent.futures.ThreadPoolExecutor(READ_THREADS) as executor:
        pending: collections.deque[concurrent.futures.Future[R]] = collections.deque()
        for item in items:
            pending.append(executor.submit(function, item))
            if len(pending) > READ_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
