"""A folder of images at any depth; folders directly in it are their labels where every image lies in one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fewstep.errors import DataError
from fewstep.tasks.data.source import Record, Source, load_images
from fewstep.tasks.image_file import Pixels
from fewstep.tasks.image_folder import counted, find_images


class FolderSource(Source):
    """In name order. A hidden folder is no label."""

    what = "a folder of images"

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.root = Path(place)
        if not os.path.isdir(place):
            raise DataError(f"{place} is not a folder: give a folder of images, an .npz file or a data set name")
        found = find_images(self.root)
        left_out = f"{found.skipped.total()} files skipped: {counted(found.skipped)}" if found.skipped else ""
        if not found.images:
            there = f" ({left_out})" if left_out else ""
            raise DataError(f"no image in {place}{there}: put .png or .jpg files there, or name another place")
        self.files = found.images
        self.said += [left_out] if left_out else []
        if found.cycles:
            self.said.append(f"{found.cycles} links to a folder above not followed")
        within = [path.relative_to(self.root).parts for path in self.files]
        if hidden := sum(any(part.startswith(".") for part in parts) for parts in within):
            self.notes["hidden, or in hidden folders"] += hidden
        if all(len(parts) > 1 and not parts[0].startswith(".") for parts in within):
            self.classes = tuple(sorted({parts[0] for parts in within}))
        self._numbers = {name: i for i, name in enumerate(self.classes)}

    @classmethod
    def takes(cls, place: str) -> bool:
        """Any folder."""
        return os.path.isdir(place)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: range) -> Iterator[Record]:
        """The files of these numbers."""
        for i in indices:
            path = self.files[i]
            yield Record(str(path), path, self._numbers.get(path.relative_to(self.root).parts[0]))


def load_image_folder(folder: Path, channels: int, size: int) -> Pixels:
    """Every image beneath `folder` as (N, channels, size, size) in [-1, 1], in name order.

    `fewstep.tasks.image_file` says what their numbers mean; one line on the log says what was left out.
    Raises DataError where the folder is missing or holds no image, and names a file that cannot be read as what it is.
    """
    return load_images(FolderSource(str(folder)), channels, size).images
