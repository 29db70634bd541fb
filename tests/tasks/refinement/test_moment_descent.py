"""A descent on moments: its figures are those of the schedule it returns, its short cuts change only the cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.metrics.metric import Setting
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import find_model
from fewstep.tasks.refinement.descend import Descended, descend
from fewstep.tasks.refinement.features import Judge
from fewstep.tasks.refinement.moment_descent import Known, MomentDescent
from fewstep.tasks.refinement.moment_model import directions_of, moments
from fewstep.tasks.refinement.moment_plan import MomentPlan, parse_plan
from fewstep.tasks.refinement.plan import RefinePlan
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import Program
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.sampling.noise import starting_noise
from fewstep.tasks.work import Subject

FILES = find_model("digits-ddpm")
START = preset_on_grid("dpmpp-2m/karras-zero", FILES.noise, 3)
ANALYTIC = preset_on_grid("unipc-2-bh2/quadratic-zero", FILES.noise, 4).model_copy(update={"first_call": "zero_x0"})
SHORT = MomentPlan(images=250, look=125, limit=12_000, seed=5)
PLAN = MomentPlan(images=500, look=125, limit=12_000, seed=5)


def _judge(denoiser: Denoiser) -> Judge:
    return Judge(Setting(Subject("digits-ddpm"), FILES), denoiser)


def _descend(schedule: SolverSchedule, denoiser: Denoiser, plan: MomentPlan, **more: Any) -> Descended:
    return descend(schedule, denoiser, plan, _judge(denoiser), **more)


def _descent(schedule: SolverSchedule, plan: MomentPlan) -> MomentDescent:
    denoiser = Denoiser(FILES)
    return MomentDescent(schedule, denoiser, plan, _judge(denoiser))


def _distance(schedule: SolverSchedule, count: int, seed: int) -> float:
    """Of images that are sampled the usual way."""
    denoiser = Denoiser(FILES)
    tables = compile_schedule(schedule, FILES.noise, FILES.prediction_type)
    with torch.no_grad():
        noise = starting_noise(seed, 0, count, FILES.shape) * tables.prior_scale
        judge = _judge(denoiser)
        return float(judge.frechet(judge(Program(tables)(denoiser.on(range(count)), noise), range(count))))


@pytest.fixture(scope="module")
def undisturbed() -> tuple[Descended, list[tuple[int, float]]]:
    """A descent to its end, and what was heard of it on the way."""
    heard: list[tuple[int, float]] = []
    return _descend(START, Denoiser(FILES), SHORT, on_calls=lambda *told: heard.append(told)), heard


@pytest.fixture(scope="module")
def descended() -> tuple[Descended, int]:
    denoiser = Denoiser(FILES)
    return _descend(ANALYTIC, denoiser, PLAN), denoiser.calls


def test_it_gets_closer_within_its_calls_and_counts_each(descended: tuple[Descended, int]) -> None:
    found, calls = descended
    assert found.after < 0.5 * found.before
    assert found.cost.calls == calls <= PLAN.limit
    assert found.cost.backward == 0
    assert found.schedule.nfe == ANALYTIC.nfe


def test_its_figures_are_those_of_the_schedules_as_anybody_samples_them(descended: tuple[Descended, int]) -> None:
    found, _ = descended
    again = SolverSchedule.from_json(found.schedule.to_json())
    assert found.before == pytest.approx(_distance(ANALYTIC, PLAN.images, PLAN.seed), rel=1e-4)
    assert found.after == pytest.approx(_distance(again, PLAN.images, PLAN.seed), rel=1e-3)


def test_what_it_gains_holds_on_other_noise(descended: tuple[Descended, int]) -> None:
    found, _ = descended
    assert _distance(found.schedule, 2000, 99) < 0.7 * _distance(ANALYTIC, 2000, 99)


@pytest.mark.parametrize("start", [START, ANALYTIC], ids=["called", "analytic"])
def test_derivatives_of_a_part_of_the_way_are_those_of_all_of_it(start: SolverSchedule) -> None:
    """And together they cost what is said of them, the last row nothing, a row before it the calls after it."""
    plan = MomentPlan(images=125, look=125, seed=2)
    descent = _descent(start, plan)
    known = descent.begin()
    assert descent.cost.calls == start.nfe * plan.images
    spent = dict.fromkeys(range(start.nodes), 0)
    for i, direction in enumerate(descent.directions):
        before = descent.cost.calls
        change = descent.change(known, i)
        for reach in spent:
            spent[reach] += (descent.cost.calls - before) * (direction.calls(start.nodes) <= reach)
        probe = 0.015 if direction.part == "shifts" else 0.003
        theta = known.theta.copy()
        theta[i] += probe
        features = descent._sampled(theta).features
        torch.testing.assert_close(change, (features - known.features) / probe, rtol=1e-3, atol=2e-2)
    assert spent == {reach: descent._calls_of_derivatives(reach) for reach in spent}
    assert spent[0] == 0
    assert len(descent._block(start.nodes - 1)) == len(descent.directions)


def test_directions_span_what_moves_the_sample_and_no_more() -> None:
    """Row k of n called nodes adds the noise and k + 1 outputs; told times are those of all calls but the first."""
    n = START.nfe
    assert len(directions_of(START)) == sum(k + 2 for k in range(n)) + n - 1
    analytic = directions_of(ANALYTIC)
    assert not any(d.part == "outputs" and d.column == 0 for d in analytic)


@pytest.mark.parametrize("reach", [1, 2])
def test_moments_move_as_the_derivatives_say(reach: int) -> None:
    descent = _descent(START, MomentPlan(images=250, look=250, seed=1))
    known = descent.begin()
    block = descent._block(reach)
    told = descent.derivatives(known, block, range(250))
    step = torch.from_numpy(np.random.default_rng(0).normal(size=len(block))) * 1e-3
    theta = known.theta.copy()
    theta[block] += step.numpy()
    features = descent._sampled(theta).features
    (mean, covariance), (moved, spread) = moments(known.features), moments(features)
    expected = told.at(step)
    assert float((expected[0] - (moved - mean)).norm()) < 0.35 * float((moved - mean).norm())
    assert float((expected[1] - (spread - covariance)).norm()) < 0.35 * float((spread - covariance).norm())
    told.correct(step, moved - mean, spread - covariance)
    torch.testing.assert_close(told.at(step)[0], moved - mean)
    torch.testing.assert_close(told.at(step)[1], spread - covariance)


def test_derivatives_of_few_images_are_those_of_a_descent_on_as_few_and_cost_as_much() -> None:
    few, many = (_descent(START, MomentPlan(images=n, look=125, probed=125, seed=3)) for n in (125, 500))
    told = []
    for descent in (few, many):
        known = descent.begin()
        before = descent.cost.calls
        told.append(descent.derivatives(known, descent._block(1), descent._probed))
        assert descent.cost.calls - before == descent._calls_of_derivatives(1)
    assert few._calls_of_derivatives(1) == many._calls_of_derivatives(1)
    # The same images in other batches.
    torch.testing.assert_close(told[0].mean, told[1].mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(told[0].metric, told[1].metric, rtol=1e-3, atol=1e-3)


def test_a_try_changes_no_call_before_its_reach() -> None:
    plan = MomentPlan(images=250, look=125, seed=1)
    descent = _descent(START, plan)
    known = descent.begin()
    told = descent.derivatives(known, descent._block(1), range(250))
    before = descent.cost.calls
    found, _ = descent._try(known, told, 1, 0.5, range(125, 250))
    assert found.value < known.value
    assert descent.cost.calls - before == descent._calls_of_try(1)
    assert all(torch.equal(a[2], b[2]) and a[3] is b[3] for a, b in zip(known.held, found.held, strict=True))
    again = descent._sampled(found.theta)
    torch.testing.assert_close(found.features, again.features, rtol=1e-3, atol=1e-3)


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3])
def test_a_killed_descent_goes_on_to_the_same_schedule_at_the_same_cost(
    after: int, undisturbed: tuple[Descended, list[tuple[int, float]]], tmp_path: Path
) -> None:
    plan, (whole, heard) = SHORT, undisturbed
    assert len(heard) > after
    left = after

    def kill(calls: int, value: float) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise _KilledError

    path = tmp_path / "progress.safetensors"
    with pytest.raises(_KilledError):
        _descend(START, Denoiser(FILES), plan, path=path, on_calls=kill)
    again: list[tuple[int, float]] = []
    resumed = _descend(START, Denoiser(FILES), plan, path=path, on_calls=lambda *told: again.append(told))
    assert [calls for calls, _ in again] == [calls for calls, _ in heard[after:]]
    assert resumed.schedule == whole.schedule
    assert (resumed.before, resumed.after, resumed.cost) == (whole.before, whole.after, whole.cost)


def test_numbers_that_cannot_be_measured_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = MomentPlan(images=125, look=125, limit=10_000, seed=1)
    descent = _descent(START, plan)
    known = descent.begin()
    change = MomentDescent.change

    def exploding(self: MomentDescent, known: Known, direction: int, images: range | None = None) -> torch.Tensor:
        if direction not in self._block(1):
            raise EvaluationError("not finite")
        return change(self, known, direction)

    monkeypatch.setattr(MomentDescent, "change", exploding)
    found = descent.run(known)
    assert found.value < known.value
    assert {i for i, value in enumerate(found.theta) if value} <= set(descent._block(1))


def test_the_best_of_several_starts_is_tuned() -> None:
    good = preset_on_grid("unipc-2-bh2/quadratic-zero", FILES.noise, 3)
    bad = preset_on_grid("ddim/uniform-lambda-zero", FILES.noise, 3)
    plan = PLAN.model_copy(update={"others": (good.to_json(),), "limit": 2 * 3 * PLAN.images})
    found = _descend(bad, Denoiser(FILES), plan)
    assert found.schedule.provenance["refinement"]["refined_from"] == good.hash
    assert "others" not in found.schedule.provenance["refinement"]["plan"]
    too_few = plan.model_copy(update={"limit": 3 * PLAN.images})
    assert _descend(bad, Denoiser(FILES), too_few).schedule.provenance["refinement"]["refined_from"] == bad.hash


def test_plans_of_both_kinds_are_read_back() -> None:
    for plan in (PLAN, RefinePlan(distance="reference", images=32, batch=16)):
        assert parse_plan(plan.model_dump_json()) == plan
    with pytest.raises(ConfigurationError, match="multiple of the latter"):
        MomentPlan.build(images=500, look=200)
