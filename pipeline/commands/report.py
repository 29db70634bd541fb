"""`fewstep report`: what a study found, as a table, one self-contained page, or runs on a tracking server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.errors import ConfigurationError, DamagedFileError
from fewstep.files import read_text
from fewstep.pipeline.commands.fields import Fields, options
from fewstep.pipeline.commands.options import AsJson, Optuna, Out, Tracking, into, print_json, writable
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.values import built
from fewstep.tasks.measured_settings import METRICS_TEXT, MeasuredSettings, SubjectSettings

if TYPE_CHECKING:
    from fewstep.pipeline.study import Study

NAME = "report"
LISTED = ["nfe", "value", "trial", "candidate", "origin", "images", "denoiser_calls"]


def _results_csv(out: Path) -> str:
    path = out / "results.csv"
    if not path.is_file():
        raise ConfigurationError(f"{path} is not there yet: finish with `fewstep search --resume --out {out}`")
    return read_text(path)


METRIC = Fields(
    SubjectSettings,
    only=("metric",),
    texts={"metric": f"measure the report by this too, may be repeated: {METRICS_TEXT}"},
    partial=True,
    shows_defaults=False,
)
RUN = Fields(ExecutionSettings, partial=True, shows_defaults=False)


@options(chosen=METRIC, run=RUN)
def command(
    chosen: dict[str, Any],
    run: dict[str, Any],
    out: Out,
    html: Annotated[Path | None, into(help="write one self-contained page here", check=writable)] = None,
    csv: Annotated[Path | None, into(help="copy the study's results.csv here", check=writable)] = None,
    top: Annotated[
        int, typer.Option(min=0, help="list this many of the best candidates of each NFE as judged, and no more")
    ] = 0,
    sync: Annotated[
        bool, typer.Option("--sync", help="log the study to the tracking server and to Optuna again")
    ] = False,
    tracking_uri: Tracking = None,
    optuna: Optuna = None,
    as_json: AsJson = False,
) -> None:
    """Read a study's tables. Damaged files are skipped and named, with exit code 2.

    With --metric, its report is measured by that too, on the same images; what is known is not measured again.
    """
    from rich.console import Console

    from fewstep.files import write_text
    from fewstep.pipeline.display import (
        mlflow_command,
        print_measured,
        print_notes,
        print_verdicts,
        results_table,
    )
    from fewstep.pipeline.publishing import log, write_report
    from fewstep.pipeline.study import Study

    if run and not chosen:
        raise ConfigurationError(f"nothing is run without --metric: leave --{next(iter(run))} away")
    study = Study.load(out)
    count = study.store.evaluations.read(["nfe"], {"study": study.settings.study}).num_rows
    shown: dict[str, object] = {"study": study.settings.study, "evaluations": count}
    if top:
        if html or csv or sync or chosen:
            raise ConfigurationError("--top lists candidates and does nothing else: ask for the rest in another call")
        _list(study, top, shown, as_json)
    else:
        state = study.state()
        rows, verdicts = study.problem.report_rows(state, study.reported()), study.verdicts(state)
        asked = built(MeasuredSettings, {"model": study.settings.model, **chosen}).metric if chosen else ()
        measured = study.measured(state) + (study.measure(asked, built(ExecutionSettings, run)) if asked else [])
        if html is not None:
            shown["html"] = write_report(study, html)
        if csv is not None:
            shown["csv"] = write_text(csv, _results_csv(out))
        if sync:
            shown["browse"] = mlflow_command(log(study, tracking_uri, optuna, html))
        others = {"measured": [vars(r) for r in measured]} if measured else {}
        if as_json:
            print_json({**shown, "verdicts": verdicts, "rows": [vars(r) for r in rows]} | others)
        else:
            print_verdicts(verdicts)
            Console().print(results_table(rows))
            print_measured(measured)
            print_notes(study)
            for name, value in shown.items():
                typer.echo(f"{name}: {value}")
    if line := study.store.describe_damage(f"{study.resumes} --out {out}"):
        raise DamagedFileError(line)


def _list(study: Study, top: int, shown: dict[str, object], as_json: bool) -> None:
    """The best candidates of each NFE: a question to the tables, for which no search is replayed."""
    from rich.console import Console

    from fewstep.pipeline.display import plain_table
    from fewstep.storage.queries import leaderboard

    rung = study.problem.ladder.main.name
    best = leaderboard(study.store, study.settings.study, rung, top=top, each_nfe=True)
    listed = best.sort_values("nfe", kind="stable")[LISTED].to_dict("records")
    if as_json:
        print_json({**shown, "leaderboard": listed})
        return
    Console().print(plain_table("candidates as the search judged them", LISTED, listed))
    for name, value in shown.items():
        typer.echo(f"{name}: {value}")
