"""`fewstep explain`: which decision of a schedule bought what, as a table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.errors import ConfigurationError
from fewstep.pipeline.commands.fields import EXECUTION, UNJUDGED, options
from fewstep.pipeline.commands.options import AsJson, Csv, Plot, Seed, folder, into, print_json, typed
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.tasks.measured_settings import MOST_IMAGES, MeasuredSettings

NAME = "explain"


@options(subject=UNJUDGED, execution=EXECUTION)
def command(
    subject: MeasuredSettings,
    execution: ExecutionSettings,
    schedule: Annotated[str, typer.Argument(help="the JSON file of a found or refined schedule")],
    images: Annotated[
        int, typer.Option(min=750, max=MOST_IMAGES, help="images of each variant, a multiple of 250")
    ] = 5000,
    out: Annotated[Path, into(help="tables that keep the results; the same command goes on", check=folder)] = Path(
        "runs/explain"
    ),
    each_step: Annotated[bool, typer.Option(help="put back decisions of single steps too")] = True,
    seed: Seed = 1_000_003,
    csv: Csv = None,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """Put back one decision at a time to the nearest stock schedule, and compare on the same noise.

    A difference above 0 whose interval leaves out 0 says that the decision made images better.
    """
    from fewstep.dashboards.drawings import save_schedules
    from fewstep.files import write_text
    from fewstep.pipeline.explain import explain
    from fewstep.pipeline.reports.csv import results_csv
    from fewstep.pipeline.subjects import subject_of, teacher_of
    from fewstep.tasks.sampling.grids import parse_schedule

    if len(subject.metric) > 1:
        raise ConfigurationError(f"explain compares by one metric: choose one of {', '.join(subject.metric)}")
    found = parse_schedule(schedule, subject.files.noise)
    tell = None if as_json else _tell
    (metric,), teacher = subject.metric, teacher_of(subject)
    told = explain(found, subject_of(subject), images, seed, out, execution, each_step, tell, metric, teacher)
    notes = {"difference": "of the schedule with that decision put back, minus the whole one, on the same noise"}
    text = results_csv(told.rows, typed(), {"report": seed}, notes, told.records)
    files = [write_text(path, text) for path in (out / "explain.csv", csv) if path is not None]
    title = found.name or found.hash
    pair = [(title, found), (f"{told.nearest.name}, the nearest preset", told.nearest)]
    files += [save_schedules(pair, path) for path in (out / "explain.png", plot) if path is not None]
    if as_json:
        print_json({"rows": [vars(row) for row in told.rows], "nearest": told.nearest.name, "files": files})
        return
    for row in told.rows:
        typer.echo(_line(row))
    typer.echo(f"written: {', '.join(map(str, files))}")


def _tell(record: Any) -> None:
    value = "failed" if record.value is None else f"{record.value:.3f}"
    typer.echo(f"{record.candidate}  NFE {record.nfe:<3} {value}")


def _line(row: Any) -> str:
    change = f"{row.was} -> {row.now}" if row.was or row.now else ""
    ends = f"{row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f})"
    return f"{row.decision:24} step {row.step:4} {row.metric} {row.value:8.3f}  {ends}  {change}"
