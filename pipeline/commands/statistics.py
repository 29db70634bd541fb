"""`fewstep statistics`: measure what some schedules need to know of a model, resuming where a killed run stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fewstep.errors import ConfigurationError
from fewstep.pipeline.commands.fields import DEVICE, Fields, options
from fewstep.pipeline.commands.options import AsJson, Seed, into, print_json, writable
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.settings import SubjectSettings

NAME = "statistics"


SUBJECT = Fields(
    SubjectSettings, without=("features", "reference", "metric", "statistics", "quantized", "integer", "judge")
)


@options(subject=SUBJECT, execution=DEVICE)
def command(
    subject: SubjectSettings,
    execution: ExecutionSettings,
    out: Annotated[Path, into(help="the file to write, NAME.safetensors", check=writable)],
    points: Annotated[int, typer.Option(min=3, help="lambdas on a uniform grid over the model's range")] = 64,
    trajectories: Annotated[int, typer.Option(min=1, help="images to sample; the error falls with their root")] = 256,
    steps: Annotated[int, typer.Option(min=1, help="solver steps from one grid point to the next")] = 4,
    batch: Annotated[int, typer.Option(min=1, help="images at once; a kill loses at most one batch")] = 32,
    mean_only: Annotated[bool, typer.Option("--mean-only", help="only the mean image, without l, s and b")] = False,
    seed: Seed = 2_000_003,
    as_json: AsJson = False,
) -> None:
    """Measure DPM-Solver-v3's statistics and the mean image from the model's own samples.

    The same command again goes on where a killed one stopped, from OUT.partial.
    """
    from fewstep.tasks.models.denoiser import Denoiser
    from fewstep.tasks.models.statistics import ModelStatistics
    from fewstep.tasks.sampling import empirical
    from fewstep.tasks.worker import check_device

    if out.exists():
        raise ConfigurationError(f"--out {out} is there already: choose another name, or delete it to measure again")
    device, asked = execution.device, subject.conditions
    check_device(device)
    files = subject.files
    plan = empirical.MeasurePlan(points, trajectories, steps, seed, batch, mean_only)
    denoiser = Denoiser(files, device, asked)
    identity = f"{files.hash} {asked.hash}"
    measured = empirical.Subject(denoiser.on, files.noise, files.prediction_type, files.shape, device, identity)
    partial = out.with_name(out.name + ".partial")
    out.parent.mkdir(parents=True, exist_ok=True)

    def show(done: int, total: int) -> None:
        if not as_json:
            typer.echo(f"trajectory {done}/{total}  {denoiser.calls:,} denoiser calls")

    replace(empirical.measure(measured, plan, partial, show), model=files.hash).save(out)
    partial.unlink(missing_ok=True)
    facts = {
        "file": out,
        "points": 0 if mean_only else points,
        "trajectories": trajectories,
        "denoiser_calls": denoiser.calls,
        "hash": ModelStatistics.load(out).hash,
    }
    if as_json:
        print_json(facts)
    else:
        typer.echo(f"{out}: {facts['points']} points from {trajectories} trajectories")
