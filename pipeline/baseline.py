"""What stock samplers reach on a model: presets x grids screened, the best grid of each judged on other noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fewstep.errors import ConfigurationError, StorageError
from fewstep.pipeline.baseline_settings import BaselineSettings
from fewstep.pipeline.campaign import Campaign, completed, evaluate_missing, register
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.loop import OnRecord
from fewstep.pipeline.reports.rows import Row, row_of
from fewstep.pipeline.trial import Rung
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.lease import Lease
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.measured_settings import taught
from fewstep.tasks.sampling.grids import parse_schedule, preset_on_grid

STUDY = "baseline"
TEACHER = "teacher"
Skip = Callable[[str], None]


@dataclass(frozen=True)
class Baseline:
    """The tables of the screen and of the report, with their records; the teacher is a row of the report.

    `measured` are the report's rows by the other metrics.
    """

    screened: list[Row]
    reported: list[Row]
    measured: list[Row]
    # When and where they were made is no part of what was measured.
    records: tuple[list[EvaluationRecord], list[EvaluationRecord], list[EvaluationRecord]] = field(compare=False)


def entries(settings: BaselineSettings, on_skip: Skip | None = None) -> dict[tuple[str, int], list[SolverSchedule]]:
    """The schedules by (preset, NFE), one a grid. What cannot be, such as Heun in 4 calls to zero, is skipped."""
    noise = settings.files.noise
    table: dict[tuple[str, int], list[SolverSchedule]] = {}
    for nfe in settings.nfes:
        for name in settings.presets:
            for where in settings.grids:
                try:
                    schedule = preset_on_grid(f"{name}/{where}", noise, nfe)
                except ConfigurationError as error:
                    if on_skip:
                        on_skip(f"{name}/{where} at NFE {nfe}: {error}")
                    continue
                table.setdefault((name, nfe), []).append(schedule)
    return table


def calls(settings: BaselineSettings) -> int:
    """Denoiser calls from nothing, at most: presets that coincide are counted each."""
    table = entries(settings)
    teacher = parse_schedule(settings.teacher, settings.files.noise)
    screen = sum(nfe * len(schedules) for (_, nfe), schedules in table.items()) * settings.screen_images
    again = sum(map(taught, settings.metric)) * teacher.nfe
    reported = (sum(nfe for _, nfe in table) + teacher.nfe) * len(settings.metric) + again
    return screen + reported * settings.report_images


def run(
    settings: BaselineSettings,
    root: Path,
    execution: ExecutionSettings,
    on_record: OnRecord | None = None,
    on_skip: Skip | None = None,
) -> Baseline:
    """Screen, then measure the best grid of each preset at each NFE and the teacher; goes on where a kill left it."""
    screen, report = settings.rungs
    with Lease(root):
        register(root, STUDY, settings, settings.model, settings.files.hash, _checked(settings, root))
    table = entries(settings, on_skip)

    teacher = parse_schedule(settings.teacher, settings.files.noise)

    def evaluated(work: Sequence[tuple[SolverSchedule, str]], rung: Rung) -> dict[str, EvaluationRecord]:
        records = evaluate_missing(settings.subject, work, rung, root, execution, STUDY, on_record, teacher)
        return {r.candidate: r for r in records}

    screened = evaluated([(s, f"preset:{s.name}") for group in table.values() for s in group], screen)
    best = best_grids(table, screened)
    chosen = [*((s, f"preset:{s.name}") for s in best.values()), (teacher, TEACHER)]
    reported, *measured = (evaluated(chosen, rung) for rung in (report, *settings.measured_rungs))
    return _tables(table, screened, best, reported, measured, settings.teacher)


def _checked(settings: BaselineSettings, root: Path) -> dict[str, str]:
    """What its values depend on; refused where the folder's were made of something else."""
    campaign = Campaign(settings.subject, root, ExecutionSettings(), STUDY)
    return campaign.check(campaign.evaluator(), list(settings.metric))


def on_disk(settings: BaselineSettings, root: Path) -> Baseline:
    """The same from the records that are there, computing nothing; StorageError where there is none."""
    teacher = parse_schedule(settings.teacher, settings.files.noise)
    campaign = Campaign(settings.subject, root, ExecutionSettings(), STUDY, teacher)
    if not completed(campaign.evaluator()):
        raise StorageError(f"{root} holds no evaluations of a baseline yet: run the command without --partial")
    _checked(settings, root)
    table = entries(settings)
    schedules = [teacher, *(s for group in table.values() for s in group)]

    def known(rung: Rung) -> dict[str, EvaluationRecord]:
        records = campaign.known([(s, "", rung) for s in schedules])
        return {r.candidate: r for r in records if r is not None}

    screen, report = settings.rungs
    screened = known(screen)
    measured = [known(rung) for rung in settings.measured_rungs]
    return _tables(table, screened, best_grids(table, screened), known(report), measured, settings.teacher)


def best_grids(
    table: dict[tuple[str, int], list[SolverSchedule]], screened: dict[str, EvaluationRecord]
) -> dict[tuple[str, int], SolverSchedule]:
    """By (preset, NFE) the schedule with the lowest value at the screen, ties to the grid named first."""
    best = {}
    for at, schedules in table.items():
        values = [(screened[s.hash].value, s) for s in schedules if s.hash in screened]
        having = [(value, s) for value, s in values if value is not None]
        if having:
            best[at] = min(having, key=lambda pair: pair[0])[1]
    return best


def _tables(
    table: dict[tuple[str, int], list[SolverSchedule]],
    screened: dict[str, EvaluationRecord],
    best: dict[tuple[str, int], SolverSchedule],
    reported: dict[str, EvaluationRecord],
    measured: Sequence[dict[str, EvaluationRecord]],
    teacher: str,
) -> Baseline:
    first = [
        row_of(record, name, s.name)
        for (name, _), schedules in table.items()
        for s in schedules
        if (record := screened.get(s.hash)) is not None and record.value is not None
    ]
    second, *others = (_reported(records, best, teacher) for records in (reported, *measured))
    records = (
        list(screened.values()),
        [r for r in reported.values() if r.value is not None],
        [r for by_hash in measured for r in by_hash.values() if r.value is not None],
    )
    return Baseline(first, second, [row for rows in others for row in rows], records)


def _reported(
    records: dict[str, EvaluationRecord], best: dict[tuple[str, int], SolverSchedule], teacher: str
) -> list[Row]:
    """The best grid of each preset, and the teacher, by one metric."""
    rows = [row_of(records[s.hash], name, s.name) for (name, _), s in best.items() if s.hash in records]
    return rows + [row_of(r, TEACHER, teacher) for r in records.values() if r.origin == TEACHER]
