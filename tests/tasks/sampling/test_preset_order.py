"""Order of convergence of every preset on a Gaussian mixture whose score is known exactly.

Uniform grids in lambda. The first and the last interval are cut geometrically, so that the low orders which
presets start and end with do not set the slope.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from fewstep.search_spaces.schedule import SolverSchedule, Step
from fewstep.search_spaces.schedule.formula import taylor
from fewstep.search_spaces.schedule.presets import ORDERS, PRESETS, adams_bashforth, preset
from fewstep.tasks.models.noise_families import FlowMatching
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import sample

SMALLEST = 1.02e-3
REACH, STEPS = 3.0, (110, 140, 176)
# UniPC-4 meets the error of its low-order end soon; DEIS-3 comes close to its limit only for small steps.
OTHERWISE = {"unipc-4-bh1": (3.0, (64, 90, 128)), "unipc-4-bh2": (3.0, (64, 90, 128)), "deis-3": (2.0, STEPS)}
TOLERANCE = 0.2


def _pieces(h: float) -> list[float]:
    return [h / 2**k for k in range(int(np.log2(h / SMALLEST)), 0, -1)]


def _lambdas(reach: float, steps: int) -> list[float]:
    h = 2 * reach / steps
    inner = [-reach + h * (i + 1) for i in range(steps - 1)]
    return [-reach, *(-reach + p for p in _pieces(h)), *inner, *(reach - p for p in _pieces(h)[::-1]), reach]


def _exact(noise: Any, mixture: Any, x: Tensor, first: float, last: float) -> Tensor:
    def slope(lambda_: float, y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        # d(x / alpha) / dlambda = -(sigma / alpha) eps
        alpha, sigma = noise.alpha_sigma(lambda_)
        eps = mixture.eps(torch.from_numpy(alpha * y).reshape(x.shape), alpha, sigma)
        return -(sigma / alpha) * eps.numpy().ravel()

    y = x.numpy().ravel() / noise.alpha_sigma(first)[0]
    solution = solve_ivp(slope, (first, last), y, method="DOP853", rtol=1e-13, atol=1e-14)
    return noise.alpha_sigma(last)[0] * torch.from_numpy(solution.y[:, -1]).reshape(x.shape)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def _slope(schedules: list[SolverSchedule], sizes: tuple[int, ...], noise: Any, mixture: Any, x: Tensor) -> float:
    end = _exact(noise, mixture, x, schedules[0].lambdas[0], schedules[0].lambdas[-1])
    errors = []
    for schedule in schedules:
        out = sample(compile_schedule(schedule, noise), mixture.denoiser(noise.alpha_sigma), x)
        errors.append(float((out - end).norm()))
    return float(-np.polyfit(np.log(sizes), np.log(errors), 1)[0])


@pytest.mark.parametrize("name", [n for n in PRESETS if not n.startswith("ipndm") or "-v-" in n])
def test_each_preset_has_the_order_it_claims(name: str, two_bumps: Any, starting_at: Any, x: Tensor) -> None:
    reach, sizes = OTHERWISE.get(name, (REACH, STEPS))
    schedules = [preset(name, _lambdas(reach, steps)) for steps in sizes]
    slope = _slope(schedules, sizes, starting_at(start=-reach), two_bumps, x)
    assert slope == pytest.approx(ORDERS[name], abs=TOLERANCE)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_ipndm_for_uneven_steps_is_ipndm_where_they_are_even_and_exact_for_polynomials_where_not(order: int) -> None:
    rho = np.array([9.0, 7.0, 4.5, 4.0, 1.0])
    newest = rho[3::-1][:order]
    weights = adams_bashforth((-np.log(newest)).tolist(), -math.log(rho[4]))
    for power in range(order):
        mean = (rho[3] ** (power + 1) - rho[4] ** (power + 1)) / ((power + 1) * (rho[3] - rho[4]))
        assert sum(w * r**power for w, r in zip(weights, newest, strict=True)) == pytest.approx(mean)
    even = (-np.log(np.linspace(9.0, 1.0, 9))).tolist()
    plain, own = preset(f"ipndm-{order}", even), preset(f"ipndm-v-{order}", even)
    for first, second in zip(plain.steps, own.steps, strict=True):
        assert first.predictor.blend is not None
        assert second.predictor.blend is not None
        assert second.predictor.blend.weights == pytest.approx(first.predictor.blend.weights)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_ipndm_has_its_order_where_steps_of_sigma_are_equal(
    order: int, two_bumps: Any, starting_at: Any, x: Tensor
) -> None:
    """Its weights are for equal steps of sigma / alpha; a fourth-order Taylor start leads up to them."""
    first, last = math.exp(1.0), math.exp(-1.5)
    sizes = (100, 130, 170)
    schedules = []
    for steps in sizes:
        h = (first - last) / steps
        start = -math.log(first)
        width = -math.log(first - h) - start
        sigmas = [first - h * i for i in range(1, steps + 1)]
        lambdas = [start, *(start + p for p in _pieces(width)), *(-math.log(s) for s in sigmas)]
        own = preset(f"ipndm-{order}", lambdas)
        uneven = len(_pieces(width)) + order
        lead = tuple(Step(prediction="noise", predictor=taylor(min(4, i + 1))) for i in range(uneven))
        schedules.append(own.model_copy(update={"steps": (*lead, *own.steps[uneven:])}))
    slope = _slope(schedules, sizes, starting_at(start=-1.0), two_bumps, x)
    assert slope == pytest.approx(ORDERS[f"ipndm-{order}"], abs=TOLERANCE)


def test_a_first_order_flow_step_is_euler_and_ddim(two_bumps: Any) -> None:
    noise = FlowMatching()
    times = [1.0, 0.8, 0.55, 0.3, 0.1, 0.0]
    lambdas = [noise.lambda_at(t) for t in times]
    x = torch.randn(6, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean = (two_bumps.weights[:, None] * two_bumps.means).sum(0).reshape(1, 1, 2, 2)

    def velocity(x: Tensor, t: float) -> Tensor:
        if t == 1:
            return x - mean
        eps = two_bumps.eps(x, 1 - t, t)
        return eps - (x - t * eps) / (1 - t)

    ours = sample(compile_schedule(preset("euler", lambdas), noise, "flow_prediction"), velocity, x)
    euler = ddim = x
    for t, s in pairwise(times):
        euler = euler + (s - t) * velocity(euler, t)
        v = velocity(ddim, t)
        x0, eps = ddim - t * v, ddim + (1 - t) * v
        ddim = (1 - s) * x0 + s * eps
    torch.testing.assert_close(ours, euler, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours, ddim, rtol=1e-12, atol=1e-12)
