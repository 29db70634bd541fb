"""What the finals choose is confirmed by a metric that the search does not see, measured of the same images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fewstep.errors import ConfigurationError
from fewstep.pipeline.evaluator import Evaluator
from fewstep.pipeline.problems.schedules import ScheduleProblem
from fewstep.pipeline.proposers.base import ANALYTIC
from fewstep.pipeline.search import Search
from fewstep.pipeline.settings import STORED, SearchSettings
from fewstep.pipeline.trial import Candidate, Rung, Trial, figure_name
from fewstep.search_spaces.point import as_point
from fewstep.search_spaces.schedule.presets import SEARCH_PRESETS
from fewstep.storage.records import EvaluationRecord
from fewstep.storage.store import Store
from fewstep.tasks.metrics.interval import Interval
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.work import CALLS, GROUP, Subject, Task, WorkerSettings
from fewstep.tasks.worker import Worker

GUARD = "frechet:judge"
MODEL = "digits-ddpm"


def _problem(**changes: object) -> ScheduleProblem:
    return ScheduleProblem(SearchSettings.build(**({"model": MODEL, "nfes": (2,), "budget": 60_000} | changes)))


# -- who wins --------------------------------------------------------------------------------------------


def _finals(
    problem: ScheduleProblem,
    make_evaluation: Callable[..., EvaluationRecord],
    values: Mapping[str, tuple[float, float]],
) -> Search:
    """A search whose finals gave these values by the metric and by the guard, by origin."""
    state = problem.search()
    for number, (origin, (value, guard)) in enumerate(values.items()):
        schedule = preset_on_grid(SEARCH_PRESETS[number] + "/karras", problem.files.noise, 2)
        trial = Trial(Candidate(number, as_point(schedule), origin))
        figures = {figure_name(name): guard for name in state.ladder.finals.also}
        record = make_evaluation(number, rung="finals", nfe=2, value=value, metrics=figures)
        trial.records = {"finals": record, "frechet": replace(record, rung="frechet")}
        state.trials[number] = trial
    return state


@pytest.mark.parametrize(
    ("found", "winner"),
    [
        ({"s3": (1.0, 1.0), "refine:x": (2.0, 1.0)}, "s3"),
        ({"s3": (1.0, 5.0), "refine:x": (2.0, 1.0)}, "refine:x"),
        ({"s3": (1.0, 5.0), "refine:x": (2.0, 3.0)}, "analytic:ddim/karras"),
        ({"s3": (9.0, 1.0), "refine:x": (8.0, 1.0)}, "analytic:ddim/karras"),
    ],
)
def test_the_best_that_the_guard_confirms_wins_and_else_the_preset(
    found: dict[str, tuple[float, float]], winner: str, make_evaluation: Callable[..., EvaluationRecord]
) -> None:
    guarded, free = _problem(), _problem(guard="none")
    values = {**found, f"{ANALYTIC}ddim/karras": (4.0, 3.0)}
    best = guarded.winner(_finals(guarded, make_evaluation, values), 2)
    assert best is not None
    assert best.candidate.origin == winner
    plain = free.winner(_finals(free, make_evaluation, values), 2)
    assert plain is not None
    assert plain.candidate.origin == min(values, key=lambda origin: values[origin][0])


def test_the_best_preset_is_in_the_finals(make_evaluation: Callable[..., EvaluationRecord]) -> None:
    problem = _problem(finalists=2)
    values = {"s3": (1.0, 1.0), "refine:x": (2.0, 1.0), f"{ANALYTIC}ddim/karras": (4.0, 3.0)}
    state = _finals(problem, make_evaluation, values)
    assert [t.candidate.origin for t in state.policy.finalists(state)] == ["s3", f"{ANALYTIC}ddim/karras"]


@pytest.mark.parametrize(
    ("finalists", "chosen"),
    [(1, ["s3"]), (2, ["s3", "known"]), (3, ["s3", "refine:x", "known"]), (4, ["s3", "early", "refine:x", "known"])],
)
def test_the_best_that_was_tuned_is_in_the_finals_of_three(
    finalists: int, chosen: list[str], make_evaluation: Callable[..., EvaluationRecord]
) -> None:
    problem = _problem(finalists=finalists, guard="none")
    values = {"s3": 1.0, "early": 1.5, "late": 1.8, "refine:x": 2.0, "refine:y": 3.0, f"{ANALYTIC}ddim/karras": 4.0}
    state = _finals(problem, make_evaluation, {origin: (value, 1.0) for origin, value in values.items()})
    names = {f"{ANALYTIC}ddim/karras": "known"}
    origins = [t.candidate.origin for t in state.policy.finalists(state)]
    assert [names.get(origin, origin) for origin in origins] == chosen


def test_the_verdict_says_what_the_guard_says(make_evaluation: Callable[..., EvaluationRecord]) -> None:
    problem = _problem()
    values = {"s3": (1.0, 5.0), "refine:x": (2.0, 1.0), "preset:ddim/karras": (4.0, 3.0)}
    state = _finals(problem, make_evaluation, values)
    reported = [
        replace(
            t.records["finals"], rung="report", candidate=t.candidate.hash, candidate_json=t.candidate.point.to_json()
        )
        for t in state.trials.values()
    ]
    rows = problem.report_rows(state, reported)
    for ends, words in (((-2, -3, -1), "confirms it"), ((2, 1, 3), "says it is worse"), ((0, -1, 1), "no difference")):
        seen = Interval(*ends)
        (line,) = problem.verdicts(state, rows, lambda *_: Interval(-2, -3, -1), lambda *_, seen=seen: seen).values()
        assert "frechet-judge" in line
        assert words in line
        assert "did better in the finals, and frechet-judge does not confirm it" in line


# -- how it is measured ------------------------------------------------------------------------------------


def test_other_metrics_of_the_same_images_cost_no_call_and_give_the_same(tmp_path: Path) -> None:
    subject = Subject(MODEL)
    worker, store = Worker(WorkerSettings(subject)), Store(tmp_path)
    evaluator = Evaluator("study", subject, store)
    candidate = Candidate(0, as_point(preset_on_grid("ddim/karras", worker.files.noise, 2)), "test")
    rung = Rung("finals", "frechet", GROUP, 3, also=(GUARD,))
    (task,) = evaluator.plan(candidate, rung)
    result = worker.run(task)
    assert (result.error, result.denoiser_calls) == ("", 2 * GROUP)
    record, rows = evaluator.absorb(result, 0)
    assert record is not None
    assert len({row.base for row in rows}) == 2
    alone = Task("key", GUARD, task.point, task.seed, 0, GROUP)
    (part,), (shared,) = worker.run(alone).parts, result.also[GUARD]
    assert part.moments is not None
    assert shared.moments is not None
    assert np.array_equal(part.moments.scatter, shared.moments.scatter)
    assert part.sums == shared.sums == {CALLS: 2.0 * GROUP}
    # What it says is a figure of the record, and an evaluation by it takes no task any more.
    again = evaluator.scored(candidate, Rung("measured-frechet-judge", GUARD, GROUP, 3), 1)
    assert again is not None
    assert again.value == record.metrics["frechet-judge"]
    assert again.denoiser_calls == 0
    assert evaluator.scored(candidate, Rung("measured-frechet-judge", GUARD, GROUP, 4), 1) is None
    assert evaluator.key(candidate.point, rung) != evaluator.key(candidate.point, replace(rung, also=()))


# -- when there is one -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "guard"),
    [
        ({}, GUARD),
        ({"guard": "none"}, ""),
        ({"guard": "kid:judge"}, "kid:judge"),
        ({"metric": "kid"}, ""),
        ({"finalists": 1}, ""),
    ],
)
def test_a_model_of_the_zoo_is_guarded_by_the_judge_of_its_data(changes: dict[str, object], guard: str) -> None:
    problem = _problem(**changes)
    assert problem.guard == guard
    assert problem.ladder.finals.also == problem.ladder.report.also == ((guard,) if guard else ())
    assert problem.ladder.main.also == problem.ladder.screen.also == ()


def test_a_model_that_no_judge_knows_has_none(toy: Path) -> None:
    assert _problem(model=str(toy)).guard == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guard": "frechet"}, "sees frechet already"),
        ({"guard": "distance"}, "does not stand alone"),
        ({"guard": "kid", "finalists": 1}, "at least two"),
        ({"guard": "kid", "space": "joint"}, "leave --guard away"),
    ],
)
def test_a_guard_that_cannot_act_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        _problem(**changes)


def test_studies_of_before_there_were_guards_have_none() -> None:
    fields = SearchSettings.build(model=MODEL).model_dump()
    del fields["guard"], fields["paired_images"]
    stored = SearchSettings.model_validate(fields, context={STORED: True})
    assert (stored.guard, stored.paired_images) == ("none", 0)
