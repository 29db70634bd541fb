"""A refinement of the bundled digits model: better on noise it never saw, resumable to the bit, counted to the call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.errors import ConfigurationError
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.metrics.frechet import FrechetReference
from fewstep.tasks.metrics.metric import Setting
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import find_model
from fewstep.tasks.refinement.features import Frechet, Judge
from fewstep.tasks.refinement.objectives import ReferenceObjective, TeacherObjective
from fewstep.tasks.refinement.parameters import Part
from fewstep.tasks.refinement.plan import RefinePlan
from fewstep.tasks.refinement.tune import Check, Refined, Refinement
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import Program
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.sampling.noise import starting_noise
from fewstep.tasks.work import Subject

FILES = find_model("digits-ddpm")
START = preset_on_grid("dpmpp-2m/karras-zero", FILES.noise, 3)
TEACHER = preset_on_grid("unipc-2-bh2/karras-zero", FILES.noise, 16)
PLAN = RefinePlan(images=32, validation=16, batch=8, iterations=24, check_every=8, distance="pixel", speed=2.0)


def _samples(schedule: SolverSchedule, denoiser: Denoiser, seed: int, count: int) -> torch.Tensor:
    tables = compile_schedule(schedule, FILES.noise, FILES.prediction_type)
    with torch.no_grad():
        return Program(tables)(denoiser.on(range(count)), starting_noise(seed, 0, count, FILES.shape))


def _untaught(schedule: SolverSchedule, plan: RefinePlan, folder: Path | None = None) -> Refinement:
    denoiser = Denoiser(FILES)
    judge = Judge(Setting(Subject("digits-ddpm"), FILES), denoiser)
    return Refinement(schedule, None, denoiser, plan, folder=folder, judge=judge)


@pytest.fixture(scope="module")
def refined() -> Refined:
    return Refinement(START, TEACHER, Denoiser(FILES), PLAN).run()


def test_the_distance_to_the_teacher_falls_on_fresh_noise(refined: Refined) -> None:
    denoiser, seed = Denoiser(FILES), 77
    target = _samples(TEACHER, denoiser, seed, 48)
    before, after = (
        float((_samples(s, denoiser, seed, 48) - target).square().mean()) for s in (refined.start, refined.best)
    )
    assert after < 0.7 * before
    assert refined.gain > 0.3


def test_checks_are_the_mean_square_distance_of_what_comes_back(refined: Refined) -> None:
    denoiser, seed = Denoiser(FILES), PLAN.noise_seed
    count = PLAN.images + PLAN.validation
    target = _samples(TEACHER, denoiser, seed, count)
    for schedule, expected in (
        (refined.start, refined.checks[0].loss),
        (refined.best, min(c.loss for c in refined.checks)),
        (refined.averaged, min(c.averaged for c in refined.checks)),
    ):
        held_out = (_samples(schedule, denoiser, seed, count) - target)[PLAN.images :]
        assert float(held_out.square().mean()) == pytest.approx(expected, rel=1e-3)


def test_every_call_is_counted(refined: Refined) -> None:
    checks = len(refined.checks) * 2 - 1  # the start is checked once
    forward = 48 * TEACHER.nfe + 24 * 8 * 3 + checks * 16 * 3
    assert refined.cost.forward == forward
    assert refined.cost.backward == 24 * 8 * 3
    assert refined.cost.calls <= PLAN.calls(START.nfe, TEACHER.nfe)


def test_a_killed_refinement_goes_on_to_the_same_end(refined: Refined, tmp_path: Path) -> None:
    def kill(check: Check) -> None:
        if check.iteration == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Refinement(START, TEACHER, Denoiser(FILES), PLAN, folder=tmp_path).run(kill)
    denoiser = Denoiser(FILES)
    again = Refinement(START, TEACHER, denoiser, PLAN, folder=tmp_path).run()
    assert (again.best.hash, again.averaged.hash) == (refined.best.hash, refined.averaged.hash)
    assert (again.checks, again.cost) == (refined.checks, refined.cost)
    assert denoiser.calls == 8 * 8 * 3 + 2 * 16 * 3, "only the last third was left to do"
    third = Denoiser(FILES)
    assert Refinement(START, TEACHER, third, PLAN, folder=tmp_path).run().best.hash == refined.best.hash
    assert third.calls == 0


def test_a_refined_schedule_is_a_schedule_file_with_its_origin(refined: Refined) -> None:
    again = SolverSchedule.from_json(refined.best.to_json())
    assert again.hash == refined.best.hash != START.hash
    assert again.nfe == START.nfe
    assert again.provenance["refinement"]["refined_from"] == START.hash
    denoiser = Denoiser(FILES)
    assert torch.equal(_samples(again, denoiser, 5, 4), _samples(refined.best, denoiser, 5, 4))


def test_the_networks_own_features_are_a_distance_that_costs_a_call() -> None:
    plan = PLAN.model_copy(update={"distance": "network", "iterations": 2, "check_every": 2, "parts": ("times",)})
    denoiser = Denoiser(FILES)
    found = Refinement(START, TEACHER, denoiser, plan).run()
    assert found.cost.forward == denoiser.calls == 48 * (TEACHER.nfe + 1) + 2 * 8 * 4 + 3 * 16 * 4
    # The first call of three sees nothing that times could change; the look at the samples goes back too.
    assert found.cost.backward == 2 * 8 * 3
    assert all(c.loss > 0 for c in found.checks)


def test_noises_move_to_a_soft_target_within_their_ball_and_every_call_is_counted(tmp_path: Path) -> None:
    plan = PLAN.model_copy(update={"soft_target": 0.1, "iterations": 16})
    refinement = Refinement(START, TEACHER, Denoiser(FILES), plan, folder=tmp_path / "whole")
    found = refinement.run()
    spent, objective = found.cost.calls, refinement.objective
    assert isinstance(objective, TeacherObjective)
    assert objective._soft is not None
    moved = (objective._soft.now - objective._soft.drawn).flatten(1).norm(dim=1)
    radius = 0.1 * 64 / START.nfe**2
    assert float(moved.max()) <= radius * (1 + 1e-5)
    assert float(moved[: plan.images].mean()) > 0.1 * radius
    assert float(moved[plan.images :].mean()) > 0.1 * radius
    # From moved noises the targets are nearer.
    at = refinement.parameters.start
    soft = objective.held_out(at)
    objective._soft.now = objective._soft.drawn.clone()
    assert soft < objective.held_out(at)
    assert spent == plan.calls(START.nfe, TEACHER.nfe)

    def kill(check: Check) -> None:
        if check.iteration == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Refinement(START, TEACHER, Denoiser(FILES), plan, folder=tmp_path / "killed").run(kill)
    again = Refinement(START, TEACHER, Denoiser(FILES), plan, folder=tmp_path / "killed").run()
    assert (again.best.hash, again.checks, again.cost.calls) == (found.best.hash, found.checks, spent)


def test_a_plan_without_a_soft_target_is_named_as_ever() -> None:
    assert "soft_target" not in PLAN.model_dump_json()
    soft = PLAN.model_copy(update={"soft_target": 0.001})
    assert RefinePlan.model_validate_json(soft.model_dump_json()) == soft
    with pytest.raises(ConfigurationError, match="no target"):
        RefinePlan.build(distance="reference", soft_target=0.001)


def test_bad_plans_say_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match="needs as many images"):
        RefinePlan.build(batch=64, images=32)
    with pytest.raises(ConfigurationError, match="parts"):
        RefinePlan.build(parts=("colours",))


def test_a_reference_is_reached_without_a_teacher_and_resumed_to_the_bit(tmp_path: Path) -> None:
    start = preset_on_grid("unipc-2-bh2/karras-zero", FILES.noise, 4)
    plan = RefinePlan(distance="reference", validation=128, batch=32, iterations=10, check_every=5, speed=2.0)
    refinement = _untaught(start, plan)
    whole, denoiser = refinement.run(), refinement.denoiser
    assert whole.better[1] < 0.9 * whole.checks[0].loss
    assert whole.cost.forward == denoiser.calls == 4 * (512 - 32 + 10 * 32 + (1 + 2 * 2) * 128)
    assert whole.cost.backward == 4 * 10 * 32
    assert whole.cost.calls == plan.calls(4, 99)

    def kill(check: Check) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _untaught(start, plan, folder=tmp_path).run(kill)
    again = _untaught(start, plan, folder=tmp_path).run()
    assert (again.best.hash, again.checks, again.cost) == (whole.best.hash, whole.checks, whole.cost)


@pytest.mark.parametrize("part", ["times", "shifts", "outputs"])
def test_the_gradient_to_a_reference_is_that_of_the_held_out_loss(part: Part) -> None:
    plan = RefinePlan(distance="reference", validation=48, parts=(part,))
    start = preset_on_grid("unipc-2-bh2/karras-zero", FILES.noise, 3)
    objective = _untaught(start, plan).objective
    assert isinstance(objective, ReferenceObjective)
    theta = objective.tables.parameters.start
    at = torch.from_numpy(theta.copy()).requires_grad_()
    loss = objective.judge.frechet(
        objective.judge(objective.samples(at, range(48), objective.noise(range(48))), range(48))
    )
    loss.backward()  # type: ignore[no-untyped-call]
    assert at.grad is not None
    assert float(loss.detach()) == pytest.approx(objective.held_out(theta), rel=1e-6)
    # Small against the waves of the network's time embedding, large against single precision; along the steepest entry.
    i = int(at.grad.abs().argmax())
    step = 5e-4 * np.eye(len(theta))[i]
    expected = (objective.held_out(theta + step) - objective.held_out(theta - step)) / 1e-3
    assert float(at.grad[i]) == pytest.approx(expected, rel=0.05)


def test_the_differentiable_frechet_distance_is_the_judges() -> None:
    rng = np.random.default_rng(0)
    mean, root = rng.normal(size=5), rng.normal(size=(5, 5))
    covariance, features = root @ root.T, rng.normal(size=(40, 5)) @ rng.normal(size=(5, 5))
    expected = FrechetReference(mean, covariance).distance(features.mean(0), np.cov(features.T))
    at = torch.from_numpy(features).requires_grad_()
    found = Frechet(mean, covariance)(at)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-9)
    found.backward()  # type: ignore[no-untyped-call]
    assert at.grad is not None
    moved = features.copy()
    moved[3, 2] += 1e-5
    change = float(Frechet(mean, covariance)(torch.from_numpy(moved))) - expected
    assert float(at.grad[3, 2]) * 1e-5 == pytest.approx(change, rel=1e-3)


def test_a_distance_to_a_teacher_asks_for_one() -> None:
    with pytest.raises(ConfigurationError, match="one to a teacher"):
        Refinement(START, None, Denoiser(FILES), PLAN)
