"""A search that was killed and resumed is the search that was not."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from fewstep.pipeline import trial as trial_module
from fewstep.pipeline.problems.schedules import ScheduleProblem
from fewstep.pipeline.proposers.base import is_known
from fewstep.pipeline.proposers.surrogate import registry as surrogates
from fewstep.pipeline.proposers.surrogate.encoder import RankingSurrogate
from fewstep.pipeline.search import Search
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.stages import presets as presets_module
from fewstep.pipeline.trial import Work
from fewstep.search_spaces.point import parse_point
from fewstep.storage.records import EvaluationRecord
from fewstep.storage.store import Store
from fewstep.tasks.metrics.metric import metric_class

SCRIPT = Path(__file__).with_name("killed_search.py")
# In the presets' first and second looks, when their screen is chosen, among the proposals.
LIVES = ("after:presets:9", "after:presets-distance:2", "between:frechet:0", "after:screen:30")
# Of a search whose looks are paired: after its control was judged, in the evolution before and after a fit, between two
# files, after the tuning, in the finals, in the report.
PAIRED_LIVES = (
    "after:frechet:0",
    "after:presets:0",
    "after:screen:30",
    "raise:frechet:9",
    "after:refine:0",
    "between:finals:0",
    "after:report:0",
)


def _settings(model: object, sampler: str, **changes: object) -> SearchSettings:
    fields: dict[str, object] = {
        "model": str(model),
        "sampler": sampler,
        "surrogate": "encoder" if sampler == "s3" else "none",
        "nfes": (3,),
        "budget": 30_000,
        "paired_images": 0,
        "preset_images": 8,
        "distance_images": 16,
        "look_images": 20,
        "frechet_images": 250,
        "report_images": 500,
        "teacher": "dpmpp-2m/uniform-t-zero@8",
    }
    return SearchSettings.build(**(fields | changes))


# -- real searches, killed as the system kills ----------------------------------------------------------


@pytest.fixture(scope="module")
def searched(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`NAME-whole` and `NAME-killed`: one search for each sampler, uninterrupted and killed at LIVES."""
    root = tmp_path_factory.mktemp("searches")
    jobs = [
        (str(root / f"{sampler}-{name}"), _settings(toy, sampler, keep=0.12, **changes).model_dump(), rules, {})
        for sampler, changes, lives in (
            ("s3", {"paired_images": 8, "budget": 14_000}, PAIRED_LIVES),
            ("tpe", {"budget": 18_000}, LIVES),
        )
        for name, rules in (("whole", ()), ("killed", lives))
    ]
    command = [sys.executable, "-P", str(SCRIPT)]
    done = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    ends = {
        lives: " ".join("3" if life.startswith("raise") else "-9" for life in lives) for lives in (PAIRED_LIVES, LIVES)
    }
    assert done.stdout.splitlines() == ["0", f"{ends[PAIRED_LIVES]} 0", "0", f"{ends[LIVES]} 0"]
    return root


def _facts(record: EvaluationRecord) -> tuple[object, ...]:
    """All that two equal searches share; times, costs and the order of writing are not among it."""
    bits = tuple(None if v is None else v.hex() for v in (record.value, record.low, record.high))
    return (
        record.key,
        bits,
        record.trial,
        record.rung,
        record.origin,
        record.candidate_json,
        repr(sorted(record.parameters.items())),
        record.status,
    )


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["s3", "tpe"])
def test_kill_and_resume_gives_exactly_the_evaluations_of_an_uninterrupted_search(sampler: str, searched: Path) -> None:
    roots = searched / f"{sampler}-whole", searched / f"{sampler}-killed"
    whole, killed = map(Store, roots)
    expected = whole.evaluations.records()
    records = killed.evaluations.records()
    assert {_facts(r) for r in records} == {_facts(r) for r in expected}
    assert len(records) == len(expected) == len({r.key for r in records})
    assert [r.order for r in records] == list(range(len(records)))
    looks = {"s3": {"presets"}, "tpe": {"presets", "presets-look", "presets-distance"}}[sampler]
    assert {r.rung for r in records} == looks | {"screen", "frechet", "refine", "finals", "report"}
    assert killed.damaged() == []

    def rows(store: Store) -> dict[tuple[str, int], tuple[int, bytes, bytes]]:
        return {(m.base, m.start): (m.count, m.mean, m.scatter) for m in store.moments.records()}

    assert rows(killed) == rows(whole)
    refits = [e for e in whole.events.records() if e.kind == "refit"]
    assert bool(refits) == (sampler == "s3")
    for name in ("results.csv", "schedules/nfe3.json"):
        lines = [(root / name).read_text().splitlines() for root in roots]
        assert lines[0] == lines[1]


# -- the state alone, on tabulated values --------------------------------------------------------------


def _share(*parts: object) -> float:
    """A number in [0, 1) that the parts decide."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big") / 2**48


def _tabulated(work: Work, order: int) -> EvaluationRecord:
    """A record as an evaluation would make it: values by hash, one in twenty failed."""
    candidate, rung = work
    name = candidate.hash
    failed = _share("fails", name, rung.metric) < 0.05
    value = math.exp(_share(name) + 0.3 * _share(name, rung.metric)) * (1 if rung.metric == "distance" else 10)
    return EvaluationRecord(
        study="table",
        order=order,
        trial=candidate.trial,
        key=f"{name}-{rung.name}",
        candidate=name,
        candidate_json=candidate.point.to_json(),
        nfe=candidate.nfe,
        rung=rung.name,
        origin=candidate.origin,
        model="table",
        model_hash="table",
        features="table",
        reference="table",
        seed=rung.seed,
        images=rung.images,
        metric=metric_class(rung.metric).figure,
        value=None if failed else value,
        low=None,
        high=None,
        denoiser_calls=candidate.nfe * rung.images,
        seconds=0.0,
        device="cpu",
        finished_at=datetime.now(UTC),
        status="failed" if failed else "complete",
        error="it explodes" if failed else "",
        parameters=candidate.parameters,
    )


def _next(state: Search) -> Work | None:
    """What the loop would submit with nothing in flight."""
    work = state.next_work()
    return state.next_work() if work is None and state.enter_finals() else work


def _identity(work: Work | None) -> object:
    if work is None:
        return None
    candidate, rung = work
    parameters = repr(sorted(candidate.parameters.items()))
    return candidate.trial, candidate.point.to_json(), candidate.origin, parameters, rung


@pytest.fixture
def quick_surrogate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surrogates, "RankingSurrogate", partial(RankingSurrogate, steps=2))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_surrogate")
@pytest.mark.parametrize(
    ("sampler", "changes"),
    [
        ("s3", {}),
        ("s3", {"screen": "frechet", "surrogate": "trees"}),
        ("evolution", {"paired_images": 8, "screen": "auto", "frechet_images": 250, "budget": 36_000}),
        ("evolution", {"screen": "distance"}),
        ("evolution", {"screen": "none", "budget": 60_000}),
        ("tpe", {"refine": 0.0, "budget": 14_000}),
        ("random", {}),
    ],
)
def test_the_records_alone_decide_what_comes_next(sampler: str, changes: dict[str, object]) -> None:
    settings = _settings(
        "digits-ddpm", sampler, **({"nfes": (2, 3), "budget": 24_000, "frechet_images": 100} | changes)
    )
    problem = ScheduleProblem(settings)
    state, works, records = problem.search(), [], []
    while (work := _next(state)) is not None:
        works.append(_identity(work))
        records.append(_tabulated(work, len(records)))
        state.learn(records[-1])
    works.append(None)
    assert len(records) > 110
    rungs = {r.rung for r in records}
    assert rungs >= {"presets", "frechet", "finals"}
    assert ("presets-look" in rungs) == (problem.settings.screen == "auto")
    assert ("refine" in rungs) == (settings.refine is None)
    assert any(r.status == "failed" for r in records)
    assert sum(r.origin == sampler for r in records) > 30
    # Each sampler at other points, so that together they cover the phases closely.
    for k in range(("s3", "evolution", "tpe", "random").index(sampler), len(records) + 1, 9):
        assert _identity(_next(problem.search().replay(records[:k]))) == works[k], f"after {k} records"
    # A resumed search also goes on alike, to its end.
    for k in (30, 90):
        resumed = problem.search().replay(records[:k])
        for j in range(k, len(records)):
            assert _identity(_next(resumed)) == works[j], f"work {j}, resumed after {k}"
            resumed.learn(records[j])
        assert _next(resumed) is None


def test_a_search_costs_the_same_a_record_however_long_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """In work, not in time: a replay of many records, and the looks at presets among many trials."""
    looks = 0

    def counted(origin: str) -> bool:
        nonlocal looks
        looks += 1
        return is_known(origin)

    monkeypatch.setattr(presets_module, "is_known", counted)
    settings = _settings("digits-ddpm", "random", nfes=(2, 3), budget=16_000, frechet_images=100, refine=0.0)
    problem = ScheduleProblem(settings)
    state, records = problem.search(), []
    while (work := _next(state)) is not None:
        records.append(_tabulated(work, len(records)))
        state.learn(records[-1])
    assert len(records) > 120
    assert looks < 12 * len(records)
    records = [r for r in records if r.rung != "finals"]
    read: list[str] = []
    monkeypatch.setattr(trial_module, "parse_point", lambda text: read.append(text) or parse_point(text))
    monkeypatch.setattr(trial_module, "_read", trial_module.parse_point)
    work = []
    for count in (30, len(records)):
        calls = 0

        def count_calls(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        fresh = problem.search()
        sys.setprofile(count_calls)
        fresh.replay(records[:count])
        sys.setprofile(None)
        work.append(calls)
    each = (work[1] - work[0]) / (len(records) - 30)
    assert each < 1.2 * work[0] / 30
    # Schedules are read when they are needed, and none is to know what was spent on them.
    assert read == []


@pytest.mark.parametrize("sampler", ["s3", "random"])
def test_a_replayed_candidate_is_the_one_that_was_proposed(sampler: str) -> None:
    settings = _settings("digits-ddpm", sampler, surrogate="none", budget=8_000, frechet_images=100, refine=0.0)
    problem = ScheduleProblem(settings)
    state, records = problem.search(), []
    while (work := _next(state)) is not None:
        records.append(_tabulated(work, len(records)))
        state.learn(records[-1])
    replayed = problem.search().replay(records)
    assert replayed.trials.keys() == state.trials.keys()
    for number, trial in state.trials.items():
        ours, theirs = trial.candidate, replayed.trials[number].candidate
        assert (ours.point, ours.hash, ours.nfe, ours.json) == (theirs.point, theirs.hash, theirs.nfe, theirs.json)
        assert (ours.origin, ours.parameters) == (theirs.origin, theirs.parameters)
        assert pickle.loads(pickle.dumps(theirs)).point == ours.point


def test_a_front_that_stands_still_ends_the_search_wherever_it_was_killed() -> None:
    settings = _settings("digits-ddpm", "random", budget=90_000, frechet_images=100, patience=4_000, refine=0.0)
    problem = ScheduleProblem(settings)
    state, records = problem.search(), []
    while (work := _next(state)) is not None:
        # Measured calls are other ones: the first evaluation of a life samples the teacher, a grown one reads the rest.
        measured = 0 if len(records) % 3 else 50_000
        records.append(replace(_tabulated(work, len(records)), denoiser_calls=measured))
        state.learn(records[-1])
    searched = [r for r in records if r.rung != "finals"]
    assert state.spent < settings.budget
    best, moved, calls = math.inf, 0, 0
    for record in searched:
        calls += record.nfe * record.images
        if record.rung == "frechet" and record.value is not None and record.value < best:
            best, moved = record.value, calls
    # It ends once that many calls have brought nothing; what was promoted by then is still judged.
    assert 4_000 <= calls - moved < 4_000 + 3_000
    for k in range(0, len(records), 13):
        resumed = problem.search().replay(records[:k])
        for record in records[k:]:
            following = _next(resumed)
            assert following is not None
            assert (following[0].trial, following[1].name) == (record.trial, record.rung)
            resumed.learn(record)
        assert _next(resumed) is None


@pytest.mark.parametrize("lost", [(0, 40), (30, 90), (60, -1), (-12, -1)])
def test_what_a_lost_file_held_is_spent_again_before_any_further_finals(lost: tuple[int, int]) -> None:
    settings = _settings("digits-ddpm", "random", nfes=(2, 3), budget=24_000, frechet_images=100, refine=0.0)
    problem = ScheduleProblem(settings)
    state, records = problem.search(), []
    while (work := _next(state)) is not None:
        records.append(_tabulated(work, len(records)))
        state.learn(records[-1])
    kept = [*records[: lost[0] % len(records)], *records[lost[1] % len(records) :]]
    assert any(r.rung == "finals" for r in kept)
    resumed, order = problem.search().replay(kept), len(records)
    while (work := _next(resumed)) is not None:
        kept.append(_tabulated(work, order))
        resumed.learn(kept[-1])
        order += 1
    # Finals that have begun go on on as many images, with whoever comes to them.
    assert 0.97 * settings.budget <= resumed.spent <= 1.15 * settings.budget
    assert len({(r.trial, r.rung) for r in kept}) == len(kept) == len({r.key for r in kept})
    assert _next(problem.search().replay(kept)) is None
    for nfe in settings.nfes:
        winner = problem.winner(resumed, nfe)
        assert winner is not None
        assert "finals" in winner.records


@pytest.mark.parametrize("screen", ["distance", "frechet", "none"])
def test_when_a_front_stands_still_is_decided_by_the_records_alone(screen: str) -> None:
    """Whatever each life measured: equal records but for their cost end a search after the same one."""
    small = {"frechet_images": 50, "look_images": 20, "budget": 60_000, "refine": 0.0}
    settings = _settings("digits-ddpm", "random", screen=screen, patience=4_000, **small)
    problem = ScheduleProblem(settings)
    state, records, proposes = problem.search(), [], [True]
    while (work := state.next_work()) is not None:
        records.append(_tabulated(work, len(records)))
        state.learn(records[-1])
        proposes.append(state.may_propose)
    assert not proposes[-1]
    assert state.spent < settings.budget
    for calls in (0, 10**6):
        told = [replace(r, denoiser_calls=calls * (i % 2), seconds=float(i)) for i, r in enumerate(records)]
        for k in range(0, len(records) + 1, 29):
            assert problem.search().replay(told[:k]).may_propose == proposes[k], f"after {k} records"
        assert problem.search().replay(told).may_propose == proposes[-1]


@pytest.mark.parametrize("presets", [True, False])
def test_the_report_judges_presets_unless_they_are_left_out(presets: bool) -> None:
    settings = _settings(
        "digits-ddpm", "random", nfes=(2, 3), budget=24_000, frechet_images=100, report_presets=presets
    )
    problem = ScheduleProblem(settings)
    state, order = problem.search(), 0
    while (work := _next(state)) is not None:
        state.learn(_tabulated(work, order))
        order += 1
    work = problem.report_work(state)
    found = [candidate.nfe for candidate, _ in work if candidate.origin.startswith("found:")]
    assert sorted(found) == [2, 3]
    assert (len(work) > 2) == presets


def test_records_in_another_order_give_a_state_that_has_the_same_trials() -> None:
    """On Ray the records end in the order in which they finish; none may be lost or asked for again."""
    settings = _settings("digits-ddpm", "random", budget=12_000, frechet_images=100)
    problem = ScheduleProblem(settings)
    state, records = problem.search(), []
    flying: list[Work] = []
    while True:
        while len(flying) < 4 and (work := state.next_work()):
            flying.append(work)
        if not flying:
            if not state.enter_finals():
                break
            continue
        records.append(_tabulated(flying.pop(int(_share(len(records)) * len(flying))), len(records)))
        state.learn(records[-1])
    assert len({(r.trial, r.rung) for r in records}) == len(records)
    for k in range(0, len(records) + 1, 29):
        resumed = problem.search().replay(records[:k])
        assert resumed.trials.keys() == {r.trial for r in records[:k]}
        asked = set()
        while (work := resumed.next_work()) and work[0].origin != "random":
            asked.add((work[0].hash, work[1].name))
        assert not asked & {(r.candidate, r.rung) for r in records[:k]}


@pytest.mark.parametrize(("sampler", "workers"), [("s3", 5), ("random", 20)])
def test_many_workers_killed_again_and_again_keep_the_budget_and_double_nothing(sampler: str, workers: int) -> None:
    """What was under way when the driver died is lost, whatever had been decided of it by then."""
    settings = _settings("digits-ddpm", sampler, nfes=(2, 3), budget=24_000, frechet_images=100, surrogate="none")
    problem = ScheduleProblem(settings)
    records: list[EvaluationRecord] = []
    lives, ended = 0, False
    while not ended:
        state, lives = problem.search().replay(list(records)), lives + 1
        flying: list[Work] = []
        for _ in range(1 + int(30 * _share("life", lives))):
            while len(flying) < workers and (work := state.next_work()):
                flying.append(work)
            if not flying and (work := _next(state)):
                flying.append(work)
            if not flying:
                ended = True
                break
            records.append(_tabulated(flying.pop(int(_share(len(records)) * len(flying))), len(records)))
            state.learn(records[-1])
    assert lives > 5
    assert len({(r.trial, r.rung) for r in records}) == len(records)
    assert any(r.rung == "finals" for r in records)
    assert 0.9 * settings.budget <= state.spent <= 1.02 * settings.budget
    assert all(state.committed[nfe] <= 1.03 * state.share for nfe in settings.nfes)
