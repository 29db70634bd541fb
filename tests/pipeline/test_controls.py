"""Schedules are judged by what they change of a control, which was measured on many images before they come."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from fewstep.errors import ConfigurationError
from fewstep.pipeline.problems.schedules import ScheduleProblem
from fewstep.pipeline.proposers.base import WARM
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.sizes import sized
from fewstep.pipeline.stages.finals import CONTROL as FINALS_CONTROL
from fewstep.pipeline.stages.presets import CONTROL as MEASURED
from fewstep.pipeline.stages.presets import MOST_CONTROLS
from fewstep.pipeline.trial import CONTROL, OF, Work
from fewstep.search_spaces.point import parse_point
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.metrics.metric import metric_class
from fewstep.tasks.models.files import find_model
from fewstep.tasks.sampling.grids import preset_on_grid

Make = Callable[..., EvaluationRecord]
Asked = list[tuple[Work, set[tuple[str, str]]]]


def _settings(**changes: Any) -> SearchSettings:
    fields = {"model": "digits-ddpm", "nfes": (3, 4), "budget": 160_000, "sampler": "random", "refine": 0.0}
    return SearchSettings.build(**(fields | changes))


def _searched(make: Make, workers: int, fails: Callable[[Work], bool] = lambda work: False, **changes: Any):
    """A whole search, and every work with what was known when it was asked for; the newest in flight ends first."""
    state, asked, done = ScheduleProblem(_settings(**changes)).search(), [], set[tuple[str, str]]()
    flying: list[Work] = []
    for order in itertools.count():
        while len(flying) < workers and (work := state.next_work()) is not None:
            asked.append((work, set(done)))
            flying.append(work)
        if not flying:
            if not state.enter_finals():
                return state, asked
            continue
        candidate, rung = work = flying.pop()
        failed = fails(work)
        value = 1 + int(candidate.hash, 16) % 1000 / 100
        record = make(
            order,
            trial=candidate.trial,
            candidate=candidate.hash,
            candidate_json=candidate.point.to_json(),
            nfe=candidate.nfe,
            rung=rung.name,
            origin=candidate.origin,
            metric=metric_class(rung.metric).figure,
            images=rung.images,
            seed=rung.seed,
            parameters=candidate.parameters,
            denoiser_calls=candidate.nfe * rung.images,
            value=None if failed else value,
            status="failed" if failed else "complete",
            error="it explodes" if failed else "",
        )
        if not failed:
            done.add((candidate.hash, rung.name))
        state.learn(record)


def _compared(asked: Asked) -> list[tuple[Work, set[tuple[str, str]]]]:
    return [(work, known) for work, known in asked if work[1].arguments]


@pytest.mark.parametrize("workers", [1, 7])
def test_what_is_compared_finds_all_of_its_control_there(workers: int, make_evaluation: Make) -> None:
    state, asked = _searched(make_evaluation, workers)
    compared = _compared(asked)
    assert {rung.name for (_, rung), _ in compared} == {"presets", "screen", "frechet", "finals"}
    for (candidate, rung), known in compared:
        control = parse_point(rung.arguments[CONTROL]).hash
        measured = FINALS_CONTROL if rung.name == "finals" else MEASURED
        assert (control, measured) in known
        if candidate.hash != control:
            # Its features on the same images.
            own = {"presets": "presets", "screen": "presets"}.get(rung.name, rung.name)
            assert (control, own) in known
    assert state.spent <= state.budget


def test_all_that_is_judged_counts_from_as_many_images(make_evaluation: Make) -> None:
    state, asked = _searched(make_evaluation, 1)
    settings = sized(_settings())
    judged = [rung for (_, rung), _ in asked if rung.name == "frechet"]
    assert {int(rung.arguments[OF]) for rung in judged} == {settings.control_images}
    assert {rung.images for rung in judged} == {settings.frechet_images}
    assert settings.control_images >= 2 * settings.frechet_images
    finals = [rung for (_, rung), _ in asked if rung.name == "finals"]
    (images,) = {rung.images for rung in finals}
    (counted,) = {int(rung.arguments[OF]) for rung in finals}
    assert counted >= 2 * images
    # One of the finalists is what the others are compared with.
    for nfe in (3, 4):
        names = {c.hash for (c, rung), _ in asked if rung.name == "finals" and c.nfe == nfe}
        (control,) = {c.hash for (c, rung), _ in asked if rung.name == FINALS_CONTROL and c.nfe == nfe}
        assert control in names
        assert len(names) == 3
    assert state.spent >= 0.98 * state.budget


def test_a_warm_start_waits_for_the_control(make_evaluation: Make) -> None:
    start = preset_on_grid("ddim/karras", find_model("digits-ddpm").noise, 3).to_json()
    _, asked = _searched(make_evaluation, 1, warm_start=(start,))
    rungs = [rung for (c, rung), _ in asked if c.origin == WARM]
    assert [rung.name for rung in rungs][:2] == ["screen", "frechet"]
    assert all(rung.arguments for rung in rungs)


def test_where_no_control_can_be_measured_each_is_judged_alone(make_evaluation: Make) -> None:
    def fails(work: Work) -> bool:
        return work[1].name == MEASURED and work[0].nfe == 3

    _, asked = _searched(make_evaluation, 1, fails)
    tried = [c for (c, rung), _ in asked if rung.name == MEASURED and c.nfe == 3]
    assert len(tried) == MOST_CONTROLS
    alone = [rung for (c, rung), _ in asked if rung.name == "frechet" and c.nfe == 3]
    assert alone
    assert not any(rung.arguments for rung in alone)
    assert {rung.metric for rung in alone} == {"frechet"}
    assert all(rung.arguments for (c, rung), _ in asked if rung.name == "frechet" and c.nfe == 4)


def test_a_finals_control_that_fails_leaves_finals_of_their_own_images(make_evaluation: Make) -> None:
    _, asked = _searched(make_evaluation, 1, lambda work: work[1].name == FINALS_CONTROL)
    finals = [rung for (_, rung), _ in asked if rung.name == "finals"]
    assert len(finals) >= 4
    assert {rung.metric for rung in finals} == {"frechet"}


@pytest.mark.parametrize("kill", [0.05, 0.3, 0.97, 0.99])
def test_a_search_killed_before_or_in_its_finals_goes_on_alike(kill: float, make_evaluation: Make) -> None:
    _, asked = _searched(make_evaluation, 1)

    def told(work: Work) -> tuple[object, ...]:
        return work[0].hash, work[1]

    whole = [told(work) for work, _ in asked]
    records = _records(asked, make_evaluation)
    count = int(kill * len(records))
    resumed = ScheduleProblem(_settings()).search().replay(records[:count])
    for k in range(count, len(records)):
        work = resumed.next_work()
        if work is None:
            assert resumed.enter_finals()
            work = resumed.next_work()
        assert work is not None
        assert told(work) == whole[k]
        resumed.learn(records[k])


def _records(asked: Asked, make: Make) -> list[EvaluationRecord]:
    def record(order: int, work: Work) -> EvaluationRecord:
        candidate, rung = work
        return make(
            order,
            trial=candidate.trial,
            candidate=candidate.hash,
            candidate_json=candidate.point.to_json(),
            nfe=candidate.nfe,
            rung=rung.name,
            origin=candidate.origin,
            metric=metric_class(rung.metric).figure,
            images=rung.images,
            seed=rung.seed,
            parameters=candidate.parameters,
            denoiser_calls=candidate.nfe * rung.images,
            value=1 + int(candidate.hash, 16) % 1000 / 100,
        )

    return [record(order, work) for order, (work, _) in enumerate(asked)]


@pytest.mark.parametrize(
    ("changes", "has"),
    [
        ({}, True),
        ({"control_images": 0}, False),
        ({"paired_images": 0}, False),
        ({"screen": "frechet"}, False),
        ({"screen": "none", "sampler": "evolution"}, False),
        ({"metric": "kid"}, False),
        ({"budget": 12_000, "nfes": (3,)}, False),
        ({"control_images": 750}, True),
    ],
)
def test_there_is_a_control_where_looks_are_paired_and_the_budget_pays_it(changes: dict[str, Any], has: bool) -> None:
    settings = sized(_settings(**changes))
    assert bool(settings.control_images) == has
    assert settings.control_images == changes.get("control_images", settings.control_images)


@pytest.mark.parametrize("changes", [{"screen": "frechet"}, {"frechet_images": 500}, {"paired_images": 0}])
def test_a_control_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="a control of 750 images needs"):
        sized(_settings(control_images=750, **changes))
