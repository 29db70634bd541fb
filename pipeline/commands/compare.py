"""`fewstep compare`: two schedules on the same noise, and the interval of their difference."""

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
    Quantized,
    Reference,
    Seed,
    Statistics,
    conditions,
    print_json,
    typed,
)

NAME = "compare"


def command(
    model: Model,
    first: Annotated[str, typer.Option(help="a schedule's JSON file, or PRESET/GRID@CALLS")],
    second: Annotated[str, typer.Option(help="what it is compared with, at any number of calls")],
    images: Annotated[int, typer.Option(min=750, help="images of each, a multiple of 250")] = 5000,
    out: Annotated[Path, typer.Option(help="tables that keep the results and their moments")] = Path(
        "runs/evaluations"
    ),
    seed: Seed = 1_000_003,
    features: Features = "auto",
    reference: Reference = "auto",
    labels: Labels = "none",
    guidance: Guidance = 1.0,
    statistics: Statistics = "",
    quantized: Quantized = "",
    csv: Annotated[Path | None, typer.Option(help="write the three rows here")] = None,
    executor: Annotated[str, typer.Option(help="ray or in-process")] = "in-process",
    workers: Annotated[int, typer.Option(min=0, help="Ray actors; 0: one a core, or one a GPU")] = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Frechet distances of two schedules and the paired difference: the noise that both share cancels.

    An interval that leaves out 0 says that one of them is better, often where their own intervals overlap.
    """
    from fewstep.pipeline.commands.search import execution_settings
    from fewstep.pipeline.final import results_csv, write_text
    from fewstep.pipeline.single import Subject, compare
    from fewstep.pipeline.study import parse_teacher
    from fewstep.tasks.models.files import find_model

    files = find_model(model, quantized)
    execution = execution_settings(executor=executor, workers=workers, address=None, device=device)
    subject = Subject(model, features, reference, conditions(labels, guidance), statistics, quantized)
    pair = parse_teacher(first, files), parse_teacher(second, files)
    rows = compare(subject, pair, images, seed, out, execution)
    if csv is not None:
        write_text(csv, results_csv(rows, typed(), {"report": seed}))
    if as_json:
        print_json({"rows": [vars(row) for row in rows]})
        return
    for row in rows:
        typer.echo(f"{row.method:12} {row.metric} {row.value:8.4f} ({row.low:.4f} to {row.high:.4f})  {row.schedule}")
