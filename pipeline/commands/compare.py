"""`fewstep compare`: two schedules, or two fronts, on the same noise, and the intervals of their differences."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.pipeline.commands.fields import EXECUTION, UNJUDGED, options
from fewstep.pipeline.commands.options import AsJson, Seed, folder, into, print_json, typed, writable
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.tasks.measured_settings import MOST_IMAGES, MeasuredSettings

if TYPE_CHECKING:
    from fewstep.search_spaces.schedule import SolverSchedule
    from fewstep.tasks.models.files import ModelFiles

NAME = "compare"


@options(subject=UNJUDGED, execution=EXECUTION)
def command(
    subject: MeasuredSettings,
    execution: ExecutionSettings,
    first: Annotated[str, typer.Option(help="a schedule's JSON file, PRESET/GRID@CALLS, or a study's folder")],
    second: Annotated[
        str, typer.Option(help="what it is compared with, at any number of calls, or of a folder at each of both")
    ],
    images: Annotated[int, typer.Option(min=750, max=MOST_IMAGES, help="images of each, a multiple of 250")] = 5000,
    out: Annotated[Path, into(help="tables that keep the results and their moments", check=folder)] = Path(
        "runs/evaluations"
    ),
    seed: Seed = 1_000_003,
    csv: Annotated[Path | None, into(help="write the rows here, three of each pair", check=writable)] = None,
    as_json: AsJson = False,
) -> None:
    """Frechet distances, or another --metric's, of two schedules and the paired difference: shared noise cancels.

    Of studies' folders, all found schedules of the numbers of calls that both have are compared.
    An interval that leaves out 0 says that one of them is better, often where their own intervals overlap.
    """
    from fewstep.files import write_text
    from fewstep.pipeline.campaign import check_groups, check_paired, compare, evaluate, pairs_by_nfe
    from fewstep.pipeline.reports.csv import results_csv
    from fewstep.pipeline.subjects import subject_of, teacher_of

    files, asked = subject.files, subject_of(subject)
    teacher = teacher_of(subject)
    check_groups(images)
    for metric in subject.metric:
        check_paired(metric)
    pairs = pairs_by_nfe(_schedules(first, files), _schedules(second, files))
    both = [schedule for pair in pairs for schedule in pair]
    records, rows = [], []
    for metric in subject.metric:
        records += evaluate(asked, both, images, seed, out, execution, metric, teacher=teacher)
        for pair in pairs:
            rows += compare(asked, pair, images, seed, out, execution, metric, teacher)
    if csv is not None:
        write_text(csv, results_csv(rows, typed(), {"report": seed}, records=records))
    if as_json:
        print_json({"rows": [vars(row) for row in rows]})
        return
    for row in rows:
        small = max(abs(row.value), abs(row.low or 0.0), abs(row.high or 0.0)) < 0.1
        value, low, high = (f"{x:.6f}" if small else f"{x:.4f}" for x in (row.value, row.low, row.high))
        value = f"{value:>8} ({low} to {high})"
        typer.echo(f"{row.method:12} NFE {row.nfe:<3} {row.metric} {value}  {row.schedule}")


def _schedules(text: str, files: ModelFiles) -> list[SolverSchedule]:
    """Of a study's folder all that it found, of anything else the one."""
    from fewstep.pipeline.study_file import warm_starts
    from fewstep.search_spaces.schedule import SolverSchedule
    from fewstep.tasks.sampling.grids import parse_schedule

    if not Path(text).is_dir():
        return [parse_schedule(text, files.noise)]
    return [SolverSchedule.from_json(found) for found in warm_starts(Path(text), "compare with") or ()]
