"""`fewstep conditions-table`: inpainting and layouts on held-out images, beside what needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.pipeline.commands.flow_table import names, tell
from fewstep.pipeline.commands.options import AsJson, Device, Features, Reference, Seed, print_json, typed

NAME = "conditions-table"


def command(
    out: Annotated[Path, typer.Option(help="folder that keeps every result; the same command goes on from there")],
    inpaint: Annotated[str, typer.Option(help="inpainting model: a name or a folder")] = "fashion-lfm-inpaint",
    layout: Annotated[str, typer.Option(help="layout model: a name or a folder")] = "fashion-lfm-layout",
    plain: Annotated[str, typer.Option(help="the model without a condition")] = "fashion-lfm",
    nfe: Annotated[int, typer.Option(min=1, help="calls of the preset")] = 6,
    presets: Annotated[str, typer.Option(help="presets to choose from")] = "ddim,dpmpp-2m,unipc-2-bh2,deis-3",
    grids: Annotated[str, typer.Option(help="grids of the presets [default: all that end at zero]")] = "",
    tolerance: Annotated[float, typer.Option(help="dopri5's tolerances")] = 1e-5,
    images: Annotated[int, typer.Option(min=250, help="held-out images of each row")] = 2000,
    screen_images: Annotated[int, typer.Option(min=2, help="training images on which the preset is chosen")] = 500,
    seed: Seed = 0,
    features: Features = "auto",
    reference: Reference = "auto",
    csv: Annotated[Path | None, typer.Option(help="copy the table here")] = None,
    plot: Annotated[Path | None, typer.Option(help="draw the first images here")] = None,
    markdown: Annotated[Path | None, typer.Option(help="put the table between this file's conditions markers")] = None,
    executor: Annotated[str, typer.Option(help="ray or in-process")] = "ray",
    workers: Annotated[int, typer.Option(min=0, help="Ray actors; 0: one a core, or one a GPU")] = 0,
    address: Annotated[str | None, typer.Option(help="join the Ray cluster at this address")] = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Paint holes and follow layouts of held-out images by dopri5 and the best preset; measure against baselines."""
    from dataclasses import asdict

    from pydantic import ValidationError

    from fewstep.errors import ConfigurationError
    from fewstep.files import write_text
    from fewstep.pipeline import conditions_table as table
    from fewstep.pipeline.commands.options import execution_settings
    from fewstep.pipeline.reports.csv import results_csv
    from fewstep.pipeline.reports.markdown import insert_between_markers
    from fewstep.pipeline.reports.pictures import write_grid
    from fewstep.pipeline.reports.provenance import footnote

    chosen = {"grids": names(grids)} if grids else {}
    try:
        settings = table.ConditionsTableSettings(
            inpaint=inpaint,
            layout=layout,
            plain=plain,
            nfe=nfe,
            presets=names(presets),
            screen_images=screen_images,
            images=images,
            tolerance=tolerance,
            seed=seed,
            features=features,
            reference=reference,
            **chosen,
        )
    except ValidationError as error:
        raise ConfigurationError("; ".join(e["msg"] for e in error.errors())) from None
    execution = execution_settings(executor=executor, workers=workers, address=address, device=device)
    quiet = (None, None) if as_json else (tell, typer.echo)
    result = table.run(settings, out, execution, *quiet)
    command_line, seeds = typed(), {"screen": seed, "report": settings.report_seed}
    notes = {"rms": "of values in [-1, 1]", "hidden": "pixels in the hole; known ones are put back after decoding"}
    text = results_csv(result.rows, command_line, seeds, notes)
    written = {"results.csv": write_text(out / "results.csv", text)}
    if csv is not None:
        write_text(csv, text)
    if plot is not None:
        written[plot.name] = write_grid([(name, x.numpy()) for (_, name), x in result.pictures.items()], plot)
    if markdown is not None:
        note = f"{result.rows[0].images:,} held-out images. {footnote(command_line, seeds)}."
        insert_between_markers(markdown, table.markdown(result.rows, note), "conditions")
    if as_json:
        print_json({"rows": [asdict(row) for row in result.rows], "files": written})
        return
    typer.echo(table.markdown(result.rows, ""))
