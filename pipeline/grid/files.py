"""What a grid leaves in its folder: tables as CSV, fronts and heat maps, one page, and its run on a tracking server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from fewstep.dashboards.drawings import save_front
from fewstep.dashboards.grid_page import write_grid_page
from fewstep.dashboards.heat_map import save_heat_map
from fewstep.files import write_text
from fewstep.pipeline.grid import tables
from fewstep.pipeline.grid.settings import AXES, ReportSettings
from fewstep.pipeline.reports.csv import frame_csv
from fewstep.pipeline.reports.provenance import made_by
from fewstep.storage.store import Store
from fewstep.storage.tracking import sync

if TYPE_CHECKING:
    from fewstep.pipeline.grid.grid import Grid

# A rung that no record has: a grid's cells are in its tables, not a run each.
NO_RUNG = "none"


@dataclass(frozen=True)
class Report:
    """A grid's tables, and where they were written. `compared` is empty where nothing was compared."""

    cells: pd.DataFrame
    leaderboard: pd.DataFrame
    left_out: pd.DataFrame
    compared: pd.DataFrame
    files: dict[str, Path]

    @property
    def counts(self) -> dict[str, int]:
        """How many cells there are, how many of each status, and how many are left out."""
        status = self.cells["status"]
        found = {name: int((status == name).sum()) for name in ("complete", "failed", "open")}
        return {"cells": len(status), **found, "left_out": int(self.left_out["cells"].sum())}


def report(grid: Grid, command: str, asked: ReportSettings) -> Report:
    """Make and write everything; ConfigurationError where cells cannot be compared as asked."""
    down, across, against = asked.rows, asked.columns, asked.against
    records = grid.records()
    done = [record for record in records.values() if record.status == "complete"]
    cells = tables.cell_table(grid, records)
    leaders, left_out = tables.leaderboard(cells), tables.left_out_table(grid)
    compared = tables.compared(grid, records, against) if against else pd.DataFrame()
    head = made_by(done, command, {}) | {"seeds": ", ".join(map(str, grid.settings.seeds))}
    by_name = {"cells.csv": cells, "leaderboard.csv": leaders}
    by_name |= {"left_out.csv": left_out} if len(left_out) else {}
    by_name |= {"compared.csv": compared} if against else {}
    pictures: dict[str, Path] = {}
    shown = {"Leaderboard": leaders}
    for space, rows in tables.spaces(cells).items():
        name = re.sub(r"[^\w.-]+", "-", space)
        table = tables.pivot(rows, down, across)
        by_name[f"pivot-{name}.csv"] = shown[f"{space}: {', '.join(down)} by {', '.join(across)}"] = table.reset_index()
        drawn = {f"front-{name}.png": save_front(tables.front_table(rows), grid.root / f"front-{name}.png")}
        title = f"{space}, lower is better: {', '.join(down)} by {', '.join(across)}"
        drawn[f"heat-{name}.png"] = save_heat_map(table, title, grid.root / f"heat-{name}.png")
        pictures |= drawn
    files = {name: write_text(grid.root / name, frame_csv(table, head)) for name, table in by_name.items()}
    failed = cells[cells["status"] == "failed"][[*AXES, "error"]]
    shown |= {f"Compared with {against}": compared} if against else {}
    shown |= {"Failed": failed, "Left out": left_out}
    made = Report(cells, leaders, left_out, compared, files | pictures)
    facts: dict[str, object] = {**{n.replace("_", " "): f"{v:,}" for n, v in made.counts.items()}, **head}
    page = write_grid_page(grid.root / "grid.html", grid.settings.study, facts, shown, pictures)
    return Report(cells, leaders, left_out, compared, {**made.files, "grid.html": page})


def log(grid: Grid, made: Report, tracking_uri: str) -> None:
    """One run on the tracking server, with the tables as artifacts; TrackingError where it refuses."""
    figures: dict[str, float] = {name: float(value) for name, value in made.counts.items()}
    figures["denoiser_calls"] = float(pd.to_numeric(made.cells["calls"]).sum())
    for row in made.leaderboard.to_dict("records"):
        name = f"{row['measured']} {row['model']} nfe {row['nfe']}"
        figures[name] = min(figures.get(name, float("inf")), float(row["value"]))
    study, store = grid.settings.study, Store(grid.root)
    sync(store, study, tracking_uri, artifacts=made.files, rung=NO_RUNG, front_rung=NO_RUNG, figures=figures)


def plain(made: Report) -> dict[str, Any]:
    """The same for scripts: counts, the best, what failed and what was left out."""
    failed = made.cells[made.cells["status"] == "failed"]
    return {
        **made.counts,
        "leaderboard": _rows(made.leaderboard),
        "failures": _rows(failed[[*AXES, "error"]]),
        "left_out_because": _rows(made.left_out),
        "compared": _rows(made.compared),
        "files": made.files,
    }


def _rows(table: pd.DataFrame) -> list[Mapping[str, Any]]:
    kept = table.astype(object).where(table.notna(), None)
    rows: list[Mapping[str, Any]] = [{str(n): v for n, v in row.items()} for row in kept.to_dict("records")]
    return rows
