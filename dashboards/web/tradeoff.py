"""Fronts of more than one figure: quality against size of quantised networks, success against identity of edits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

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


@dataclass(frozen=True)
class Tradeoff:
    """Points of one rung with the figures of TITLES, and `value` with its title."""

    points: pd.DataFrame
    rung: str
    titles: dict[str, str]
    pairs: tuple[tuple[str, str], ...]
    columns: tuple[str, ...]


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
    places = np.flatnonzero((complete & (rows["rung"] == rung)).to_numpy()).tolist()
    told = [_point(row) for row in columns.rows(entry.store, entry.study, places)]
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
    return Tradeoff(points, rung, {**TITLES, "value": f"{value}, lower is better"}, pairs, listed)


def _point(row: EvaluationRecord) -> dict[str, object] | None:
    """Its figures; None where this version cannot read the candidate."""
    try:
        point, figures = parse_point(row.candidate_json), row.metrics
    except ConfigurationError:
        return None
    config, edit = quantization_of(point), edit_of(point)
    told = told_origin(row.origin, {})
    name = config.name if config is not None else "full precision" if edit is None else told
    label = f"{name}, {told}" if name != told else told
    found: dict[str, object] = {"candidate": row.candidate, "nfe": row.nfe, "value": row.value, "metric": row.metric}
    found |= {name: figures.get(name) for name in ("success", "identity", "frechet")} if edit is not None else {}
    if config is not None:
        found["megabytes"] = figures["size_bytes"] / 1e6 if "size_bytes" in figures else None
        operations = figures.get("bit_operations_a_call")
        found["gigabit_operations"] = None if operations is None else operations / 1e9
    return {**found, "label": f"{label} at NFE {row.nfe}"}
