"""A forecast holds: no search spends more than it was told to, whatever the values are and however many run at once."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.forecast import beyond_budget, calls_at_most
from fewstep.pipeline.policies.halving import PRESET
from fewstep.pipeline.problems.networks import NetworkProblem
from fewstep.pipeline.problems.schedules import ScheduleProblem
from fewstep.pipeline.settings import SearchSettings
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
        "budget": 20_000,
        "distance_images": 16,
        "frechet_images": 250,
        "finalist_images": 500,
        "report_images": 300,
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
            calls = plan.calls(candidate.nfe, self.problem.teacher.nfe)
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
        self.calls[PRESET] += calls * (candidate.origin.startswith(PRESET) and rung.name != "report")
        failed = self.random.random() < 0.03 and not candidate.origin.startswith("preset:ddim")
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
            metrics={"size_bytes": 1000.0 / self.order, "bit_operations_a_call": 10.0 + share},
        )

    def search(self, in_flight: int) -> None:
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


CASES: list[dict[str, Any]] = [
    {"screen": "none", "budget": 3_000, "finalist_images": 251},
    {"screen": "none", "budget": 30_000, "nfes": (2, 3)},
    {"screen": "none", "frechet_images": 100, "finalist_images": 300, "nfes": (1, 2, 5), **GRIDS},
    {"budget": 1},
    {"budget": 40_000, "nfes": (3, 4), "keep": 1.0, **GRIDS},
    {"budget": 40_000, "preset_grids": 0, "finalists": 5, "frechet_images": 600, "finalist_images": 1100, **GRIDS},
    {"screen": "frechet", "look_images": 250, "frechet_images": 500, "finalist_images": 501, "budget": 60_000},
    {"screen": "frechet", "look_images": 50, "keep": 1.0, "budget": 30_000, **GRIDS},
    {"screen": "frechet", "look_images": 300, "frechet_images": 400, "nfes": (2, 4), "report_presets": False},
    {"sampler": "evolution", "nfes": (2, 3), "warm_start": ("ddim/karras-zero@2", "dpmpp-3m/karras@3"), **GRIDS},
    {"refine": 0.4, "budget": 60_000, "refine_to": "moments", **GRIDS},
    {"refine": 0.3, "budget": 60_000, "refine_to": "reference", "nfes": (3, 4), **GRIDS},
    {"space": "joint", "nfes": (2, 3), "budget": 15_000, "distance_images": 8, "keep": 1.0, "sampler": "s3"},
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
def test_no_search_spends_more_than_its_forecast(changes: dict[str, Any], workers: int) -> None:
    problem = _problem(**_with_schedules(changes))
    in_flight = 1 if workers == 1 else 2 * workers
    figures = calls_at_most(problem, workers, in_flight)
    machines = Machines(problem, seed=len(changes))
    machines.search(in_flight)
    calls = machines.calls
    searched = sum(calls[name] for name in ("distance", "look", "frechet", "refine"))
    assert searched <= figures["search_calls"] + figures["overshoot_calls_at_most"]
    assert calls[PRESET] <= figures.get("presets_calls_at_most", 0) + figures["finals_calls_at_most"]
    assert calls["finals"] <= figures["finals_calls_at_most"]
    assert calls["report"] <= figures["report_calls_at_most"]
    parts = ("search_calls", "overshoot_calls_at_most", "finals_calls_at_most", "report_calls_at_most")
    teachers = workers * figures["teacher_calls_a_worker"]
    assert figures["total_calls_at_most"] == sum(figures[part] for part in parts) + teachers
    # A forecast that is no bound at all would hold too.
    assert searched >= figures["search_calls"] // 2
    if workers == 1 and not problem.settings.refine:
        assert figures["overshoot_calls_at_most"] <= 0.5 * figures["search_calls"]


def test_where_presets_spend_the_budget_the_forecast_is_what_is_spent() -> None:
    """Without a screen they are what is searched, each once, and nothing else is."""
    problem = _problem(screen="none", budget=3_000, nfes=(2, 3))
    figures = calls_at_most(problem)
    assert isinstance(problem, ScheduleProblem)
    distinct = {s.hash: s.nfe for table in problem.presets.values() for s in table.values()}
    assert figures["presets_calls_at_most"] == figures["search_calls"] == 250 * sum(distinct.values()) > 3_000
    assert figures["overshoot_calls_at_most"] == 0
    machines = Machines(problem, seed=0)
    machines.search(1)
    assert machines.calls["frechet"] == figures["search_calls"]
    note = beyond_budget(problem)
    assert note is not None
    assert f"{figures['search_calls']:,}" in note
    assert beyond_budget(_problem(screen="none", budget=figures["search_calls"] + 1, nfes=(2, 3))) is None


def test_a_real_search_keeps_to_the_forecast_of_the_command(run: Run, toy: Path, tmp_path: Path) -> None:
    images = ("--frechet-images", 100, "--set", "finalist_images=150", "--report-images", 120)
    small = (*images, "--set", "distance_images=8", "--set", "grids=uniform-t-zero", "--set", "report_presets=false")
    ask = ("search", "--model", toy, "--nfe", "1-2", "--budget", 2_000, "--teacher", "ddim/uniform-t-zero@4", *small)
    figures = run(*ask, "--dry-run", "--json").json
    assert figures["presets_calls_at_most"] < figures["search_calls"] == figures["budget"] == 2_000
    (tmp_path / "asked.toml").write_text(run(*ask, "--print").out)
    study = Study(tmp_path / "study", search_settings(read_study_file(tmp_path / "asked.toml")))
    spent = study.run(ExecutionSettings(), "fewstep search").calls
    assert spent == sum(r.denoiser_calls for r in study.records())
    assert figures["total_calls_at_most"] // 2 < spent <= figures["total_calls_at_most"]
    # The text has the same figures, each on a line of its own.
    lines = run(*ask, "--dry-run").out.splitlines()
    told = {name.rstrip(): value for name, value in (line.rsplit(maxsplit=1) for line in lines)}
    assert told["total calls at most"] == f"{figures['total_calls_at_most']:,}"
    assert told["presets calls at most"] == f"{figures['presets_calls_at_most']:,}"
    assert not [line for line in lines if "_" in line]


def test_a_budget_that_presets_spend_is_said_before_and_at_the_start(
    run: Run, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewstep.pipeline.commands.search._run", lambda *arguments: None)
    monkeypatch.setattr("fewstep.pipeline.forecast.measured_rate", lambda *arguments: 1000.0)
    ask = ("search", "--model", toy, "--screen", "none", "--nfe", 3, "--json")
    for options in ((), ("--dry-run",)):
        assert "warning: presets are judged whatever the budget" in run(*ask, "--budget", 5, *options).err
        assert "warning" not in run(*ask, *options).err
