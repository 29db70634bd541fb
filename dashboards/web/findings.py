"""What a study's page shows of its evaluations: fronts, the way there, rungs, refits of the surrogate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from fewstep.dashboards.results import (
    FINALS,
    FOUND,
    JUDGE,
    REPORT,
    SCREEN,
    SEARCHED,
    convergence_of,
    feature_spaces,
    headline,
    report_of,
)
from fewstep.dashboards.summary import ladder, rung_text
from fewstep.dashboards.web.columns import Columns
from fewstep.dashboards.web.places import Entry
from fewstep.storage.origins import PRESET
from fewstep.storage.records import MEASURED, EventRecord

# A picture of more lines is read by nobody; the table below it has them all.
MOST_LINES = 6


@dataclass(frozen=True)
class Front:
    """Values by method and NFE that may be compared with one another; `judged` on the report's fresh noise."""

    table: pd.DataFrame
    drawn: pd.DataFrame
    judged: bool
    left_out: int

    @property
    def caption(self) -> str:
        """What was measured, how and on how many images."""
        first, images = self.table.iloc[0], sorted(set(self.table["images"]))
        metric = "Fréchet distance" if first["metric"] == "frechet" else str(first["metric"])
        space = f" in the feature space {first['features']}" if first["features"] else ""
        count = f"{images[0]:,}" if len(images) == 1 else f"{images[0]:,} to {images[-1]:,}"
        return f"{metric}{space} on {count} images"


@dataclass(frozen=True)
class Rung:
    """One rung of the ladder; `candidates` reached it."""

    name: str
    text: str
    evaluations: int
    candidates: int
    failed: int
    calls: int


def fronts(columns: Columns, entry: Entry) -> list[Front]:
    """The report's, each further metric's of it, and without a report what the search holds best so far."""
    rows = columns.frame(entry.store, entry.study, ["rung", "status", "value", "nfe", "origin"])
    names = [str(name) for name in rows["rung"].unique()]
    reports = sorted(n for n in names if n == REPORT or n.startswith(MEASURED))
    if not reports:
        return _so_far(columns, entry, rows, names)
    candidates = columns.frame(entry.store, entry.study, ["candidate"])["candidate"]
    told = rows["rung"].isin(reports)
    searched = rows["rung"].isin(SEARCHED) & candidates.isin(candidates[told].unique())
    found = [asdict(r) for r in columns.rows(entry.store, entry.study, np.flatnonzero(told | searched).tolist())]
    tables = [report_of(found, rung=name) for name in sorted(reports, key=lambda n: (n != REPORT, n))]
    return [_front(part, True) for table in tables for part in feature_spaces(table)]


def side_by_side(columns: Columns, entries: Sequence[Entry]) -> list[pd.DataFrame]:
    """What each study found by NFE, as the report judged it: a table each feature space, `method` is the study."""
    found = []
    for entry in entries:
        for front in fronts(columns, entry):
            if front.judged:
                rows = headline(front.table)
                found.append(rows[rows["method"] == FOUND].assign(method=entry.title, grid=""))
    rows = pd.concat(found, ignore_index=True) if found else pd.DataFrame()
    return feature_spaces(rows) if len(rows) else []


def convergence(columns: Columns, entry: Entry) -> pd.DataFrame:
    """See `results.convergence`."""
    names = ["order", "nfe", "rung", "status", "value", "denoiser_calls", "origin"]
    return convergence_of(columns.frame(entry.store, entry.study, names))


def rungs(columns: Columns, entry: Entry) -> list[Rung]:
    """Up the ladder."""
    rows = columns.frame(entry.store, entry.study, ["rung", "metric", "trial", "status", "denoiser_calls"])
    found = []
    for name in rows["rung"].unique():
        at = (rows["rung"] == name).to_numpy()
        metrics = sorted(str(metric) for metric in rows["metric"][at].unique())
        evaluations, failed = int(at.sum()), int((at & (rows["status"] != "complete")).sum())
        calls = int(rows["denoiser_calls"].to_numpy()[at].sum())
        candidates = int(rows["trial"][at].nunique())
        found.append(Rung(str(name), rung_text(str(name), metrics), evaluations, candidates, failed, calls))
    return sorted(found, key=lambda rung: ladder(rung.name))


def refits(events: Sequence[EventRecord]) -> pd.DataFrame:
    """Refits of the surrogate that tell how well it ranked what it had not seen: evaluations, tau, at."""
    found = []
    for event in events:
        if event.kind == "refit":
            try:
                data = json.loads(event.data_json)
            except ValueError:
                continue
            if isinstance(data, dict) and isinstance(data.get("tau"), int | float):
                found.append({"evaluations": data.get("evaluations", 0), "tau": float(data["tau"]), "at": event.at})
    return pd.DataFrame(found, columns=["evaluations", "tau", "at"])


def _so_far(columns: Columns, entry: Entry, rows: pd.DataFrame, names: Sequence[str]) -> list[Front]:
    """By the dearest rung that the search has reached: presets, and the lowest of what it proposed itself."""
    rung = next((name for name in (JUDGE, FINALS, SCREEN) if name in names), "")
    at = rows[(rows["rung"] == rung) & (rows["status"] == "complete") & np.isfinite(rows["value"].astype(float))]
    if at.empty:
        return []
    stock = np.array([str(origin).startswith((PRESET, "analytic:")) for origin in at["origin"].cat.categories])
    is_stock = stock[at["origin"].cat.codes.to_numpy()]
    own, given = at[~is_stock], at[is_stock]
    best = own.loc[own.groupby("nfe")["value"].idxmin()]
    lowest = given.loc[given.groupby(["nfe", "origin"], observed=True)["value"].idxmin()]
    places = [int(place) for place in [*best.index, *lowest.index]]
    records = [asdict(record) for record in columns.rows(entry.store, entry.study, places)]
    told = [{**r, "origin": r["origin"] if r["origin"].startswith((PRESET, "analytic:")) else "found"} for r in records]
    return [_front(part, False) for part in feature_spaces(report_of(told, rung=rung))]


def _front(table: pd.DataFrame, judged: bool) -> Front:
    """The picture has what was found and the methods that come nearest to it at some NFE."""
    best = table.groupby("method")["value"].min().sort_values(kind="stable")
    shown = [FOUND, *(name for name in best.index if name != FOUND)][: MOST_LINES + 1]
    drawn = table[table["method"].isin(shown)].reset_index(drop=True)
    return Front(table, drawn, judged, len(set(table["method"]) - set(shown)))
