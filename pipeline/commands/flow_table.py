"""`fewstep flow-table`: dopri5, Euler, Heun, the best preset and found schedules of a flow at each NFE."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from fewstep.errors import ConfigurationError
from fewstep.pipeline.commands.options import (
    AsJson,
    Device,
    Features,
    JudgeName,
    Model,
    Reference,
    Seed,
    print_json,
    typed,
)
from fewstep.pipeline.settings import parse_nfes

NAME = "flow-table"


def command(
    model: Model,
    out: Annotated[Path, typer.Option(help="tables that keep every result; the same command goes on from there")],
    found: Annotated[str, typer.Option(help="found schedules without labels: files, comma-separated")] = "",
    found_conditional: Annotated[str, typer.Option(help="found schedules with guidance: files, comma-separated")] = "",
    settings: Annotated[str, typer.Option(help="unconditional, conditional, or both")] = "unconditional,conditional",
    labels: Annotated[str, typer.Option(help="what the conditional setting asks for")] = "balanced",
    judge: JudgeName = "",
    guidances: Annotated[str, typer.Option(help="scales of guidance that are screened")] = "1,1.25,1.5,2",
    presets: Annotated[str | None, typer.Option(help="presets besides Euler and Heun, comma-separated")] = None,
    grids: Annotated[str | None, typer.Option(help="grids, comma-separated [default: those that end at zero]")] = None,
    nfe: Annotated[str, typer.Option(help="denoiser calls, as 3-6 or 3,5,8")] = "3-6,8,10",
    peer_guidance: Annotated[
        bool, typer.Option("--peer-guidance/--common-guidance", help="a scale for each peer, or dopri5's for all")
    ] = True,
    screen_images: Annotated[int, typer.Option(min=2, help="images of the screen; a quarter for a first look")] = 1000,
    report_images: Annotated[int, typer.Option(min=2, help="images of every row of the table")] = 10_000,
    tolerance: Annotated[float, typer.Option(help="absolute and relative tolerance of dopri5")] = 1e-5,
    seed: Seed = 0,
    features: Features = "auto",
    reference: Reference = "auto",
    csv: Annotated[
        Path | None, typer.Option(help="copy the table here, the screen's beside it as *_screen.csv")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="pictures beside this path, one a setting: *_SETTING (.png, .svg or .pdf)")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="put the tables between this file's flow markers")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="write what is known already, compute nothing")] = False,
    executor: Annotated[str, typer.Option(help="ray or in-process")] = "ray",
    workers: Annotated[int, typer.Option(min=0, help="Ray actors; 0: one a core, or one a GPU")] = 0,
    address: Annotated[str | None, typer.Option(help="join the Ray cluster at this address")] = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Compare samplers of a flow model, chosen on search seeds and judged on report seeds."""
    from dataclasses import asdict

    from fewstep.files import write_text
    from fewstep.pipeline import flow_table
    from fewstep.pipeline.commands.options import execution_settings
    from fewstep.pipeline.reports.csv import results_csv

    chosen: dict[str, Any] = {
        "model": model,
        "features": features,
        "reference": reference,
        "settings": names(settings),
        "labels": labels,
        "judge": judge,
        "nfes": parse_nfes(nfe),
        "guidances": numbers(guidances),
        "found": _schedules(found),
        "found_conditional": _schedules(found_conditional),
        "peer_guidance": peer_guidance,
        "screen_images": screen_images,
        "report_images": report_images,
        "tolerance": tolerance,
        "seed": seed,
        **({"presets": names(presets)} if presets else {}),
        **({"grids": names(grids)} if grids else {}),
    }
    try:
        asked = flow_table.FlowTableSettings(**chosen)
    except ValidationError as error:
        raise ConfigurationError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None
    execution = (
        None if partial else execution_settings(executor=executor, workers=workers, address=address, device=device)
    )
    quiet = None if as_json else typer.echo
    table = flow_table.run(asked, out, execution, None if as_json else tell, quiet)
    command_line = typed()
    notes = {
        "nfe": "mean denoiser calls an image; a guided call counts as one",
        "chosen": f"guidance, grids and presets on {screen_images} images of the screen's seed",
        **({"accuracy": f"of judge {judge}, Wilson interval"} if judge else {}),
    }
    texts = {
        name: results_csv(rows, command_line, asked.seeds, notes)
        for name, rows in (("results.csv", table.reported), ("screen.csv", table.screened))
    }
    files = {name: write_text(out / name, text) for name, text in texts.items()}
    if csv is not None:
        write_text(csv, texts["results.csv"])
        write_text(csv.with_name(f"{csv.stem}_screen{csv.suffix}"), texts["screen.csv"])
    if plot is not None:
        files |= _draw(table, plot)
    if markdown is not None:
        _publish(table, markdown, command_line, asked.seeds)
    if as_json:
        print_json({"rows": [asdict(row) for row in table.reported], "files": files})
        return
    for row in table.reported:
        ends = "" if row.low is None else f" ({row.low:.2f} to {row.high:.2f})"
        scale = "" if row.guidance is None else f" at guidance {row.guidance:g}"
        typer.echo(
            f"{row.setting:14} {row.method:12} NFE {row.nfe:6.5g}  {row.value:7.3f}{ends:18} {row.schedule}{scale}"
        )


def names(text: str) -> tuple[str, ...]:
    """The comma-separated parts of an option, without empty ones."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(text: str) -> tuple[float, ...]:
    """The comma-separated numbers of an option; ConfigurationError where a part is none."""
    try:
        return tuple(float(part) for part in names(text))
    except ValueError:
        raise ConfigurationError(f"{text!r}: give numbers separated by commas, as 1,1.5,2") from None


def tell(record: Any) -> None:
    """One line about a finished evaluation."""
    value = "failed" if record.value is None else f"{record.value:.3f}"
    typer.echo(f"{record.rung:6} NFE {record.nfe:<3} {record.origin:40} {value}")


def _schedules(text: str) -> tuple[str, ...]:
    from fewstep.search_spaces.schedule import load_schedule

    return tuple(load_schedule(name).to_json() for name in names(text))


def _draw(table: Any, plot: Path) -> dict[str, Path]:
    from fewstep.pipeline.commands.publishing import draw_rows
    from fewstep.pipeline.flow_table import plain_rows
    from fewstep.pipeline.reports.rows import Row
    from fewstep.search_spaces.ode import ADAPTIVE

    files = {}
    for setting in dict.fromkeys(r.setting for r in table.reported):
        path = plot.with_name(f"{plot.stem}_{setting}{plot.suffix}")
        exact = next((r for r in table.reported if r.setting == setting and r.method == ADAPTIVE), None)
        level = exact and Row(
            exact.model, ADAPTIVE, round(exact.nfe), exact.metric, exact.value, exact.low, exact.high, exact.images, ""
        )
        files[path.name] = draw_rows(plain_rows(table.reported, setting), level, path)
    return files


def _publish(table: Any, path: Path, command_line: str, seeds: dict[str, int]) -> None:
    from fewstep.pipeline.flow_table import plain_rows
    from fewstep.pipeline.reports.markdown import insert_between_markers, results_markdown
    from fewstep.pipeline.reports.provenance import footnote
    from fewstep.search_spaces.ode import ADAPTIVE

    parts = []
    for setting in dict.fromkeys(r.setting for r in table.reported):
        own = [r for r in table.reported if r.setting == setting]
        exact = next((r for r in own if r.method == ADAPTIVE), own[0])
        ends = "" if exact.low is None else f" ({exact.low:.2f} to {exact.high:.2f})"
        scale = "" if exact.guidance is None else f", guidance {exact.guidance:g}"
        note = f"{setting}{scale}; {exact.metric}, {exact.images:,} images, lower is better. {ADAPTIVE}: "
        said = f"{exact.value:.2f}{ends} at {exact.nfe:.1f} calls on average."
        note += said if exact.method == ADAPTIVE else "not evaluated yet."
        parts.append(results_markdown(plain_rows(table.reported, setting), note))
    insert_between_markers(path, "\n\n".join([*parts, f"{footnote(command_line, seeds)}."]), "flow")
