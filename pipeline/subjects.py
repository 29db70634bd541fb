"""From settings to what is evaluated: the subject, and the teacher that its metrics compare with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fewstep.tasks.measured_settings import TEACHER, MeasuredSettings, SubjectSettings

if TYPE_CHECKING:
    from fewstep.search_spaces.schedule import SolverSchedule
    from fewstep.tasks.work import Subject


def subject_of(settings: SubjectSettings) -> Subject:
    """What a campaign evaluates."""
    from fewstep.tasks.work import Subject

    s = settings
    runtime: Any = "integer" if s.integer else "reference"
    return Subject(
        s.model, s.features, s.reference, s.conditions, s.statistics, s.quantized, runtime, s.judge, loading=s.loading
    )


def teacher_of(settings: MeasuredSettings) -> SolverSchedule | None:
    """The teacher, where a metric compares with one."""
    from fewstep.tasks.sampling.grids import parse_schedule

    if not settings.is_taught:
        return None
    return parse_schedule(settings.teacher or TEACHER, settings.files.noise)
