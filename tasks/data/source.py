"""What a source of images is: a place with images in a fixed order, read one after the other and never all at once.

A source is one class in one file and one line in the registry, or an entry point of the group `fewstep.data` in another
package. `KIND:PLACE` names the kind; without it the first kind that takes the place is used.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from fewstep.errors import DataError
from fewstep.plugins import Registry
from fewstep.tasks.image_file import Pixels, Stored, quiet, read_image
from fewstep.tasks.image_folder import counted, tell

# In the order in which a place is offered to them.
SOURCES = Registry(
    "kind of data",
    {
        "dataset": "fewstep.tasks.data.named:NamedSource",
        "npz": "fewstep.tasks.data.arrays:ArraySource",
        "parquet": "fewstep.tasks.data.parquet:ParquetSource",
        "arrow": "fewstep.tasks.data.arrow:ArrowSource",
        "webdataset": "fewstep.tasks.data.webdataset:TarSource",
        "lmdb": "fewstep.tasks.data.lmdb_file:LmdbSource",
        "folder": "fewstep.tasks.data.folders:FolderSource",
    },
    group="fewstep.data",
)
# What stands for the label of an image that has none.
UNLABELLED = -1


@dataclass(frozen=True)
class Record:
    """One image as it is stored, what to call it in a message, and its label where it has one."""

    name: str
    image: Stored
    label: int | None = None


class Batch(NamedTuple):
    """Images (B, C, H, W) in [-1, 1] and their labels (B,), UNLABELLED where there are none."""

    images: Pixels
    labels: npt.NDArray[np.int64]


class Source(ABC):
    """Images of one place. Making one looks at what is there, without decoding images; DataError where that fails.

    `classes` are the names of labels 0, 1, ..., empty where labels are mere numbers, or where there are none. `files`
    are those that hold the images. `said` and `notes` tell what was left out and what is odd about the images.
    """

    # What a place of this kind is, for messages.
    what: ClassVar[str]

    def __init__(self, place: str) -> None:
        self.place = place
        self.classes: tuple[str, ...] = ()
        self.files: list[Path] = []
        self.said: list[str] = []
        self.notes: Counter[str] = Counter()

    @classmethod
    @abstractmethod
    def takes(cls, place: str) -> bool:
        """Whether a place looks like one of this kind."""

    @abstractmethod
    def __len__(self) -> int:
        """How many images there are."""

    @abstractmethod
    def read(self, indices: range) -> Iterator[Record]:
        """The images of these numbers, which ascend. DataError where what holds them is damaged."""

    def shard(self, worker: int, of: int) -> range:
        """The numbers of every `of`-th image from the `worker`-th on."""
        return range(worker, len(self), of)

    def decode(self, record: Record, channels: int, size: int) -> Pixels:
        """An image as (channels, size, size) in [-1, 1]; DataError with its name where it cannot be."""
        return read_image(record.image, channels, size, self.notes, record.name)

    def batches(self, channels: int, size: int, batch: int, indices: range | None = None) -> Iterator[Batch]:
        """The images of these numbers, or all, `batch` at a time; afterwards what is odd about them is logged once."""
        numbers = range(len(self)) if indices is None else indices
        records = self.read(numbers)
        for at in range(0, len(numbers), batch):
            count = min(batch, len(numbers) - at)
            images = np.empty((count, channels, size, size), np.float32)
            labels = np.full(count, UNLABELLED, np.int64)
            with quiet():
                for i in range(count):
                    record = next(records, None)
                    if record is None:
                        raise DataError(f"{self.place} holds fewer images than before: it changed while it was read")
                    images[i] = self.decode(record, channels, size)
                    labels[i] = UNLABELLED if record.label is None else record.label
            yield Batch(images, labels)
        self.tell(len(numbers))

    def tell(self, count: int) -> None:
        """Log what was left out, and what is odd about the `count` images that were read."""
        said = [*self.said, *([f"of {count:,} images {counted(self.notes)}"] if self.notes else [])]
        if said:
            tell(f"{self.place}: {'; '.join(said)}")

    @property
    def fingerprint(self) -> str:
        """Of names, sizes and times of the files: another one where they may have changed, cheap for any size."""
        digest = hashlib.sha256()
        for file in self.files:
            status = file.stat()
            digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]


def kind_of_place(place: str) -> tuple[str, str]:
    """Which kind of SOURCES a place is, and the place without the kind's name. DataError where it is none."""
    kind, colon, rest = place.partition(":")
    if colon and kind in SOURCES.names:
        return kind, rest
    for name in SOURCES.names:
        if SOURCES.load(name).takes(place):
            return name, place
    kinds = "; ".join(f"{name}: {SOURCES.load(name).what}" for name in SOURCES.names)
    raise DataError(f"no images at {place!r}: give one of {kinds}")


def open_source(place: str) -> Source:
    """The source at a place, `KIND:PLACE` or PLACE alone. DataError where there is none, or none that can be read."""
    kind, rest = kind_of_place(place)
    source: Source = SOURCES.load(kind)(rest)
    return source


def load_images(source: Source, channels: int, size: int) -> Batch:
    """All images of a source at once, for what works on few. DataError where memory does not hold them."""
    count = len(source)
    try:
        images = np.empty((count, channels, size, size), np.float32)
    except MemoryError:
        raise DataError(f"{source.place}: its {count:,} images do not fit into memory: use fewer") from None
    labels = np.empty(count, np.int64)
    for i, batch in enumerate(source.batches(channels, size, 1)):
        images[i], labels[i] = batch.images[0], batch.labels[0]
    return Batch(images, labels)
