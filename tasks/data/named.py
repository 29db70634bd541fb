"""The bundled data sets' training splits, by name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property

import numpy as np

from fewstep.tasks.data.bundled import DATASETS, Dataset, load_dataset
from fewstep.tasks.data.source import Record, Source
from fewstep.tasks.image_file import Pixels, fitted


class NamedSource(Source):
    """`digits` or `fashion`."""

    what = f"a data set's name ({', '.join(DATASETS)})"

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.data: Dataset = load_dataset(place)
        self.classes = self.data.classes

    @classmethod
    def takes(cls, place: str) -> bool:
        """A known name."""
        return place in DATASETS

    def __len__(self) -> int:
        return len(self.data.images)

    def read(self, indices: range) -> Iterator[Record]:
        """Numbers alone: the images are no files, and not all of 8 bits."""
        for i in indices:
            yield Record(str(i), b"", int(self.data.labels[i]))

    def decode(self, record: Record, channels: int, size: int) -> Pixels:
        """The data set's own pixels, which are grey, repeated for the channels."""
        image = self.data.images[int(record.name)]
        if image.shape[1:] != (size, size):
            self.notes["resized and cropped" if size <= image.shape[1] else "enlarged"] += 1
            image = fitted((image.transpose(1, 2, 0) + 1) * 127.5, size).transpose(2, 0, 1) / 127.5 - 1
        return np.repeat(image, channels, 0) if len(image) == 1 else image

    @cached_property
    def fingerprint(self) -> str:
        """Of the images and labels themselves."""
        return hashlib.sha256(self.data.images.tobytes() + self.data.labels.tobytes()).hexdigest()[:16]
