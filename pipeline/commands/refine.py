"""`fewstep refine`: tune a schedule's times and coefficients, by gradient or on feature moments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.errors import ConfigurationError
from fewstep.pipeline.commands.fields import EXECUTION, Fields, options
from fewstep.pipeline.commands.options import AsJson, folder, into, print_json, writable
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.values import built
from fewstep.tasks.measured_settings import MOST_IMAGES, SubjectSettings
from fewstep.tasks.refinement.plan import RefinePlan

NAME = "refine"
TEACHER, LIMIT = "unipc-2-bh2/karras-zero@64", 100_000
SUBJECT = Fields(SubjectSettings, without=("metric", "integer", "judge"))
PLAN = Fields(
    RefinePlan,
    without=("distance", "images", "check_every", "average"),
    texts={
        "parts": "what is tuned, comma-separated",
        "window": "newest calls whose coefficients are tuned; 0: all",
        "validation": "noises that choose among iterates",
        "batch": "noises an iteration",
        "iterations": "steps of Adam",
        "seed": "seed of the noise that start and results are judged on",
    },
    partial=True,
)


@options(subject=SUBJECT, plan=PLAN, execution=EXECUTION)
def command(
    subject: SubjectSettings,
    plan: dict[str, Any],
    execution: ExecutionSettings,
    schedule: Annotated[str, typer.Argument(help="a schedule's JSON file, or PRESET/GRID@CALLS")],
    to: Annotated[Path | None, into("--to", help="where the refined schedule is written", check=writable)] = None,
    out: Annotated[Path, into(help="progress and tables; the same command goes on from there", check=folder)] = Path(
        "runs/refinement"
    ),
    teacher: Annotated[
        str | None, typer.Option(help=f"PRESET/GRID@CALLS, or a schedule's file [default: {TEACHER}]")
    ] = None,
    distance: Annotated[
        str, typer.Option(help="to the teacher by network (its middle block), pixel, features; or reference, moments")
    ] = "network",
    images: Annotated[
        int | None,
        typer.Option(min=2, max=MOST_IMAGES, help="noises that are tuned on [default: 256, of moments 1,000]"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help=f"denoiser calls at most, of moments [default: {LIMIT}]")
    ] = None,
    judge_images: Annotated[
        int, typer.Option(min=2, max=MOST_IMAGES, help="images that start and results are judged on")
    ] = 2000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="forecast the denoiser calls, run nothing")] = False,
    as_json: AsJson = False,
) -> None:
    """Tune a schedule, judge it by Frechet distance on --seed, keep the start unless it is beaten.

    It is tuned to a many-step teacher from the same noise or, with --distance reference, without one to the Frechet
    distance itself: a fine sampler is not always the better one, and no teacher leads past itself. --distance moments
    does the latter without gradients, on --images of one noise and with --limit calls; it takes neither parts, batches
    nor iterations. It alone tunes a schedule for a network that is --quantized.

    A backward pass through a denoiser call counts as two calls. Killed, the same command goes on.
    """
    from fewstep.files import write_text
    from fewstep.pipeline.refinement import KINDS, published, refine, select
    from fewstep.pipeline.subjects import subject_of
    from fewstep.tasks.metrics.metric import Setting
    from fewstep.tasks.refinement.features import check_tunable
    from fewstep.tasks.refinement.moment_plan import MomentPlan
    from fewstep.tasks.sampling.grids import parse_schedule

    _all_act(distance, {**plan, "teacher": teacher, "images": images, "limit": limit})
    files, asked = subject.files, subject_of(subject)
    start, many = parse_schedule(schedule, files.noise), parse_schedule(teacher or TEACHER, files.noise)
    seed = built(RefinePlan, plan).seed
    wanted: RefinePlan | MomentPlan
    if distance == "moments":
        wanted = MomentPlan.apart(images or 1000, limit or LIMIT, seed)
    else:
        wanted = built(RefinePlan, {**plan, "distance": distance, "images": images or 256})
    check_tunable(Setting(asked, files), distance)
    most = wanted.calls(start.nfe, many.nfe)
    results = 2 if distance == "moments" else 3
    if dry_run:
        _say({"refinement_calls_at_most": most, "selection_calls": results * judge_images * start.nfe}, as_json)
        return
    refined = refine(asked, start, many, wanted, out, execution.device, None if as_json else _tell)
    judged = select(asked, refined, judge_images, seed, out, execution)
    name = f"{start.name or start.hash}, refined" if judged.kind != "start" else start.name
    path = to or out / "schedules" / f"{start.hash}-refined.json"
    write_text(path, published(judged, name).to_json(indent=2) + "\n")
    values = {kind: r.value for kind, r in zip(KINDS[:results], judged.records, strict=False)}
    _say(
        {
            **values,
            "metric": judged.records[0].features,
            "kept": judged.kind,
            "refinement_calls": refined.cost.calls,
            "selection_calls": judged.selection_calls,
            "schedule": str(path),
        },
        as_json,
    )


def _all_act(distance: str, given: dict[str, Any]) -> None:
    """ConfigurationError for an option that the distance does not heed."""
    unheeded = {
        "moments": {"teacher", *PLAN.fields} - {"seed"},
        "reference": {"teacher", "images", "limit"},
    }
    for name, value in given.items():
        if value is not None and name in unheeded.get(distance, {"limit"}):
            raise ConfigurationError(f"--{name} means nothing to --distance {distance}: leave it out")


def _tell(check: Any) -> None:
    averaged = "" if check.averaged == check.loss else f", of the average {check.averaged:.5g}"
    typer.echo(f"{check.iteration:9,}  loss {check.loss:.5g}{averaged}")


def _say(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(figures)
        return
    for name, value in figures.items():
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if isinstance(value, float) else value
        typer.echo(f"{name.replace('_', ' '):26} {text}")
