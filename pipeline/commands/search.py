"""`fewstep search`: find schedules, quantised networks or both, compare them with what is stock, publish."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.errors import ConfigurationError
from fewstep.pipeline.commands.fields import EXECUTION, Fields, options
from fewstep.pipeline.commands.options import AsJson, Optuna, Tracking, folder, into, print_json, resumed, typed
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.study_file import warm_starts
from fewstep.pipeline.values import fields_of
from fewstep.storage.masking import masked_argument

__all__ = ["NAME", "command", "warm_starts"]

NAME = "search"
# What people change often. The others are options too, and left out of the help: --print shows them all.
LISTED = (
    "model",
    "nfes",
    "budget",
    "space",
    "base_schedule",
    "sampler",
    "surrogate",
    "seed",
    "study",
    "teacher",
    "features",
    "reference",
    "metric",
    "guard",
    "presets",
    "grids",
    "screen",
    "keep",
    "frechet_images",
    "finals",
    "finalists",
    "report_images",
    "report_presets",
    "conditions.labels",
    "conditions.guidance",
    "conditions.prompts",
    "conditions.negative_prompt",
    "conditions.height",
    "conditions.width",
    "conditions.call",
    "loading.dtype",
    "statistics",
    "quantized",
    "decisions",
    "warm_start",
    "refine",
    "refine_to",
    "patience",
)
CHOSEN = Fields(
    SearchSettings,
    hidden=tuple(path for path in fields_of(SearchSettings) if path not in LISTED),
    flags={"nfes": "--nfe", "base_schedule": "--schedule"},
    texts={"conditions.guidance": "scale of classifier-free guidance, or LOW:HIGH to search it"},
    partial=True,
    settable=True,
)


@options(chosen=CHOSEN, execution=EXECUTION)
def command(
    chosen: dict[str, Any],
    execution: ExecutionSettings,
    file: Annotated[Path | None, typer.Argument(metavar="STUDY.toml", help="a study file; options go first")] = None,
    out: Annotated[Path | None, into(help="directory of the study [default: runs/NAME]", check=folder)] = None,
    recipe: Annotated[str | None, typer.Option(help="a study file that comes with fewstep, as digits-demo")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the study in --out")] = False,
    tracking_uri: Tracking = None,
    optuna: Optuna = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="forecast calls and time, run nothing")] = False,
    shown: Annotated[bool, typer.Option("--print", help="print every setting as a study file, run nothing")] = False,
    as_json: AsJson = False,
) -> None:
    """Search solver schedules for a model, at every NFE of a range in one study.

    --space quantization searches how the model's network is quantised for one --schedule, --space joint both
    together: quality, size and bit operations on one Pareto front. `fewstep search --model M --print` lists every
    setting with its default and meaning; all can be set with --set, or in a study file.
    """
    from fewstep.pipeline.study_file import study_toml

    if resume and (chosen or recipe or file):
        raise ConfigurationError("--resume goes on with the stored settings: leave the other options away")
    settings = None if resume else _settings(file, recipe, chosen)
    if settings is not None and shown:
        typer.echo(study_toml(settings), nl=False)
        return
    from fewstep.pipeline.study import Study

    root = out or Path("runs") / (settings.study if settings else "search")
    study = Study.load(root) if settings is None else Study(root, settings)
    if not isinstance(study.settings, SearchSettings):
        raise ConfigurationError(
            f"{root} holds a search of edits: go on with `fewstep edit search --resume --out {root}`"
        )
    if settings is not None and study.exists and not dry_run:
        raise ConfigurationError(f"{root} holds a study already: add --resume to go on, or choose another --out")
    if dry_run:
        _forecast(study, execution, as_json)
        return
    folder(root)
    _run(study, execution, tracking_uri, optuna, as_json)


def _settings(file: Path | None, recipe: str | None, chosen: dict[str, Any]) -> SearchSettings:
    """What the study file or the recipe says, and the options over it."""
    from fewstep.pipeline.recipes import recipe_fields
    from fewstep.pipeline.study_file import read_study_file, resolved, search_settings

    if file is not None and recipe is not None:
        raise ConfigurationError(f"give a study file or a --recipe, not both: {file} and {recipe}")
    layers = [read_study_file(file)] if file is not None else [recipe_fields(recipe)] if recipe is not None else []
    return search_settings(*layers, resolved(chosen))


def _forecast(study: Any, execution: ExecutionSettings, as_json: bool) -> None:
    from fewstep.pipeline.forecast import forecast

    figures = forecast(study, execution)
    if as_json:
        print_json(figures)
        return
    width = max(map(len, figures)) + 2
    for name, value in figures.items():
        typer.echo(f"{name.replace('_', ' '):{width}} {value:,}")


def _run(study: Any, execution: ExecutionSettings, tracking_uri: str | None, optuna: str | None, as_json: bool) -> None:
    from fewstep.pipeline.api import run_study
    from fewstep.pipeline.display import SearchDisplay, print_outcome

    resumed(["search"], study, execution, tracking_uri=tracking_uri, optuna=optuna, json=as_json)
    with SearchDisplay(study.settings, as_json, study.records()) as display:
        outcome, uri = run_study(study, execution, typed(), tracking_uri, display.on_record, True, optuna)
    if not as_json:
        print_outcome(study, outcome, outcome.files, uri)
        return
    print_json(
        {
            "verdicts": outcome.verdicts,
            "rows": [vars(r) for r in outcome.rows],
            "measured": [vars(r) for r in outcome.measured],
            "schedules": outcome.schedules,
            "files": outcome.files,
            "denoiser_calls": outcome.calls,
            "seconds": outcome.seconds,
            "driver_share": outcome.own_share,
            "tracking_uri": masked_argument(uri),
        }
    )
