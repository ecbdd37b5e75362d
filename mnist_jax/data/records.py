"""Examples of prepared splits: as arrays in memory, or on disk and read on demand."""

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from array_record.python import array_record_module

SAMPLE_SIZE = 256  # records that are compared to find the layout of all records
BLOCK_SIZE = 4096  # records per read
SEQUENTIAL = 'readahead_buffer_size:0,max_parallelism:0'  # options to read whole files: the defaults take twice as long

Indices = np.ndarray | slice
"""Integer indices of examples, or a slice of them."""


class Split(NamedTuple):
    """Examples in memory, in file order."""

    image: np.ndarray  # uint8 NxHxWxC
    label: np.ndarray  # int32 N

    @property
    def size(self) -> int:
        """The number of examples."""
        return len(self.label)

    def take(self, indices: Indices) -> 'Split':
        """Returns the examples at `indices`."""
        return Split(self.image[indices], self.label[indices])

    def subset(self, indices: Indices) -> 'Split':
        """Returns the examples at `indices`, in memory like these; see `Stream.subset`."""
        return self.take(indices)

    @property
    def sha256(self) -> str:
        """The digest of all pixels, followed by all labels."""
        return _digest([self])


class Stream:
    """Examples on disk, from one or more prepared splits."""

    def __init__(self, files: Sequence['RecordFiles'], indices: np.ndarray):
        """`indices` are the positions of the examples in the concatenation of `files`."""
        self._files = files
        self._ends = np.cumsum([len(file) for file in files])
        self._indices = indices

    @property
    def size(self) -> int:
        """The number of examples."""
        return len(self._indices)

    def take(self, indices: Indices) -> Split:
        """Reads the examples at `indices` into memory."""
        file_indices = self._indices[indices]
        if not len(file_indices):
            return self.take(np.array([0])).take(slice(0))
        file_numbers = np.searchsorted(self._ends, file_indices, side='right')
        parts = []
        for number in np.unique(file_numbers):
            start = self._ends[number] - len(self._files[number])
            parts.append(self._files[number].read(file_indices[file_numbers == number] - start))
        if len(parts) == 1:
            return parts[0]
        order = np.argsort(np.argsort(file_numbers, kind='stable'), kind='stable')
        return Split(*(np.concatenate(arrays)[order] for arrays in zip(*parts, strict=True)))

    def subset(self, indices: Indices) -> 'Stream':
        """Returns the examples at `indices` without reading them."""
        return Stream(self._files, self._indices[indices])

    @property
    def label(self) -> np.ndarray:
        """The label of every example, int32 N; reads all examples."""
        return self._labels_and_sha256[0]

    @property
    def sha256(self) -> str:
        """The same digest as `Split.sha256`; reads all examples."""
        return self._labels_and_sha256[1]

    @functools.cached_property
    def _labels_and_sha256(self) -> tuple[np.ndarray, str]:
        labels = []

        def blocks() -> Iterator[Split]:
            for start in range(0, self.size, BLOCK_SIZE):
                block = self.take(slice(start, start + BLOCK_SIZE))
                labels.append(block.label)
                yield block

        sha256 = _digest(blocks())
        return np.concatenate(labels), sha256


Examples = Split | Stream


def _digest(blocks: Iterable[Split]) -> str:
    digest, labels = hashlib.sha256(), []
    for block in blocks:
        digest.update(np.ascontiguousarray(block.image).data)
        labels.append(block.label.astype(np.uint8))
    digest.update(np.concatenate(labels).data)
    return digest.hexdigest()


class RawRecords(Protocol):
    """The serialized examples of a `DataSource`."""

    def __getitems__(self, indices: Sequence[int]) -> Sequence[bytes]: ...


class DataSource(Protocol):
    """The part of TFDS's random-access data source that this module uses."""

    data_source: RawRecords

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Mapping[str, np.ndarray]: ...
    def __getitems__(self, indices: Sequence[int]) -> Sequence[Mapping[str, np.ndarray]]: ...


class _Layout(NamedTuple):
    """The positions of image and label in a serialized example."""

    start: int  # of the pixels
    shape: tuple[int, ...]  # of the image
    label: int  # index of the label among the bytes around the pixels
    around: np.ndarray  # these bytes; except for the label, they are the same in all examples

    @property
    def pixels(self) -> slice:
        return np.s_[self.start : self.start + math.prod(self.shape)]


class RecordFiles:
    """The files of a prepared split, with random access."""

    def __init__(
        self, paths: Sequence[str], open_files: Callable[[], DataSource], damaged: Callable[[Exception], Exception]
    ):
        """Opens the files.

        Args:
          paths: The files, in order.
          open_files: Returns TFDS's data source of the split.
          damaged: Returns the error to raise in place of an exception from TFDS or the libraries that it uses.
        """
        self._paths, self._damaged = paths, damaged
        try:
            self._source = open_files()
            sample = np.linspace(0, len(self) - 1, SAMPLE_SIZE)
            self._layout = _find_layout(self._read_records(sample), self._source[0])
        except Exception as error:
            raise damaged(error) from None

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: np.ndarray) -> Split:
        """Reads the examples at `indices`, in this order."""
        try:
            split = self._extract(self._read_records(indices))
            return self._decode(indices) if split is None else split
        except Exception as error:
            raise self._damaged(error) from None

    def read_all(self) -> Split:
        """Reads all examples in order, faster than `read`, which looks up every record."""
        try:
            readers = [array_record_module.ArrayRecordReader(path, options=SEQUENTIAL) for path in self._paths]
            split = self._extract([record for reader in readers for record in reader.read_all()])
            return self._decode(np.arange(len(self))) if split is None else split
        except Exception as error:
            raise self._damaged(error) from None

    def _read_records(self, indices: np.ndarray) -> Sequence[bytes]:
        return self._source.data_source.__getitems__(indices.astype(int).tolist())

    def _decode(self, indices: np.ndarray) -> Split:
        examples = self._source.__getitems__(indices.tolist())
        images, labels = zip(*((example['image'], example['label']) for example in examples), strict=True)
        return Split(np.stack(images), np.array(labels, np.int32))

    def _extract(self, records: Sequence[bytes]) -> Split | None:
        """Extracts images and labels from records; returns None if one of them does not have the common layout.

        TFDS takes 60 us to decode an example; this takes 1 us. The bytes around the pixels, except for the label, must
        match the layout.
        """
        layout = self._layout
        if layout is None:
            return None
        length = len(layout.around) + math.prod(layout.shape)
        if any(len(record) != length for record in records):
            return None
        rows = np.frombuffer(b''.join(records), np.uint8).reshape(len(records), length)
        around = np.delete(rows, layout.pixels, axis=1)
        if (np.delete(around != layout.around, layout.label, axis=1)).any():
            return None
        images = rows[:, layout.pixels].reshape(-1, *layout.shape)
        return Split(np.ascontiguousarray(images), around[:, layout.label].astype(np.int32))


def _find_layout(records: Sequence[bytes], first_example: Mapping[str, np.ndarray]) -> _Layout | None:
    """Returns the layout of records that differ only in their pixels and in one other byte, the label.

    Args:
      records: Serialized examples.
      first_example: The first of them, decoded.

    Returns:
      None if the records differ in other ways, or if the layout is ambiguous.
    """
    pixels = first_example['image'].tobytes()
    start = records[0].find(pixels)
    if any(len(record) != len(records[0]) for record in records) or start != records[0].rfind(pixels):
        return None
    rows = np.frombuffer(b''.join(records), np.uint8).reshape(len(records), -1)
    around = np.delete(rows, np.s_[start : start + len(pixels)], axis=1)
    varying = np.flatnonzero((around != around[0]).any(axis=0))
    if len(varying) != 1 or around[0, varying[0]] != first_example['label']:
        return None
    return _Layout(start, first_example['image'].shape, int(varying[0]), around[0])
