"""`fewstep guidance-table`: accuracy of labels and Frechet distance of samplers at each scale of guidance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fewstep.pipeline.commands.flow_table import names, numbers, tell
from fewstep.pipeline.commands.options import AsJson, Device, Features, Model, Reference, Seed, print_json, typed

NAME = "guidance-table"


def command(
    model: Model,
    out: Annotated[Path, typer.Option(help="tables that keep every result; the same command goes on from there")],
    judge: Annotated[str, typer.Option(help="classifier that counts images which show their label: name or folder")],
    samplers: Annotated[
        str, typer.Option(help="comma-separated: dopri5, heun@6, PRESET/GRID@CALLS, files; NAME=SAMPLER names the row")
    ] = "dopri5",
    scales: Annotated[str, typer.Option(help="scales of guidance; 0 asks for nothing")] = "0,1,1.25,1.5,2,3,4",
    labels: Annotated[str, typer.Option(help="balanced (image i gets label i mod K) or one label")] = "balanced",
    images: Annotated[int, typer.Option(min=2, help="images of each sampler at each scale")] = 5000,
    seed: Seed = 0,
    features: Features = "auto",
    reference: Reference = "auto",
    csv: Annotated[Path | None, typer.Option(help="copy the table here")] = None,
    markdown: Annotated[Path | None, typer.Option(help="put the table between this file's guidance markers")] = None,
    executor: Annotated[str, typer.Option(help="ray or in-process")] = "ray",
    workers: Annotated[int, typer.Option(min=0, help="Ray actors; 0: one a core, or one a GPU")] = 0,
    address: Annotated[str | None, typer.Option(help="join the Ray cluster at this address")] = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Sample at each scale from the same noise; count the images in which the judge sees the label they were asked."""
    from dataclasses import asdict

    from fewstep.files import write_text
    from fewstep.pipeline import guidance_table
    from fewstep.pipeline.commands.options import execution_settings
    from fewstep.pipeline.reports.csv import results_csv
    from fewstep.pipeline.reports.markdown import insert_between_markers
    from fewstep.pipeline.reports.provenance import footnote
    from fewstep.tasks.models.files import find_model
    from fewstep.tasks.models.judge import find_judge

    files = find_model(model)
    pairs = []
    for text in names(samplers):
        name, equals, given = text.partition("=")
        parsed = guidance_table.parse_any(given if equals else text, files)
        pairs.append((name if equals else Path(text).stem if "@" not in text else text, parsed.to_json()))
    asked = guidance_table.GuidanceTableSettings(
        model=model,
        judge=judge,
        samplers=tuple(pairs),
        scales=numbers(scales),
        labels=labels,
        features=features,
        reference=reference,
        images=images,
        seed=seed,
    )
    execution = execution_settings(executor=executor, workers=workers, address=address, device=device)
    rows = guidance_table.run(asked, out, execution, None if as_json else tell)
    command_line, seeds = typed(), {"report": asked.rung.seed}
    notes = {"accuracy": f"share of images in which judge {judge} sees the label, Wilson interval"}
    card = find_judge(judge) / "card.json"
    if card.is_file():
        said = json.loads(card.read_text())
        notes["judge"] = f"accuracy {said['accuracy']} on {said['accuracy_on']} of the data"
    text = results_csv(rows, command_line, seeds, notes)
    written = {"results.csv": write_text(out / "results.csv", text)}
    if csv is not None:
        write_text(csv, text)
    if markdown is not None:
        note = f"{rows[0].images:,} images. {footnote(command_line, seeds, notes)}."
        insert_between_markers(markdown, guidance_table.markdown(rows, note), "guidance")
    if as_json:
        print_json({"rows": [asdict(row) for row in rows], "files": written})
        return
    for row in rows:
        ends = f"({row.accuracy_low:.4f} to {row.accuracy_high:.4f})"
        typer.echo(
            f"{row.method:24} guidance {row.guidance:<5g} accuracy {row.accuracy:.4f} {ends}  "
            f"{row.metric} {row.value:.3f}  NFE {row.nfe:.4g}"
        )
