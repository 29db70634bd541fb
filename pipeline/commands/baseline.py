"""`fewstep baseline`: what stock samplers reach on a model, on their best grids, beside a many-step teacher."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from fewstep.errors import ConfigurationError
from fewstep.pipeline.commands.options import (
    AsJson,
    Device,
    Features,
    Guidance,
    Labels,
    Model,
    NegativePrompt,
    Prompts,
    Reference,
    Seed,
    conditions,
    print_json,
    typed,
)
from fewstep.pipeline.settings import parse_nfes
from fewstep.search_spaces.presets import SEARCH_PRESETS

NAME = "baseline"


def command(
    model: Model,
    out: Annotated[Path, typer.Option(help="tables that keep every result; the same command goes on from there")],
    presets: Annotated[str, typer.Option(help="solvers, comma-separated")] = ",".join(SEARCH_PRESETS),
    grids: Annotated[str | None, typer.Option(help="grids, comma-separated [default: those that end at zero]")] = None,
    nfe: Annotated[str, typer.Option(help="denoiser calls, as 3-6 or 3,5,8")] = "3-6,8,10",
    screen_images: Annotated[int, typer.Option(min=2, help="images of every preset on every grid")] = 2000,
    report_images: Annotated[int, typer.Option(min=2, help="images of the best grids and the teacher")] = 10_000,
    teacher: Annotated[str, typer.Option(help="PRESET/GRID@CALLS, or a schedule's file")] = (
        "unipc-2-bh2/karras-zero@100"
    ),
    seed: Seed = 0,
    features: Features = "auto",
    reference: Reference = "auto",
    labels: Labels = "none",
    guidance: Guidance = 1.0,
    prompts: Prompts = None,
    negative_prompt: NegativePrompt = "",
    csv: Annotated[
        Path | None, typer.Option(help="copy the table here, the screen's beside it as *_screen.csv")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="copy the picture here (.png, .svg or .pdf)")] = None,
    markdown: Annotated[Path | None, typer.Option(help="put the table between this file's baseline markers")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="write what is known already, compute nothing")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="forecast the denoiser calls, run nothing")] = False,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow server or database [default: in --out]")] = None,
    executor: Annotated[str, typer.Option(help="ray or in-process")] = "ray",
    workers: Annotated[int, typer.Option(min=0, help="Ray actors; 0: one a core, or one a GPU")] = 0,
    address: Annotated[str | None, typer.Option(help="join the Ray cluster at this address")] = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Screen presets on grids at every NFE, then judge the best grid of each on noise that chose nothing.

    Nothing is computed twice: killed, the same command goes on; with more presets or images, it adds them.
    """
    from fewstep.pipeline import baseline
    from fewstep.pipeline.commands.options import execution_settings

    chosen: dict[str, Any] = {
        "model": model,
        "features": features,
        "reference": reference,
        "conditions": conditions(labels, guidance, prompts, negative_prompt),
        "presets": _names(presets),
        "nfes": parse_nfes(nfe),
        "screen_images": screen_images,
        "report_images": report_images,
        "teacher": teacher,
        "seed": seed,
        **({"grids": _names(grids)} if grids else {}),
    }
    try:
        settings = baseline.BaselineSettings(**chosen)
    except ValidationError as error:
        raise ConfigurationError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None
    if dry_run:
        figures = {"schedules": sum(map(len, baseline.entries(settings).values())), "calls": baseline.calls(settings)}
        typer.echo(f"{figures['schedules']} schedules to screen, at most {figures['calls']:,} denoiser calls")
        if as_json:
            print_json(figures)
        return
    if partial:
        found = baseline.on_disk(settings, out)
    else:
        execution = execution_settings(executor=executor, workers=workers, address=address, device=device)
        found = baseline.run(settings, out, execution, None if as_json else _tell, None if as_json else typer.echo)
    files = _write(settings, found, out, {"csv": csv, "plot": plot, "markdown": markdown})
    uri = None if partial else _track(out, files, tracking_uri)
    if as_json:
        print_json(
            {
                "rows": [vars(r) for r in found.reported],
                "screened": [vars(r) for r in found.screened],
                "files": files,
                "tracking_uri": uri,
            }
        )
        return
    _print(found, files, uri)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _tell(record: Any) -> None:
    value = "failed" if record.value is None else f"{record.value:.3f}"
    typer.echo(f"{record.rung:6}  NFE {record.nfe:<3} {record.origin.removeprefix('preset:'):28} {value}")


def _write(settings: Any, found: Any, out: Path, copies: dict[str, Path | None]) -> dict[str, Path]:
    """The tables and the picture in `out`, and where they are to be copied to."""
    from fewstep.files import write_text
    from fewstep.pipeline.baseline import TEACHER
    from fewstep.pipeline.commands.publishing import draw_rows
    from fewstep.pipeline.reports.csv import results_csv
    from fewstep.pipeline.reports.markdown import insert_between_markers, results_markdown
    from fewstep.pipeline.reports.provenance import footnote

    command_line = typed()
    rows = [r for r in found.reported if r.method != TEACHER]
    teacher = next((r for r in found.reported if r.method == TEACHER), None)
    report, screen = (results_csv(table, command_line, settings.seeds) for table in (found.reported, found.screened))
    files = {
        "results.csv": write_text(out / "results.csv", report),
        "screen.csv": write_text(out / "screen.csv", screen),
    }
    if (csv := copies["csv"]) is not None:
        write_text(csv, report)
        write_text(csv.with_name(f"{csv.stem}_screen{csv.suffix}"), screen)
    if rows:
        files["front.png"] = draw_rows(rows, teacher, out / "front.png")
        if (plot := copies["plot"]) is not None:
            draw_rows(rows, teacher, plot)
    if rows and (markdown := copies["markdown"]) is not None:
        note = f"{rows[0].metric}, {rows[0].images:,} images, lower is better; each preset on the grid that did best "
        note += f"on {settings.screen_images:,} other images."
        if teacher is not None:
            ends = "" if teacher.low is None else f" ({teacher.low:.2f} to {teacher.high:.2f})"
            note += f" Teacher, {teacher.schedule}: {teacher.value:.2f}{ends}."
        note += f" {footnote(command_line, settings.seeds)}."
        insert_between_markers(markdown, results_markdown(rows, note), "baseline")
    return files


def _track(out: Path, files: dict[str, Path], tracking_uri: str | None) -> str | None:
    """Log the study to MLflow; a warning where that fails, as everything is on disk."""
    from fewstep.errors import StorageError, TrackingError
    from fewstep.pipeline.baseline import STUDY
    from fewstep.storage.store import Store
    from fewstep.storage.tracking import default_tracking_uri, sync

    uri = tracking_uri or default_tracking_uri(out)
    try:
        sync(Store(out), STUDY, uri, artifacts=files, rung="screen", front_rung="report")
    except (TrackingError, StorageError) as error:
        print(f"warning: {' '.join(str(error).split())}; run the same command again to log it later", file=sys.stderr)
        return None
    return uri


def _print(found: Any, files: dict[str, Path], uri: str | None) -> None:
    from rich.console import Console

    from fewstep.pipeline.display import mlflow_command, results_table

    Console().print(results_table(found.reported))
    for name, path in files.items():
        typer.echo(f"{name:16} {path}")
    if uri is not None:
        typer.echo("Browse the study: " + mlflow_command(uri))
