"""`fewstep refine`: tune a schedule's times and coefficients, by gradient or on feature moments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    Statistics,
    conditions,
    print_json,
)

NAME = "refine"
Parts = Annotated[str, typer.Option(help="what is tuned, comma-separated: times, relaxations, shifts, points, outputs")]
ALL_PARTS = "times,relaxations,shifts,points,outputs"


def command(
    schedule: Annotated[str, typer.Argument(help="a schedule's JSON file, or PRESET/GRID@CALLS")],
    model: Model,
    to: Annotated[Path | None, typer.Option("--to", help="where the refined schedule is written")] = None,
    out: Annotated[Path, typer.Option(help="progress and tables; the same command goes on from there")] = Path(
        "runs/refinement"
    ),
    teacher: Annotated[str, typer.Option(help="PRESET/GRID@CALLS, or a schedule's file")] = (
        "unipc-2-bh2/karras-zero@64"
    ),
    parts: Parts = ALL_PARTS,
    window: Annotated[int, typer.Option(min=0, help="newest calls whose coefficients are tuned; 0: all")] = 0,
    distance: Annotated[
        str, typer.Option(help="to the teacher by network (its middle block), pixel, features; or reference, moments")
    ] = "network",
    images: Annotated[
        int | None, typer.Option(min=2, help="noises that are tuned on [default: 256, of moments 1,000]")
    ] = None,
    validation: Annotated[int, typer.Option(min=2, help="noises that choose among iterates")] = 128,
    batch: Annotated[int, typer.Option(min=1, help="noises an iteration")] = 16,
    iterations: Annotated[int, typer.Option(min=1, help="steps of Adam")] = 300,
    speed: Annotated[float, typer.Option(help="all step sizes times this")] = 1.0,
    limit: Annotated[int, typer.Option(min=1, help="denoiser calls at most, of moments")] = 100_000,
    judge_images: Annotated[int, typer.Option(min=2, help="images that start and results are judged on")] = 2000,
    seed: Seed = 0,
    features: Features = "auto",
    reference: Reference = "auto",
    labels: Labels = "none",
    guidance: Guidance = 1.0,
    statistics: Statistics = "",
    executor: Annotated[str, typer.Option(help="ray or in-process, for the judgement")] = "in-process",
    workers: Annotated[int, typer.Option(min=0, help="Ray actors; 0: one a core, or one a GPU")] = 0,
    device: Device = "cpu",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="forecast the denoiser calls, run nothing")] = False,
    as_json: AsJson = False,
) -> None:
    """Tune a schedule, judge it by Frechet distance on --seed, keep the start unless it is beaten.

    It is tuned to a many-step teacher from the same noise or, with --distance reference, without one to the Frechet
    distance itself: a fine sampler is not always the better one, and no teacher leads past itself. --distance moments
    does the latter without gradients, on --images of one noise and with --limit calls; it takes neither parts, batches
    nor iterations.

    A backward pass through a denoiser call counts as two calls. Killed, the same command goes on.
    """
    from fewstep.files import write_text
    from fewstep.pipeline.campaign import Subject
    from fewstep.pipeline.commands.options import execution_settings
    from fewstep.pipeline.refinement import KINDS, judge, published, refine
    from fewstep.tasks.models.files import find_model
    from fewstep.tasks.refinement.moment_plan import MomentPlan
    from fewstep.tasks.refinement.plan import RefinePlan
    from fewstep.tasks.sampling.grids import parse_schedule

    files = find_model(model)
    start, many = parse_schedule(schedule, files.noise), parse_schedule(teacher, files.noise)
    plan: RefinePlan | MomentPlan
    if distance == "moments":
        plan = MomentPlan.apart(images or 1000, limit, seed)
    else:
        plan = RefinePlan.build(
            parts=tuple(part.strip() for part in parts.split(",") if part.strip()),
            window=window,
            distance=distance,
            images=images or 256,
            validation=validation,
            batch=batch,
            iterations=iterations,
            speed=speed,
            seed=seed,
        )
    most = plan.calls(start.nfe, many.nfe)
    results = 2 if distance == "moments" else 3
    if dry_run:
        _say({"refinement_calls_at_most": most, "judging_calls": results * judge_images * start.nfe}, as_json)
        return
    subject = Subject(model, features, reference, conditions(labels, guidance), statistics)
    execution = execution_settings(executor=executor, workers=workers, address=None, device=device)
    refined = refine(subject, start, many, plan, out, device, None if as_json else _tell)
    judged = judge(subject, refined, judge_images, seed, out, execution)
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
            "judging_calls": judged.judging_calls,
            "schedule": str(path),
        },
        as_json,
    )


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
