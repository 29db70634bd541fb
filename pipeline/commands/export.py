"""`fewstep export`: found schedules as a diffusers scheduler, and the nearest stock scheduler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.errors import ConfigurationError
from fewstep.pipeline.commands.options import AsJson, Device, Statistics, print_json

NAME = "export"


def command(
    out: Annotated[Path, typer.Option(help="folder for the scheduler")],
    study: Annotated[Path | None, typer.Option(help="directory of a finished search: all its schedules")] = None,
    schedule: Annotated[list[Path] | None, typer.Option(help="a schedule's JSON file; may be repeated")] = None,
    model: Annotated[str | None, typer.Option(help="the model of --schedule: a name or a directory")] = None,
    statistics: Statistics = "",
    stock: Annotated[bool, typer.Option("--stock", help="also find and measure stock schedulers")] = False,
    images: Annotated[int, typer.Option(min=750, help="images of the measurement")] = 5000,
    tables: Annotated[Path, typer.Option(help="tables that keep the measurements")] = Path("runs/evaluations"),
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Write a FewStepScheduler that any diffusers pipeline of this model can use.

    With --stock, stock.json names for each schedule the stock scheduler and timesteps that come nearest, with
    both Frechet distances measured on the same fresh noise: what is lost without fewstep at run time.
    """
    from fewstep.pipeline.campaign import Subject
    from fewstep.pipeline.executors.base import ExecutionSettings
    from fewstep.pipeline.projection import measured_projection
    from fewstep.search_spaces.schedule import load_schedule
    from fewstep.tasks.models.files import find_model
    from fewstep.tasks.models.statistics import ModelStatistics
    from fewstep.tasks.sampling.scheduler import FewStepScheduler

    if study is not None and not schedule and not model:
        subject, paths = _of_study(study, statistics)
    elif schedule and model and study is None:
        subject, paths = Subject(model, statistics=statistics), schedule
    else:
        raise ConfigurationError("say what to export: --study DIR, or --schedule FILE together with --model")
    schedules, files = [load_schedule(str(path)) for path in paths], find_model(subject.model)
    made = FewStepScheduler.from_schedules(
        schedules,
        files.scheduler_config,
        ModelStatistics.load_for(Path(subject.statistics), files) if subject.statistics else None,
    )
    for calls in sorted(made.schedules):
        made.set_timesteps(calls)
    made.save_pretrained(out)
    rows = []
    if stock:
        execution = ExecutionSettings(executor="in-process", device=device)
        for calls in sorted(made.schedules):
            rows.append(measured_projection(made.schedules[calls], subject, images, tables, execution))
        (out / "stock.json").write_text(json.dumps(rows, indent=2) + "\n")
    if as_json:
        print_json({"folder": out, "nfes": sorted(made.schedules), "stock": rows})
        return
    typer.echo(f"{out}: a scheduler for {', '.join(str(n) for n in sorted(made.schedules))} steps. Use it:")
    typer.echo(f"  pipe.scheduler = fewstep.FewStepScheduler.from_pretrained({str(out)!r})")
    for row in rows:
        typer.echo(
            f"NFE {row['nfe']}: {row['metric']} {_span(row['fewstep'])}; {row['scheduler']} with solver_order "
            f"{row['config']['solver_order']}, timesteps {row['timesteps']}: {_span(row['stock'])}, "
            f"{row['loss']:+.1%}"
        )
    _warn(schedules)


def _of_study(study: Path, statistics: str) -> tuple[Any, list[Path]]:
    from fewstep.pipeline.campaign import Subject
    from fewstep.pipeline.study import Study

    found = Study.load(study)
    s, paths = found.settings, found.schedules()
    if not paths:
        raise ConfigurationError(f"{study} holds no found schedule yet: let the search end (`fewstep search --resume`)")
    return Subject(s.model, s.features, s.reference, s.conditions, statistics or s.statistics), list(paths.values())


def _span(figure: dict[str, float | None]) -> str:
    value, low, high = figure["value"], figure["low"], figure["high"]
    return f"{value:.4f}" if low is None or high is None else f"{value:.4f} ({low:.4f} to {high:.4f})"


def _warn(schedules: list[Any]) -> None:
    """What a scheduler cannot bring along."""
    guided = {s.nfe: s.guidance for s in schedules if s.guidance is not None}
    if guided:
        typer.echo(f"guidance is the pipeline's: pass guidance_scale by number of steps: {guided}")
    if any(s.skips for s in schedules):
        typer.echo("skip coefficients are the network's: attach them with fewstep.tasks.models.skips.attach_skips")
