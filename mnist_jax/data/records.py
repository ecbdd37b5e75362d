"""The examples of a prepared split: as arrays in memory, or on the disk and read as they are needed."""

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

SAMPLE = 256  # records that show how all are laid out
BLOCK = 4096  # records that are read in one go


class Split(NamedTuple):
    """Examples in memory, in the order of their files."""

    image: np.ndarray  # uint8 NxHxWxC
    label: np.ndarray  # int32 N

    @property
    def size(self) -> int:
        """How many examples there are."""
        return len(self.label)

    def take(self, places: np.ndarray) -> 'Split':
        """Those examples."""
        return Split(self.image[places], self.label[places])

    part = take

    @property
    def sha256(self) -> str:
        """The digest of all pixels, then of all labels."""
        return _digest([self])


class Stream:
    """Examples on the disk, of one or several prepared splits one after the other."""

    def __init__(self, files: Sequence['RecordFiles'], places: np.ndarray):
        """`places` count through `files`, one after the other."""
        self._files = files
        self._ends = np.cumsum([len(file) for file in files])
        self._places = places

    @property
    def size(self) -> int:
        """How many examples there are."""
        return len(self._places)

    def take(self, places: np.ndarray) -> Split:
        """Those examples, read into memory."""
        found = self._places[places]
        if not len(found):
            return self.take(np.array([0])).take(slice(0))
        which = np.searchsorted(self._ends, found, side='right')
        parts = []
        for number in np.unique(which):
            first = self._ends[number] - len(self._files[number])
            parts.append(self._files[number].read(found[which == number] - first))
        if len(parts) == 1:
            return parts[0]
        order = np.argsort(np.argsort(which, kind='stable'), kind='stable')
        return Split(*(np.concatenate(columns)[order] for columns in zip(*parts, strict=True)))

    def part(self, places: np.ndarray) -> 'Stream':
        """Those examples, left where they are."""
        return Stream(self._files, self._places[places])

    @property
    def label(self) -> np.ndarray:
        """The label of every example, int32 N; all are read for it."""
        return self._labels_and_sha256[0]

    @property
    def sha256(self) -> str:
        """As of `Split`; all examples are read for it."""
        return self._labels_and_sha256[1]

    @functools.cached_property
    def _labels_and_sha256(self) -> tuple[np.ndarray, str]:
        labels = []

        def blocks() -> Iterator[Split]:
            for start in range(0, self.size, BLOCK):
                block = self.take(np.arange(start, min(start + BLOCK, self.size)))
                labels.append(block.label)
                yield block

        sha256 = _digest(blocks())
        return np.concatenate(labels), sha256


Examples = Split | Stream


def _digest(blocks: Iterable[Split]) -> str:
    found, labels = hashlib.sha256(), []
    for block in blocks:
        found.update(np.ascontiguousarray(block.image))
        labels.append(block.label.astype(np.uint8))
    found.update(np.concatenate(labels))
    return found.hexdigest()


class _Layout(NamedTuple):
    """Where image and label lie in a serialised example."""

    start: int  # of the pixels
    shape: tuple[int, ...]  # of the image
    label: int  # its place among the bytes around the pixels
    around: np.ndarray  # these bytes; but for the label, they are those of every example

    @property
    def pixels(self) -> slice:
        return np.s_[self.start : self.start + math.prod(self.shape)]


class RecordFiles:
    """The files of a prepared split, read at random places."""

    def __init__(self, open_files: Callable[[], Sequence], damaged: Callable[[Exception], Exception]):
        """`open_files` gives TFDS's data source; `damaged` what to raise in place of whatever its libraries raise."""
        self._damaged = damaged
        try:
            self._examples = open_files()
            self._records = self._examples.data_source
            sample = np.linspace(0, len(self) - 1, SAMPLE)
            self._layout = _find_layout(self._read(sample), self._examples[0])
        except Exception as error:
            raise damaged(error) from None

    def __len__(self) -> int:
        return len(self._examples)

    def read(self, places: np.ndarray) -> Split:
        """The examples at these places, in their order."""
        try:
            return self._cut(self._read(places)) or self._decode(places)
        except Exception as error:
            raise self._damaged(error) from None

    def _read(self, places: np.ndarray) -> Sequence[bytes]:
        return self._records.__getitems__(places.astype(int).tolist())

    def _decode(self, places: np.ndarray) -> Split:
        examples = self._examples.__getitems__(places.tolist())
        images, labels = zip(*((example['image'], example['label']) for example in examples), strict=True)
        return Split(np.stack(images), np.array(labels, np.int32))

    def _cut(self, records: Sequence[bytes]) -> Split | None:
        """Cut images and labels out of records, or None where one of them is laid out in another way.

        TFDS takes 60 us to decode an example, this 1 us. What is around the pixels is compared with the layout, byte
        by byte, but for the label.
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


def _find_layout(records: Sequence[bytes], first: Mapping[str, np.ndarray]) -> _Layout | None:
    """How records are laid out that differ in pixels and one byte, the label; `first` is decoded from the first."""
    pixels = first['image'].tobytes()
    start = records[0].find(pixels)
    if any(len(record) != len(records[0]) for record in records) or start != records[0].rfind(pixels):
        return None
    rows = np.frombuffer(b''.join(records), np.uint8).reshape(len(records), -1)
    around = np.delete(rows, np.s_[start : start + len(pixels)], axis=1)
    varying = np.flatnonzero((around != around[0]).any(axis=0))
    if len(varying) != 1 or around[0, varying[0]] != first['label']:
        return None
    return _Layout(start, first['image'].shape, int(varying[0]), around[0])
