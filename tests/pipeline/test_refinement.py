"""Refinement and explanations through the pipeline: commands, resume, costs, what a search does with them."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fewstep.errors import ConfigurationError
from fewstep.pipeline import explain as explain_module
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.explain import nearest_preset, variants
from fewstep.pipeline.problems.schedules import ScheduleProblem
from fewstep.pipeline.proposers.base import is_refined
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.stages.refine_plan import refine_plan
from fewstep.pipeline.study import Study
from fewstep.search_spaces.point import as_point, parse_point, schedule_of
from fewstep.search_spaces.quantization import parse_config
from fewstep.search_spaces.schedule import SolverSchedule, load_schedule
from fewstep.search_spaces.schedule.corrections import Corrections
from fewstep.search_spaces.schedule.genome import to_genome
from fewstep.storage.store import Store
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.files import find_model
from fewstep.tasks.quantization.build import Recipe, cached
from fewstep.tasks.refinement.features import Judge
from fewstep.tasks.refinement.moment_descent import MomentDescent
from fewstep.tasks.refinement.moment_plan import MomentPlan, parse_plan
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.work import Subject, WorkerSettings
from fewstep.tasks.worker import Worker

HERE = ExecutionSettings(executor="in-process")
TEACHER = "dpmpp-2m/uniform-t-zero@6"
OPTIONS = ("--images", 8, "--validation", 4, "--batch", 4, "--iterations", 3, "--judge-images", 250)


def _found(noise: Any) -> SolverSchedule:
    """A member of the space that differs from every preset in times, an order, a corrector and its first call."""
    schedule = preset_on_grid("unipc-2-bh2/karras-zero", noise, 4)
    moved = tuple(v if math.isinf(v) or i in (0, 3) else v + 0.1 for i, v in enumerate(schedule.lambdas))
    steps = (*schedule.steps[:2], schedule.steps[2].model_copy(update={"corrector": None}), schedule.steps[3])
    found = schedule.model_copy(update={"lambdas": moved, "steps": steps, "first_call": "zero_x0", "name": "found"})
    assert to_genome(found)
    return found


# -- refine ---------------------------------------------------------------------------------------------


def test_refine_writes_a_schedule_counts_its_calls_and_goes_on(toy: Path, run: Callable[..., Any]) -> None:
    start = "dpmpp-2m/karras-zero@3"
    arguments = ("refine", start, "--model", toy, "--teacher", TEACHER, *OPTIONS, "--out", "r", "--json")
    told = run(*arguments).json
    # Pairs, iterations there and back, checks of the start and of both iterates at the end; a look costs a call.
    checks = 1 + 2
    assert told["refinement_calls"] == 12 * 7 + 3 * 3 * 4 * 4 + checks * 4 * 4
    assert told["selection_calls"] <= 3 * 3 * 250
    schedule = load_schedule(told["schedule"])
    assert schedule.nfe == 3
    assert schedule.provenance["refinement_calls"] == told["refinement_calls"]
    best = min(told[kind] for kind in ("start", "best", "averaged"))
    assert told[told["kept"]] == best == schedule.provenance["value"]
    before = len(Store(Path("r")).evaluations.records())
    assert run(*arguments).json == told
    assert len(Store(Path("r")).evaluations.records()) == before
    dry = run(*arguments, "--dry-run").json
    assert dry["refinement_calls_at_most"] >= told["refinement_calls"]


def test_refine_on_moments_keeps_to_its_limit_and_judges_on_other_noise(run: Callable[..., Any]) -> None:
    asked = ("refine", "dpmpp-2m/karras-zero@3", "--model", "digits-ddpm", "--distance", "moments", "--out", "r")
    options = ("--images", 500, "--limit", 12_000, "--judge-images", 750, "--json")
    told = run(*asked, *options).json
    assert 1_500 < told["refinement_calls"] <= 12_000
    assert "averaged" not in told
    assert told["selection_calls"] == 2 * 3 * 750
    assert told[told["kept"]] == min(told["start"], told["best"])
    assert told["kept"] == "best"
    schedule = load_schedule(told["schedule"])
    assert schedule.nfe == 3
    assert schedule.provenance["refinement"]["plan"]["seed"] != schedule.provenance["search_seed"]
    dry = run(*asked, *options, "--dry-run").json
    assert dry == {"refinement_calls_at_most": 12_000, "selection_calls": told["selection_calls"]}
    assert run(*asked, *options).json == told


def test_refine_refuses_what_makes_no_sense(toy: Path, run: Callable[..., Any]) -> None:
    asked = ("refine", "ddim/karras-zero@3", "--model", toy, "--out", "r")
    run(*asked, "--teacher", "ddim/karras-zero@3").refused("teacher", "makes 3 calls", "more")
    run(*asked, "--parts", "colours").refused("parts", "times")
    run(*asked, "--distance", "taste").refused("distance", "network")
    run(*asked, "--distance", "moments", "--images", 300).refused("300 images", "multiple")
    for distance in ("reference", "features"):
        options = ("--distance", distance, "--features", "inception", "--reference", "digits")
        run(*asked, *options).refused(distance, "gradients", "moments")
        run(*asked, *options, "--dry-run").refused(distance, "gradients")


@pytest.mark.parametrize("distance", ["moments", "reference"])
def test_refine_tunes_in_the_features_that_are_named(
    distance: str, toy: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    """A model that brings neither features nor a reference is tuned to the same schedule as one that does."""
    bare = shutil.copytree(toy, tmp_path / "bare")
    shutil.move(bare / "classifier", tmp_path / "features")
    shutil.move(bare / "reference.npz", tmp_path / "moments.npz")
    small = {
        "moments": ("--images", 125, "--limit", 1500),
        "reference": ("--validation", 32, "--batch", 64, "--iterations", 2),
    }
    asked = ("refine", "dpmpp-2m/karras-zero@2", *small[distance], "--distance", distance, "--judge-images", 250)
    own = run(*asked, "--model", toy, "--out", "own", "--json").json
    named = ("--features", tmp_path / "features", "--reference", tmp_path / "moments.npz")
    given = run(*asked, "--model", bare, *named, "--out", "given", "--json").json
    changed = {"schedule", "metric"}
    assert {k: v for k, v in given.items() if k not in changed} == {k: v for k, v in own.items() if k not in changed}
    hashes = {load_schedule(told["schedule"]).hash for told in (own, given)}
    assert len(hashes) == 1


# -- in a search ----------------------------------------------------------------------------------------


def _settings(toy: Path, **changes: object) -> SearchSettings:
    fields: dict[str, object] = {
        "model": str(toy),
        "sampler": "evolution",
        "nfes": (3,),
        "budget": 40_000,
        "screen": "distance",
        "refine": 0.4,
        "refine_to": "network",
        "refined_elites": 1,
        "preset_images": 8,
        "distance_images": 8,
        "frechet_images": 250,
        "finalist_images": 500,
        "finalists": 2,
        "report_images": 250,
        "teacher": TEACHER,
    }
    return SearchSettings.build(**(fields | changes))


def _tuning(study: Study) -> int:
    """Calls of the one refinement of a study: its share of the budget, less what judging it takes."""
    assert isinstance(study.problem, ScheduleProblem)
    s = study.problem.settings
    assert s.refine
    assert s.frechet_images
    return int(s.refine * (s.budget - study.problem.prepaid)) - 3 * s.frechet_images


@pytest.fixture(scope="module")
def refined_search(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = Study(tmp_path_factory.mktemp("refined") / "study", _settings(toy))
    study.run(HERE, "test")
    return study


def test_a_search_refines_its_best_and_judges_what_comes_back(refined_search: Study) -> None:
    records = refined_search.store.evaluations.records()
    (refinement,) = [r for r in records if r.rung == "refine"]
    judged = [r for r in records if r.rung == "frechet"]
    start = refinement.origin.partition(":")[2]
    values = {r.candidate: r.value for r in judged if r.order < refinement.order}
    assert values[start] == min(v for v in values.values() if v is not None)
    schedule = schedule_of(parse_point(refinement.candidate_json))
    assert schedule is not None
    assert schedule.hash == refinement.candidate != start
    assert schedule.corrections is not None
    assert refinement.metrics["loss"] < refinement.metrics["loss_before"]
    assert isinstance(refined_search.settings, SearchSettings)
    plan = refine_plan(refined_search.settings, 3, 6, _tuning(refined_search))
    assert 0.8 * plan.calls(3, 6) <= refinement.denoiser_calls <= plan.calls(3, 6)
    assert [r.candidate for r in judged if r.trial == refinement.trial] == [schedule.hash]
    assert refinement.trial not in {r.trial for r in records if r.rung == "distance"}


def test_a_search_with_a_refinement_resumes_to_the_same_state(refined_search: Study, toy: Path) -> None:
    problem = refined_search.problem
    records = refined_search.store.evaluations.records()
    whole = problem.search().replay(records)
    (number,) = [n for n, t in whole.trials.items() if is_refined(t.candidate.origin)]
    at = next(i for i, r in enumerate(records) if r.rung == "refine")
    for cut in (at, at + 1, at + 2):
        state = problem.search().replay(records[:cut])
        work = state.next_work()
        if cut <= at + 1:
            assert work is not None
            assert work[0].trial == number
            assert work[1].name == ("refine" if cut == at else "frechet")
        if cut == at + 1:
            assert work is not None
            assert work[0].hash == records[at].candidate
    assert whole.next_work() is None


def test_refined_schedules_are_a_start_for_the_next_search(refined_search: Study, toy: Path) -> None:
    (record,) = [r for r in refined_search.store.evaluations.records() if r.rung == "refine"]
    refined = schedule_of(parse_point(record.candidate_json))
    assert refined is not None
    settings = _settings(toy, warm_start=(refined.to_json(),), refine=0.0)
    state = ScheduleProblem(settings).search()
    seen = []
    while (work := state.next_work()) is not None and len(seen) < 400:
        seen.append(work[0])
        if work[0].hash == record.candidate:
            break
    assert seen[-1].hash == record.candidate
    assert [c.trial for c in seen] == list(range(len(seen)))


def test_a_share_that_nothing_can_be_done_with_is_refused(toy: Path) -> None:
    with pytest.raises(ConfigurationError, match="refine"):
        _settings(toy, refine=1.5)
    with pytest.raises(ConfigurationError, match="a quantised one has none"):
        _settings(toy, quantized="somewhere")
    with pytest.raises(ConfigurationError, match=r"refine 0\.7 and finals 0\.1 leave"):
        _settings(toy, refine=0.7)


def test_a_search_tunes_the_best_of_its_elites_on_its_own_images(toy: Path, tmp_path: Path) -> None:
    settings = _settings(toy, refine_to="moments", refined_elites=3, report_presets=False)
    study = Study(tmp_path / "study", settings)
    study.run(HERE, "test")
    records = study.store.evaluations.records()
    (refinement,) = [r for r in records if r.rung == "refine"]
    plan = refine_plan(settings, 3, 6, _tuning(study))
    assert isinstance(plan, MomentPlan)
    assert plan.seed == settings.noise_seed
    assert refinement.images == plan.seen
    assert 3 * plan.images <= refinement.denoiser_calls <= plan.limit == _tuning(study)
    # Its value at the main rung is known too, where it competes with what it started from.
    assert refinement.candidate in {r.candidate for r in records if r.rung == "frechet"}
    assert refinement.metrics["loss"] < refinement.metrics["loss_before"]
    ahead = [r for r in records if r.order < refinement.order]
    work = study.problem.search().replay(ahead).next_work()
    assert work is not None
    # Of further starts only as many are looked at as the calls pay.
    told = parse_plan(work[1].arguments["plan"])
    assert (len(told.others) + 1) * told.images * 3 <= max(told.images * 3, 0.3 * told.limit)


def _few_bits(toy: Path, tmp_path: Path) -> Path:
    """A network of the toy model that few bits have changed much."""
    schedule = preset_on_grid("dpmpp-2m/karras-zero", find_model(str(toy)).noise, 3)
    recipe = Recipe(parse_config("w4a8-naive-paper"), schedule, Conditions())
    return cached(find_model(str(toy)), recipe, tmp_path / "networks")[0]


def test_a_schedule_is_tuned_for_the_network_that_it_samples_with(toy: Path, tmp_path: Path) -> None:
    network = _few_bits(toy, tmp_path)
    settings = _settings(toy, refine_to="moments", refine=0.5, quantized=str(network), report_presets=False)
    study = Study(tmp_path / "study", settings)
    study.run(HERE, "test")
    (refinement,) = [r for r in study.store.evaluations.records() if r.rung == "refine"]
    tuned = schedule_of(parse_point(refinement.candidate_json))
    assert tuned is not None
    exact, quantised = Worker(WorkerSettings(Subject(str(toy)))), Worker(WorkerSettings(study.problem.subject))
    values = []
    for worker in (quantised, exact):
        plan = refine_plan(settings, 3, 6, _tuning(study))
        assert isinstance(plan, MomentPlan)
        network_of = worker.network(as_point(tuned)).denoiser
        descent = MomentDescent(tuned, network_of, plan, Judge(worker.setting, network_of).leading())
        values.append(descent.begin().value)
    # The figure that it was tuned to is that of the quantised network's images, and not of the exact one's.
    assert values[0] == pytest.approx(refinement.metrics["loss"], rel=1e-3)
    assert abs(values[1] / values[0] - 1) > 0.01


def test_refine_takes_a_quantised_network_where_no_gradient_is_asked_of_it(
    run: Callable[..., Any], toy: Path, tmp_path: Path
) -> None:
    network = _few_bits(toy, tmp_path)
    asked = ("refine", "ddim/karras-zero@3", "--model", toy, "--quantized", network, "--out", "tuned")
    run(*asked).refused("--distance moments")
    few = ("--distance", "moments", "--images", 500, "--limit", 20_000, "--judge-images", 500)
    told = run(*asked, *few, "--json").json
    assert told["refinement_calls"] <= 20_000
    exact = run(*asked[:4], "--out", "exact", *few, "--json").json
    assert exact["start"] != told["start"], "judged with the network that was given"


# -- explain --------------------------------------------------------------------------------------------


def test_each_variant_puts_one_decision_back() -> None:
    noise = find_model("digits-ddpm").noise
    schedule = _found(noise)
    nearest, found = variants(schedule, noise)
    assert nearest.name.startswith("unipc-2-bh2/karras-zero")
    genome = to_genome(schedule)
    names = {(v.decision, v.step) for v in found}
    assert {("times", None), ("first call", None), ("corrector", None)} <= names
    assert ("prediction", None) not in names, "nothing to put back there"
    assert len({v.schedule.hash for v in found} | {schedule.hash}) == len(found) + 1
    for variant in found:
        other = to_genome(variant.schedule)
        assert variant.schedule.nfe == schedule.nfe or variant.decision == "first call"
        if variant.decision == "times":
            assert other.genes == genome.genes
            assert other.lambdas != genome.lambdas
        elif variant.decision == "time":
            assert sum(a != b for a, b in zip(other.lambdas, genome.lambdas, strict=True)) == 1
        elif variant.decision == "corrector":
            assert other.lambdas == genome.lambdas
    first = next(v for v in found if v.decision == "first call")
    assert first.schedule.nfe == schedule.nfe
    assert first.schedule.first_call == "model"


def test_corrections_are_one_decision_and_stay_with_the_others() -> None:
    noise = find_model("digits-ddpm").noise
    schedule = _found(noise)
    corrections = Corrections(shifts=(0.0, 0.1, 0.1, 0.1))
    _, found = variants(schedule.model_copy(update={"corrections": corrections}), noise, each_step=False)
    plain = [v for v in found if v.decision == "refinement"]
    assert [v.schedule.hash for v in plain] == [schedule.hash]
    kept = [v.schedule.corrections for v in found if v.decision not in ("refinement", "first call")]
    assert kept == [corrections] * len(kept)


def test_a_preset_is_its_own_nearest_and_has_nothing_to_explain() -> None:
    noise = find_model("digits-ddpm").noise
    schedule = preset_on_grid("dpmpp-2m/quadratic-zero", noise, 5)
    nearest, genome = nearest_preset(to_genome(schedule), noise)
    assert nearest.hash == schedule.hash
    assert genome == to_genome(schedule)
    assert variants(schedule, noise)[1] == []
    with pytest.raises(ConfigurationError, match="cannot explain"):
        variants(preset_on_grid("ipndm-4/karras-zero", noise, 5), noise)


def test_explain_writes_table_and_picture(toy: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = _found(find_model(str(toy)).noise)
    Path("found.json").write_text(schedule.to_json())
    told = run("explain", "found.json", "--model", toy, "--images", 750, "--no-each-step", "--out", "e", "--json").json
    rows = told["rows"]
    assert rows[0]["decision"] == "whole schedule"
    assert (rows[0]["difference"], rows[0]["low"], rows[0]["high"]) == (0.0, 0.0, 0.0)
    for row in rows[1:]:
        assert row["difference"] == pytest.approx(row["value"] - rows[0]["value"], abs=1e-9)
        assert row["low"] <= row["difference"] <= row["high"]
    assert Path("e/explain.png").stat().st_size > 10_000
    assert Path("e/explain.csv").read_text().count("\n") > len(rows)
    assert explain_module.GENES
    run("explain", "found.json", "--model", toy, "--images", 800).refused("800", "250")


@pytest.mark.parametrize("nfe", [1, 3, 5, 10, 50])
@pytest.mark.parametrize("most", [100, 5000, 23_000, 67_000, 1_000_000])
def test_a_tuning_is_planned_so_that_calls_are_left_for_its_steps(nfe: int, most: int) -> None:
    settings = SearchSettings.build(model="digits-ddpm", nfes=(nfe,))
    plan = refine_plan(settings, nfe, 20, most)
    assert isinstance(plan, MomentPlan)
    assert plan.limit == most
    assert plan.images <= 4000
    # The fewest that there can be are taken in any case.
    assert plan.images == 125 or plan.images * nfe <= 0.4 * most
    if plan.probed < plan.images:
        assert plan.probed == 250
        assert plan.images * min(22, 10 * nfe) <= most
