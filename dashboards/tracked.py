"""What MLflow shows of a study at a glance: held-out figures by NFE beside what is stock, and its description.

A figure begins with its feature space, as `fid-digits/nfe4`: figures of two spaces are never in one column.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fewstep.dashboards.results import FOUND, READ, REPORT, feature_spaces, headline, report_of
from fewstep.storage.names import metric_name
from fewstep.storage.origins import is_stock, told_origin
from fewstep.storage.records import MEASURED
from fewstep.storage.store import Store
from fewstep.storage.tracking import OWN_RUN

# Of the metric that the record does not compare by, told where the report measured it.
FURTHER = ("success", "identity", "accuracy", "size_bytes")
LONGEST = 7500
"""Signs of a description: MLflow keeps 8,000."""

# MLflow draws tables without any room between their columns.
_APART = "&nbsp;&nbsp; | "
_BARE = str.maketrans({sign: f"\\{sign}" for sign in "\\`*_[]|<>"})


@dataclass(frozen=True)
class Summary:
    """Metrics of the study's run by name, those of them that compare studies at a glance, and Markdown."""

    figures: Mapping[str, float]
    columns: Sequence[str]
    description: str


@dataclass(frozen=True)
class _Line:
    """What was found at one NFE in one space, beside the best stock sampler there; ends may be NaN."""

    space: str
    nfe: int
    found: pd.Series
    stock: pd.Series | None

    @property
    def gain(self) -> float | None:
        """By which share what was found is lower; None where there is nothing to compare with."""
        if self.stock is None or not self.stock["value"] > 0:
            return None
        return 1.0 - float(self.found["value"]) / float(self.stock["value"])

    @property
    def name(self) -> str:
        return f"{self.space}/nfe{self.nfe}"


def summary(
    store: Store,
    study: str,
    shared: Iterable[tuple[int, str, str]] = (),
    verdicts: Sequence[str] = (),
    command: str = "",
    pictures: Sequence[str] = (),
) -> Summary:
    """Of one study's tables; `pictures` are artifacts of its run, for `shared` see `report_table`.

    StorageError when the store cannot be read.
    """
    wanted = [*READ, "metrics", "seconds", "trial", "status"]
    rows = store.evaluations.read(list(dict.fromkeys(wanted)), where={"study": study}).to_pylist()
    rows.sort(key=lambda row: row["order"])
    lines = list(_lines(rows, list(shared)))
    further = {row["candidate"]: _further(row["metrics"]) for row in rows if row["rung"] == REPORT}
    figures: dict[str, float] = {}
    for line in lines:
        figures |= _figures(line, further.get(line.found["candidate"], {}))
    columns = [n for line in lines for n in (line.name, f"{line.name}_stock", f"{line.name}_gain") if n in figures]
    figures |= _cost(rows)
    origins = {row["candidate"]: row["origin"] for row in reversed(rows) if row["rung"] != REPORT}
    parts = [_table(lines, origins), *(_picture(name) for name in pictures), _code(command)]
    spent = f"{figures['cost/search_calls']:,.0f} denoiser calls of the search, {figures['cost/report_calls']:,.0f} of "
    parts.append(f"{spent}the report, {figures['cost/seconds']:,.0f} s in evaluations.")
    return Summary(figures, columns, _joined(verdicts, [part for part in parts if part]))


_ENDS = ("_low", "_high")


def _lines(rows: list[dict[str, Any]], shared: list[tuple[int, str, str]]) -> Iterator[_Line]:
    rungs = sorted({row["rung"] for row in rows if row["rung"] == REPORT or row["rung"].startswith(MEASURED)})
    for rung in sorted(rungs, key=lambda name: (name != REPORT, name)):
        for table in feature_spaces(report_of(rows, shared, rung)):
            first, shown = table.iloc[0], headline(table)
            space = metric_name(first["metric"], first["features"])
            for nfe, own in shown.groupby("nfe"):
                stock = own[[is_stock(origin) for origin in own["origin"]]]
                found = own[own["method"] == FOUND]
                # Where a preset won, it is what was found.
                best = found if len(found) else own[[o.startswith("found:") for o in own["origin"]]]
                if len(best):
                    yield _Line(space, int(str(nfe)), best.iloc[0], stock.iloc[0] if len(stock) else None)


def _figures(line: _Line, further: Mapping[str, float]) -> dict[str, float]:
    figures = {line.name: line.found["value"]}
    figures |= {f"{line.name}{end}": line.found[end[1:]] for end in _ENDS}
    if line.stock is not None:
        figures[f"{line.name}_stock"] = line.stock["value"]
        figures |= {f"{line.name}_stock{end}": line.stock[end[1:]] for end in _ENDS}
    if line.gain is not None:
        figures[f"{line.name}_gain"] = line.gain
    figures |= {f"{line.name}_{name}": value for name, value in further.items()}
    return {name: float(value) for name, value in figures.items() if math.isfinite(value)}


def _further(text: str) -> dict[str, float]:
    found = json.loads(text)
    return {name: float(found[name]) for name in FURTHER if isinstance(found.get(name), int | float)}


def _cost(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Denoiser calls and seconds of the search and its report, and of everything at each NFE."""
    told = [row["rung"] == REPORT or row["rung"].startswith(MEASURED) for row in rows]
    cost = {
        "cost/search_calls": float(sum(r["denoiser_calls"] for r, late in zip(rows, told, strict=True) if not late)),
        "cost/report_calls": float(sum(r["denoiser_calls"] for r, late in zip(rows, told, strict=True) if late)),
        "cost/seconds": float(sum(row["seconds"] for row in rows)),
    }
    for nfe in sorted({row["nfe"] for row in rows}):
        own = [row for row in rows if row["nfe"] == nfe]
        cost[f"cost/nfe{nfe}_calls"] = float(sum(row["denoiser_calls"] for row in own))
        cost[f"cost/nfe{nfe}_seconds"] = float(sum(row["seconds"] for row in own))
    return cost


# -- the description --------------------------------------------------------------------------------------


def _table(lines: Sequence[_Line], origins: Mapping[str, str]) -> str:
    if not lines:
        return "There is no report yet: the curves are of the images that the search sees, and no results."
    names = ("NFE", "metric", "found (95%)", "best stock (95%)", "lower by", "found by", "stock sampler")
    head = [f"| {_APART.join(names)} |", "|---" * len(names) + "|"]
    return "\n".join([*head, *(_row(line, origins) for line in lines)])


def _row(line: _Line, origins: Mapping[str, str]) -> str:
    gain = "" if line.gain is None else f"{line.gain:.0%}".replace("-", "−")
    stock, name = ("", "") if line.stock is None else (_value(line.stock), line.stock["origin"].partition(":")[2])
    words = told_origin(line.found["origin"], origins)
    cells = (str(line.nfe), line.space, _value(line.found), stock, gain, words, name)
    return f"| {_APART.join(cell.translate(_BARE) for cell in cells)} |"


def _value(row: pd.Series) -> str:
    known = math.isfinite(row["low"]) and math.isfinite(row["high"])
    return f"{row['value']:.4g}" + (f" ({row['low']:.4g} to {row['high']:.4g})" if known else "")


def _picture(name: str) -> str:
    return f"![{name}](get-artifact?path={name}&run_uuid={OWN_RUN})"


def _code(command: str) -> str:
    return f"    {' '.join(command.split())}" if command.strip() else ""


def _joined(verdicts: Sequence[str], parts: Sequence[str]) -> str:
    """The parts, and before them as many verdicts as there is room for."""
    room, said = LONGEST - sum(len(part) + 2 for part in parts), []
    for line in verdicts:
        room -= len(line) + 2
        if room > 0:
            said.append(line.translate(_BARE))
    return "\n\n".join([*said, *parts])[:LONGEST]
