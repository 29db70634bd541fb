"""Order of convergence on a Gaussian mixture whose score is known exactly.

Uniform grids in lambda from -3 to 3. So that the low-order first steps do not set the slope, the first
interval is cut geometrically, each piece twice the one before, down to about 1e-3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from fewstep.search_spaces.schedule import Prediction, SolverSchedule, Step
from fewstep.search_spaces.schedule.formula import Relaxation, pseudo_corrector, taylor
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import sample

START, END = -3.0, 3.0
STEPS = (90, 128, 180)
SMALLEST = 1.02e-3


def lambdas(steps: int) -> list[float]:
    h = (END - START) / steps
    halvings = int(np.log2(h / SMALLEST))
    return [START, *(START + h / 2**k for k in range(halvings, 0, -1)), *(START + h * (i + 1) for i in range(steps))]


def schedule(order: int, prediction: Prediction, relaxation: Relaxation, corrected: bool, steps: int) -> SolverSchedule:
    grid = lambdas(steps)
    n = len(grid) - 1
    made = []
    for i in range(n):
        p = min(order, i + 1)
        corrector = pseudo_corrector(p, i + 1, relaxation) if corrected and i + 1 < n else None
        made.append(Step(prediction=prediction, predictor=taylor(p, relaxation=relaxation), corrector=corrector))
    return SolverSchedule.build(lambdas=tuple(grid), steps=tuple(made))


@pytest.fixture(scope="module")
def exact(two_bumps: Any, starting_at: Any) -> tuple[Any, Tensor, Tensor]:
    """The noise schedule, starting noise and the exact end of its probability-flow path."""
    noise = starting_at(start=START)
    x = torch.randn(4, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def slope(lambda_: float, y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        # d(x / alpha) / dlambda = -(sigma / alpha) eps
        alpha, sigma = noise.alpha_sigma(lambda_)
        eps = two_bumps.eps(torch.from_numpy(alpha * y).reshape(x.shape), alpha, sigma)
        return -(sigma / alpha) * eps.numpy().ravel()

    first, last = noise.alpha_sigma(START)[0], noise.alpha_sigma(END)[0]
    solution = solve_ivp(slope, (START, END), x.numpy().ravel() / first, method="DOP853", rtol=1e-13, atol=1e-14)
    return noise, x, last * torch.from_numpy(solution.y[:, -1]).reshape(x.shape)


CASES = [
    *((order, p, "none", corrected) for order in (1, 2, 3) for p in ("noise", "data") for corrected in (False, True)),
    *((2, p, bh, corrected) for bh in ("bh1", "bh2") for p in ("noise", "data") for corrected in (False, True)),
]


@pytest.mark.parametrize(("order", "prediction", "relaxation", "corrected"), CASES)
def test_order_of_convergence(
    order: int,
    prediction: Prediction,
    relaxation: Relaxation,
    corrected: bool,
    exact: tuple[Any, Tensor, Tensor],
    two_bumps: Any,
) -> None:
    noise, x, end = exact
    errors = []
    for steps in STEPS:
        tables = compile_schedule(schedule(order, prediction, relaxation, corrected, steps), noise)
        out = sample(tables, two_bumps.denoiser(noise.alpha_sigma), x)
        errors.append(float((out - end).norm() / end.norm()))
    slope = -np.polyfit(np.log(STEPS), np.log(errors), 1)[0]
    # The pseudo corrector raises the order by one at no further call.
    assert slope == pytest.approx(order + corrected, abs=0.25), errors


@pytest.mark.parametrize("prediction", ["noise", "data"])
def test_higher_order_is_closer_at_equal_calls(
    prediction: Prediction, exact: tuple[Any, Tensor, Tensor], two_bumps: Any
) -> None:
    noise, x, end = exact
    denoiser = two_bumps.denoiser(noise.alpha_sigma)

    def error(order: int, corrected: bool) -> float:
        tables = compile_schedule(schedule(order, prediction, "none", corrected, 128), noise)
        return float((sample(tables, denoiser, x) - end).norm())

    plain, corrected = ([error(order, c) for order in (1, 2, 3)] for c in (False, True))
    assert plain[0] > 3 * plain[1] > 9 * plain[2]
    assert all(c < p / 2 for c, p in zip(corrected, plain, strict=True))
