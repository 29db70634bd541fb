"""A grid as tables: one line a cell, the best, rows x columns of any axes, and differences on the same noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from fewstep.errors import ConfigurationError, FewstepError
from fewstep.pipeline.grid.cells import Value, shown
from fewstep.pipeline.grid.settings import AXES, NO_QUANTIZATION, check_pivot
from fewstep.pipeline.reports.rows import metric_name
from fewstep.storage.records import EvaluationRecord

if TYPE_CHECKING:
    from fewstep.pipeline.grid.grid import Grid, Planned

# Values are compared within one of these only.
SPACE = ("measured", "reference")
COLUMNS = (*AXES, "status", "value", "low", "high", "measured", "images", "calls", "reference", "candidate", "error")
LEADERS, LINES = 10, 8


def cell_table(grid: Grid, records: Mapping[str, EvaluationRecord]) -> pd.DataFrame:
    """One row a cell, in the grid's order; `measured` is the metric with its features, `status` says what is known."""
    return pd.DataFrame([_row(p, records.get(p.key)) for p in grid.plan], columns=list(COLUMNS))


def _row(planned: Planned, record: EvaluationRecord | None) -> dict[str, Any]:
    made: dict[str, Any] = dict(planned.cell.axes)
    if record is None:
        return {**made, "status": "open", "images": planned.cell.rung.images, "error": ""}
    return {
        **made,
        "status": record.status,
        "value": record.value,
        "low": record.low,
        "high": record.high,
        "measured": metric_name(record),
        "images": record.images,
        "calls": record.denoiser_calls,
        "reference": record.reference,
        "candidate": record.candidate,
        "error": record.error,
    }


def left_out_table(grid: Grid) -> pd.DataFrame:
    """What cannot be: the axes that decide it, how many cells that leaves out, and why."""
    rows = [
        {**{axis: "" for axis in AXES}, **one.axes, "cells": one.cells, "reason": one.reason} for one in grid.left_out
    ]
    return pd.DataFrame(rows, columns=[*AXES, "cells", "reason"])


def spaces(cells: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The complete cells by what they are measured by; where one metric has several references, each is numbered."""
    done = cells[cells["status"] == "complete"]
    found: dict[str, pd.DataFrame] = {}
    for (measured, _), rows in done.groupby(list(SPACE), sort=False, dropna=False):
        name = str(measured)
        number = sum(1 for other in found if other.partition(" of reference ")[0] == name)
        found[name if not number else f"{name} of reference {number + 1}"] = rows
    return found


def leaderboard(cells: pd.DataFrame, top: int = LEADERS) -> pd.DataFrame:
    """The `top` lowest values of each metric, model and NFE, the best first; seeds are averaged."""
    made = []
    for name, rows in spaces(cells).items():
        best = averaged(rows).sort_values(["model", "nfe", "value"], kind="stable")
        best = best.groupby(["model", "nfe"], sort=False).head(top)
        made.append(best.assign(measured=name))
    columns = ["measured", *(axis for axis in AXES if axis not in ("seed", "metric"))]
    columns += ["value", "low", "high", "images", "seeds"]
    return pd.concat(made)[columns].reset_index(drop=True) if made else pd.DataFrame(columns=columns)


def averaged(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for all seeds: means of the values and of the ends of their intervals, and how many seeds there were."""
    by = [axis for axis in AXES if axis != "seed"]
    kept = {name: (name, "first") for name in ("measured", "reference", "images", "candidate")}
    means: Any = {name: (name, "mean") for name in ("value", "low", "high")}
    ends = rows.assign(low=pd.to_numeric(rows["low"]), high=pd.to_numeric(rows["high"]))
    return ends.groupby(by, sort=False).agg(**means, **kept, seeds=("seed", "nunique")).reset_index()


def pivot(rows: pd.DataFrame, down: Sequence[str], across: Sequence[str]) -> pd.DataFrame:
    """Values by the axes `down` and `across`, of one metric: means over seeds, else the lowest over what is not shown.

    ConfigurationError for an axis that is none, or named twice.
    """
    check_pivot(down, across)
    table = rows if "seed" in (*down, *across) else averaged(rows)
    lowest = table.groupby([*down, *across], sort=False)["value"].min()
    made = lowest.unstack(list(across), sort=False)
    order = {axis: {value: i for i, value in enumerate(rows[axis].drop_duplicates())} for axis in across}
    if len(across) == 1:
        numbers = across[0] in ("nfe", "seed", "guidance")
        key = None if numbers else (lambda index: index.map(order[across[0]]))
        made = made.sort_index(axis=1, key=key)
    return made


def front_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Quality by NFE of one metric as `save_front` draws it: the LINES methods that rank best, one a solver.

    What else differs between cells (model, bits, guidance) is part of a method's name.
    """
    best = averaged(rows)
    varying = [axis for axis in ("model", "quantization", "guidance") if best[axis].nunique() > 1]

    def method(row: Mapping[Any, Any]) -> str:
        name = str(row["schedule"]).partition("/")[0] if _is_preset(str(row["schedule"])) else str(row["schedule"])
        return " ".join([name, *(shown(row[axis]) for axis in varying if row[axis] not in (NO_QUANTIZATION, 1.0))])

    best = best.assign(
        method=[method(row) for row in best.to_dict("records")],
        grid=[s.partition("/")[2] if _is_preset(s) else "" for s in best["schedule"]],
        metric=[str(name) for name in best["measured"]],
        features="",
        reference="",
        order=range(len(best)),
    )
    lowest = best.sort_values("value", kind="stable").drop_duplicates(["nfe", "method"])
    ranks = lowest.assign(rank=lowest.groupby("nfe")["value"].rank()).groupby("method")["rank"].mean()
    leading = set(ranks.sort_values(kind="stable").index[:LINES])
    return best[best["method"].isin(leading)].reset_index(drop=True)


def _is_preset(schedule: str) -> bool:
    from fewstep.search_spaces.schedule.presets import ALIASES, PRESETS

    return schedule.partition("/")[0] in (*PRESETS, *ALIASES)


# -- differences ----------------------------------------------------------------------------------------


def check_against(grid: Grid, against: str) -> tuple[int, Value]:
    """The place and the value of AXIS=VALUE; ConfigurationError where cells cannot be compared so.

    Those of two seeds, metrics or models are not of the same noise or features.
    """
    axis, equals, text = against.partition("=")
    if not equals or axis not in AXES:
        raise ConfigurationError(f"--against {against}: write AXIS=VALUE, with an axis of {', '.join(AXES)}")
    if axis in ("seed", "metric", "model"):
        raise ConfigurationError(f"--against {against}: cells of two {axis}s have no noise or features in common")
    _check_groups(grid)
    place = list(AXES).index(axis)
    values = {shown(p.cell.values[place]): p.cell.values[place] for p in grid.plan}
    if text not in values:
        raise ConfigurationError(f"--against {against} is no cell: {axis} is {', '.join(values)}")
    return place, values[text]


def compared(grid: Grid, records: Mapping[str, EvaluationRecord], against: str) -> pd.DataFrame:
    """Each cell less the one that differs in one axis alone, which has the value of `against` (AXIS=VALUE) there.

    Both are of the same noise, so that what they share cancels. Errors as in `check_against`.
    """
    place, value = check_against(grid, against)
    by_values = {p.cell.values: p for p in grid.plan if p.key in records and records[p.key].status == "complete"}
    rows = []
    for p in by_values.values():
        at = list(p.cell.values)
        at[place] = value
        other = by_values.get(tuple(at))
        if other is not None and other is not p:
            rows.append(_difference(grid, (p, other), records, list(AXES)[place]))
    return pd.DataFrame(rows, columns=[*AXES, "against", "value", "other", "difference", "low", "high", "better"])


def _check_groups(grid: Grid) -> None:
    from fewstep.pipeline.campaign import check_groups, check_paired

    check_groups(grid.settings.images)
    for metric in grid.settings.metrics:
        check_paired(metric)


def _difference(
    grid: Grid, pair: tuple[Planned, Planned], records: Mapping[str, EvaluationRecord], axis: str
) -> dict[str, Any]:
    first, second = pair
    evaluators = [grid.evaluators[p.group] for p in pair]
    values: list[Any] = [records[p.key].value for p in pair]
    made: dict[str, Any] = {**first.cell.axes, "against": shown(second.cell.axes[axis])}
    made |= {"value": values[0], "other": values[1], "better": ""}
    if first.key == second.key:
        # Two names of one schedule.
        return {**made, "difference": 0.0, "low": 0.0, "high": 0.0}
    try:
        parts = [e.parts(p.cell.point, p.cell.rung) for e, p in zip(evaluators, pair, strict=True)]
        found = evaluators[0].metric(first.cell.rung.metric).paired(*parts)
    except (FewstepError, KeyError) as error:
        return {**made, "better": f"parts are not kept ({error})"}
    if found is None:
        return made
    better = "yes" if found.high < 0 else "no" if found.low > 0 else "undecided"
    return {**made, "difference": found.value, "low": found.low, "high": found.high, "better": better}
