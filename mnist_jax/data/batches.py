"""Host batches {image, label, mask, index}: padded to one size, in an order that only (seed, epoch) decides."""

from collections.abc import Iterator

import numpy as np

from mnist_jax.data.records import Split

Batch = dict[str, np.ndarray]
"""image: uint8 BxHxWxC; label: int32 B; mask: float32 B, 0 for padding; index: int32 B, the place in the split."""


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of the examples in an epoch."""
    return np.random.default_rng((seed, epoch)).permutation(count).astype(np.int32)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """How many batches hold `count` examples; the last one may be smaller."""
    return -(-count // batch_size)


def train_batches(split: Split, seed: int, epoch: int, batch_size: int, padded_size: int) -> Iterator[Batch]:
    """The batches of an epoch, each of `padded_size` rows of which at most `batch_size` are examples."""
    return _batches(split, permutation(seed, epoch, len(split.label)), batch_size, padded_size)


def eval_batches(split: Split, batch_size: int) -> Iterator[Batch]:
    """Every example once, in order."""
    return _batches(split, np.arange(len(split.label), dtype=np.int32), batch_size, batch_size)


def _batches(split: Split, order: np.ndarray, batch_size: int, padded_size: int) -> Iterator[Batch]:
    for start in range(0, len(order), batch_size):
        index = order[start : start + batch_size]
        padding = padded_size - len(index)
        yield {
            'image': _padded(split.image[index], padding),
            'label': _padded(split.label[index], padding),
            'mask': _padded(np.ones(len(index), np.float32), padding),
            'index': _padded(index, padding),
        }


def _padded(rows: np.ndarray, padding: int) -> np.ndarray:
    return np.pad(rows, [(0, padding)] + [(0, 0)] * (rows.ndim - 1)) if padding else rows
