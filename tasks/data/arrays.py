"""Images in one NumPy array: uint8 (N, H, W, C) or (N, H, W), as ADM's reference batches hold them (arr_0, arr_1)."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fewstep.errors import DataError
from fewstep.tasks.data.source import Record, Source

IMAGES = ("arr_0", "images", "image", "x", "x_train", "samples", "data")
LABELS = ("arr_1", "labels", "label", "y", "y_train")
SUFFIXES = (".npz", ".npy")


class ArraySource(Source):
    """An .npz with an array of one of the names IMAGES, or an .npy; labels of one of the names LABELS."""

    what = "an .npz file of uint8 images"

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.path = Path(place)
        self.files = [self.path]
        names = array_names(self.path)
        self._name = images_in(names)
        if names and not self._name:
            raise DataError(f"{place} holds {', '.join(names)}: call the array of images `images`")
        with self._opened(self._name) as file:
            self._shape, kind = _header(file)
        if kind != np.uint8 or len(self._shape) not in (3, 4) or (self._shape[3:] or (1,))[0] not in (1, 3, 4):
            raise DataError(
                f"{place}: {self._name or 'the array'} is {kind} {self._shape}: give images as uint8 (N, H, W, C), C "
                "1, 3 or 4"
            )
        if 0 in self._shape:
            raise DataError(f"{place} holds no images: name another place")
        self._labels = self._read_labels(next((name for name in LABELS if name in names), ""))

    @classmethod
    def takes(cls, place: str) -> bool:
        """By the file's name."""
        return place.lower().endswith(SUFFIXES) and not os.path.isdir(place)

    def __len__(self) -> int:
        return self._shape[0]

    def read(self, indices: range) -> Iterator[Record]:
        """The images of these numbers, one by one from the file."""
        size = int(np.prod(self._shape[1:]))
        with self._opened(self._name) as file:
            _header(file)
            at = 0
            for i in indices:
                for _ in range(at, i):
                    _read(file, size)
                image = np.frombuffer(_read(file, size), np.uint8).reshape(self._shape[1:])
                at = i + 1
                yield Record(f"{self.path} image {i}", image, None if self._labels is None else int(self._labels[i]))

    def _read_labels(self, name: str) -> npt.NDArray[np.int64] | None:
        if not name:
            return None
        with self._opened(name) as file:
            labels = np.lib.format.read_array(file)
        if labels.shape != self._shape[:1] or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
            raise DataError(
                f"{self.path}: {name} is {labels.dtype} {labels.shape}: give a label of 0 and up for each of "
                f"{self._shape[0]:,} images"
            )
        return labels.astype(np.int64)

    @contextmanager
    def _opened(self, name: str) -> Iterator[IO[bytes]]:
        """The array's own file, as a stream; what is damaged becomes a DataError."""
        try:
            if not name:
                with self.path.open("rb") as file:
                    yield file
            else:
                with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as member:
                    yield member
        except DataError:
            raise
        except Exception as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise DataError(f"cannot read {self.path}: {reason}; make it again") from error


def array_names(path: Path) -> list[str]:
    """The names of an .npz file's arrays; none of an .npy. DataError where it is no archive."""
    if path.suffix.lower() == ".npy":
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path} is not a readable .npz file ({reason}): make it again") from error


def images_in(names: Collection[str]) -> str:
    """The array that holds images, empty where none has such a name."""
    return next((name for name in IMAGES if name in names), "")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, kind = read(file)
    if fortran and len(shape) > 1:
        raise ValueError("its array is in Fortran's order")
    return shape, kind


def _read(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise ValueError("it is cut off")
    return data
