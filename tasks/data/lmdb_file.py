"""LMDB: every value that begins as an encoded image is one, in the order of the keys. There are no labels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fewstep.errors import ConfigurationError, DataError
from fewstep.tasks.data.shards import chosen
from fewstep.tasks.data.source import Record, Source

# How files of `image_file.FORMATS` begin.
BEGINNINGS = (
    *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"GIF8", b"II*\0", b"MM\0*", b"RIFF"),
    *(b"P%d%c" % (kind, space) for kind in range(1, 7) for space in b" \n\t\r"),
)
LONGEST = max(map(len, BEGINNINGS))
DATA = "data.mdb"


class LmdbSource(Source):
    """A folder with `data.mdb`, or a single file that ends with .lmdb or .mdb."""

    what = "an LMDB of encoded images"

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.path = Path(place)
        self.files = [self.path / DATA if self.path.is_dir() else self.path]
        with self._entries() as entries:
            values = [_is_image(value) for _, value in entries]
        self._count = sum(values)
        if other := len(values) - self._count:
            self.said.append(f"{other} entries that are no images skipped")
        if not self._count:
            raise DataError(f"{place} holds {len(values)} entries and no encoded image: name another place")

    @classmethod
    def takes(cls, place: str) -> bool:
        """By the files' names."""
        return os.path.isfile(os.path.join(place, DATA)) or (
            place.lower().endswith((".lmdb", ".mdb")) and os.path.isfile(place)
        )

    def __len__(self) -> int:
        return self._count

    def read(self, indices: range) -> Iterator[Record]:
        """The images of these numbers."""
        with self._entries() as entries:
            for key, value in chosen(((k, v) for k, v in entries if _is_image(v)), indices):
                yield Record(f"{self.place} key {bytes(key).decode(errors='replace')}", bytes(value))

    @contextmanager
    def _entries(self) -> Iterator[Any]:
        try:
            import lmdb
        except ImportError:
            raise ConfigurationError(f"{self.place} needs the package lmdb: pip install 'fewstep[lmdb]'") from None
        try:
            folder = self.path.is_dir()
            with (
                lmdb.open(str(self.path), subdir=folder, readonly=True, lock=False, create=False) as environment,
                environment.begin(buffers=True) as transaction,
            ):
                yield transaction.cursor().iternext(keys=True, values=True)
        except lmdb.Error as error:
            raise DataError(f"cannot read {self.place}: {error}; replace it") from error


def _is_image(value: Any) -> bool:
    return bytes(value[:LONGEST]).startswith(BEGINNINGS)
