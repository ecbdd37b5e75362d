"""The serialised examples of a prepared split, as arrays."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """The examples of a split in the order of their files."""

    image: np.ndarray  # uint8 NxHxWxC
    label: np.ndarray  # int32 N


def decode(data_source: Sequence) -> Split:
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
