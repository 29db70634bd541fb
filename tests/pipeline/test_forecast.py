"""A budget is a promise: it is spent within 2%, whatever the values are and however many run at once."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from fewstep.errors import ConfigurationError
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.forecast import calls_at_most
from fewstep.pipeline.problems.networks import NetworkProblem
from fewstep.pipeline.problems.schedules import ScheduleProblem
from fewstep.pipeline.proposers.base import WARM
from fewstep.pipeline.search import Search
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.sizes import LEAST_PROPOSALS
from fewstep.pipeline.stages.presets import Presets
from fewstep.pipeline.study import Study
from fewstep.pipeline.study_file import read_study_file, search_settings
from fewstep.pipeline.trial import Work
from fewstep.search_spaces.point import quantization_of
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.models.files import find_model
from fewstep.tasks.refinement.moment_plan import parse_plan
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.work import GROUP

Run = Callable[..., Any]
TEACHER = 8
GRIDS = {"grids": ("uniform-t-zero", "quadratic-zero")}


def _problem(**changes: Any) -> ScheduleProblem | NetworkProblem:
    fields: dict[str, Any] = {
        "model": "digits-ddpm",
        "sampler": "random",
        "nfes": (3,),
        "budget": 100_000,
        "teacher": f"dpmpp-2m/uniform-t-zero@{TEACHER}",
    }
    settings = SearchSettings.build(**(fields | changes))
    return ScheduleProblem(settings) if settings.space == "schedule" else NetworkProblem(settings)


class Machines:
    """Evaluates as workers do, by counting alone: whole groups are kept, teachers sampled once by each worker."""

    def __init__(self, problem: ScheduleProblem | NetworkProblem, seed: int) -> None:
        self.problem, self.random = problem, random.Random(seed)
        self.kept: Counter[tuple[str, str, int]] = Counter()
        self.calibrated: set[str] = set()
        self.calls: Counter[str] = Counter()
        self.order = 0

    def run(self, work: Work) -> EvaluationRecord:
        """The record of an evaluation, of a value of this moment: the later, the better, so that most climb."""
        candidate, rung = work
        self.order += 1
        calls = candidate.nfe * rung.images
        if rung.name == "refine":
            plan = parse_plan(rung.arguments["plan"])
            calls = int(plan.calls(candidate.nfe, self.problem.teacher.nfe) * self.random.uniform(0.3, 1.0))
        elif rung.metric != "distance":
            key = candidate.hash, rung.metric, rung.seed
            calls = candidate.nfe * (rung.images - min(self.kept[key], rung.images))
            self.kept[key] = max(self.kept[key], rung.images // GROUP * GROUP)
        config = quantization_of(candidate.point)
        if config is not None and config.hash not in self.calibrated:
            assert isinstance(self.problem, NetworkProblem)
            self.calibrated.add(config.hash)
            calls += config.images * self.problem.calibration.nfe
        self.calls[rung.name] += calls
        if rung.name in Presets.rungs:
            self.calls["known"] += calls
        failed = self.random.random() < 0.03
        share = int(hashlib.sha256(candidate.hash.encode()).hexdigest()[:8], 16) / 2**32
        return EvaluationRecord(
            study="table",
            order=self.order,
            trial=candidate.trial,
            key=f"{candidate.hash}-{rung.name}",
            candidate=candidate.hash,
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
            metric=rung.metric,
            value=None if failed else (1 + share / 10) / self.order,
            low=None,
            high=None,
            denoiser_calls=calls,
            seconds=0.0,
            device="cpu",
            finished_at=datetime.now(UTC),
            status="failed" if failed else "complete",
            error="it explodes" if failed else "",
            parameters=candidate.parameters,
            metrics={"size_bytes": 1000.0 / self.order, "bit_operations_a_call": 10.0 + share, "calls": float(calls)},
        )

    def search(self, in_flight: int) -> Search:
        """A whole search and its report; of what is in flight, any may end first."""
        state, flying = self.problem.search(), list[Work]()
        while True:
            while len(flying) < in_flight and (work := state.next_work()):
                flying.append(work)
            if not flying:
                if not state.enter_finals():
                    break
                continue
            state.learn(self.run(flying.pop(self.random.randrange(len(flying)))))
        for work in self.problem.report_work(state):
            self.run(work)
        return state


CASES: list[dict[str, Any]] = [
    {},
    {"nfes": (3, 4, 5, 8), "budget": 400_000},
    {"nfes": (5,), "budget": 25_000},
    {"nfes": (1, 2, 5), "sampler": "s3", "budget": 150_000},
    {"screen": "none", "budget": 60_000, "frechet_images": 100, "finalist_images": 300, **GRIDS},
    {"screen": "none", "budget": 90_000, "nfes": (2, 3), "refine": 0.0, "sampler": "evolution"},
    {"screen": "distance", "budget": 80_000, "nfes": (3, 4), "keep": 1.0, **GRIDS},
    {"screen": "distance", "finalists": 5, "frechet_images": 600, "finalist_images": 1100, **GRIDS},
    {"screen": "frechet", "look_images": 250, "frechet_images": 500, "finalist_images": 501},
    {"screen": "frechet", "look_images": 50, "frechet_images": 250, "keep": 1.0, **GRIDS},
    {"screen": "frechet", "look_images": 300, "frechet_images": 400, "nfes": (2, 4), "report_presets": False},
    {"nfes": (2, 3), "warm_start": ("ddim/karras-zero@2", "dpmpp-3m/karras@3"), "sampler": "s3"},
    {"refine": 0.3, "refine_to": "reference", "refined_elites": 1, "budget": 150_000},
    {"refine": 0.3, "refine_to": "network", "refined_elites": 2, "budget": 150_000},
    {"presets": 0.4, "finals": 0.3, "refine": 0.0, "surrogate": "forest", "sampler": "s3"},
    {"space": "joint", "nfes": (2, 3), "distance_images": 8, "keep": 1.0, "sampler": "s3"},
    {"space": "quantization", "base_schedule": "ddim/uniform-t-zero@4", "nfes": (4,), "front": 3, "sampler": "s3"},
]


def _with_schedules(changes: dict[str, Any]) -> dict[str, Any]:
    """Settings whose schedules are spelled PRESET/GRID@CALLS, as they are stored."""
    noise = find_model("digits-ddpm").noise

    def text(name: str) -> str:
        preset, _, calls = name.partition("@")
        return preset_on_grid(preset, noise, int(calls)).to_json()

    spelled = {"base_schedule": text, "warm_start": lambda names: tuple(map(text, names))}
    return {name: spelled[name](value) if name in spelled else value for name, value in changes.items()}


@pytest.mark.parametrize("changes", CASES, ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items())[:60])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_search_spends_its_budget_and_no_more(changes: dict[str, Any], workers: int) -> None:
    problem = _problem(**_with_schedules(changes))
    s, figures = problem.settings, calls_at_most(problem)
    machines = Machines(problem, seed=len(changes))
    state = machines.search(1 if workers == 1 else 2 * workers)
    calls = machines.calls
    spent = state.prepaid + sum(calls[name] for name in calls if name not in ("report", "known"))
    assert spent <= s.budget
    # What fails at once, or ends early, may leave a little.
    assert spent >= (0.98 if s.finalist_images is None else 0.9) * s.budget, state.news
    assert calls["report"] <= figures["report_calls_at_most"]
    assert figures["total_calls_at_most"] == s.budget + figures["report_calls_at_most"]
    if s.space == "schedule":
        assert calls["known"] <= s.presets * s.budget
        own = [t for t in state.trials.values() if t.candidate.origin in ("random", s.sampler)]
        assert len(own) >= LEAST_PROPOSALS * len(s.nfes)
    # What a user starts from is judged, unless it fails before.
    started = [t for t in state.trials.values() if t.candidate.origin == WARM]
    assert len(started) == len(s.warm_start)
    assert all("frechet" in t.records or t.state == TrialState.FAIL for t in started)


@pytest.mark.parametrize(
    "changes",
    [case for case in CASES if "refine_to" not in case],
    ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items())[:60],
)
def test_too_small_a_budget_is_refused_with_the_least_that_is_not(changes: dict[str, Any]) -> None:
    changed = _with_schedules(changes)
    with pytest.raises(ConfigurationError, match="too small") as refused:
        _problem(**{**changed, "budget": 900}).check_budget()
    found = re.search(r"([0-9,]+) would buy", str(refused.value))
    assert found
    budget = int(found[1].replace(",", ""))
    _problem(**{**changed, "budget": budget}).check_budget()
    with pytest.raises(ConfigurationError, match="too small"):
        _problem(**{**changed, "budget": int(0.85 * budget)}).check_budget()


def test_a_descent_by_gradient_that_its_share_does_not_pay_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"takes 34,752 calls at least.*--refine"):
        _problem(refine=0.3, refine_to="reference", budget=60_000).check_budget()


def test_a_real_search_keeps_to_the_forecast_of_the_command(run: Run, toy: Path, tmp_path: Path) -> None:
    images = ("--frechet-images", 100, "--set", "look_images=50", "--report-images", 120)
    ask = ("search", "--model", toy, "--nfe", "1-2", "--budget", 12_000, "--teacher", "ddim/uniform-t-zero@4", *images)
    figures = run(*ask, "--dry-run", "--json").json
    (tmp_path / "asked.toml").write_text(run(*ask, "--print").out)
    study = Study(tmp_path / "study", search_settings(read_study_file(tmp_path / "asked.toml")))
    spent = study.run(ExecutionSettings(), "fewstep search").calls
    assert spent == sum(r.denoiser_calls for r in study.records())
    searched = sum(r.denoiser_calls for r in study.records() if r.rung != "report")
    assert 0.98 * 12_000 <= searched <= 12_000
    assert spent <= figures["total_calls_at_most"]
    # The text has the same figures, each on a line of its own.
    lines = run(*ask, "--dry-run").out.splitlines()
    told = {name.rstrip(): value for name, value in (line.rsplit(maxsplit=1) for line in lines)}
    assert told["total calls at most"] == f"{figures['total_calls_at_most']:,}"
    assert told["budget"] == "12,000"
    assert not [line for line in lines if "_" in line]
