"""Publish a study: pictures and page on disk, runs on the tracking server. All of it can be made again."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from PIL import Image

from fewstep.dashboards.drawings import save_convergence, save_front, save_schedules
from fewstep.dashboards.lines import Level
from fewstep.dashboards.page import write_page
from fewstep.dashboards.results import convergence, report_table
from fewstep.dashboards.tracked import summary
from fewstep.files import read_text
from fewstep.pipeline.optuna_study import sync_optuna
from fewstep.pipeline.reports.rows import Row
from fewstep.search_spaces.schedule import load_schedule
from fewstep.storage.tracking import default_tracking_uri, sync

if TYPE_CHECKING:
    from fewstep.pipeline.study import Study


# What a study's problem has written, where it has.
COMMAND = "# command: "
# What a description of the study shows.
SMALL, WIDE = "front-small.png", 640
DESCRIBED = (SMALL, "images.png", "grid.png")
PUBLISHED = ("results.csv", "metrics.csv", "images.png", "front.csv", "front.json", "edit.json", "grid.png")


def write_report(study: Study, html: Path) -> Path:
    """The self-contained page, with the image grid where there is one."""
    images = study.root / "images.png"
    shown, state = {"Samples": images} if images.is_file() else None, study.state()
    return write_page(
        study.store, study.settings.study, html, shown, study.verdicts(state), study.shared_evaluations(state)
    )


def draw(study: Study) -> dict[str, Path]:
    """Everything that shows the study, by file name: the files of the search, the pictures drawn now."""
    name, root = study.settings.study, study.root
    files = {path: root / path for path in PUBLISHED if (root / path).is_file()}
    table = report_table(study.store, name, study.shared_evaluations(study.state()))
    if len(table):
        files["front.png"] = save_front(table, root / "front.png")
    curve = convergence(study.store, name)
    if len(curve):
        files["convergence.png"] = save_convergence(curve, root / "convergence.png")
    found = [(f"NFE {nfe}", load_schedule(path)) for nfe, path in study.schedules().items()]
    if found:
        files["schedules.png"] = save_schedules(found, root / "schedules.png")
    return files


def log(study: Study, tracking_uri: str | None, optuna_storage: str | None = None, page: Path | None = None) -> str:
    """Bring Optuna's study and the tracking server up to date; returns the latter's URI. It gets the `page` too.

    TrackingError where one refuses or is not there: the other is brought up to date all the same.
    """
    try:
        sync_optuna(study, optuna_storage)
    finally:
        uri = _log_runs(study, tracking_uri, page)
    return uri


def _log_runs(study: Study, tracking_uri: str | None, page: Path | None) -> str:
    uri, ladder = tracking_uri or default_tracking_uri(study.root), study.problem.ladder
    records = study.store.evaluations.records(where={"study": study.settings.study})
    reported = [r for r in records if r.rung == ladder.report.name]
    # A report of edits has the one that was chosen: their front is that of the finals.
    several = study.settings.space != "edit"
    members = {
        r.candidate: {"images.png": study.images_path(r.nfe)}
        for r in reported
        if r.origin.startswith("found:") and study.images_path(r.nfe).is_file()
    }
    files, state = draw(study) | ({"report.html": page} if page else {}), study.state()
    with tempfile.TemporaryDirectory() as scratch:
        if "front.png" in files:
            files[SMALL] = _smaller(files["front.png"], Path(scratch) / SMALL)
        told = summary(
            study.store,
            study.settings.study,
            study.shared_evaluations(state),
            study.verdicts(state),
            made_by_command(files.get("results.csv")),
            [name for name in DESCRIBED if name in files],
        )
        sync(
            study.store,
            study.settings.study,
            uri,
            artifacts=files,
            candidate_artifacts=members,
            rung=ladder.main.name,
            front_rung=(ladder.report.name if reported else None) if several else ladder.finals.name,
            figures=told.figures,
            description=told.description,
            columns=told.columns,
        )
    return uri


def _smaller(picture: Path, path: Path) -> Path:
    """A picture as wide as a description has room for: MLflow shows each pixel of it."""
    with Image.open(picture) as image:
        image.thumbnail((WIDE, WIDE))
        image.save(path)
    return path


def made_by_command(table: Path | None) -> str:
    """The command in the head of a study's table; empty where there is no table."""
    lines = read_text(table).splitlines() if table is not None else []
    return next((line.removeprefix(COMMAND) for line in lines if line.startswith(COMMAND)), "")


def draw_rows(rows: list[Row], level: Row | None, path: Path) -> Path:
    """Quality against NFE from the rows of a table, with one row, if given, as a level across."""
    table = pd.DataFrame(
        {
            "nfe": r.nfe,
            "method": r.method,
            "grid": r.schedule.partition("/")[2],
            "value": r.value,
            "low": float("nan") if r.low is None else r.low,
            "high": float("nan") if r.high is None else r.high,
            "metric": "Frechet distance" if r.metric.startswith("fid") else r.metric,
            "features": r.metric if r.metric.startswith("fid") else "",
            "reference": "",
            "order": i,
        }
        for i, r in enumerate(rows)
    )
    across = Level(f"{level.method}, {level.nfe} calls", level.value, level.low, level.high) if level else None
    return save_front(table, path, across)
