"""Which decisions mattered to what was measured: mean decrease of impurity in a random forest over the candidates.

Of each decision of a step (as `order.2`) the importance is worked out alone, and shown of all steps together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.dashboards.results import JUDGE
from fewstep.dashboards.web.columns import Columns
from fewstep.dashboards.web.places import Entry

LEAST, MOST = 20, 500
"""Candidates of an NFE below which nothing is said, and the newest of them that are looked at."""

# Of the rungs that compare candidates the dearest that has seen enough of them.
_RUNGS = (JUDGE, "screen", "look", "distance", "presets")
_READ = ("candidate", "parameters", "rung", "metric", "nfe", "value")
_TREES = 32


@dataclass(frozen=True)
class Importance:
    """Shares of the decisions, which sum to 1, of candidates of one NFE by their values at one rung."""

    nfe: int
    rung: str
    metric: str
    candidates: int
    shares: Mapping[str, float]


def importances(columns: Columns, entry: Entry) -> list[Importance]:
    """By NFE, of those that have enough candidates that differ; empty where what was drawn is not stored."""
    rows = columns.frame(entry.store, entry.study, ["rung", "status", "value", "nfe"])
    usable = ((rows["status"] == "complete") & np.isfinite(rows["value"].astype(float))).to_numpy()
    nfes, rungs, found = rows["nfe"].to_numpy(), rows["rung"], []
    for nfe in sorted(int(n) for n in np.unique(nfes)):
        own = np.flatnonzero(usable & (nfes == nfe))
        named = rungs.iloc[own]
        for rung in _RUNGS:
            places = own[(named == rung).to_numpy()][-MOST:]
            if len(places) < LEAST:
                continue
            told = _importance(columns.cells(entry.store, entry.study, places.tolist(), _READ))
            if told is not None:
                found.append(told)
                break
    return found


def prepare() -> None:
    """Import what takes longest to, before it is asked for."""
    import sklearn.ensemble  # noqa: F401


def _importance(rows: Sequence[Mapping[str, Any]]) -> Importance | None:
    """Of rows of one rung and NFE; None where too few tell what was drawn, or all drew the same."""
    # A candidate that was measured again counts once; what has other parameters is of another space.
    once = {row["candidate"]: (drawn, row) for row in rows if (drawn := _drawn(row["parameters"]))}
    names = [set(drawn) for drawn, _ in once.values()]
    kept = [(drawn, row) for drawn, row in once.values() if set(drawn) == names[-1]] if names else []
    if len(kept) < LEAST or len({row["value"] for _, row in kept}) < 2:
        return None
    shares = _shares([drawn for drawn, _ in kept], [row["value"] for _, row in kept])
    first = kept[-1][1]
    return Importance(first["nfe"], first["rung"], first["metric"], len(kept), shares) if shares else None


def _drawn(parameters: str) -> dict[str, Any]:
    """What the sampler drew, as far as it is a single value."""
    try:
        found = json.loads(parameters)
    except ValueError:
        return {}
    known = found.items() if isinstance(found, dict) else ()
    return {name: value for name, value in known if isinstance(value, bool | int | float | str) and name != "nfe"}


def _shares(drawn: Sequence[Mapping[str, Any]], values: Sequence[float]) -> dict[str, float]:
    """Mean decrease of impurity by decision, all steps of one together, the largest first."""
    columns: list[NDArray[np.float64]] = []
    decisions: list[str] = []
    for name in drawn[0]:
        for column in _encoded([row[name] for row in drawn]):
            columns.append(column)
            decisions.append(name.partition(".")[0])
    if not columns:
        return {}
    from sklearn.ensemble import RandomForestRegressor

    forest = RandomForestRegressor(_TREES, random_state=0).fit(np.stack(columns, axis=1), np.array(values))
    shares: dict[str, float] = {}
    for decision, share in zip(decisions, forest.feature_importances_, strict=True):
        shares[decision] = shares.get(decision, 0.0) + float(share)
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _encoded(values: Sequence[Any]) -> list[NDArray[np.float64]]:
    """Numbers as they are, of other values a column each; nothing where all are the same."""
    distinct = list(dict.fromkeys(values))
    if len(distinct) == 1:
        return []
    kinds = {type(value) for value in distinct}
    if kinds <= {int, float} and all(np.isfinite(distinct)):
        return [np.array(values, dtype=np.float64)]
    return [np.array([value == own for value in values], dtype=np.float64) for own in distinct]
