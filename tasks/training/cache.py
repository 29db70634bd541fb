"""Data that were decoded and encoded once, on disk: written in a stream, resumed where it was killed, read by pages.

A cache is a folder with a file for each array, row after row, and `progress.json`, which says how many images are
whole. Images are encoded CHUNK at a time, so that a resumed cache has the bits of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.errors import DataError, StorageError
from fewstep.files import patiently, read_json, write_text
from fewstep.tasks.data import Source
from fewstep.tasks.image_file import RULE

CHUNK = 64
PROGRESS = "progress.json"
LABELS = "labels"
Show = Callable[[int, int], None]
Rows = dict[str, npt.NDArray[Any]]


class Encoder(Protocol):
    """What is kept of an image; `hash` names all that decides about it."""

    hash: str

    def __call__(self, images: Tensor) -> Rows:
        """Arrays by name, with a row for each of the images (B, C, H, W) in [-1, 1]."""


class Cache:
    """What is kept of a source's N images, with their labels (N,)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state: dict[str, Any] = {}
        if (folder / PROGRESS).is_file():
            found = read_json(folder / PROGRESS)
            if not isinstance(found, dict) or not {"done", "content", "arrays"} <= found.keys():
                raise DataError(f"{folder / PROGRESS} is damaged: remove the folder, and the data are encoded again")
            self._state = found

    @property
    def done(self) -> int:
        """How many images are whole."""
        return int(self._state.get("done", 0))

    @property
    def chained(self) -> str:
        """The whole address of what is there."""
        return str(self._state["content"])

    @property
    def content(self) -> str:
        """Content address of the images and labels, and of how they were encoded; the same wherever they lay."""
        return self.chained[:16]

    def array(self, name: str) -> Tensor:
        """An array (N, ...), of which only what is used is read."""
        shape, kind = self._state["arrays"][name]
        file = self.folder / name
        expected = self.done * math.prod(shape) * np.dtype(kind).itemsize
        if not file.is_file() or file.stat().st_size < expected:
            raise DataError(f"{file} is cut off or gone: remove the folder, and the data are encoded again")
        # Copied where it is written to, which nobody does: torch warns of what cannot be written.
        values: Any = np.memmap(file, kind, "c", shape=(self.done, *shape))
        return torch.from_numpy(values)

    def append(self, rows: Rows, content: str) -> None:
        """Write rows behind the others, then say so. StorageError where the filesystem refuses."""
        count = len(next(iter(rows.values())))
        for name, values in rows.items():
            self._write(name, np.ascontiguousarray(values))
        arrays = {name: (values.shape[1:], values.dtype.str) for name, values in rows.items()}
        self._state = {"done": self.done + count, "content": content, "arrays": arrays}
        write_text(self.folder / PROGRESS, json.dumps(self._state))

    def _write(self, name: str, values: npt.NDArray[Any]) -> None:
        path = self.folder / name

        def write() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("r+b" if path.exists() else "wb") as file:
                file.seek(self.done * values[0].nbytes)
                file.truncate()
                file.write(values.tobytes())
                file.flush()
                os.fsync(file.fileno())

        try:
            patiently(write, f"cannot write {path}")
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}; free space or choose another place") from error


def encoded(
    source: Source,
    folder: Path,
    channels: int,
    size: int,
    encoder: Encoder,
    classes: int | None = None,
    show: Show | None = None,
) -> Cache:
    """All images of a source, encoded, in a folder of their own beneath `folder`; goes on where a killed one stopped.

    With `classes` every image needs a label below that. `show(images, of)` is called after each chunk. Raises DataError
    where an image or a label cannot be used.
    """
    said = f"{encoder.hash} {RULE} {channels} {size}"
    own = hashlib.sha256(f"{said} {source.fingerprint} {len(source)}".encode()).hexdigest()[:16]
    cache = Cache(folder / f"data-{own}")
    content = hashlib.sha256(said.encode()).hexdigest() if not cache.done else cache.chained
    if cache.done == len(source):
        _check_labels(source, cache.array(LABELS).numpy(), 0, classes)
        return cache
    at = cache.done
    for batch in source.batches(channels, size, CHUNK, range(at, len(source))):
        _check_labels(source, batch.labels, at, classes)
        for image, label in zip(batch.images, batch.labels, strict=True):
            content = hashlib.sha256(content.encode() + image.tobytes() + label.tobytes()).hexdigest()
        cache.append(encoder(torch.from_numpy(batch.images)) | {LABELS: batch.labels}, content)
        at += len(batch.labels)
        if show:
            show(at, len(source))
    return cache


def _check_labels(source: Source, labels: npt.NDArray[np.int64], first: int, classes: int | None) -> None:
    if classes is None:
        return
    for i in np.flatnonzero((labels < 0) | (labels >= classes)):
        found = "no label" if labels[i] < 0 else f"label {labels[i]}"
        raise DataError(
            f"{source.place}: image {first + i} has {found}, there are {classes} classes from 0 on: give the right "
            "number of classes, or leave label_dropout out to train without labels"
        )
