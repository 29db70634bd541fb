"""A study whose presets' or teacher's times have changed since it began is not gone on with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fewstep.errors import ConfigurationError
from fewstep.pipeline.meanings import check_names
from fewstep.pipeline.problems.schedules import ScheduleProblem
from fewstep.pipeline.study import Study
from fewstep.tasks.sampling.grids import parse_schedule

STORED = Path(__file__).parents[1] / "fixtures" / "studies" / "schedule" / "tables"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    shutil.copytree(STORED, tmp_path / "tables")
    return Study.load(tmp_path)


def test_names_that_mean_what_they_did_are_taken(study: Study) -> None:
    assert isinstance(study.problem, ScheduleProblem)
    check_names(study.problem, study.evaluator())


def test_a_preset_of_other_times_is_refused(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = study.problem
    assert isinstance(problem, ScheduleProblem)
    changed = next(r for r in study.records() if r.origin.startswith("preset:"))
    named = problem.named

    def other(nfe: int) -> dict[str, str]:
        return named(nfe) | ({changed.origin: "0" * 16} if nfe == changed.nfe else {})

    monkeypatch.setattr(problem, "named", other)
    with pytest.raises(ConfigurationError, match=f"begun when {changed.origin} at NFE {changed.nfe}"):
        check_names(problem, study.evaluator())


def test_a_teacher_of_other_times_is_refused(study: Study) -> None:
    assert isinstance(study.problem, ScheduleProblem)
    study.problem.teacher = parse_schedule("dpmpp-2m/karras-zero@16", study.files.noise)
    with pytest.raises(ConfigurationError, match="begun when the teacher dpmpp-2m/uniform-t-zero@16"):
        check_names(study.problem, study.evaluator())
