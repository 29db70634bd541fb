"""`fewstep quantization-table`: quantisations of one model side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.pipeline.commands.options import (
    AsJson,
    Device,
    Features,
    Guidance,
    Labels,
    Model,
    Reference,
    Seed,
    conditions,
    print_json,
    typed,
)

NAME = "quantization-table"
METHODS = ",".join(
    f"{bits}-{procedure}-{coverage}"
    for bits in ("w8a8", "w4a8", "w4a32")
    for coverage in ("paper", "full")
    for procedure in ("naive", "qdiffusion", "tfmq")
)


def command(
    model: Model,
    schedule: Annotated[str, typer.Option(help="a schedule's JSON file, or PRESET/GRID@CALLS")],
    out: Annotated[Path, typer.Option(help="tables and networks that are kept; the same command goes on from there")],
    methods: Annotated[str, typer.Option(help="config names, comma-separated; fp32 is always there")] = METHODS,
    images: Annotated[int, typer.Option(min=2, help="images of the Frechet distance")] = 5000,
    paired_images: Annotated[int, typer.Option(min=2, help="images of the paired error")] = 1000,
    seed: Seed = 0,
    features: Features = "auto",
    reference: Reference = "auto",
    labels: Labels = "none",
    guidance: Guidance = 1.0,
    csv: Annotated[
        Path | None, typer.Option(help="copy the table here, temporal errors beside it as *_temporal")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="picture of the temporal errors (.png, .svg or .pdf)")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="put the table between this file's quantization markers")
    ] = None,
    executor: Annotated[str, typer.Option(help="ray or in-process")] = "ray",
    workers: Annotated[int, typer.Option(min=0, help="Ray actors; 0: one a core, or one a GPU")] = 0,
    address: Annotated[str | None, typer.Option(help="join the Ray cluster at this address")] = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Calibrate each method for the schedule, then compare quality, paired error, size and temporal features."""
    from dataclasses import asdict

    from fewstep.files import write_text
    from fewstep.pipeline import quantization_table
    from fewstep.pipeline.commands.options import execution_settings
    from fewstep.tasks.models.files import find_model
    from fewstep.tasks.sampling.grids import parse_schedule

    settings = quantization_table.TableSettings(
        model=model,
        schedule=parse_schedule(schedule, find_model(model).noise),
        methods=tuple(part.strip() for part in methods.split(",") if part.strip()),
        features=features,
        reference=reference,
        conditions=conditions(labels, guidance),
        images=images,
        paired_images=paired_images,
        seed=seed,
    )
    execution = execution_settings(executor=executor, workers=workers, address=address, device=device)
    tell = None if as_json else typer.echo
    table = quantization_table.run(settings, out, execution, None if as_json else _tell, tell)
    command_line = typed()
    texts = {
        "results.csv": quantization_table.table_csv(table, command_line, settings),
        "temporal.csv": quantization_table.temporal_csv(table, command_line, settings),
    }
    files = {name: write_text(out / name, text) for name, text in texts.items()}
    if csv is not None:
        write_text(csv, texts["results.csv"])
        write_text(csv.with_name(f"{csv.stem}_temporal{csv.suffix}"), texts["temporal.csv"])
    if plot is not None:
        from fewstep.dashboards.quantization import draw_temporal

        files["temporal.png"] = draw_temporal(texts["temporal.csv"], plot)
    if markdown is not None:
        from fewstep.pipeline.reports.markdown import insert_between_markers

        insert_between_markers(markdown, quantization_table.markdown(table, command_line, settings), "quantization")
    if as_json:
        print_json({"rows": [asdict(row) for row in table.rows], "files": files})
        return
    for row in table.rows:
        ends = "" if row.low is None else f" ({row.low:.2f} to {row.high:.2f})"
        typer.echo(
            f"{row.method:26} {row.value:7.3f}{ends:18} paired {row.paired_pixel:.4f} "
            f"temporal {row.temporal_error:.4f} size {row.size_ratio:.3f}"
        )


def _tell(record: object) -> None:
    value = getattr(record, "value", None)
    text = "failed" if value is None else f"{value:.4f}"
    typer.echo(f"{getattr(record, 'rung', ''):9} {getattr(record, 'origin', ''):28} {text}")
