"""Images in one file behind the other, each of which holds a known number of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from fewstep.errors import DataError
from fewstep.tasks.data.source import Record, Source

T = TypeVar("T")


class ShardedSource(Source):
    """A source whose images are those of its `files` in turn; `counts` says how many each holds."""

    def __init__(self, place: str, files: list[Path], counts: list[int] | None = None) -> None:
        super().__init__(place)
        self.files, self.counts = files, counts or []

    def check(self) -> None:
        """DataError where there is no image at all."""
        if not len(self):
            raise DataError(f"{self.place} holds no images: name another place")

    def __len__(self) -> int:
        return sum(self.counts)

    def read(self, indices: range) -> Iterator[Record]:
        """The images of these numbers; a file without any of them is not opened."""
        start = 0
        for path, count in zip(self.files, self.counts, strict=True):
            if inside := part(indices, start, count):
                yield from self.read_file(path, inside)
            start += count

    @abstractmethod
    def read_file(self, path: Path, indices: range) -> Iterator[Record]:
        """The images of these numbers, counted in the file."""


def part(indices: range, start: int, count: int) -> range:
    """Which of `count` numbers from `start` on are among the ascending indices, counted from `start`."""
    first = indices.start + max(0, -(-(start - indices.start) // indices.step)) * indices.step
    return range(first - start, min(indices.stop, start + count) - start, indices.step)


def chosen(items: Iterable[T], indices: range) -> Iterator[T]:
    """The items of these numbers, which ascend; nothing behind the last is asked for."""
    if not indices:
        return
    for number, item in enumerate(items):
        if number in indices:
            yield item
        if number == indices[-1]:
            return
