"""`fewstep grid`: every combination of models, schedules, calls, bits, guidance, seeds and metrics, each made once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.errors import ConfigurationError
from fewstep.pipeline.commands.fields import EXECUTION, Fields, options
from fewstep.pipeline.commands.options import AsJson, Tracking, folder, into, print_json, typed
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.grid.settings import AXES, GridSettings, ReportSettings

NAME = "grid"
CHOSEN = Fields(
    GridSettings,
    without=("per_model", "conditions.guidance"),
    flags={"models": "--model", "schedules": "--schedule", "nfes": "--nfe", "seeds": "--seed", "metrics": "--metric"},
    partial=True,
)
SHOWN = Fields(ReportSettings)
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="PATTERN|AXIS=VALUE",
        help="only cells whose name matches, as 'digits-ddpm/*/karras-zero/*', or with such a value, as nfe=3,4; "
        "may be repeated",
    ),
]


@options(chosen=CHOSEN, shown=SHOWN, execution=EXECUTION)
def command(
    chosen: dict[str, Any],
    shown: ReportSettings,
    execution: ExecutionSettings,
    file: Annotated[Path | None, typer.Argument(metavar="GRID.toml", help="a grid's file; options go first")] = None,
    recipe: Annotated[str | None, typer.Option(help="a grid's file that comes with fewstep, as stock-samplers")] = None,
    out: Annotated[Path | None, into(help="folder of the tables [default: runs/NAME]", check=folder)] = None,
    only: Only = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="PART/PARTS", help="make one part, as 3/8, beside others into the same --out or elsewhere"
        ),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="try failed cells again")] = False,
    partial: Annotated[bool, typer.Option("--partial", help="report what is known already, compute nothing")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="forecast cells, calls and time, run nothing")] = False,
    tracking_uri: Tracking = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a grid; killed, the same command goes on.

    Cells that a search, another grid or an evaluation has made are taken where --known names its folder. Failed cells
    are listed, and tried again with --retry; cells that cannot be are listed with the reason.
    """
    from fewstep.pipeline.grid.choose import Shard
    from fewstep.pipeline.grid.settings import grid_settings, read_grid_file
    from fewstep.pipeline.recipes import grid_recipe

    if file is not None and recipe is not None:
        raise ConfigurationError(f"give a grid's file or a --recipe, not both: {file} and {recipe}")
    layers = [read_grid_file(file)] if file is not None else [grid_recipe(recipe)] if recipe is not None else []
    settings = grid_settings(*layers, chosen)
    part = Shard.parse(shard) if shard else None

    from fewstep.pipeline.grid.forecast import forecast
    from fewstep.pipeline.grid.grid import Grid
    from fewstep.pipeline.grid.tables import check_against

    root = out or Path("runs") / settings.study
    grid = Grid(settings, root, execution, only or (), part)
    if shown.against:
        check_against(grid, shown.against)
    if dry_run:
        _forecast(forecast(grid, retry), grid, as_json)
        return
    folder(root)
    figures = {} if partial else forecast(grid, retry)
    grid.run(retry, _teller(figures, as_json), not partial)
    _finish(grid, shown, tracking_uri, as_json)


def _teller(figures: dict[str, Any], quiet: bool) -> Any:
    """What prints progress, and where it begins."""
    if quiet or not figures:
        return None
    from fewstep.pipeline.grid.progress import GridProgress

    progress = GridProgress(figures["to_evaluate"], figures["calls"])
    minutes = "" if figures["minutes"] is None else f", about {figures['minutes']:g} minutes"
    typer.echo(
        f"{figures['cells']:,} cells, {figures['to_evaluate']:,} evaluations of {figures['calls']:,} calls{minutes}"
    )

    def tell(record: Any) -> None:
        if line := progress.on_record(record):
            typer.echo(line)

    return tell


def _forecast(figures: dict[str, Any], grid: Any, as_json: bool) -> None:
    if as_json:
        print_json(figures)
        return
    width = max(map(len, figures)) + 2
    for name, value in figures.items():
        shown = "not known before some are done" if value is None else f"{value:,}"
        typer.echo(f"{name.replace('_', ' '):{width}} {shown}")
    _tell_left_out(grid)


def _tell_left_out(grid: Any) -> None:
    from fewstep.pipeline.grid.cells import told_left_out

    for line in told_left_out(grid.left_out):
        typer.echo(f"left out: {line}")


def _finish(grid: Any, shown: ReportSettings, tracking_uri: str | None, as_json: bool) -> None:
    from fewstep.pipeline.grid.files import plain, report

    made = report(grid, typed(), shown)
    uri = _track(grid, made, tracking_uri)
    counts = made.counts
    if counts["failed"]:
        print(f"warning: {counts['failed']} cells failed; see cells.csv; --retry tries them again", file=sys.stderr)
    for place, reason in grid.stopped.items():
        print(f"warning: cells of {grid.groups[place].subject.model} were given up: {reason}", file=sys.stderr)
    if as_json:
        print_json({**plain(made), "tracking_uri": uri})
        return
    from rich.console import Console

    from fewstep.pipeline.display import mlflow_command, plain_table

    leaders = made.leaderboard
    varying = [name for name in ("measured", *AXES) if name in leaders and leaders[name].nunique() > 1]
    title = f"the best of {counts['complete']:,} cells; all of them: cells.csv"
    listed = leaders.head(20).astype(object).where(leaders.head(20).notna(), "")
    Console().print(plain_table(title, [*varying, "value", "low", "high"], listed.to_dict("records")))
    failed = made.cells[made.cells["status"] == "failed"]
    for row in failed.head(20).to_dict("records"):
        typer.echo(f"failed: {row['model']} {row['schedule']} NFE {row['nfe']} {row['metric']}: {row['error']}")
    _tell_left_out(grid)
    for name, path in made.files.items():
        typer.echo(f"{name:24} {path}")
    typer.echo(", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items()))
    if uri is not None:
        typer.echo("Browse the grid: " + mlflow_command(uri))


def _track(grid: Any, made: Any, tracking_uri: str | None) -> str | None:
    """Log the grid to MLflow; a warning where that fails, as everything is on disk."""
    from fewstep.errors import StorageError, TrackingError
    from fewstep.pipeline.grid.files import log
    from fewstep.storage.masking import masked_argument
    from fewstep.storage.tracking import default_tracking_uri

    uri = tracking_uri or default_tracking_uri(grid.root)
    try:
        log(grid, made, uri)
    except (TrackingError, StorageError) as error:
        print(f"warning: {' '.join(str(error).split())}; run the same command again to log it later", file=sys.stderr)
        return None
    return masked_argument(uri)
