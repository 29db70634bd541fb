"""`fewstep statistics`: what some schedules need to know of a model, or what its images are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fewstep.errors import ConfigurationError
from fewstep.pipeline.commands.fields import Fields, options
from fewstep.pipeline.commands.options import AsJson, into, print_json, writable
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.search_spaces.checked import LARGEST_SEED
from fewstep.tasks.measured_settings import SubjectSettings
from fewstep.tasks.models.conditions import Conditions

NAME = "statistics"
DEFAULTS = {"points": 64, "trajectories": 256, "steps": 4, "seed": 2_000_003, "batch": 32}

SUBJECT = Fields(
    SubjectSettings, without=("features", "reference", "metric", "statistics", "quantized", "integer", "judge")
)


EXECUTION = Fields(ExecutionSettings, only=("device", "address"))


@options(subject=SUBJECT, execution=EXECUTION)
def command(
    subject: SubjectSettings,
    execution: ExecutionSettings,
    out: Annotated[Path, into(help="the file to write: NAME.safetensors, with --data NAME.npz", check=writable)],
    data: Annotated[
        str | None,
        typer.Option(help="measure these images instead: a folder, Parquet, datasets on disk, tars, LMDB, .npz"),
    ] = None,
    features: Annotated[str | None, typer.Option(help="what images of --data are compared by [default: auto]")] = None,
    points: Annotated[
        int | None, typer.Option(min=3, help="lambdas on a uniform grid over the model's range [default: 64]")
    ] = None,
    trajectories: Annotated[
        int | None, typer.Option(min=1, help="images to sample; the error falls with their root [default: 256]")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="solver steps from one grid point to the next [default: 4]")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="images at once; a kill loses at most one batch [default: 32]")
    ] = None,
    mean_only: Annotated[bool, typer.Option("--mean-only", help="only the mean image, without l, s and b")] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, max=LARGEST_SEED, help="seed of the starting noise [default: 2000003]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure DPM-Solver-v3's statistics and the mean image from the model's own samples.

    The same command again goes on where a killed one stopped, from OUT.partial. With --data it measures the moments of
    images' features at the model's size, for --reference OUT.npz, pytorch-fid and others; with --address on the cores
    of a Ray cluster whose machines all see the images.
    """
    said = {"--points": points, "--trajectories": trajectories, "--steps": steps, "--batch": batch, "--seed": seed}
    if data is not None:
        said["--mean-only"] = mean_only or None
        _of_data(subject, execution, data, features or "auto", out, said, as_json)
        return
    if execution.address is not None:
        raise ConfigurationError("--address is for the images of --data: leave it out, or give --data")
    if features is not None:
        raise ConfigurationError("--features is for the images of --data: leave it out, or give --data")
    chosen = {"points": points, "trajectories": trajectories, "steps": steps, "seed": seed, "batch": batch}
    _of_model(
        subject,
        execution.device,
        out,
        DEFAULTS | {k: v for k, v in chosen.items() if v is not None},
        mean_only,
        as_json,
    )


def _of_data(
    subject: SubjectSettings,
    execution: ExecutionSettings,
    data: str,
    features: str,
    out: Path,
    said: Mapping[str, int | None],
    as_json: bool,
) -> None:
    """Write the moments of images' features."""
    from fewstep.tasks.data import open_source
    from fewstep.tasks.metrics.extractor import make_extractor
    from fewstep.tasks.metrics.moments import save_reference_npz
    from fewstep.tasks.metrics.partial import Partial
    from fewstep.tasks.metrics.reference import measured, measurement_key
    from fewstep.tasks.worker import check_device

    if strays := [name for name, value in said.items() if value is not None]:
        raise ConfigurationError(f"{strays[0]} is for samples of the model: leave it out beside --data")
    if subject.conditions.model_copy(update={"height": None, "width": None}) != Conditions():
        raise ConfigurationError("nothing is sampled of --data: leave labels, prompts and guidance out")
    if out.suffix != ".npz":
        raise ConfigurationError(f"--out {out}: moments of images are an .npz file, name it so")
    check_device(execution.device)
    files, source = subject.files, open_source(data)
    extractor = make_extractor(features, files, execution.device)
    elsewhere = None
    if execution.address is not None:
        from fewstep.pipeline.executors.dask_on_ray import features_on_cluster

        elsewhere = features_on_cluster(execution, source, data, files, features)
    out.parent.mkdir(parents=True, exist_ok=True)
    key = measurement_key(source, files.channels, files.size, extractor)
    partial = Partial(out.with_name(out.name + ".partial"), key)
    moments = measured(source, files.channels, files.size, extractor, partial, elsewhere)
    save_reference_npz(out, moments)
    partial.remove()
    facts = {"file": out, "features": extractor.name, "dimensions": extractor.dim, "images": moments.count}
    if as_json:
        print_json(facts)
    else:
        typer.echo(f"{out}: moments of {extractor.dim} features ({extractor.name}) of {moments.count:,} images")


def _of_model(
    subject: SubjectSettings, device: str, out: Path, chosen: Mapping[str, int], mean_only: bool, as_json: bool
) -> None:
    """Write what schedules need to know of a model."""
    from fewstep.tasks.models.denoiser import Denoiser
    from fewstep.tasks.models.statistics import ModelStatistics
    from fewstep.tasks.sampling import empirical
    from fewstep.tasks.worker import check_device

    if out.exists():
        raise ConfigurationError(f"--out {out} is there already: choose another name, or delete it to measure again")
    asked, points, trajectories = subject.conditions, chosen["points"], chosen["trajectories"]
    check_device(device)
    files = subject.files
    plan = empirical.MeasurePlan(**chosen, mean_only=mean_only)
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
