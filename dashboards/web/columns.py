"""The columns of a study's evaluations that a page asks for: read once, read again only when the files change.

A study may have millions of rows. Of those a page reads the few columns that it counts, filters or sorts by, words kept
as a dictionary; whole rows are read for what is shown alone.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fewstep.storage.parts import Part
from fewstep.storage.records import EvaluationRecord
from fewstep.storage.store import Store

# Words that few rows share stay as they are.
_WORDS = ("rung", "origin", "status", "metric", "features", "reference", "model", "error")
# What every page asks for is read in one go: to open a file costs more than to read a column of it.
_BASIC = [
    "order",
    "trial",
    "nfe",
    "rung",
    "origin",
    "status",
    "metric",
    "value",
    "denoiser_calls",
    "seconds",
    "finished_at",
]
_KEPT = 6


class _Read:
    """One state of a study's files, and the columns read of it so far."""

    def __init__(self, store: Store, study: str, stamp: tuple[Part, ...]) -> None:
        self.store, self.stamp = store, stamp
        self.parts: list[tuple[Part, NDArray[np.int64]]] = []
        found = [_empty(_BASIC)]
        for scanned in store.evaluations.scan(_BASIC):
            own = scanned.keep & pc.equal(scanned.rows["study"], study).to_numpy()
            places = np.flatnonzero(own)
            if len(places):
                self.parts.append((scanned.part, places))
                found.append(_taken(scanned.rows.select(_BASIC), places))
        self.starts = np.cumsum([0, *(len(places) for _, places in self.parts)])
        self.columns: dict[str, pa.ChunkedArray] = {}
        self._keep(found)

    def load(self, names: Sequence[str]) -> None:
        lacking = [name for name in names if name not in self.columns]
        if not lacking:
            return
        loaded = (self.store.evaluations.load(part, lacking) for part, _ in self.parts)
        taken = [_taken(rows, places) for rows, (_, places) in zip(loaded, self.parts, strict=True)]
        self._keep([_empty(lacking), *taken])

    def _keep(self, tables: Sequence[pa.Table]) -> None:
        table = pa.concat_tables(tables).unify_dictionaries()
        self.columns |= {name: table[name] for name in table.column_names}

    def rows(self, places: Sequence[int], names: Sequence[str]) -> list[dict[str, Any]]:
        """These columns of rows, in the order of `places` among the study's."""
        wanted = np.asarray(places, dtype=np.int64)
        piece = np.searchsorted(self.starts, wanted, side="right") - 1
        found: dict[int, dict[str, Any]] = {}
        for index in np.unique(piece):
            part, own = self.parts[int(index)]
            here = wanted[piece == index]
            taken = self.store.evaluations.load(part, names).take(pa.array(own[here - self.starts[index]]))
            found |= dict(zip(here.tolist(), taken.to_pylist(), strict=True))
        return [found[int(place)] for place in wanted]


class Columns:
    """Reads columns and rows of studies, keeping what was read of the last few; safe for many threads."""

    def __init__(self) -> None:
        self._reads: OrderedDict[tuple[str, str], _Read] = OrderedDict()
        self._lock = threading.Lock()

    def frame(self, store: Store, study: str, names: Sequence[str]) -> pd.DataFrame:
        """The study's rows, each once, in the order of writing, of these columns; StorageError as in `Table.read`."""

        def read() -> pd.DataFrame:
            state = self._state(store, study)
            state.load(names)
            frame: pd.DataFrame = pa.table({name: state.columns[name] for name in names}).to_pandas()
            return frame

        with self._lock:
            return store.evaluations.retry(read)

    def rows(
        self, store: Store, study: str, places: Sequence[int], without: Sequence[str] = ()
    ) -> list[EvaluationRecord]:
        """Records by their places in `frame`, as long as the files are the same; else those that took them.

        Columns `without` which they are shown are not read, and have their defaults.
        """
        names = [name for name in EvaluationRecord.schema.names if name not in without]

        def read() -> list[dict[str, Any]]:
            state = self._state(store, study)
            return state.rows([place for place in places if place < state.starts[-1]], names)

        with self._lock:
            return [EvaluationRecord.from_row(row) for row in store.evaluations.retry(read)]

    def _state(self, store: Store, study: str) -> _Read:
        key, stamp = (store.root, study), tuple(store.evaluations.directory.list())
        known = self._reads.get(key)
        if known is None or known.stamp != stamp:
            known = _Read(store, study, stamp)
            self._reads[key] = known
        self._reads.move_to_end(key)
        while len(self._reads) > _KEPT:
            self._reads.popitem(last=False)
        return known


def _empty(names: Sequence[str]) -> pa.Table:
    return _coded(pa.schema([EvaluationRecord.schema.field(name) for name in names]).empty_table())


def _taken(rows: pa.Table, places: NDArray[np.int64]) -> pa.Table:
    return _coded(rows if len(places) == rows.num_rows else rows.take(pa.array(places)))


def _coded(rows: pa.Table) -> pa.Table:
    """Words that many rows share, as a dictionary of them."""
    for index, name in enumerate(rows.column_names):
        if name in _WORDS:
            rows = rows.set_column(index, name, rows[name].dictionary_encode())
    return rows
