"""`fewstep evaluate`: the Frechet distance of one schedule or ODE solver on a model, with its interval."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fewstep.pipeline.commands.fields import EXECUTION, SUBJECT, options
from fewstep.pipeline.commands.options import AsJson, Seed, folder, into, print_json
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.settings import MOST_IMAGES, SubjectSettings

NAME = "evaluate"


@options(subject=SUBJECT, execution=EXECUTION)
def command(
    subject: SubjectSettings,
    execution: ExecutionSettings,
    schedule: Annotated[str | None, typer.Option(help="a schedule's JSON file, or PRESET/GRID@CALLS")] = None,
    ode: Annotated[
        str | None, typer.Option(help="an ODE solver instead: dopri5 (adaptive), or euler, midpoint, heun as heun@6")
    ] = None,
    rtol: Annotated[float, typer.Option(help="dopri5's relative tolerance")] = 1e-5,
    atol: Annotated[float, typer.Option(help="dopri5's absolute tolerance")] = 1e-5,
    images: Annotated[int, typer.Option(min=2, max=MOST_IMAGES, help="how many images to sample")] = 5000,
    out: Annotated[Path, into(help="tables that keep the result and its moments", check=folder)] = Path(
        "runs/evaluations"
    ),
    seed: Seed = 1_000_003,
    as_json: AsJson = False,
) -> None:
    """Evaluate a schedule or an ODE solver.

    The same evaluation is never computed twice; more images compute only the new ones.
    """
    from fewstep.pipeline.api import chosen_sampler, evaluate_subject

    sampler = chosen_sampler(subject, schedule, ode, rtol, atol)
    found = evaluate_subject(subject, sampler, images, seed, out, execution)
    if as_json:
        print_json({name: value for name, value in asdict(found).items() if name in FIGURES or value is not None})
        return
    ends = "" if found.low is None else f" ({found.low:.4f} to {found.high:.4f})"
    typer.echo(f"{found.metric} {found.value:.4f}{ends} at NFE {found.nfe:g}, {found.images:,} images")
    if found.accuracy is not None:
        interval = f"({found.accuracy_low:.4f} to {found.accuracy_high:.4f})"
        typer.echo(f"accuracy {found.accuracy:.4f} {interval} by judge {subject.judge}")


# Printed in any case; others where there are any.
FIGURES = ("low", "high")
