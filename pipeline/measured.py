"""Metrics besides the one that a search minimises: measured of what its report is about, on the report's images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fewstep.pipeline.reports.rows import Row, SearchedRow
from fewstep.pipeline.trial import Rung, figure_name
from fewstep.search_spaces.point import Point
from fewstep.storage.records import MEASURED, EvaluationRecord
from fewstep.tasks.metrics.interval import Interval

NOTES = {"difference": "of what was found at that NFE, minus this row, on the same noise, with its interval"}

Rows = Callable[[Sequence[EvaluationRecord]], Sequence[Row]]
Difference = Callable[[Point, Point, Rung], Interval | None]


@dataclass(frozen=True)
class MeasuredRow(SearchedRow):
    """A line by one of these metrics, and the paired difference of what was found and this line, see NOTES."""

    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None


def measured_rungs(metrics: Sequence[str], report: Rung) -> list[Rung]:
    """The report's images by each of these metrics."""
    return [replace(report, name=rung_name(metric), metric=metric, also=()) for metric in metrics]


def rung_name(metric: str) -> str:
    """What the rung of a metric is called in tables and on the tracking server."""
    return MEASURED + figure_name(metric)


def measured_rows(
    records: Sequence[EvaluationRecord],
    rungs: Sequence[Rung],
    report: Rung,
    lines: Rows,
    points: Mapping[tuple[int, str], Point],
    difference: Difference,
) -> list[MeasuredRow]:
    """The report's lines by each metric, in the metrics' order; `lines` makes them of the records of a report."""
    return [
        row
        for rung in rungs
        for row in _rows_of(
            lines([replace(r, rung=report.name) for r in records if r.rung == rung.name]), rung, points, difference
        )
    ]


def _rows_of(
    rows: Sequence[Row], rung: Rung, points: Mapping[tuple[int, str], Point], difference: Difference
) -> Iterator[MeasuredRow]:
    names = set(SearchedRow.__dataclass_fields__)
    winners = {row.nfe: row for row in rows if isinstance(row, SearchedRow) and row.found}
    for row in rows:
        plain: dict[str, Any] = {name: value for name, value in asdict(row).items() if name in names}
        first, second = (points.get((row.nfe, r.method)) if r else None for r in (winners.get(row.nfe), row))
        apart = difference(first, second, rung) if first and second and first.hash != second.hash else None
        ends = apart or (None, None, None)
        yield MeasuredRow(**plain, difference=ends[0], difference_low=ends[1], difference_high=ends[2])
