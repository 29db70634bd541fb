"""Presets are looked at within their share, the good ones early; the screen is the one that orders them."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from fewstep.errors import ConfigurationError
from fewstep.pipeline.problems.schedules import ScheduleProblem
from fewstep.pipeline.search import Search
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.sizes import sized
from fewstep.pipeline.stages.preset_order import PIVOT, Known, Look, design, new_solver, next_best
from fewstep.pipeline.stages.presets import FIRST, PAIRED, SECOND, Presets
from fewstep.pipeline.stages.refine import RUNG as REFINE
from fewstep.pipeline.trial import CONTROL, OF, Work
from fewstep.search_spaces.point import as_point, parse_point
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.metrics.metric import metric_class
from fewstep.tasks.models.files import find_model
from fewstep.tasks.sampling.grids import preset_on_grid

SOLVERS, GRIDS = "abcdefg", "12345678"
Value = Callable[[str, EvaluationRecord], float | None]


def _table() -> list[Known]:
    point = as_point(preset_on_grid("ddim/karras", find_model("digits-ddpm").noise, 3))
    return [
        Known(f"{kind}{solver}/{grid}", solver, grid, kind == "analytic:", point)
        for kind, solver, grid in itertools.product(("preset:", "analytic:"), SOLVERS, GRIDS)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_where_effects_add_up_the_best_preset_is_found_in_a_quarter_of_the_looks(seed: int) -> None:
    rng, table = random.Random(seed), _table()
    effect = {name: rng.gauss(0, 0.5) for name in SOLVERS + GRIDS} | {"analytic": rng.gauss(0, 1)}

    def value(known: Known, nfe: int) -> float:
        own = effect[known.solver] + effect[known.grid] + effect["analytic"] * known.analytic
        return math.exp(own + rng.gauss(0, 0.05)) / nfe

    looks: list[Look] = []
    order = design(table)
    for nfe in (3, 5):
        left = {known.origin: known for known in table}
        while len(left) > 3 * len(table) // 4:
            candidates = list(left.values())
            due = left[order[len(looks)]] if len(looks) < len(order) else None
            due = due or new_solver(candidates, nfe, looks, {look.known.solver for look in looks})
            chosen = due or next_best(candidates, nfe, looks)
            del left[chosen.origin]
            looks.append(Look(chosen, nfe, value(chosen, nfe)))
    ranked = sorted(table, key=lambda k: effect[k.solver] + effect[k.grid] + effect["analytic"] * k.analytic)
    place = {known.origin: number for number, known in enumerate(ranked)}
    for nfe in (3, 5):
        assert min(place[look.known.origin] for look in looks if look.nfe == nfe) < 6
    # At the second number of calls what was learned at the first is known.
    first = [place[look.known.origin] for look in looks[len(looks) // 2 :][:5]]
    assert sorted(first)[2] < len(table) // 5


def test_one_solver_goes_over_the_grids_and_the_others_follow_on_the_best() -> None:
    table = [known._replace(solver=PIVOT) if known.solver == "c" else known for known in _table()]
    made = {(k.origin.partition("c/")[2], k.analytic) for k in table if k.origin in design(table)}
    assert made == {(grid, analytic) for grid in GRIDS for analytic in (False, True)}
    by_origin = {known.origin: known for known in table}
    looks = [Look(by_origin[origin], 3, 1.0 + place) for place, origin in enumerate(reversed(design(table)))]
    tried = {PIVOT}
    while (chosen := new_solver(table, 3, looks, tried)) is not None:
        assert (chosen.grid, chosen.analytic) == (looks[0].known.grid, looks[0].known.analytic)
        tried.add(chosen.solver)
    assert tried == {known.solver for known in table}
    assert new_solver(table, 4, looks, {PIVOT}) is None


def test_grids_to_zero_are_left_to_the_model_where_the_same_one_stops_short() -> None:
    table = [k._replace(grid=f"{k.grid}-zero", origin=f"{k.origin}-zero") for k in _table() if k.grid in "12"]
    assert len(design(table + [k for k in _table() if k.grid == "1"])) == 4
    assert design([]) == []


def test_looks_that_failed_or_are_not_positive_teach_nothing() -> None:
    table = _table()
    looks = [Look(table[0], 3, None), Look(table[1], 3, -1.0)]
    assert next_best(table, 3, looks) == table[0]
    assert next_best(table, 4, [*looks, Look(table[5], 3, 2.0)]) in table


# -- a search whose values are made up -------------------------------------------------------------------


def _of(work: Work, order: int, make_evaluation: Callable[..., EvaluationRecord]) -> EvaluationRecord:
    """The record of an evaluation, but for its value."""
    candidate, rung = work
    return make_evaluation(
        order,
        trial=candidate.trial,
        candidate=candidate.hash,
        candidate_json=candidate.point.to_json(),
        nfe=candidate.nfe,
        rung=rung.name,
        origin=candidate.origin,
        metric=metric_class(rung.metric).figure,
        images=rung.images,
        parameters=candidate.parameters,
        denoiser_calls=candidate.nfe * rung.images,
    )


def _run(value: Value, make_evaluation: Callable[..., EvaluationRecord], **changes: Any) -> Search:
    """A whole search; what it records is `value` of the rung and the record."""
    fields = {"model": "digits-ddpm", "nfes": (3, 4), "budget": 300_000, "sampler": "random", "refine": 0.3}
    fields |= {"paired_images": 0}
    state = ScheduleProblem(SearchSettings.build(**(fields | changes))).search()
    order = itertools.count()
    while True:
        work = state.next_work()
        if work is None:
            if not state.enter_finals():
                return state
            continue
        record = _of(work, next(order), make_evaluation)
        figure = value(record.rung, record)
        failed = {"status": "failed", "error": "it explodes"} if figure is None else {}
        state.learn(replace(record, value=figure, **failed))


def _quality(record: EvaluationRecord) -> float:
    return 1 + int(record.candidate[:6], 16) / 2**24


@pytest.mark.parametrize("orders", ["frechet", "distance"])
def test_the_screen_is_the_measure_that_orders_presets_as_more_images_do(
    orders: str, make_evaluation: Callable[..., EvaluationRecord]
) -> None:
    misled = {"frechet": PAIRED, "distance": FIRST}[orders]

    def value(rung: str, record: EvaluationRecord) -> float:
        return 9 - _quality(record) if rung == misled else _quality(record)

    state = _run(value, make_evaluation)
    assert state.ladder.screen.metric == orders
    assert any(kind == "screen" and orders[:5] in message for kind, message in state.news)
    assert state.spent <= state.budget


def test_a_tuning_that_fails_is_told_and_its_calls_go_back_to_the_search(
    make_evaluation: Callable[..., EvaluationRecord],
) -> None:
    def value(rung: str, record: EvaluationRecord) -> float | None:
        return None if rung == REFINE else _quality(record)

    state = _run(value, make_evaluation)
    told = [message for kind, message in state.news if kind == "tuning_failed"]
    assert len(told) == 2
    assert all("it explodes" in message for message in told)
    assert state.spent >= 0.98 * state.budget
    started = [t.number for t in state.trials.values() if REFINE in t.records]
    after = [t for t in state.trials.values() if t.candidate.origin == "random" and t.number > min(started)]
    assert len(after) > 5


def test_presets_keep_to_their_share_and_the_best_of_them_is_judged(
    make_evaluation: Callable[..., EvaluationRecord],
) -> None:
    state = _run(lambda rung, record: _quality(record), make_evaluation, nfes=(4,), budget=200_000)
    looked: Mapping[str, list[Any]] = {
        name: [t for t in state.trials.values() if name in t.records] for name in (FIRST, SECOND)
    }
    calls = sum(t.records[r].denoiser_calls for t in state.trials.values() for r in Presets.rungs if r in t.records)
    assert calls <= 0.15 * 200_000
    best = min(looked[SECOND], key=lambda t: t.records[SECOND].value)
    assert state.ladder.main.name in best.records
    assert max(t.records[FIRST].value for t in looked[SECOND]) <= min(
        t.records[FIRST].value for t in looked[FIRST] if t not in looked[SECOND]
    )


# -- paired looks ------------------------------------------------------------------------------------------


def test_paired_looks_follow_a_judged_control_and_the_best_of_them_are_judged(
    make_evaluation: Callable[..., EvaluationRecord],
) -> None:
    state = _run(lambda rung, record: _quality(record), make_evaluation, paired_images=32, budget=160_000)
    main, screen = state.ladder.main, state.ladder.screen
    assert (screen.metric, screen.images) == ("paired", 32)
    for nfe in (3, 4):
        presets = [t for t in state.trials.values() if FIRST in t.records and t.candidate.nfe == nfe]
        control, looked = presets[0].records[main.name], [t.records[FIRST] for t in presets]
        assert control.order < min(record.order for record in looked)
        judged = [t for t in presets[1:] if main.name in t.records]
        assert judged
        assert max(t.records[FIRST].value for t in judged) < control.value
        calls = sum(r.denoiser_calls for r in (*looked, control, *(t.records[main.name] for t in judged)))
        assert 0.1 * state.share < calls <= 0.15 * state.share
        assert len(looked) > 20
    assert state.spent <= state.budget


def test_a_screen_is_controlled_by_the_best_that_was_judged_by_then(
    make_evaluation: Callable[..., EvaluationRecord],
) -> None:
    """And after a failed control by another one."""
    values: dict[str, float] = {}
    failed: list[str] = []

    def value(rung: str, record: EvaluationRecord) -> float | None:
        if rung == "frechet" and not failed:
            failed.append(record.candidate)
            return None
        return values.setdefault(record.candidate, _quality(record))

    state = _run(value, make_evaluation, nfes=(3,), paired_images=16, refine=0.0, budget=40_000)
    trial = max(state.trials.values(), key=lambda t: t.number)
    aimed = state.aimed(trial.candidate, state.ladder.screen)
    able = [t for t in state.trials.values() if {"frechet"} < t.records.keys() and t.candidate.hash not in failed]
    best = min(able, key=lambda t: t.records["frechet"].value)
    assert parse_point(aimed.arguments[CONTROL]).hash == best.candidate.hash
    assert int(aimed.arguments[OF]) <= state.ladder.main.images


@pytest.mark.parametrize(
    ("changes", "screen"),
    [
        ({}, "paired"),
        ({"paired_images": 0}, "auto"),
        ({"frechet_images": 200}, "none"),
        ({"metric": "kid"}, "auto"),
        ({"budget": 20_000, "nfes": (8,)}, "none"),
        ({"screen": "distance"}, "distance"),
    ],
)
def test_screens_are_paired_where_a_frechet_distance_and_the_budget_allow(
    changes: dict[str, object], screen: str
) -> None:
    fields = {"model": "digits-ddpm", "nfes": (3, 4), "budget": 300_000} | changes
    assert sized(SearchSettings.build(**fields)).screen == screen


def test_a_paired_screen_that_cannot_be_is_refused() -> None:
    asked = SearchSettings.build(model="digits-ddpm", nfes=(8,), budget=20_000, screen="paired")
    with pytest.raises(ConfigurationError, match="paired screen of 32 images"):
        sized(asked)
    with pytest.raises(ConfigurationError, match="not kid"):
        SearchSettings.build(model="digits-ddpm", screen="paired", metric="kid")


def test_nothing_is_compared_with_a_look_that_is_still_in_flight(
    make_evaluation: Callable[..., EvaluationRecord],
) -> None:
    """With several workers: a paired rung asks only for what its control's records have by then."""
    fields = {"model": "digits-ddpm", "nfes": (3, 4), "budget": 160_000, "sampler": "random"}
    state = ScheduleProblem(SearchSettings.build(**fields)).search()
    flying: list[Work] = []
    done: set[tuple[str, str]] = set()
    for order in range(120):
        while len(flying) < 6 and (work := state.next_work()) is not None:
            candidate, rung = work
            if rung.arguments:
                control = parse_point(rung.arguments[CONTROL]).hash
                assert (control, state.ladder.main.name) in done
                assert candidate.hash == control or {(control, FIRST), (control, "screen")} & done
            flying.append(work)
        # The newest first, so that the oldest looks are the last to come back.
        record = _of(flying.pop(), order, make_evaluation)
        done.add((record.candidate, record.rung))
        state.learn(replace(record, value=_quality(record)))
