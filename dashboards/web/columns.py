"""The columns of a study's evaluations that a page asks for: read once, and of files that were added the further rows.

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
from fewstep.storage.tables import Scanned, coded_as
from fewstep.storage.threads import mapped

# Words that few rows share; the others stay as they are.
_WORDS = ("study", "rung", "origin", "status", "metric", "features", "reference", "model", "device", "error")
# What every page asks for is read in one go: to open a file costs more than to read a column of it.
_BASIC = [
    "study",
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
    """One state of a study's files, and the columns read of it so far; what the state `before` has read is taken."""

    def __init__(self, store: Store, study: str, stamp: tuple[Part, ...], before: _Read | None) -> None:
        self.store, self.stamp = store, stamp
        self.scanned: list[Scanned] = store.evaluations.scan(_BASIC, _WORDS, before.scanned if before else ())
        self.parts: list[tuple[Part, NDArray[np.int64]]] = []
        self._loaded: dict[Part, pa.Table] = {}
        known = before._loaded if before else {}
        for scanned in self.scanned:
            places = np.flatnonzero(scanned.keep & pc.equal(scanned.rows["study"], study).to_numpy())
            if len(places):
                self.parts.append((scanned.part, places))
                self._loaded[scanned.part] = known.get(scanned.part, scanned.rows)
        self.starts = np.cumsum([0, *(len(places) for _, places in self.parts)])
        self._columns: dict[str, pd.Series] = {}

    def columns(self, names: Sequence[str]) -> dict[str, pd.Series]:
        """Those of these names, read where they have not been yet."""
        self._loaded |= dict(mapped(lambda own: (own[0], self._widened(own[0], names)), self.parts))
        lacking = [name for name in names if name not in self._columns]
        taken = [_taken(self._loaded[part].select(lacking), places) for part, places in self.parts]
        frame = pa.concat_tables([_empty(lacking), *taken]).unify_dictionaries().to_pandas()
        self._columns |= {name: frame[name] for name in lacking}
        return {name: self._columns[name] for name in names}

    def _widened(self, part: Part, names: Sequence[str]) -> pa.Table:
        """What was read of a part, with these columns."""
        rows = self._loaded[part]
        if lacking := [name for name in names if name not in rows.column_names]:
            further = self.store.evaluations.load(part, lacking, _WORDS)
            for name in lacking:
                rows = rows.append_column(further.schema.field(name), further[name])
        return rows

    def rows(self, places: Sequence[int], names: Sequence[str]) -> list[dict[str, Any]]:
        """These columns of rows, in the order of `places` among the study's."""
        wanted = np.asarray(places, dtype=np.int64)
        piece = np.searchsorted(self.starts, wanted, side="right") - 1

        def taken(index: int) -> dict[int, dict[str, Any]]:
            part, own = self.parts[index]
            here = wanted[piece == index]
            rows = self.store.evaluations.load(part, names).take(pa.array(own[here - self.starts[index]]))
            return dict(zip(here.tolist(), rows.to_pylist(), strict=True))

        found = {place: row for rows in mapped(taken, np.unique(piece).tolist()) for place, row in rows.items()}
        return [found[int(place)] for place in wanted]


class Columns:
    """Reads columns and rows of studies, keeping what was read of the last few; safe for many threads."""

    def __init__(self) -> None:
        self._reads: OrderedDict[tuple[str, str], _Read] = OrderedDict()
        self._lock = threading.Lock()

    def frame(self, store: Store, study: str, names: Sequence[str]) -> pd.DataFrame:
        """The study's rows, each once, in the order of writing, of these columns; StorageError as in `Table.read`."""

        def read() -> pd.DataFrame:
            return pd.DataFrame(self._state(store, study).columns(names), copy=False)

        with self._lock:
            return store.evaluations.retry(read)

    def rows(
        self, store: Store, study: str, places: Sequence[int], without: Sequence[str] = ()
    ) -> list[EvaluationRecord]:
        """Records by their places in `frame`, as long as the files are the same; else those that took them.

        Columns `without` which they are shown are not read, and have their defaults.
        """
        names = [name for name in EvaluationRecord.schema.names if name not in without]
        return [EvaluationRecord.from_row(row) for row in self.cells(store, study, places, names)]

    def cells(self, store: Store, study: str, places: Sequence[int], names: Sequence[str]) -> list[dict[str, Any]]:
        """The same of these columns alone, as they are stored."""

        def read() -> list[dict[str, Any]]:
            state = self._state(store, study)
            return state.rows([place for place in places if place < state.starts[-1]], names)

        with self._lock:
            return store.evaluations.retry(read)

    def _state(self, store: Store, study: str) -> _Read:
        key, stamp = (store.root, study), tuple(store.evaluations.directory.list())
        known = self._reads.get(key)
        if known is None or known.stamp != stamp:
            known = _Read(store, study, stamp, known)
            self._reads[key] = known
        self._reads.move_to_end(key)
        while len(self._reads) > _KEPT:
            self._reads.popitem(last=False)
        return known


def _empty(names: Sequence[str]) -> pa.Table:
    return coded_as(pa.schema([EvaluationRecord.schema.field(name) for name in names]).empty_table(), _WORDS)


def _taken(rows: pa.Table, places: NDArray[np.int64]) -> pa.Table:
    return rows if len(places) == rows.num_rows else rows.take(pa.array(places))
