"""`fewstep baseline`: what stock samplers reach on a model, on their best grids, beside a many-step teacher."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.pipeline.baseline_settings import BaselineSettings
from fewstep.pipeline.commands.fields import EXECUTION, Fields, options
from fewstep.pipeline.commands.options import AsJson, Plot, Tracking, folder, into, print_json, typed, writable
from fewstep.pipeline.executors.base import ExecutionSettings

NAME = "baseline"


CHOSEN = Fields(BaselineSettings, flags={"nfes": "--nfe"})


@options(settings=CHOSEN, execution=EXECUTION)
def command(
    settings: BaselineSettings,
    execution: ExecutionSettings,
    out: Annotated[
        Path,
        into(help="tables that keep every result; the same command goes on from there", check=folder),
    ],
    csv: Annotated[
        Path | None,
        into(
            help="copy the table here, the screen's and other metrics' beside it as *_screen.csv, *_metrics.csv",
            check=writable,
        ),
    ] = None,
    plot: Plot = None,
    partial: Annotated[bool, typer.Option("--partial", help="write what is known already, compute nothing")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="forecast the denoiser calls, run nothing")] = False,
    tracking_uri: Tracking = None,
    as_json: AsJson = False,
) -> None:
    """Screen presets on grids at every NFE, then measure the best grid of each on noise that chose nothing.

    Nothing is computed twice: killed, the same command goes on; with more presets or images, it adds them.
    """
    from fewstep.pipeline import baseline

    if dry_run:
        figures = {"schedules": sum(map(len, baseline.entries(settings).values())), "calls": baseline.calls(settings)}
        typer.echo(f"{figures['schedules']} schedules to screen, at most {figures['calls']:,} denoiser calls")
        if as_json:
            print_json(figures)
        return
    if partial:
        found = baseline.on_disk(settings, out)
    else:
        found = baseline.run(settings, out, execution, None if as_json else _tell, None if as_json else typer.echo)
    files = _write(settings, found, out, {"csv": csv, "plot": plot})
    uri = None if partial else _track(out, files, tracking_uri)
    if as_json:
        print_json(
            {
                "rows": [vars(r) for r in found.reported],
                "screened": [vars(r) for r in found.screened],
                "measured": [vars(r) for r in found.measured],
                "files": files,
                "tracking_uri": uri,
            }
        )
        return
    _print(found, files, uri)


def _tell(record: Any) -> None:
    from fewstep.pipeline.reports.rows import figure_text

    value = "failed" if record.value is None else figure_text(record.value)
    typer.echo(f"{record.rung:6}  NFE {record.nfe:<3} {record.origin.removeprefix('preset:'):28} {value}")


def _write(settings: Any, found: Any, out: Path, copies: dict[str, Path | None]) -> dict[str, Path]:
    """The tables and the picture in `out`, and where they are to be copied to."""
    from fewstep.files import write_text
    from fewstep.pipeline.baseline import TEACHER
    from fewstep.pipeline.publishing import draw_rows
    from fewstep.pipeline.reports.csv import results_csv

    command_line = typed()
    rows = [r for r in found.reported if r.method != TEACHER]
    teacher = next((r for r in found.reported if r.method == TEACHER), None)
    screened, reported, measured = found.records
    report = results_csv(found.reported, command_line, settings.seeds, records=reported)
    screen = results_csv(found.screened, command_line, settings.seeds, records=screened)
    files = {
        "results.csv": write_text(out / "results.csv", report),
        "screen.csv": write_text(out / "screen.csv", screen),
    }
    others = results_csv(found.measured, command_line, settings.seeds, records=measured)
    if found.measured:
        files["metrics.csv"] = write_text(out / "metrics.csv", others)
    if (csv := copies["csv"]) is not None:
        if found.measured:
            write_text(csv.with_name(f"{csv.stem}_metrics{csv.suffix}"), others)
        write_text(csv, report)
        write_text(csv.with_name(f"{csv.stem}_screen{csv.suffix}"), screen)
    if rows:
        files["front.png"] = draw_rows(rows, teacher, out / "front.png")
        if (plot := copies["plot"]) is not None:
            draw_rows(rows, teacher, plot)
    return files


def _track(out: Path, files: dict[str, Path], tracking_uri: str | None) -> str | None:
    """Log the study to MLflow; a warning where that fails, as everything is on disk."""
    from fewstep.errors import StorageError, TrackingError
    from fewstep.pipeline.baseline import STUDY
    from fewstep.storage.masking import masked_argument
    from fewstep.storage.store import Store
    from fewstep.storage.tracking import default_tracking_uri, sync

    uri = tracking_uri or default_tracking_uri(out)
    try:
        sync(Store(out), STUDY, uri, artifacts=files, rung="screen", front_rung="report")
    except (TrackingError, StorageError) as error:
        print(f"warning: {' '.join(str(error).split())}; run the same command again to log it later", file=sys.stderr)
        return None
    return masked_argument(uri)


def _print(found: Any, files: dict[str, Path], uri: str | None) -> None:
    from rich.console import Console

    from fewstep.pipeline.display import mlflow_command, print_measured, results_table

    Console().print(results_table(found.reported))
    print_measured(found.measured)
    for name, path in files.items():
        typer.echo(f"{name:16} {path}")
    if uri is not None:
        typer.echo("Browse the study: " + mlflow_command(uri))
