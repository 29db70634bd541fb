"""Values of evaluations held against one another: paired comparisons, and how rungs order the same candidates.

Written once for both engines: the frames are pandas' or Dask's, which know the same methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from fewstep.errors import ConfigurationError
from fewstep.storage.queries import COMPARABLE, Engine, _choose
from fewstep.storage.records import EvaluationRecord
from fewstep.storage.store import Store
from fewstep.storage.tables import Scanned, Table

# What two rows must agree on for their difference to say something: the same noise above all.
PAIRED_BY = (*COMPARABLE, "nfe", "rung", "seed", "images")
_KINDS = {"string": "string[pyarrow]", "int64": "int64", "double": "float64"}
Z = 1.96


def values(store: Store, columns: Sequence[str], engine: Engine = "auto") -> Any:
    """Complete evaluations with a finite value, of `columns` and `value`: a pandas or a Dask DataFrame.

    Errors as in `load_evaluations`; ConfigurationError for a column that there is not.
    """
    wanted = list(dict.fromkeys([*columns, "value"]))
    if unknown := [name for name in wanted if name not in EvaluationRecord.schema.names]:
        raise ConfigurationError(
            f"evaluations have no column {unknown[0]!r}: choose from {', '.join(EvaluationRecord.schema.names)}"
        )
    table, loaded = store.evaluations, list(dict.fromkeys([*wanted, "status"]))
    parts = table.retry(lambda: table.scan())
    meta = _frame(pa.schema([EvaluationRecord.schema.field(name) for name in wanted]).empty_table())
    if _choose(table, engine) == "pandas" or not parts:
        return pd.concat([meta, *(_loaded(scanned, table, loaded, wanted) for scanned in parts)], ignore_index=True)
    from dask.dataframe import from_map

    return from_map(_loaded, parts, table=table, loaded=loaded, wanted=wanted, meta=meta)


def _loaded(scanned: Scanned, table: Table[EvaluationRecord], loaded: list[str], wanted: list[str]) -> pd.DataFrame:
    rows = table.load(scanned.part, loaded).filter(pa.array(scanned.keep))
    complete = pc.and_(pc.equal(rows["status"], "complete"), pc.is_finite(pc.fill_null(rows["value"], float("nan"))))
    return _frame(rows.filter(complete).select(wanted))


def _frame(rows: pa.Table) -> pd.DataFrame:
    # One string type for both engines: Dask's own and pandas' differ.
    frame: pd.DataFrame = rows.to_pandas()
    return frame.astype({f.name: _KINDS[str(f.type)] for f in rows.schema if str(f.type) in _KINDS})


def paired(
    store: Store, column: str, first: str, second: str, engine: Engine = "auto", scheduler: Any = "threads"
) -> pd.DataFrame:
    """The rows whose `column` is `first` beside those where it is `second`, on the same noise.

    `column` is study, origin, candidate, model or the like. A row a pair of PAIRED_BY: of several of a side, the best.
    Columns: PAIRED_BY without `column`, first, second, difference (first less second). Errors as in `values`.
    """
    by = [name for name in PAIRED_BY if name != column]
    rows = values(store, [*by, column], engine)
    sides = [rows[rows[column] == name].groupby(by)["value"].min().reset_index() for name in (first, second)]
    both = sides[0].merge(sides[1], on=by, suffixes=("_first", "_second"))
    found = _computed(both, scheduler).rename(columns={"value_first": "first", "value_second": "second"})
    found["difference"] = found["first"] - found["second"]
    return found.sort_values(by, kind="stable").reset_index(drop=True)


def mean_differences(pairs: pd.DataFrame) -> pd.DataFrame:
    """Of `paired`, by what is comparable and NFE: the pairs, how often the first is lower, the mean, its 95% interval.

    The interval is normal over the pairs, and NaN where there is one.
    """
    by = [name for name in (*COMPARABLE, "rung", "nfe") if name in pairs.columns]
    rows = [
        {
            **dict(zip(by, key, strict=True)),
            "pairs": len(group),
            "lower": int((group["difference"] < 0).sum()),
            "mean": (mean := float(group["difference"].mean())),
            "low": mean - (half := Z * float(group["difference"].std(ddof=1)) / np.sqrt(len(group))),
            "high": mean + half,
        }
        for key, group in pairs.groupby(by)
    ]
    return pd.DataFrame(rows, columns=[*by, "pairs", "lower", "mean", "low", "high"])


def rank_correlations(
    store: Store,
    rungs: Sequence[str],
    study: str | None = None,
    engine: Engine = "auto",
    scheduler: Any = "threads",
) -> pd.DataFrame:
    """How alike two rungs order the same candidates of an NFE: Kendall's tau-b and Spearman's rho of each pair.

    Columns: nfe, first, second, candidates, kendall, spearman; NaN where fewer than three candidates were at both, or
    all are equal. Errors as in `values`; ConfigurationError for fewer than two rungs.
    """
    from scipy.stats import kendalltau, spearmanr

    if len(set(rungs)) < 2:
        raise ConfigurationError(f"{len(set(rungs))} rungs have no order to compare: name two or more")
    rows = values(store, ["study", "model_hash", "candidate", "nfe", "rung"], engine)
    rows = rows[rows["rung"].isin(list(rungs))]
    if study is not None:
        rows = rows[rows["study"] == study]
    by = ["model_hash", "nfe", "candidate", "rung"]
    best = _computed(rows.groupby(by)["value"].min().reset_index(), scheduler)
    table = best.pivot_table(index=by[:-1], columns="rung", values="value")
    found = []
    for nfe, group in table.groupby(level="nfe"):
        for i, one in enumerate(rungs):
            for other in rungs[i + 1 :]:
                there = [name for name in (one, other) if name in group.columns]
                both = group[there].dropna() if len(there) == 2 else group.iloc[:0]
                enough = len(both) >= 3 and both[one].nunique() > 1 and both[other].nunique() > 1
                tau = float(kendalltau(both[one], both[other]).statistic) if enough else float("nan")
                rho = float(spearmanr(both[one], both[other]).statistic) if enough else float("nan")
                found.append((int(str(nfe)), one, other, len(both), tau, rho))
    return pd.DataFrame(found, columns=["nfe", "first", "second", "candidates", "kendall", "spearman"])


def _computed(frame: Any, scheduler: Any) -> pd.DataFrame:
    found: pd.DataFrame = frame if isinstance(frame, pd.DataFrame) else frame.compute(scheduler=scheduler)
    return found
