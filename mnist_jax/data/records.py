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
        labels.append(block.label)
    array = np.concatenate(labels)
    digest.update(array.astype(np.uint8 if array.max(initial=0) < 256 else np.int32).data)
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
    """The positions of image and label in the serialized examples of one length."""

    start: int  # of the pixels
    shape: tuple[int, ...]  # of the image
    label: slice  # of the label among the bytes around the pixels, in a protocol buffer's variable length
    around: np.ndarray  # these bytes; except for the label, they are the same in all examples

    @property
    def pixels(self) -> slice:
        return np.s_[self.start : self.start + math.prod(self.shape)]

    def extract(self, records: Sequence[bytes]) -> Split | None:
        """Extracts images and labels from records of the same length; returns None if one has another layout."""
        rows = np.frombuffer(b''.join(records), np.uint8).reshape(len(records), -1)
        around = np.delete(rows, self.pixels, axis=1)
        if (np.delete(around != self.around, self.label, axis=1)).any():
            return None
        label_bytes = around[:, self.label].astype(np.int32)
        # Each byte has seven bits of the number, the lowest first, and says in its highest bit whether another follows.
        follows = label_bytes >> 7
        if (follows != (np.arange(follows.shape[1]) < follows.shape[1] - 1)).any():
            return None
        labels = ((label_bytes & 127) << (7 * np.arange(follows.shape[1]))).sum(1, dtype=np.int32)
        images = rows[:, self.pixels].reshape(-1, *self.shape)
        return Split(np.ascontiguousarray(images), labels)


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
            self._layouts = self._find_layouts()
        except Exception as error:
            raise damaged(error) from None

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: np.ndarray) -> Split:
        """Reads the examples at `indices`, in this order."""
        try:
            split = self._extract(self._read_records(indices))
            return self.decode(indices) if split is None else split
        except Exception as error:
            raise self._damaged(error) from None

    def read_all(self) -> Split:
        """Reads all examples in order, faster than `read`, which looks up every record."""
        try:
            readers = [array_record_module.ArrayRecordReader(path, options=SEQUENTIAL) for path in self._paths]
            split = self._extract([record for reader in readers for record in reader.read_all()])
            return self.decode(np.arange(len(self))) if split is None else split
        except Exception as error:
            raise self._damaged(error) from None

    def _read_records(self, indices: np.ndarray) -> Sequence[bytes]:
        return self._source.data_source.__getitems__(indices.astype(int).tolist())

    def _find_layouts(self) -> dict[int, _Layout]:
        """Returns the layouts of a sample of the records, by their lengths."""
        indices = np.linspace(0, len(self) - 1, SAMPLE_SIZE).astype(int)
        records = self._read_records(indices)
        by_length: dict[int, list[int]] = {}
        for position, record in enumerate(records):
            by_length.setdefault(len(record), []).append(position)
        layouts = {
            length: _find_layout(
                [records[position] for position in positions], self._source[int(indices[positions[0]])]
            )
            for length, positions in by_length.items()
        }
        return {length: layout for length, layout in layouts.items() if layout is not None}

    def decode(self, indices: np.ndarray) -> Split:
        """Reads the examples at `indices`, decoded by TFDS."""
        examples = self._source.__getitems__(indices.tolist())
        images, labels = zip(*((example['image'], example['label']) for example in examples), strict=True)
        return Split(np.stack(images), np.array(labels, np.int32))

    def _extract(self, records: Sequence[bytes]) -> Split | None:
        """Extracts images and labels from records; returns None if one of them does not have a known layout.

        TFDS takes 60 us to decode an example; this takes 1 us. The bytes around the pixels, except for the label, must
        match the layout of their length.
        """
        lengths = np.array([len(record) for record in records])
        parts, positions = [], []
        for length in np.unique(lengths):
            layout = self._layouts.get(int(length))
            indices = np.flatnonzero(lengths == length)
            part = layout and layout.extract(
                records if len(indices) == len(records) else [records[index] for index in indices.tolist()]
            )
            if part is None:
                return None
            parts.append(part)
            positions.append(indices)
        if len(parts) == 1:
            return parts[0]
        order = np.argsort(np.concatenate(positions))
        return Split(*(np.concatenate(arrays)[order] for arrays in zip(*parts, strict=True)))


def _find_layout(records: Sequence[bytes], first_example: Mapping[str, np.ndarray]) -> _Layout | None:
    """Returns the layout of records of one length that differ only in their pixels and in the label.

    Args:
      records: Serialized examples.
      first_example: The first of them, decoded.

    Returns:
      None if the records differ in other ways, or if the layout is ambiguous.
    """
    pixels = first_example['image'].tobytes()
    start = records[0].find(pixels)
    if start < 0 or start != records[0].rfind(pixels):
        return None
    rows = np.frombuffer(b''.join(records), np.uint8).reshape(len(records), -1)
    around = np.delete(rows, np.s_[start : start + len(pixels)], axis=1)
    varying = np.flatnonzero((around != around[0]).any(axis=0))
    number = int(first_example['label'])
    label_bytes = bytes([number]) if number < 128 else bytes([number & 127 | 128, number >> 7])
    text = around[0].tobytes()
    # The label starts at the first varying byte, or one before it if only its second byte varies.
    places = [place for place in range(len(text)) if text[place : place + len(label_bytes)] == label_bytes]
    places = [
        place for place in places if len(varying) and place <= varying[0] and varying[-1] < place + len(label_bytes)
    ]
    if len(places) != 1:
        return None
    return _Layout(start, first_example['image'].shape, np.s_[places[0] : places[0] + len(label_bytes)], around[0])
