"""Questions to the evaluations table, answered as pandas DataFrames.

Two engines with equal answers: pandas ranks all rows at once; Dask ranks file by file, in parallel, and
ranks the winners again. Both rank by the same code on the few columns that it needs, and fetch the
other columns of the winners alone. `scheduler` is Dask's: threads of this process, or those of a cluster.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fewstep.errors import ConfigurationError
from fewstep.storage.records import EvaluationRecord
from fewstep.storage.store import Store
from fewstep.storage.tables import Scanned, Table

Engine = Literal["auto", "pandas", "dask"]

DASK_ROWS = 50_000
"""Rows in the table above which the engine 'auto' means Dask."""

COMPARABLE = ("model_hash", "features", "reference", "metric")
"""Values are compared only between rows that agree on these."""

_RANKED = ("study", "key", "nfe", "rung", "status", "value", *COMPARABLE)
_PART, _ROW = "_part", "_row"


@dataclass(frozen=True)
class _Ranking:
    """Which rows take part, and how many of the lowest values are kept in each group."""

    study: str | None
    rung: str
    nfe: int | None
    group: Sequence[str]
    top: int

    def among(self, rows: pa.Table) -> pa.Table:
        """The rows that take part."""
        chosen = pc.and_(pc.equal(rows["rung"], self.rung), pc.equal(rows["status"], "complete"))
        chosen = pc.and_(chosen, pc.is_finite(pc.fill_null(rows["value"], float("nan"))))
        if self.study is not None:
            chosen = pc.and_(chosen, pc.equal(rows["study"], self.study))
        if self.nfe is not None:
            chosen = pc.and_(chosen, pc.equal(rows["nfe"], self.nfe))
        return rows.filter(chosen)

    def best(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The best of the rows that take part."""
        # A stable sort: equal values stay in the order of writing, so both engines break ties alike.
        ranked = rows.sort_values([*self.group, "value"], kind="stable").drop_duplicates([*self.group, "key"])
        return ranked.groupby(list(self.group), sort=False).head(self.top)


def load_evaluations(store: Store, engine: Engine = "auto") -> pd.DataFrame:
    """Every evaluation, one row each, in the order of writing; damaged files are skipped.

    Raises ConfigurationError for an unknown engine and StorageError when the store cannot be read.
    """
    table = store.evaluations
    if _choose(table, engine) == "pandas":
        return _frame(table.read())
    return table.retry(lambda: _load_by_dask(table))


def leaderboard(
    store: Store,
    study: str | None = None,
    rung: str = "frechet",
    nfe: int | None = None,
    top: int = 10,
    engine: Engine = "auto",
    each_nfe: bool = False,
    scheduler: Any = "threads",
) -> pd.DataFrame:
    """The `top` complete rows of a rung with the lowest values, best first, with all columns.

    Where several models, feature spaces or references were used, `top` of each, one after another; with `each_nfe`
    of each NFE too. An evaluation that several studies share appears once. Errors as in `load_evaluations`.
    """
    group = (*COMPARABLE, "nfe") if each_nfe else COMPARABLE
    return _answer(store.evaluations, _Ranking(study, rung, nfe, group, top), engine, scheduler)


def front(
    store: Store,
    study: str | None = None,
    rung: str = "frechet",
    engine: Engine = "auto",
    scheduler: Any = "threads",
) -> pd.DataFrame:
    """The complete row with the lowest value of a rung for each NFE, ascending in NFE, all columns.

    One front for each model, feature space and reference. Errors as in `load_evaluations`.
    """
    return _answer(store.evaluations, _Ranking(study, rung, None, (*COMPARABLE, "nfe"), 1), engine, scheduler)


def _choose(table: Table[EvaluationRecord], engine: Engine) -> Engine:
    if engine not in ("auto", "pandas", "dask"):
        raise ConfigurationError(f"there is no query engine {engine!r}: choose auto, pandas or dask")
    if engine == "auto":
        return "dask" if table.row_count() > DASK_ROWS else "pandas"
    return engine


def _answer(table: Table[EvaluationRecord], ranking: _Ranking, engine: Engine, scheduler: Any) -> pd.DataFrame:
    by_dask = _choose(table, engine) == "dask"
    return table.retry(lambda: _answer_once(table, ranking, by_dask, scheduler))


def _answer_once(table: Table[EvaluationRecord], ranking: _Ranking, by_dask: bool, scheduler: Any) -> pd.DataFrame:
    if by_dask:
        import dask

        def best_of(index: int, scanned: Scanned) -> pd.DataFrame:
            rows = table.load(scanned.part, _RANKED)
            return ranking.best(_frame(ranking.among(_located(rows, index, scanned.keep))))

        parts = table.scan()
        tasks = [dask.delayed(best_of)(index, scanned) for index, scanned in enumerate(parts)]
        frames = list(dask.compute(*tasks, scheduler=scheduler))
        candidates = pd.concat(frames, ignore_index=True) if frames else None
    else:
        parts = table.scan(_RANKED)
        rows = [_located(scanned.rows, index, scanned.keep) for index, scanned in enumerate(parts)]
        candidates = _frame(ranking.among(pa.concat_tables(rows))) if rows else None
    if candidates is None:
        return _frame(EvaluationRecord.schema.empty_table())
    return _fetch(table, parts, ranking.best(candidates))


def _located(rows: pa.Table, index: int, keep: NDArray[np.bool_]) -> pa.Table:
    """The rows to keep of a part, with columns that say where they stand."""
    places = np.flatnonzero(keep)
    kept = rows if len(places) == rows.num_rows else rows.take(pa.array(places))
    return kept.append_column(_PART, pa.array(np.full(len(places), index))).append_column(_ROW, pa.array(places))


def _fetch(table: Table[EvaluationRecord], parts: Sequence[Scanned], winners: pd.DataFrame) -> pd.DataFrame:
    winners = winners.reset_index(drop=True)
    rows = [EvaluationRecord.schema.empty_table()]
    ranks: list[int] = []
    for index, group in winners.groupby(_PART):
        rows.append(table.load(parts[int(str(index))].part).take(pa.array(group[_ROW].to_numpy())))
        ranks.extend(group.index)
    return _frame(pa.concat_tables(rows).take(pa.array(np.argsort(np.array(ranks, dtype=np.int64)))))


def _load_by_dask(table: Table[EvaluationRecord]) -> pd.DataFrame:
    import dask

    def kept(scanned: Scanned) -> pa.Table:
        return table.load(scanned.part).filter(pa.array(scanned.keep))

    loaded = dask.compute(*[dask.delayed(kept)(scanned) for scanned in table.scan()], scheduler="threads")
    return _frame(pa.concat_tables([EvaluationRecord.schema.empty_table(), *loaded]))


def _frame(rows: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = rows.to_pandas()
    return frame
