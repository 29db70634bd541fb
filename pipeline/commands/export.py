"""`fewstep export`: found schedules as a diffusers scheduler, as plain lists, and the nearest stock scheduler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.errors import ConfigurationError
from fewstep.pipeline.commands.fields import EXECUTION, Fields, options
from fewstep.pipeline.commands.options import AsJson, folder, into, print_json
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.values import built
from fewstep.tasks.measured_settings import MOST_IMAGES, SubjectSettings

NAME = "export"


# A study says these itself; what is given goes before it.
ASKED = Fields(
    SubjectSettings,
    without=("metric", "judge", "integer", "quantized"),
    texts={"model": "the model of --schedule: a bundled model's name or a diffusers directory"},
    partial=True,
    shows_defaults=False,
)


@options(asked=ASKED, execution=EXECUTION)
def command(
    asked: dict[str, Any],
    execution: ExecutionSettings,
    out: Annotated[Path, into(help="folder for the scheduler", check=folder)],
    study: Annotated[Path | None, typer.Option(help="directory of a finished search: all its schedules")] = None,
    schedule: Annotated[list[Path] | None, typer.Option(help="a schedule's JSON file; may be repeated")] = None,
    stock: Annotated[bool, typer.Option("--stock", help="also find and measure stock schedulers")] = False,
    sigmas: Annotated[bool, typer.Option("--sigmas", help="also write plain lists of sigmas and timesteps")] = False,
    images: Annotated[int, typer.Option(min=750, max=MOST_IMAGES, help="images of the measurement")] = 5000,
    tables: Annotated[Path, into(help="tables that keep the measurements", check=folder)] = Path("runs/evaluations"),
    as_json: AsJson = False,
) -> None:
    """Write a FewStepScheduler that any diffusers pipeline of this model can use.

    With --stock, stock.json names for each schedule the stock scheduler and timesteps that come nearest, with
    both Frechet distances measured on the same fresh noise: what is lost without fewstep at run time. With --sigmas,
    sigmas.json holds for each schedule what of it can be pasted into ComfyUI, A1111, k-diffusion or a pipeline's call,
    with the distance that the images move by, and for a study or --features the Frechet distances.
    """
    from fewstep.files import write_text
    from fewstep.pipeline.plain import lines, measured_plain
    from fewstep.pipeline.projection import measured_loss, measured_projection
    from fewstep.pipeline.subjects import subject_of
    from fewstep.search_spaces.schedule import load_schedule
    from fewstep.tasks.models.statistics import ModelStatistics
    from fewstep.tasks.sampling.scheduler import FewStepScheduler

    if study is not None and not schedule and "model" not in asked:
        settings, paths = _of_study(study, asked)
    elif schedule and "model" in asked and study is None:
        settings, paths = built(SubjectSettings, asked), schedule
    else:
        raise ConfigurationError("say what to export: --study DIR, or --schedule FILE together with --model")
    subject = subject_of(settings)
    schedules, files = [load_schedule(str(path)) for path in paths], subject.files
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
        for calls in sorted(made.schedules):
            rows.append(measured_projection(made.schedules[calls], subject, images, tables, execution))
        write_text(out / "stock.json", json.dumps(rows, indent=2) + "\n")
    plain = []
    if sigmas:
        for calls in sorted(made.schedules):
            best, row = measured_plain(made.schedules[calls], subject, execution)
            if study is not None or "features" in asked:
                loss = measured_loss(made.schedules[calls], best.schedule, subject, images, tables, execution)
                row = {**row, "loss": loss}
            plain.append(row)
        write_text(out / "sigmas.json", json.dumps(plain, indent=2) + "\n")
    if as_json:
        print_json({"folder": out, "nfes": sorted(made.schedules), "stock": rows, "sigmas": plain})
        return
    typer.echo(f"{out}: a scheduler for {', '.join(str(n) for n in sorted(made.schedules))} steps. Use it:")
    typer.echo(f"  pipe.scheduler = fewstep.FewStepScheduler.from_pretrained({str(out)!r})")
    for row in rows:
        typer.echo(
            f"NFE {row['nfe']}: {row['metric']} {_span(row['fewstep'])}; {row['scheduler']} with solver_order "
            f"{row['config']['solver_order']}, timesteps {row['timesteps']}: {_span(row['stock'])}, "
            f"{row['loss']:+.1%}"
        )
    for row in plain:
        for line in lines(row):
            typer.echo(line)
    _warn(schedules)


def _of_study(study: Path, asked: dict[str, Any]) -> tuple[SubjectSettings, list[Path]]:
    from fewstep.pipeline.study import Study

    found = Study.load(study)
    s, paths = found.problem.subject, found.schedules()
    if not paths:
        raise ConfigurationError(f"{study} holds no found schedule yet: let the search end (`fewstep search --resume`)")
    fields = {name: getattr(s, name) for name in ("model", "features", "reference", "statistics")}
    conditions = s.conditions.model_dump() | asked.pop("conditions", {})
    return built(SubjectSettings, {**fields, **asked, "conditions": conditions}), list(paths.values())


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
