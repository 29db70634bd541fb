"""Parquet files with a column of encoded images, as Hugging Face's hub keeps data sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from fewstep.errors import DataError
from fewstep.tasks.data.columns import columns_of, named, records
from fewstep.tasks.data.places import matches
from fewstep.tasks.data.shards import ShardedSource, part
from fewstep.tasks.data.source import Record

SUFFIXES = (".parquet",)
# Where the files of a folder are.
INSIDE = ("", "data")
# Rows that are in memory at once, besides what Arrow reads ahead.
ROWS = 32


class ParquetSource(ShardedSource):
    """One file, shards by a pattern, or a folder with them, or with `data/` that has them."""

    what = "Parquet files with a column of images"

    def __init__(self, place: str) -> None:
        super().__init__(place, matches(place, SUFFIXES, INSIDE))
        if not self.files:
            raise DataError(f"no .parquet file at {place}: check the path")
        found = []
        for path in self.files:
            with _opened(path) as file:
                found.append(columns_of(file.schema_arrow, str(path)))
                self.counts.append(file.metadata.num_rows)
        self._columns = found[0]
        if others := [path for path, columns in zip(self.files, found, strict=True) if columns != found[0]]:
            raise DataError(f"{others[0]} has other columns than {self.files[0]}: give the shards of one data set")
        if self._columns.texts:
            self._columns = self._columns.numbered(self._labels())
        self.classes = self._columns.classes
        self.check()

    @classmethod
    def takes(cls, place: str) -> bool:
        """Where a .parquet file is."""
        return bool(matches(place, SUFFIXES, INSIDE))

    def read_file(self, path: Path, indices: range) -> Iterator[Record]:
        """The rows of these numbers; row groups without any are not read."""
        with _opened(path) as file, named(path):
            start = 0
            for group in range(file.metadata.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                if wanted := part(indices, start, count):
                    batches = file.iter_batches(ROWS, row_groups=[group], columns=self._columns.names)
                    yield from records(batches, self._columns, wanted, path, start)
                start += count

    def _labels(self) -> Iterator[str]:
        for path in self.files:
            with _opened(path) as file, named(path):
                for batch in file.iter_batches(columns=[self._columns.label]):
                    yield from batch.column(0).drop_null().to_pylist()


def _opened(path: Path) -> Any:
    with named(path):
        return pq.ParquetFile(path)
