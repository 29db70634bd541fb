"""Gradients of a sampler by a schedule's decisions, against differences of the plain executor's results."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.search_spaces.schedule import SolverSchedule, Step, Threshold
from fewstep.search_spaces.schedule.corrections import Corrections
from fewstep.search_spaces.schedule.formula import taylor
from fewstep.tasks.models.noise_families import EDM, FlowMatching
from fewstep.tasks.models.noise_schedule import ContinuousVP
from fewstep.tasks.refinement.execute import Cost, counted, run
from fewstep.tasks.refinement.parameters import PARTS, Parameters
from fewstep.tasks.refinement.tables import TablesOf, packed
from fewstep.tasks.sampling.compile import SolverTables, compile_schedule
from fewstep.tasks.sampling.execute import Program
from fewstep.tasks.sampling.grids import preset_on_grid

Velocity = Callable[[Tensor, float | Tensor], Tensor]
NAMES = ("unipc-3-bh2/karras-zero", "dpmpp-3m/uniform-lambda", "dpm-solver-2s/karras", "ipndm-4/quadratic-zero")
FLOW = FlowMatching()


def _flow(schedule: SolverSchedule) -> SolverTables:
    return compile_schedule(schedule, FLOW, "flow_prediction")


@pytest.mark.parametrize("name", NAMES)
def test_the_start_of_the_vector_leaves_the_schedule_as_it_was(name: str) -> None:
    schedule = preset_on_grid(name, FLOW, 4)
    again = Parameters(schedule, PARTS).schedule_at(Parameters(schedule, PARTS).start)
    assert np.allclose(again.lambdas[:-1], schedule.lambdas[:-1], rtol=0, atol=1e-12)
    for ours, theirs in zip(packed(_flow(again)), packed(_flow(schedule)), strict=True):
        # No filters are as good as those that are zero.
        np.testing.assert_allclose(ours, theirs if theirs.size else np.zeros_like(ours), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("side", [0, 5])
def test_a_vector_survives_the_way_through_its_schedule(side: int, corrections: Callable[..., Corrections]) -> None:
    schedule = preset_on_grid("unipc-3-bh2/karras-zero", FLOW, 5)
    refined = schedule.model_copy(update={"corrections": corrections(schedule, 0.05, filters=side)})
    parameters = Parameters(refined, PARTS)
    again = Parameters(parameters.schedule_at(parameters.start), PARTS)
    np.testing.assert_allclose(again.start, parameters.start, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("first_call", ["model", "zero_x0"])
def test_gradients_are_those_of_the_plain_executor(
    name: str, first_call: str, gaussian_flow: Velocity, corrections: Callable[..., Corrections]
) -> None:
    schedule = preset_on_grid(name, FLOW, 4).model_copy(update={"first_call": first_call})
    schedule = schedule.model_copy(update={"corrections": corrections(schedule, 0.03, filters=3)})
    tables = TablesOf(Parameters(schedule, PARTS), _flow)
    theta = tables.parameters.start + np.random.default_rng(1).normal(0, 0.02, len(tables.parameters.start))
    # Smaller than the kernels, and with edges of two kinds.
    noise = torch.randn(3, 1, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(at: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        compiled = tables.tables(at)
        return float(Program(compiled)(gaussian_flow, noise * compiled.prior_scale).square().mean())

    tensor = torch.from_numpy(theta).requires_grad_()
    found = run(tables(tensor), tables.tables(theta), gaussian_flow, noise).square().mean()
    found.backward()  # type: ignore[no-untyped-call]
    assert float(found.detach()) == pytest.approx(loss(theta), rel=1e-9)
    assert tensor.grad is not None
    step = 1e-5
    for i in range(len(theta)):
        unit = step * np.eye(len(theta))[i]
        expected = (loss(theta + unit) - loss(theta - unit)) / (2 * step)
        assert float(tensor.grad[i]) == pytest.approx(expected, rel=1e-4, abs=1e-7), i


@pytest.mark.parametrize("noise", [FLOW, ContinuousVP(), EDM(0.002, 80.0, 0.5)], ids=["flow", "vp", "edm"])
@pytest.mark.parametrize("with_filters", [True, False])
def test_linear_columns_are_differences_of_tables(
    noise: FlowMatching | ContinuousVP | EDM, with_filters: bool, corrections: Callable[..., Corrections]
) -> None:
    output = "flow_prediction" if noise is FLOW else "epsilon"

    def compile_(schedule: SolverSchedule) -> SolverTables:
        return compile_schedule(schedule, noise, output)

    schedule = preset_on_grid("unipc-2-bh2/karras-zero", noise, 4)
    schedule = schedule.model_copy(update={"corrections": corrections(schedule, 0.02, filters=3 * with_filters)})
    tables = TablesOf(Parameters(schedule, ("points", "outputs", "filters"), window=2), compile_)
    theta = tables.parameters.start
    flat = np.concatenate([p.ravel() for p in packed(tables.tables(theta))])
    jacobian = tables.jacobian(theta)
    for i in range(len(theta)):
        moved = theta + 0.5 * np.eye(len(theta))[i]
        change = np.concatenate([p.ravel() for p in packed(tables.tables(moved))]) - flat
        np.testing.assert_allclose(jacobian[:, i] * 0.5, change, rtol=1e-7, atol=1e-8 * np.abs(flat).max())


def test_a_window_keeps_older_outputs_as_the_formula_has_them() -> None:
    schedule = preset_on_grid("dpmpp-2m/karras-zero", FLOW, 5)
    parameters = Parameters(schedule, ("outputs",), window=2)
    assert len(parameters.start) == 1 + 4 * 2
    found = parameters.schedule_at(np.ones(9)).corrections
    assert found is not None
    assert all(sum(row) == min(2, k + 1) and sum(row[-2:]) == sum(row) for k, row in enumerate(found.outputs))


def test_thresholds_pass_gradients_where_they_do_not_clip(gaussian_flow: Velocity) -> None:
    schedule = preset_on_grid("dpmpp-2m/karras-zero", FLOW, 3)
    loose = schedule.model_copy(update={"threshold": Threshold(kind="static", limit=100.0)})
    noise = torch.randn(2, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradients = []
    for candidate in (schedule, loose):
        tables = TablesOf(Parameters(candidate, PARTS), _flow)
        theta = torch.from_numpy(tables.parameters.start).requires_grad_()
        fixed = tables.tables(tables.parameters.start)
        run(tables(theta), fixed, gaussian_flow, noise).sum().backward()  # type: ignore[no-untyped-call]
        gradients.append(theta.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-8)


def test_costs_count_each_call_and_each_way_back(gaussian_flow: Velocity) -> None:
    schedule = preset_on_grid("dpmpp-2m/karras-zero", FLOW, 4)
    noise, seen = torch.randn(3, 1, 2, 2, dtype=torch.float64), {"forward": 0, "backward": 0}

    def watched(x: Tensor, time: float | Tensor) -> Tensor:
        seen["forward"] += len(x)
        output = gaussian_flow(x, time)
        if output.requires_grad:
            output.register_hook(lambda g: seen.update(backward=seen["backward"] + len(g)))
        return output

    for parts, ways_back in ((("shifts",), 4), (("times",), 3)):
        seen.update(forward=0, backward=0)
        cost, tables = Cost(), TablesOf(Parameters(schedule, parts), _flow)
        theta = torch.from_numpy(tables.parameters.start).requires_grad_()
        found = run(tables(theta), tables.tables(tables.parameters.start), counted(watched, cost), noise)
        found.sum().backward()  # type: ignore[no-untyped-call]
        # The first call sees noise at the first time: nothing there is tuned but the told time.
        assert (cost.forward, cost.backward) == (3 * 4, 3 * ways_back) == (seen["forward"], seen["backward"])
        assert cost.calls == cost.forward + 2 * cost.backward


def test_unknown_parts_and_nothing_to_tune_are_refused() -> None:
    schedule = SolverSchedule.build(lambdas=(-4.0, math.inf), steps=(Step(predictor=taylor(1)),))
    with pytest.raises(ConfigurationError, match="choose from times"):
        Parameters(schedule, ("colours",))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="no times or relaxations"):
        Parameters(schedule, ("times", "relaxations"))
