"""Lists of evaluations: each is done once, what failed is tried again, and nothing of it disturbs a search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fewstep.pipeline.campaign import Campaign, compare
from fewstep.pipeline.evaluator import Evaluator
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.study import Study
from fewstep.pipeline.trial import Rung
from fewstep.search_spaces.point import QuantizationPoint, as_point, joint
from fewstep.search_spaces.quantization import named
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.records import EvaluationRecord
from fewstep.storage.store import Store
from fewstep.tasks.models.files import find_model
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.work import Subject, Task, TaskResult
from fewstep.tasks.worker import Worker

HERE = ExecutionSettings(executor="in-process")
RUNG = Rung("report", "frechet", 250, 7)


@pytest.fixture(scope="module")
def schedules(toy: Path) -> list[SolverSchedule]:
    noise = find_model(str(toy)).noise
    return [preset_on_grid(f"{name}/karras-zero", noise, 4) for name in ("ddim", "dpmpp-2m", "unipc-2-bh1")]


@pytest.fixture
def break_worker(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`break_worker(seed)`: from now on a worker fails at every task of that seed; at none with -1."""
    whole = Worker.run
    broken = [-1]

    def run(self: Worker, task: Task) -> TaskResult:
        result = whole(self, task)
        return replace(result, parts=(), error="the machine was out of memory") if task.seed == broken[0] else result

    monkeypatch.setattr(Worker, "run", run)

    def set_seed(seed: int) -> None:
        broken[0] = seed

    return set_seed


def test_every_evaluation_is_done_once_and_no_two_have_a_number(
    toy: Path, tmp_path: Path, schedules: list[SolverSchedule]
) -> None:
    seen: list[EvaluationRecord] = []
    campaign = Campaign(Subject(str(toy)), tmp_path, HERE, on_record=seen.append)
    first, second, third = schedules
    renamed = first.model_copy(update={"name": "the same"})
    one = campaign.run([(first, "a", RUNG), (second, "b", RUNG), (renamed, "c", RUNG)])
    assert [r.candidate for r in one] == [first.hash, second.hash, first.hash]
    assert one[0] == one[2]
    assert len(seen) == 2
    more = replace(RUNG, images=500)
    two = campaign.run([(third, "d", RUNG), (first, "e", RUNG), (first, "f", more)])
    assert [r.key for r in two[:2]] != [r.key for r in one[:2]]
    assert two[1] == one[0]
    # What is larger pays for its new images alone.
    assert two[2].denoiser_calls == first.nfe * 250
    assert len(seen) == 4
    stored = Store(tmp_path).evaluations.records()
    assert len({r.trial for r in stored}) == len({r.order for r in stored}) == len(stored) == 4
    assert campaign.known([(first, "", RUNG), (second, "", more)]) == [one[0], None]
    assert campaign.run([(first, "a", RUNG)]) == [one[0]]
    assert len(seen) == 4


def test_what_failed_is_tried_again_when_it_is_asked_for_again(
    toy: Path, tmp_path: Path, schedules: list[SolverSchedule], break_worker: Callable[[int], None]
) -> None:
    seen: list[EvaluationRecord] = []
    campaign = Campaign(Subject(str(toy)), tmp_path, HERE, on_record=seen.append)
    cells = [(schedule, "x", RUNG) for schedule in schedules[:2]]
    break_worker(RUNG.seed)
    for _ in range(2):
        assert [(r.status, r.error) for r in campaign.run(cells)] == [("failed", "the machine was out of memory")] * 2
    assert campaign.known(cells) == [None, None]
    break_worker(-1)
    found = campaign.run(cells)
    assert [r.status for r in found] == ["complete"] * 2
    assert len(seen) == 6
    # The failures are history: what is read from now on is that it went well.
    assert campaign.known(cells) == found == campaign.run(cells)
    assert Store(tmp_path).evaluations.records() == found
    assert len(seen) == 6


def _settings(toy: Path) -> SearchSettings:
    return SearchSettings.build(
        model=str(toy),
        sampler="random",
        nfes=(2,),
        budget=4_000,
        screen="distance",
        refine=0.0,
        preset_images=8,
        distance_images=8,
        frechet_images=250,
        finalist_images=500,
        finalists=1,
        report_images=250,
        report_presets=False,
        teacher="dpmpp-2m/uniform-t-zero@6",
    )


def test_a_report_that_failed_is_made_when_the_study_goes_on(
    toy: Path, tmp_path: Path, break_worker: Callable[[int], None]
) -> None:
    settings = _settings(toy)
    break_worker(settings.report_seed)
    outcome = Study(tmp_path, settings).run(HERE, "test")
    assert outcome.rows == []
    searched = [r for r in Study.load(tmp_path).records() if r.rung != "report"]
    break_worker(-1)
    again = Study.load(tmp_path).run(HERE, "test")
    assert [row.found for row in again.rows] == [True]
    records = Study.load(tmp_path).records()
    assert [r for r in records if r.rung != "report"] == searched
    assert [r.status for r in records if r.rung == "report"] == ["complete"]
    assert Study.load(tmp_path).run(HERE, "test").calls == again.calls


def test_what_is_evaluated_beside_a_search_does_not_disturb_it(
    toy: Path, tmp_path: Path, schedules: list[SolverSchedule]
) -> None:
    """Under the study's own name, so that what it computed is read back."""
    study = Study(tmp_path, _settings(toy))
    study.find(HERE)
    before = Study.load(tmp_path).state()
    campaign = Campaign(study.problem.subject, tmp_path, HERE, study.settings.study)
    judged = next(r for r in study.records() if r.rung == "frechet")
    rung = study.problem.ladder.main
    other = [(schedule, "beside", Rung("grid", "frechet", 250, 99)) for schedule in schedules]
    read, *_ = campaign.run([(before.trials[judged.trial].candidate.point, "beside", rung), *other])
    assert read == judged
    after = Study.load(tmp_path).state()
    assert after.trials == before.trials
    assert (after.spent, after.next_work()) == (before.spent, before.next_work())
    numbers = {r.trial for r in study.records() if r.rung == "grid"}
    assert len(numbers) == 3
    assert not numbers & before.trials.keys()


def test_the_name_of_the_schedule_that_calibrates_is_not_part_of_a_key(
    toy: Path, tmp_path: Path, schedules: list[SolverSchedule]
) -> None:
    point = joint(as_point(schedules[0]), QuantizationPoint(config=named("w4a8-naive-paper")))
    teacher = preset_on_grid("ddim/uniform-t-zero", find_model(str(toy)).noise, 6)
    distance = Rung("distance", "distance", 16, 7)

    def addresses(calibration: SolverSchedule) -> tuple[str, ...]:
        subject = Subject(str(toy), calibration=calibration.to_json())
        evaluator = Evaluator("s", subject, Store(tmp_path), teacher)
        return evaluator.key(point, RUNG), evaluator.key(point, distance), evaluator.base(point, RUNG)

    plain = addresses(schedules[1])
    renamed = schedules[1].model_copy(update={"name": "other", "provenance": {"made": "elsewhere"}})
    assert addresses(renamed) == plain
    assert not set(addresses(schedules[2])) & set(plain)
    assert len(set(plain)) == 3


def test_a_comparison_whose_moments_were_lost_makes_them_again(
    toy: Path, tmp_path: Path, schedules: list[SolverSchedule]
) -> None:
    subject, pair = Subject(str(toy)), (schedules[0], schedules[1])
    whole = compare(subject, pair, 750, 7, tmp_path, HERE)
    for file in (tmp_path / "tables" / "moments").iterdir():
        file.write_bytes(file.read_bytes()[:-9])
    assert compare(subject, pair, 750, 7, tmp_path, HERE) == whole
    assert len(Store(tmp_path).evaluations.records()) == 2
