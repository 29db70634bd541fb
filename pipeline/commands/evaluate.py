"""`fewstep evaluate`: the Frechet distance, or other metrics, of one schedule or ODE solver on a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.pipeline.commands.fields import EXECUTION, SUBJECT, options
from fewstep.pipeline.commands.options import AsJson, Seed, folder, into, print_json
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.tasks.measured_settings import MOST_IMAGES, MeasuredSettings

if TYPE_CHECKING:
    from fewstep.pipeline.view import Evaluation

NAME = "evaluate"


@options(subject=SUBJECT, execution=EXECUTION)
def command(
    subject: MeasuredSettings,
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
        print_json(_given(found.plain()))
        return
    for one in (found, *found.others):
        _tell(one, subject.judge)


def _tell(found: Evaluation, judge: str) -> None:
    ends = "" if found.low is None or found.high is None else f" ({_figure(found.low)} to {_figure(found.high)})"
    typer.echo(f"{found.metric} {_figure(found.value)}{ends} at NFE {found.nfe:g}, {found.images:,} images")
    for name, value in found.figures.items():
        typer.echo(f"{name} {_figure(value)}")
    if found.accuracy is not None:
        interval = f"({found.accuracy_low:.4f} to {found.accuracy_high:.4f})"
        typer.echo(f"accuracy {found.accuracy:.4f} {interval} by judge {judge}")


def _figure(value: float) -> str:
    """Four decimals, and of what is smaller as many as tell it."""
    return f"{value:.4f}" if abs(value) >= 0.1 or value == 0 else f"{value:.4g}"


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    made = {name: value for name, value in fields.items() if name in FIGURES or value is not None}
    if "others" in made:
        made["others"] = [_given({n: v for n, v in o.items() if n != "others"}) for o in made["others"]]
    return made


# Printed in any case; others where there are any.
FIGURES = ("low", "high")
