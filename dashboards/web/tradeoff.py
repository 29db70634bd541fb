"""Fronts of more than one figure: quality against size of quantised networks, success against identity of edits."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fewstep.dashboards.results import FINALS, JUDGE, REPORT, SCREEN
from fewstep.dashboards.web.columns import Columns
from fewstep.dashboards.web.places import Entry
from fewstep.errors import ConfigurationError
from fewstep.search_spaces.point import edit_of, parse_point, quantization_of
from fewstep.storage.origins import told_origin
from fewstep.storage.records import EvaluationRecord

# Spaces with such a front, and the pairs of figures (across, up) that are drawn of it.
PAIRS = {
    "quantization": (("megabytes", "value"), ("gigabit_operations", "value")),
    "joint": (("megabytes", "value"), ("nfe", "value")),
    "edit": (("success", "identity"), ("nfe", "identity")),
}
TITLES = {
    "megabytes": "size of the network (MB), lower is better",
    "gigabit_operations": "bit operations a call (10⁹), lower is better",
    "nfe": "denoiser calls per image (NFE), lower is better",
    "success": "success of the edit (share of images), higher is better",
    "identity": "identity kept (1 is all of it), higher is better",
    "frechet": "Fréchet distance, lower is better",
}

MOST = 1000
"""Candidates that are drawn: what no one can tell apart in a picture takes seconds to send."""

# How the figures are called among a row's metrics, where that is another name.
_STORED = {"megabytes": "size_bytes", "gigabit_operations": "bit_operations_a_call"}
_HIGHER = ("success", "identity")
_UNTOLD = ("parameters", "versions", "error")


@dataclass(frozen=True)
class Tradeoff:
    """Points of one rung with the figures of TITLES, and `value` with its title."""

    points: pd.DataFrame
    rung: str
    titles: dict[str, str]
    pairs: tuple[tuple[str, str], ...]
    columns: tuple[str, ...]
    left_out: int
    """Evaluations of that rung that are neither on a front nor among the newest."""


def tradeoff(columns: Columns, entry: Entry) -> Tradeoff | None:
    """The front of the dearest rung that has several candidates; None for other spaces, or where there is none yet."""
    pairs = PAIRS.get(entry.space)
    if pairs is None:
        return None
    rows = columns.frame(entry.store, entry.study, ["rung", "status"])
    complete = rows["status"] == "complete"
    at = (n for n in (REPORT, FINALS, JUDGE, SCREEN) if (complete & (rows["rung"] == n)).sum() > 1)
    rung = next(at, "")
    if not rung:
        return None
    places = np.flatnonzero((complete & (rows["rung"] == rung)).to_numpy())
    many = len(places) > MOST
    shown = _worth_showing(columns, entry, places, pairs) if many else places
    # Points lie in files all over the table, and what takes longest to read there is their JSON.
    without = (*_UNTOLD, "candidate_json") if many else _UNTOLD
    told = [_point(row) for row in columns.rows(entry.store, entry.study, shown.tolist(), without)]
    points = pd.DataFrame([point for point in told if point is not None])
    needed = [name for pair in pairs for name in pair]
    points = points.dropna(subset=[n for n in needed if n in points]).drop_duplicates(
        "label" if rung == REPORT else "candidate"
    )
    if points.empty or not set(needed) <= set(points):
        return None
    metric = points["metric"].iloc[0]
    value = "Fréchet distance" if metric == "frechet" else metric
    listed = tuple(dict.fromkeys(n for n in ("nfe", *needed, "frechet") if n in points and points[n].notna().any()))
    titles = {**TITLES, "value": f"{value}, lower is better"}
    return Tradeoff(points, rung, titles, pairs, listed, len(places) - len(shown))


def _worth_showing(
    columns: Columns, entry: Entry, places: NDArray[np.int64], pairs: Sequence[tuple[str, str]]
) -> NDArray[np.int64]:
    """Of many candidates the fronts of each NFE, as far as there is room, and the newest of the others."""
    frame = columns.frame(entry.store, entry.study, ["nfe", "value", "metrics"])
    mask = np.zeros(len(frame), dtype=np.bool_)
    mask[places] = True
    # To filter texts is several times as fast as to take them one by one.
    rows = pd.DataFrame({name: frame[name].array[mask] for name in frame})
    values = {name: _figure(rows, name) for name in {name for pair in pairs for name in pair}}
    nfes, fronts = rows["nfe"].to_numpy(), np.zeros(len(rows), dtype=np.bool_)
    for nfe in np.unique(nfes):
        own = np.flatnonzero(nfes == nfe)
        for x, y in pairs:
            fronts[own[_front(values[x][own], values[y][own])]] = True
    first, others = np.flatnonzero(fronts)[-MOST:], np.flatnonzero(~fronts)
    shown = np.concatenate([first, others[len(others) - (MOST - len(first)) :]])
    return np.asarray(places[np.sort(shown)])


def _figure(rows: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """A figure of each row, lower is better; NaN where it has none."""
    if name in rows:
        return rows[name].to_numpy(dtype=np.float64)
    key = re.escape(json.dumps(_STORED.get(name, name)))
    found = pc.extract_regex(pa.array(rows["metrics"], pa.string()), f"{key}: (?P<value>[-+.eE0-9]+)")
    numbers = pc.fill_null(pc.struct_field(found, "value").cast(pa.float64()), float("nan")).to_numpy()
    return np.asarray(-numbers if name in _HIGHER else numbers)


def _front(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.int64]:
    """Places of the points that no other one is as good as in both and better in one; of equal points one."""
    ranked = np.lexsort((y, x))
    ranked = ranked[np.isfinite(x[ranked]) & np.isfinite(y[ranked])]
    before = np.minimum.accumulate(np.concatenate([[np.inf], y[ranked]]))[:-1]
    return ranked[y[ranked] < before]


def _point(row: EvaluationRecord) -> dict[str, object] | None:
    """Its figures; None where this version cannot read the candidate. One that was not read goes by its hash."""
    figures, name, told = row.metrics, row.candidate[:8], told_origin(row.origin, {})
    if row.candidate_json:
        try:
            point = parse_point(row.candidate_json)
        except ConfigurationError:
            return None
        config, edit = quantization_of(point), edit_of(point)
        name = config.name if config is not None else "full precision" if edit is None else told
    label = f"{name}, {told}" if name != told else told
    found: dict[str, object] = {"candidate": row.candidate, "nfe": row.nfe, "value": row.value, "metric": row.metric}
    if "success" in figures:
        found |= {name: figures.get(name) for name in ("success", "identity", "frechet")}
    for kind, unit in (("megabytes", 1e6), ("gigabit_operations", 1e9)):
        figure = figures.get(_STORED[kind])
        found[kind] = None if figure is None else figure / unit
    return {**found, "label": f"{label} at NFE {row.nfe}"}
