"""How busy workers were: of all together by the evaluations' seconds, of each where its executor told them apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fewstep.dashboards.web.columns import Columns
from fewstep.dashboards.web.places import Entry
from fewstep.storage.records import BUSY, EventRecord

_SPANS = 60
_MICROSECONDS = 1e-6


@dataclass(frozen=True)
class Busy:
    """Workers busy at a time, as a mean over each of equal spans; `actors` is a table of actor, share and seconds.

    `share` is that of the pool, None where no executor told its workers apart. An evaluation's seconds are taken to lie
    right before it was recorded.
    """

    times: list[datetime]
    workers: list[float]
    mean: float
    actors: pd.DataFrame
    share: float | None


def busy(columns: Columns, entry: Entry, events: Sequence[EventRecord]) -> Busy | None:
    """None where no seconds are stored."""
    rows = columns.frame(entry.store, entry.study, ["seconds", "finished_at"])
    seconds = rows["seconds"].to_numpy(dtype=np.float64)
    took = np.isfinite(seconds) & (seconds > 0)
    if not took.any():
        return None
    finished = rows["finished_at"].astype("int64").to_numpy()[took] * _MICROSECONDS
    seconds = seconds[took]
    begin = float((finished - seconds).min())
    edges = np.linspace(begin, float(finished.max()), _SPANS + 1)
    worked = _below(edges, finished - seconds) - _below(edges, finished)
    mean = np.diff(worked) / np.diff(edges)
    times = [datetime.fromtimestamp(at, UTC) for at in ((edges[1:] + edges[:-1]) / 2).tolist()]
    actors, share = _actors(events)
    return Busy(times, mean.tolist(), float(seconds.sum() / (edges[-1] - edges[0])), actors, share)


def _below(edges: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over places of how far each edge lies behind them."""
    spans = np.clip(np.searchsorted(edges, places, side="left"), 0, len(edges) - 1)
    counts = np.cumsum(np.bincount(spans, minlength=len(edges)))
    sums = np.cumsum(np.bincount(spans, weights=places - edges[0], minlength=len(edges)))
    return np.asarray(counts * (edges - edges[0]) - sums)


def _actors(events: Sequence[EventRecord]) -> tuple[pd.DataFrame, float | None]:
    """Seconds and share of the time by actor, and the share of all."""
    seconds: dict[str, float] = {}
    spans: dict[str, float] = {}
    for event in events:
        if event.kind != BUSY:
            continue
        try:
            data = json.loads(event.data_json)
            span = (event.at - datetime.fromisoformat(data["since"])).total_seconds()
            told = {str(name): float(value) for name, value in data["seconds"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        for name, value in told.items():
            seconds[name] = seconds.get(name, 0.0) + value
            spans[name] = spans.get(name, 0.0) + span
    names = sorted((name for name in seconds if spans[name] > 0), key=lambda name: (len(name), name))
    rows = [(f"actor {name}", min(1.0, seconds[name] / spans[name]), seconds[name]) for name in names]
    total = sum(spans[name] for name in names)
    share = min(1.0, sum(seconds[name] for name in names) / total) if total else None
    return pd.DataFrame(rows, columns=["actor", "share", "seconds"]), share
