"""A data set that Hugging Face's `datasets` saved to disk, read by pyarrow: the format is Arrow's stream."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from fewstep.errors import DataError
from fewstep.files import read_json
from fewstep.tasks.data.columns import Columns, columns_of, named, records
from fewstep.tasks.data.shards import ShardedSource
from fewstep.tasks.data.source import Record

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"


class ArrowSource(ShardedSource):
    """The folder of one split."""

    what = "a folder of datasets' save_to_disk"

    def __init__(self, place: str) -> None:
        root = Path(place)
        if (root / SPLITS).is_file():
            splits = [str(split) for split in _object(root / SPLITS, "splits")]
            raise DataError(
                f"{place} holds parts of the data ({', '.join(splits)}): give the folder of one, as "
                f"{root / (splits or ['train'])[0]}"
            )
        files = [root / str(entry.get("filename", "")) for entry in _object(root / STATE, "_data_files")]
        super().__init__(place, files)
        if not files:
            raise DataError(f"{place}: {STATE} names no data: save the data set again")
        features = _object(root / INFO, "features") if (root / INFO).is_file() else None
        self._columns = Columns("", None, ())
        for path in files:
            with _opened(path) as batches, named(path):
                self._columns = columns_of(batches.schema, str(path), features)
                self.counts.append(sum(len(batch) for batch in batches))
        if self._columns.texts:
            self._columns = self._columns.numbered(self._labels())
        self.classes = self._columns.classes
        self.check()

    @classmethod
    def takes(cls, place: str) -> bool:
        """A folder with what `save_to_disk` writes."""
        return os.path.isfile(os.path.join(place, STATE)) or os.path.isfile(os.path.join(place, SPLITS))

    def read_file(self, path: Path, indices: range) -> Iterator[Record]:
        """The rows of these numbers; what is before them is mapped, not read."""
        with _opened(path) as batches, named(path):
            yield from records(batches, self._columns, indices, path)

    def _labels(self) -> Iterator[str]:
        for path in self.files:
            with _opened(path) as batches, named(path):
                for batch in batches:
                    yield from batch.column(self._columns.label).drop_null().to_pylist()


def _opened(path: Path) -> Any:
    with named(path):
        return pa.ipc.open_stream(pa.memory_map(str(path)))


def _object(path: Path, key: str) -> Any:
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get(key), dict | list):
        raise DataError(f"{path} has no {key}: save the data set again")
    return found[key]
