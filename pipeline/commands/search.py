"""`fewstep search`: find schedules, quantised networks or both, compare them with what is stock, publish."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.errors import ConfigurationError, StorageError, TrackingError
from fewstep.pipeline.commands.options import (
    AsJson,
    Device,
    conditions,
    execution_settings,
    guidance_range,
    print_json,
    typed,
)
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.settings import REFINE_TO, SAMPLERS, SCREENS, SURROGATES, SearchSettings, parse_nfes
from fewstep.search_spaces.solver_space import EXTRA_DECISIONS

NAME = "search"


def command(
    out: Annotated[Path | None, typer.Option(help="directory of the study [default: runs/NAME]")] = None,
    recipe: Annotated[str | None, typer.Option(help="a named search, such as digits-demo")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the study in --out")] = False,
    model: Annotated[str | None, typer.Option(help="a bundled model's name or a diffusers directory")] = None,
    space: Annotated[
        str | None, typer.Option(help="what is searched: schedule, quantization, joint [default: schedule]")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="file or PRESET/GRID@CALLS: kept by --space quantization, calibrates --space joint"),
    ] = None,
    nfe: Annotated[str | None, typer.Option(help="denoiser calls, as 3-6 or 3,5,8")] = None,
    budget: Annotated[int | None, typer.Option(help="denoiser calls to spend on the search")] = None,
    sampler: Annotated[str | None, typer.Option(help=f"one of {', '.join(SAMPLERS)}")] = None,
    surrogate: Annotated[
        str | None, typer.Option(help=f"what s3 ranks by: {', '.join(SURROGATES)} [default: none]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="seed of the proposals and of the search's noise")] = None,
    study: Annotated[str | None, typer.Option(help="the study's name in tables and tracking")] = None,
    teacher: Annotated[str | None, typer.Option(help="many-step sampler, as PRESET/GRID@CALLS")] = None,
    features: Annotated[str | None, typer.Option(help="auto, inception or a classifier's folder")] = None,
    reference: Annotated[str | None, typer.Option(help="auto, image folder, .npz file or data set")] = None,
    screen: Annotated[
        str | None, typer.Option(help=f"what candidates are screened by: {', '.join(SCREENS)} [default: distance]")
    ] = None,
    distance_images: Annotated[int | None, typer.Option(help="images of a screen by distance to the teacher")] = None,
    look_images: Annotated[int | None, typer.Option(help="images of a screen by Frechet distance")] = None,
    frechet_images: Annotated[int | None, typer.Option(help="images of the judging rung")] = None,
    finalist_images: Annotated[int | None, typer.Option(help="images of the finals")] = None,
    report_images: Annotated[int | None, typer.Option(help="images per schedule in the final table")] = None,
    labels: Annotated[str | None, typer.Option(help="none, balanced or one label")] = None,
    guidance: Annotated[str | None, typer.Option(help="scale of guidance, or LOW:HIGH to search it")] = None,
    prompts: Annotated[Path | None, typer.Option(help="file with one prompt a line")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="what guidance leads away from")] = None,
    statistics: Annotated[str | None, typer.Option(help="file made by `fewstep statistics`")] = None,
    decisions: Annotated[str | None, typer.Option(help=f"search also: {', '.join(EXTRA_DECISIONS)}")] = None,
    quantized: Annotated[str | None, typer.Option(help="folder made by `fewstep quantize`: search for it")] = None,
    warm_start: Annotated[Path | None, typer.Option(help="schedule file or study folder to start from")] = None,
    refine: Annotated[
        float | None, typer.Option(help="share of the budget that tunes the best by gradient, as 0.3 [default: 0]")
    ] = None,
    refine_to: Annotated[
        str | None, typer.Option(help=f"what --refine makes small: {', '.join(REFINE_TO)} [default: network]")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(min=0, help="stop once so many calls have not moved the front [default: 0, never]")
    ] = None,
    calibration_iterations: Annotated[
        int | None, typer.Option(min=0, help="most iterations that a searched network's reconstruction may take")
    ] = None,
    front: Annotated[int | None, typer.Option(min=1, help="members of the Pareto front in finals and report")] = None,
    executor: Annotated[str, typer.Option(help="ray or in-process")] = "ray",
    workers: Annotated[int, typer.Option(min=0, help="Ray actors; 0: one a core, or one a GPU")] = 0,
    address: Annotated[str | None, typer.Option(help="join the Ray cluster at this address")] = None,
    device: Device = "cpu",
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow server or database [default: in --out]")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="forecast calls and time, run nothing")] = False,
    as_json: AsJson = False,
) -> None:
    """Search solver schedules for a model, at every NFE of a range in one study.

    --space quantization searches how the model's network is quantised for one --schedule, --space joint both
    together: quality, size and bit operations on one Pareto front.
    """
    from fewstep.pipeline.study import Study

    chosen: dict[str, Any] = {
        "model": model,
        "space": space,
        "refine": refine,
        "refine_to": refine_to,
        "patience": patience,
        "screen": screen,
        "look_images": look_images,
        "calibration_iterations": calibration_iterations,
        "front": front,
        "nfes": parse_nfes(nfe) if nfe else None,
        "budget": budget,
        "sampler": sampler,
        "surrogate": surrogate,
        "seed": seed,
        "study": study,
        "teacher": teacher,
        "features": features,
        "reference": reference,
        "distance_images": distance_images,
        "frechet_images": frechet_images,
        "finalist_images": finalist_images,
        "report_images": report_images,
        "statistics": statistics,
        "decisions": tuple(part.strip() for part in decisions.split(",")) if decisions else None,
        "quantized": quantized,
        "warm_start": warm_starts(warm_start),
        **_conditions(labels, guidance, prompts, negative_prompt),
    }
    if schedule is not None:
        chosen |= _base_schedule(schedule, space, model, chosen["nfes"], recipe)
    chosen = {name: value for name, value in chosen.items() if value is not None}
    execution = execution_settings(executor=executor, workers=workers, address=address, device=device)
    settings = None if resume else _settings(recipe, chosen)
    root = out or Path("runs") / (settings.study if settings else "search")
    if settings is None:
        if chosen or recipe:
            raise ConfigurationError("--resume goes on with the stored settings: leave the other options away")
        found = Study.load(root)
    else:
        found = Study(root, settings)
        if found.exists and not dry_run:
            raise ConfigurationError(f"{root} holds a study already: add --resume to go on, or choose another --out")
    if dry_run:
        _forecast(found, execution, as_json)
        return
    _run(found, execution, tracking_uri, as_json)


def warm_starts(path: Path | None, option: str = "--warm-start") -> tuple[str, ...] | None:
    """Schedules (JSON) of a file, or of all files in a study's folder; ConfigurationError where there is none."""
    from fewstep.search_spaces.schedule import load_schedule

    if path is None:
        return None
    files = sorted((path / "schedules").glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise ConfigurationError(f"{option} {path}: no schedules/*.json in it; give a finished study or a file")
    return tuple(load_schedule(file).to_json() for file in files)


def _base_schedule(
    text: str, space: str | None, model: str | None, nfes: tuple[int, ...] | None, recipe: str | None
) -> dict[str, Any]:
    """The settings that --schedule fills: itself, and the NFE where it is the only one."""
    from fewstep.pipeline.recipes import search_recipe
    from fewstep.tasks.models.files import find_model
    from fewstep.tasks.sampling.grids import parse_schedule

    name = model or (search_recipe(recipe).model if recipe else None)
    if name is None:
        raise ConfigurationError("--schedule is read for a model: give --model NAME or --model DIRECTORY too")
    found = parse_schedule(text, find_model(name).noise)
    calls = (found.nfe,) if space == "quantization" and nfes is None else nfes
    return {"base_schedule": found.to_json(), "nfes": calls}


def _conditions(
    labels: str | None, guidance: str | None, prompts: Path | None, negative_prompt: str | None
) -> dict[str, Any]:
    """The settings' fields that these options fill; none where none is given."""
    if all(given is None for given in (labels, guidance, prompts, negative_prompt)):
        return {}
    scale, ends = guidance_range(guidance or "1")
    asked = conditions(labels or "none", scale, prompts, negative_prompt or "")
    return {"conditions": asked, "guidance_range": ends}


def _settings(recipe: str | None, chosen: dict[str, Any]) -> SearchSettings:
    from fewstep.pipeline.recipes import search_recipe

    if recipe:
        return SearchSettings.build(**{**search_recipe(recipe).model_dump(), **chosen})
    if "model" not in chosen:
        raise ConfigurationError("say which model to search for: --model NAME or --model DIRECTORY, or a --recipe")
    return SearchSettings.build(**chosen)


def _forecast(study: Any, execution: ExecutionSettings, as_json: bool) -> None:
    from fewstep.pipeline.forecast import forecast

    figures = forecast(study, execution)
    if as_json:
        print_json(figures)
        return
    for name, value in figures.items():
        typer.echo(f"{name.replace('_', ' '):24} {value:,}" if isinstance(value, int) else f"{name:24} {value}")


def _run(study: Any, execution: ExecutionSettings, tracking_uri: str | None, as_json: bool) -> None:
    from fewstep.pipeline.commands.publishing import draw, log
    from fewstep.pipeline.display import SearchDisplay, print_outcome
    from fewstep.storage.tracking import default_tracking_uri

    command_line = typed()
    with SearchDisplay(study.settings, quiet=as_json) as display:
        outcome = study.run(execution, command_line, display.on_record)
    files, uri = outcome.files, tracking_uri or default_tracking_uri(study.root)
    try:
        log(study, uri)
        files = files | draw(study)
    except (TrackingError, StorageError) as error:
        hint = f"nothing is lost: run `fewstep report --out {study.root} --sync --tracking-uri {uri}` later"
        print(f"warning: {' '.join(str(error).split())}; {hint}", file=sys.stderr)
    if not as_json:
        print_outcome(study, outcome, files, uri)
        return
    print_json(
        {
            "rows": [vars(r) for r in outcome.rows],
            "schedules": outcome.schedules,
            "files": files,
            "denoiser_calls": outcome.calls,
            "seconds": outcome.seconds,
            "driver_share": outcome.own_share,
            "tracking_uri": uri,
        }
    )
