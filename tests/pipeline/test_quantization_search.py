"""Searches of quantised networks, alone and with schedules: their fronts, their resumption, their costs."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fewstep.errors import ConfigurationError
from fewstep.pipeline.problems.networks import ALLOTTED, MIXED_NAMES, NAMES, NetworkProblem, named_members
from fewstep.pipeline.proposers.pareto import dominance
from fewstep.pipeline.search import Search
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.study import Study
from fewstep.pipeline.trial import Work
from fewstep.search_spaces.point import Point, parse_point, quantization_of, schedule_of
from fewstep.search_spaces.quantization import QuantizationConfig, named
from fewstep.search_spaces.quantization.space import QuantizationSpace
from fewstep.search_spaces.schedule import SolverSchedule, load_schedule
from fewstep.search_spaces.schedule.corrections import Corrections
from fewstep.storage.records import EvaluationRecord
from fewstep.storage.store import Store
from fewstep.tasks.models.files import find_model
from fewstep.tasks.models.matrices import count_matrices
from fewstep.tasks.quantization.storage import find_quantized
from fewstep.tasks.sampling.grids import preset_on_grid

SCRIPT = Path(__file__).with_name("killed_search.py")
# Among the named configs, in the evolution, in the finals, in the report.
LIVES = {
    "quantization": ("after:distance:3", "between:frechet:0", "raise:distance:9", "between:finals:0", "after:report:0"),
    "joint": ("after:distance:9", "between:frechet:9", "after:distance:20", "after:refine:0"),
}
SPACES = tuple(LIVES)
TEACHER_CALLS = 6


def _config(point: Point) -> QuantizationConfig:
    config = quantization_of(point)
    assert config is not None
    return config


def _settings(model: object, space: str, **changes: object) -> SearchSettings:
    fields: dict[str, object] = {
        "model": str(model),
        "space": space,
        "nfes": (2,) if space == "quantization" else (2, 3),
        "budget": 6_000,
        "distance_images": 8,
        "frechet_images": 250,
        "report_images": 300,
        "front": 4,
        "calibration_iterations": 1,
        "teacher": f"dpmpp-2m/uniform-t-zero@{TEACHER_CALLS}",
    }
    if space == "quantization":
        fields["base_schedule"] = preset_on_grid("ddim/uniform-t-zero", find_model(str(model)).noise, 2).to_json()
    return SearchSettings.build(**(fields | changes))


# -- whole searches -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def briefly_trained(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 50 training timesteps: calibrations fit the temporal block to all that there are."""
    folder = tmp_path_factory.mktemp("models") / "brief"
    shutil.copytree(toy, folder)
    place = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(place.read_text())
    assert config["num_train_timesteps"] == 1000
    brief = {"num_train_timesteps": 50} | {name: 20 * config[name] for name in ("beta_start", "beta_end")}
    place.write_text(json.dumps(config | brief))
    return folder


@pytest.fixture(scope="module")
def searched(briefly_trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`SPACE-whole` and `SPACE-killed`: a search of each space, uninterrupted and killed at LIVES."""
    root = tmp_path_factory.mktemp("searches")
    jobs = [
        (
            str(root / f"{space}-{name}"),
            _settings(briefly_trained, space, nfes=(2,), keep=0.12, budget=budget).model_dump(),
            rules,
        )
        # A joint search has 17 seeds, and goes on from there.
        for space, budget in (("quantization", 9_000), ("joint", 13_000))
        for name, rules in (("whole", ()), ("killed", LIVES[space]))
    ]
    command = [sys.executable, "-P", str(SCRIPT)]
    done = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout.splitlines() == ["0", "-9 -9 3 -9 -9 0", "0", "-9 -9 -9 -9 0"]
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
        repr(sorted(record.metrics.items())),
        repr(sorted(record.parameters.items())),
        record.status,
    )


@pytest.mark.slow
@pytest.mark.parametrize("space", SPACES)
def test_kill_and_resume_gives_exactly_the_evaluations_of_an_uninterrupted_search(space: str, searched: Path) -> None:
    roots = searched / f"{space}-whole", searched / f"{space}-killed"
    expected, records = (Store(root).evaluations.records() for root in roots)
    assert {_facts(r) for r in records} == {_facts(r) for r in expected}
    assert len(records) == len(expected) == len({r.key for r in records})
    tuned = {"refine"} if space == "joint" else set()
    assert {r.rung for r in records} == {"distance", "frechet", "finals", "report"} | tuned
    assert any(r.origin in ("evolution", "random") for r in records)
    assert Store(roots[1]).damaged() == []
    for name in ("front.json", "calibration.json", "configs/nfe2.json"):
        assert (roots[0] / name).read_text() == (roots[1] / name).read_text()


@pytest.mark.slow
def test_members_of_a_joint_front_are_tuned_each_with_its_own_network(searched: Path) -> None:
    records = Store(searched / "joint-whole").evaluations.records()
    tunings = [r for r in records if r.rung == "refine" and r.status == "complete"]
    assert tunings
    judged = {r.candidate: r for r in records if r.rung == "frechet"}
    for tuning in tunings:
        start = judged[tuning.origin.removeprefix("refine:")]
        before, after = (parse_point(r.candidate_json) for r in (start, tuning))
        assert _config(before) == _config(after)
        assert schedule_of(before) != schedule_of(after)
        assert judged[tuning.candidate].metrics["size_bytes"] == start.metrics["size_bytes"]
    # What was tuned is no member of the space: no other has anything of it.
    tuned = {r.candidate for r in tunings}
    assert all(not r.parameters for r in records if r.candidate in tuned)


@pytest.mark.slow
@pytest.mark.parametrize("space", SPACES)
def test_the_front_is_one_and_its_files_make_its_members_again(space: str, searched: Path) -> None:
    root = searched / f"{space}-whole"
    study = Study.load(root)
    state, problem = study.state(), study.problem
    assert isinstance(problem, NetworkProblem)
    objectives, found = problem.objectives, problem.members(state)
    assert 1 <= len(found) <= problem.settings.front
    values = [objectives(m.trial.records["finals"]) for m in found]
    assert not dominance([v for v in values if v is not None]).any()
    # The front was drawn from all that was judged: nobody there beats a finalist at that rung.
    judged = [(t, objectives(t.records.get("frechet"))) for t in state.trials.values()]
    known = [(t, v) for t, v in judged if v is not None]
    over = dominance([v for _, v in known])
    for i, (trial, _) in enumerate(known):
        assert not ("finals" in trial.records and over[:, i].any())
    listed = json.loads((root / "front.json").read_text())["members"]
    assert len(listed) == len(found)
    for entry, member in zip(listed, found, strict=True):
        config = QuantizationConfig.from_json((root / entry["config"]).read_text())
        assert config == _config(member.trial.candidate.point)
        assert parse_point((root / entry["point"]).read_text()) == member.trial.candidate.point
        assert load_schedule(root / entry["schedule"]).hash == member.trial.candidate.schedule.hash
        assert find_quantized(root / entry["network"]).config == config
    with (root / "results.csv").open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    assert {"value", "low", "high", "schedule", "size_bytes", "bit_operations", "quantization"} <= rows[0].keys()
    methods = {row["method"] for row in rows}
    assert {"fewstep", "full precision"} <= methods
    exact = next(row for row in rows if row["method"] == "full precision")
    for row in rows:
        if row is not exact and row["nfe"] == exact["nfe"]:
            # The toy is so small that a file's header outweighs its weights: sizes only have to differ.
            assert row["size_bytes"] != exact["size_bytes"]
            assert int(row["bit_operations"]) < int(exact["bit_operations"])


@pytest.mark.slow
@pytest.mark.parametrize("space", SPACES)
def test_a_config_is_calibrated_once_whatever_it_is_asked_for(space: str, searched: Path) -> None:
    study = Study.load(searched / f"{space}-whole")
    assert isinstance(study.problem, NetworkProblem)
    teacher = TEACHER_CALLS * study.problem.settings.distance_images
    beyond: dict[str, list[int]] = defaultdict(list)
    known: dict[str, int] = defaultdict(int)
    for record in sorted(study.store.evaluations.records(), key=lambda r: r.order):
        config = quantization_of(parse_point(record.candidate_json))
        if config is None:
            continue
        # What grows pays for its new images alone; finals are held on images of their own.
        paid = record.images - known[record.key] if record.rung == "frechet" else record.images
        beyond[config.model_dump_json()].append(record.denoiser_calls - record.nfe * paid)
    first, allotted = True, 0
    for text, extra in beyond.items():
        config = QuantizationConfig.from_json(text)
        calls = config.images * study.problem.calibration.nfe + (teacher if first else 0)
        if config.allocation != "even" and not allotted:
            # What bits are allotted by is measured once, at the first of these configs.
            allotted = extra[0] - calls
            assert 0 < allotted <= study.problem._measured_calls
            calls += allotted
        assert extra[0] == calls
        assert set(extra[1:]) <= {0}
        first = False
    assert allotted
    if space == "joint":
        assert len(beyond) < len({r.candidate for r in study.store.evaluations.records()})


# -- the state alone, on tabulated values --------------------------------------------------------------


def _share(*parts: object) -> float:
    """A number in [0, 1) that the parts decide."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big") / 2**48


def _tabulated(work: Work, order: int) -> EvaluationRecord:
    """A record as an evaluation would make it: figures by hash and bits, one in twenty failed."""
    candidate, rung = work
    name, config = candidate.hash, _config(candidate.point)
    failed = _share("fails", name, rung.metric) < 0.05
    value = math.exp(_share(name) + 0.3 * _share(name, rung.metric)) / config.weight_bits
    size = config.weight_bits * 1000.0 + 100 * _share(config.hash)
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
        metric=rung.metric,
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
        metrics={} if failed else {"size_bytes": size, "bit_operations_a_call": size * config.activation_bits},
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
    return candidate.trial, candidate.hash, candidate.origin, parameters, rung


@pytest.mark.parametrize("space", SPACES)
def test_the_records_alone_decide_what_comes_next(space: str) -> None:
    settings = _settings("digits-ddpm", space, budget=30_000, keep=0.15)
    problem = NetworkProblem(settings)
    state, works, records = problem.search(), [], []
    while (work := _next(state)) is not None:
        works.append(_identity(work))
        records.append(_tabulated(work, len(records)))
        state.learn(records[-1])
    works.append(None)
    assert {r.rung for r in records} == {"distance", "frechet", "finals"} | ({"refine"} if space == "joint" else set())
    assert any(r.status == "failed" for r in records)
    assert sum(r.origin == "evolution" for r in records) > 20
    screened = [r for r in records if r.rung == "distance"]
    assert len({r.candidate for r in screened}) == len(screened)
    assert {r.nfe for r in screened if r.origin == "evolution"} == set(settings.nfes)
    for k in range(0, len(records) + 1, 7):
        assert _identity(_next(problem.search().replay(records[:k]))) == works[k], f"after {k}"
    resumed = problem.search().replay(records[:25])
    for j in range(25, len(records)):
        assert _identity(_next(resumed)) == works[j], f"work {j}"
        resumed.learn(records[j])
    assert _next(resumed) is None


def test_the_budget_counts_calibrations_once_for_each_config() -> None:
    settings = _settings("digits-ddpm", "joint", refine=0.0, budget=16_000)
    problem = NetworkProblem(settings)
    state = problem.search()
    seen: set[str] = set()
    costs = [state.spent]
    extras = []
    for _ in range(36):
        work = state.next_work()
        assert work is not None
        candidate, rung = work
        costs.append(state.spent)
        config = _config(candidate.point)
        extras.append(costs[-1] - costs[-2] - candidate.nfe * rung.images)
        # The joint search calibrates along its largest NFE, 3, and measures once what bits are allotted by.
        expected = 0 if config.hash in seen else 3 * config.images
        if config.allocation != "even" and ALLOTTED not in seen:
            expected += 3 * 8 + 16 * (1 + count_matrices(problem.files.unet))
            seen.add(ALLOTTED)
        seen.add(config.hash)
        assert extras[-1] == expected
    assert 0 in extras
    assert all(a < b for a, b in pairwise(costs))


# -- where searches begin -------------------------------------------------------------------------------


def test_named_configs_come_first_under_names_that_can_be_typed() -> None:
    from fewstep.search_spaces.quantization import parse_config

    # TIAR may take five times the cap, so that at the default cap nothing about them changes.
    for names, allot in ((MIXED_NAMES, True), (NAMES, False)):
        assert named_members(QuantizationSpace(5, allot=allot)) == {name: named(name) for name in names}
    for space in (QuantizationSpace(5, 50), QuantizationSpace(5, 0)):
        for name, member in named_members(space).items():
            assert space.member(parse_config(name)) == member


def _tuned(schedule: SolverSchedule) -> SolverSchedule:
    shifts = [0.0, *(0.01 for _ in range(schedule.nodes - 1))]
    return schedule.model_copy(update={"corrections": Corrections.model_validate({"shifts": shifts})})


def test_a_joint_search_begins_with_every_named_config_on_one_schedule_and_with_every_schedule() -> None:
    noise = find_model("digits-ddpm").noise
    # What was tuned is no member of the space, and is started from all the same.
    warm = [_tuned(preset_on_grid("dpmpp-2m/karras-zero", noise, nfe)) for nfe in (2, 9)]
    settings = _settings("digits-ddpm", "joint", warm_start=tuple(s.to_json() for s in warm))
    problem = NetworkProblem(settings)
    assert problem.calibration == warm[0]
    seeds = problem.search().policy.seeds
    schedules_of = [schedule_of(point) for _, point in seeds]
    pairs = {(s.hash, _config(point).hash) for s, (_, point) in zip(schedules_of, seeds, strict=True) if s}
    assert len(pairs) == len(seeds)
    schedules, configs = {s for s, _ in pairs}, {c for _, c in pairs}
    first = {nfe: next(s for s in schedules_of if s and s.nfe == nfe) for nfe in (2, 3)}
    assert first[2] == warm[0]
    for schedule in first.values():
        assert {c for s, c in pairs if s == schedule.hash} == configs
    assert len(pairs) == len(schedules) + len(first) * (len(configs) - 1)
    assert warm[1].hash not in schedules
    assert {point.nfe for _, point in seeds} == {2, 3}


# -- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "changes", "word"),
    [
        ("joint", {"quantized": "folder"}, "--quantized"),
        ("quantization", {"quantized": "folder"}, "--quantized"),
        ("joint", {"sampler": "cmaes"}, "one objective"),
        ("joint", {"screen": "none"}, "--screen"),
        ("joint+quantization", {}, "each part once"),
        ("quantization+quantization", {}, "each part once"),
        ("schedule+edit", {}, "unknown space 'edit'"),
        ("quantization", {"base_schedule": ""}, "--schedule"),
        ("quantization", {"nfes": (2, 3)}, "--nfe"),
        ("quantization", {"decisions": ("threshold",)}, "decisions"),
        ("quantization", {"guidance_range": (1.0, 4.0)}, "guidance_range"),
        ("quantization", {"warm_start": ("{}",)}, "warm_start"),
        ("joint", {"surrogate": "forest", "sampler": "nsgaii"}, "sampler s3"),
        ("quantization", {"surrogate": "gp", "sampler": "evolution"}, "sampler s3"),
        ("joint", {"presets": 0.3}, "presets has no part"),
        ("joint", {"grids": ("uniform-t",)}, "grids has no part"),
        ("quantization", {"finalists": 5}, "finalists has no part"),
        ("quantization", {"look_images": 20}, "look_images has no part"),
        ("schedule", {"front": 4}, "front has no part"),
        ("schedule", {"front": 12, "calibration_iterations": 7}, "calibration_iterations has no part"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(space: str, changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        _settings("digits-ddpm", space, **changes)


def test_a_schedule_to_calibrate_with_needs_a_space_that_calibrates() -> None:
    base = _settings("digits-ddpm", "quantization").base_schedule
    with pytest.raises(ConfigurationError, match="quantization or joint"):
        SearchSettings.build(model="digits-ddpm", base_schedule=base)


# -- the command line -----------------------------------------------------------------------------------

Run = Callable[..., Any]
SMALL = ("--distance-images", 8, "--frechet-images", 250, "--finalist-images", 300, "--report-images", 300)


def test_the_command_says_what_is_missing(run: Run, toy: Path) -> None:
    run("search", "--space", "quantization", "--model", toy, "--dry-run").refused("--schedule")
    run("search", "--space", "magic", "--model", toy, "--dry-run").refused("space", "joint")
    quantized = ("--quantized", "folder")
    run("search", "--space", "joint", "--model", toy, *quantized, "--dry-run").refused("--quantized", "'joint'")
    run("search", "--space", "quantization", "--schedule", "ddim@2").refused("--model")


def test_a_forecast_counts_calibrations(run: Run, toy: Path) -> None:
    command = ("search", "--space", "quantization", "--model", toy, "--schedule", "ddim@2", "--budget", 10000)
    figures = run(*command, *SMALL, "--calibration-iterations", 10, "--dry-run", "--json").json
    assert figures["budget"] == 10_000
    # At least 16 trajectories of 2 calls and a screen on 8 images each.
    most = -(-10_000 // (16 * 2 + 8 * 2))
    assert figures["calibrations_at_most"] == most
    assert figures["calls_that_learning_is_worth_at_most"] == most * 3 * 10 * 32


@pytest.mark.slow
def test_a_search_from_the_command_line_ends_with_rows_files_and_tracking(run: Run, toy: Path, tmp_path: Path) -> None:
    command = ("search", "--space", "quantization", "--model", toy, "--schedule", "ddim@2", "--budget", 9000, *SMALL)
    where = ("--out", tmp_path / "study", "--executor", "in-process", "--json")
    answer = run(*command, "--calibration-iterations", 0, "--front", 2, *where)
    result = answer.json
    assert "warning" not in answer.err
    assert {"fewstep", "full precision"} <= {row["method"] for row in result["rows"]}
    assert all(row["size_bytes"] > 0 and row["bit_operations"] > 0 for row in result["rows"])
    for path in result["files"].values():
        assert Path(path).is_file()
    again = run("search", "--resume", *where).json
    assert again["denoiser_calls"] == result["denoiser_calls"]
    assert again["rows"] == result["rows"]
    assert run("report", "--out", tmp_path / "study", "--json").json["rows"] == result["rows"]
