"""What a study found, read from its evaluations: the final table and the way there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from fewstep.errors import ConfigurationError
from fewstep.search_spaces.point import SchedulePoint, parse_point
from fewstep.search_spaces.schedule.presets import SEARCH_PRESETS, preset
from fewstep.storage.origins import stock_name
from fewstep.storage.store import Store

FOUND = "fewstep"
"""Method name of what a search found; presets go by their own."""

REPORT, FINALS, JUDGE, SCREEN = "report", "finals", "frechet", "screen"
SEARCHED = (FINALS, JUDGE, SCREEN)
"""Rungs by whose values a search tells what it found, the dearest first."""

COMPARABLE = ("metric", "features", "reference")
"""Values are compared only between rows that agree on these."""

READ = (
    "order",
    "nfe",
    "rung",
    "status",
    "origin",
    "value",
    "low",
    "high",
    "images",
    "denoiser_calls",
    "candidate",
    "candidate_json",
    *COMPARABLE,
)

_TABLE = {
    "nfe": "int64",
    "method": "object",
    "grid": "object",
    "value": "float64",
    "low": "float64",
    "high": "float64",
    "images": "int64",
    **dict.fromkeys(COMPARABLE, "object"),
    "candidate": "object",
    "origin": "object",
    "order": "int64",
    "searched_at": "int64",
    "searched": "float64",
}
_CONVERGENCE = {"nfe": "int64", "calls": "int64", "value": "float64", "best": "float64", "origin": "object"}


def report_table(store: Store, study: str, shared: Iterable[tuple[int, str, str]] = ()) -> pd.DataFrame:
    """One row a method, grid and NFE, by NFE and then by value: the figures of the report rung.

    Columns: nfe, method (`fewstep` or a preset's name), grid (empty where a search chose the times),
    value with its interval low to high (NaN where there is none), images, metric, features, reference,
    candidate (hash), origin, order (place in the record), and the candidate's value in the search itself
    with the place of its rung in SEARCHED (searched, searched_at). Presets that coincide at an NFE share
    one evaluation and have a row each, and so have others that share one, given as `shared` (NFE, hash, origin).
    What was found and is a preset goes by the preset's name. Empty before the report. Raises StorageError when the
    store cannot be read.
    """
    return report_of(_evaluations(store, study), shared)


def report_of(
    evaluations: list[dict[str, Any]], shared: Iterable[tuple[int, str, str]] = (), rung: str = REPORT
) -> pd.DataFrame:
    """The same from rows with the columns READ in their order, of the report or a further metric's rung of it."""
    rows = []
    searched = {
        row["candidate"]: (place, row["value"])
        for place, dearer in reversed(list(enumerate(SEARCHED)))
        for row in _finite(evaluations, dearer)
    }
    for row in _finite(evaluations, rung):
        method, grid = _method(row["origin"])
        place, value = searched.get(row["candidate"], (len(SEARCHED), float("inf")))
        rows.append({**row, "method": method, "grid": grid, "searched_at": place, "searched": value})
    rows += _sharing(rows, shared)
    rows += _coinciding(rows)
    table = _frame(rows, _TABLE)
    # What was found comes first among equals, then presets by name.
    found_first = table.assign(_found=table["method"] != FOUND)
    ranked = found_first.sort_values(["nfe", "value", "_found", "method", "order"], kind="stable")
    return ranked.drop(columns="_found").reset_index(drop=True)


def convergence(store: Store, study: str) -> pd.DataFrame:
    """One row an evaluation of the judging rung `frechet`, in the order of the record.

    Columns: nfe, calls (denoiser calls that the whole search had spent by then, the report apart), value,
    best (the lowest value so far at that NFE) and origin. Raises StorageError when the store cannot be
    read.
    """
    wanted = ["order", "nfe", "rung", "status", "value", "denoiser_calls", "origin"]
    return convergence_of(store.evaluations.read(wanted, where={"study": study}).to_pandas())


def convergence_of(rows: pd.DataFrame) -> pd.DataFrame:
    """The same from the evaluations' columns order, nfe, rung, status, value, denoiser_calls and origin."""
    rows = rows[rows["rung"] != REPORT]
    # As a rule they are: a million rows take a while to sort.
    rows = rows if rows["order"].is_monotonic_increasing else rows.sort_values("order", kind="stable")
    rows = rows.assign(calls=rows["denoiser_calls"].cumsum())
    judged = rows[(rows["rung"] == JUDGE) & (rows["status"] == "complete") & np.isfinite(rows["value"].astype(float))]
    judged = judged.assign(best=judged.groupby("nfe")["value"].cummin())
    return judged[list(_CONVERGENCE)].astype(dict(_CONVERGENCE)).reset_index(drop=True)


def feature_spaces(table: pd.DataFrame) -> list[pd.DataFrame]:
    """The table cut into parts whose values may be compared with one another."""
    return [part.reset_index(drop=True) for _, part in table.groupby(list(COMPARABLE), sort=True)]


def headline(table: pd.DataFrame) -> pd.DataFrame:
    """One row a method and NFE: a preset's lowest value over its grids, of what was found what the search held best.

    That is the lowest value at the dearest rung of the search, the latest where it is told nothing. Picking the
    lowest of the report would be choosing on the very images that judge them. Raises ConfigurationError when the
    table mixes values that cannot be compared.
    """
    mixed = [name for name in COMPARABLE if table[name].nunique() > 1]
    if mixed:
        values = ", ".join(map(str, table[mixed[0]].unique()))
        raise ConfigurationError(
            f"the table mixes {mixed[0]} {values}, whose values cannot be compared: "
            f"show the parts that feature_spaces returns one by one"
        )
    found = table[table["method"] == FOUND].sort_values("order", ascending=False, kind="stable")
    # A table that no search made has no such columns.
    told = [name for name in ("searched_at", "searched") if name in table]
    found = found.sort_values(told, kind="stable") if told else found
    lowest = table[table["method"] != FOUND].sort_values("value", kind="stable")
    rows = pd.concat([found, lowest]).drop_duplicates(["nfe", "method"])
    return rows.sort_values(["nfe", "value"], kind="stable").reset_index(drop=True)


def methods(table: pd.DataFrame) -> list[str]:
    """The methods of a table, what was found first, then presets by name."""
    return sorted(set(table["method"]), key=lambda name: (name != FOUND, name))


def _evaluations(store: Store, study: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = store.evaluations.read(READ, where={"study": study}).to_pylist()
    return sorted(rows, key=lambda row: row["order"])


def _finite(rows: Iterable[Mapping[str, Any]], rung: str) -> list[dict[str, Any]]:
    """The complete rows of a rung that have a finite value."""
    return [
        dict(row) for row in rows if row["rung"] == rung and row["status"] == "complete" and _is_number(row["value"])
    ]


def _is_number(value: float | None) -> bool:
    return value is not None and abs(value) < float("inf")


def _method(origin: str) -> tuple[str, str]:
    """Method and grid of an origin; one that is neither found nor a preset is its own method.

    What was found and is a preset is not called found.
    """
    if origin.startswith("found") and not stock_name(origin):
        return FOUND, ""
    name, _, grid = (stock_name(origin) or origin).partition("/")
    return name, grid


def _sharing(rows: list[dict[str, Any]], shared: Iterable[tuple[int, str, str]]) -> list[dict[str, Any]]:
    """Rows for what shares an evaluation with another and has none of its own."""
    known = {(row["nfe"], row["method"], row["grid"]) for row in rows}
    wanted = [(nfe, key, *_method(origin), origin) for nfe, key, origin in shared]
    return [
        {**row, "method": method, "grid": grid, "origin": origin}
        for nfe, key, method, grid, origin in wanted
        for row in rows
        if (row["nfe"], row["candidate"]) == (nfe, key) and (nfe, method, grid) not in known
    ]


def _coinciding(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows for the presets that an evaluated preset equals at its NFE, and that were not evaluated again."""
    known = {(row["nfe"], row["method"], *(row[name] for name in COMPARABLE)) for row in rows}
    added = []
    for row in rows:
        origin = row["origin"].removeprefix("found:")
        if not origin.startswith("preset:"):
            continue
        for name in _equal_presets(row["candidate_json"]):
            identity = (row["nfe"], name, *(row[column] for column in COMPARABLE))
            if identity not in known:
                known.add(identity)
                added.append({**row, "method": name, "grid": _method(origin)[1]})
    return added


def _equal_presets(text: str) -> list[str]:
    try:
        point = parse_point(text)
    except ConfigurationError:
        return []  # what this version cannot read stands for itself
    if not isinstance(point, SchedulePoint):
        return []
    schedule = point.schedule
    return [name for name in SEARCH_PRESETS if preset(name, schedule.lambdas).hash == schedule.hash]


def _frame(rows: list[dict[str, Any]], columns: Mapping[str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns)).astype(dict(columns))
