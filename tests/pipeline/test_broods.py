"""Searches that rank children by moments: what is tried, what it costs, how it goes on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from scipy.stats import kendalltau

from fewstep.errors import ConfigurationError
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.problems.schedules import ScheduleProblem
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.stages.brood import JUDGED
from fewstep.pipeline.study import Study
from fewstep.search_spaces.point import as_point, parse_point, schedule_of
from fewstep.search_spaces.schedule.genome import to_schedule
from fewstep.tasks.models.files import find_model
from fewstep.tasks.refinement.brood_plan import BroodPlan

HERE = ExecutionSettings(executor="in-process")


def _settings(toy: Path, **changes: object) -> SearchSettings:
    fields: dict[str, object] = {
        "model": str(toy),
        "surrogate": "moments",
        "nfes": (2,),
        "budget": 8_000,
        "refine": 0.0,
        "frechet_images": 250,
        "paired_images": 8,
        "finalist_images": 250,
        "finalists": 2,
        "guard": "none",
    }
    return SearchSettings.build(**(fields | changes))


@pytest.fixture(scope="module")
def bred(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = Study(tmp_path_factory.mktemp("bred") / "study", _settings(toy))
    study.find(HERE)
    return study


def test_the_best_children_of_the_best_schedules_are_screened_in_their_order(bred: Study, toy: Path) -> None:
    records, files = bred.records(), find_model(toy)
    broods = [r for r in records if r.rung == "brood"]
    assert broods
    for brood in broods:
        elite = schedule_of(parse_point(brood.candidate_json))
        assert elite is not None
        judged = {r.candidate: r.value for r in records if r.rung == "frechet" and r.order < brood.order}
        assert elite.hash in judged
        children = BroodPlan(kept=1).brood(elite, files.noise)
        chosen = [int(brood.metrics[f"child.{k}"]) for k in range(8)]
        assert sorted(brood.metrics[f"told.{k}"] for k in range(8)) == [brood.metrics[f"told.{k}"] for k in range(8)]
        wanted = [as_point(to_schedule(children[i])).hash for i in chosen]
        screened = [r.candidate for r in records if r.rung == "screen" and r.order > brood.order]
        assert [h for h in screened if h in wanted] == [h for h in wanted if h in screened]
        assert len(set(screened) & set(wanted)) >= 6
        assert brood.denoiser_calls == BroodPlan().calls(elite)


def test_it_stays_within_its_budget_and_judges_few(bred: Study) -> None:
    records = bred.records()
    assert sum(r.denoiser_calls for r in records) <= bred.state().spent <= 8_000
    rungs = Counter(r.rung for r in records if r.origin == "bred")
    assert rungs["screen"] >= 8
    assert rungs["frechet"] <= JUDGED * sum(r.rung == "brood" for r in records)


def test_each_round_tells_how_the_screen_ordered_it(bred: Study) -> None:
    refits = [json.loads(e.data_json) for e in bred.store.events.records() if e.kind == "refit"]
    records = bred.records()
    broods = [r for r in records if r.rung == "brood"]
    assert len(refits) == len(broods)
    ends = [*(b.order for b in broods[1:]), len(records)]
    for refit, brood, end in zip(refits, broods, ends, strict=True):
        screens = [r for r in records if brood.order < r.order < end and r.origin == "bred" and r.rung == "screen"]
        values = [r.value for r in screens if r.value is not None]
        told = [brood.metrics[f"told.{k}"] for k in range(len(values))]
        assert refit["evaluations"] == len(values)
        assert refit["tau"] == pytest.approx(kendalltau(told, values).statistic)
        assert refit["seconds"] > 0


def test_wherever_it_is_cut_it_goes_on_as_it_went(bred: Study) -> None:
    records = bred.records()
    first = next(r.order for r in records if r.rung == "brood")
    for cut in range(first, len(records), 3):
        state = bred.problem.search().replay(records[:cut])
        work = state.next_work()
        while work is None and state.enter_finals():
            work = state.next_work()
        assert work is not None
        assert (work[0].hash, work[1].name) == (records[cut].candidate, records[cut].rung)
        assert work[0].trial == records[cut].trial


def test_a_budget_that_does_not_pay_for_it_says_so(toy: Path) -> None:
    rich, poor = (ScheduleProblem(_settings(toy, budget=budget)).search().stages[1] for budget in (8_000, 4_500))
    search = ScheduleProblem(_settings(toy)).search()
    assert rich.reserve(search, 2) > 0
    assert poor.reserve(search, 2) == 0
    search._closed.add(2)
    assert poor.next_work(search) is None
    assert [kind for kind, _ in search.news] == ["not_bred"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sampler": "tpe"}, "tpe"),
        ({"space": "quantization", "base_schedule": "x", "screen": "auto", "guard": "auto"}, "quantised"),
        ({"quantized": "somewhere"}, "quantised"),
        ({"metric": ("kid",), "screen": "frechet"}, "kid"),
    ],
)
def test_where_moments_say_nothing_it_is_refused(changes: dict[str, object], named: str, toy: Path) -> None:
    with pytest.raises(ConfigurationError, match=named):
        _settings(toy, **changes)
