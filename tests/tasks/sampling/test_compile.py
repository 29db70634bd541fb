"""Compiling: the numbers that the tables are made of, and what is refused."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fewstep.errors import ScheduleError
from fewstep.search_spaces.schedule import SolverSchedule, Step
from fewstep.search_spaces.schedule.formula import Derivative, taylor
from fewstep.search_spaces.schedule.presets import PRESETS, preset
from fewstep.tasks.models.noise_schedule import DiscreteVP
from fewstep.tasks.sampling.compile import (
    compile_schedule,
    difference_weights,
    exponential_remainder,
    relaxation_factor,
)
from fewstep.tasks.sampling.grids import GRIDS, all_presets, grid
from fewstep.tasks.sampling.stock_grids import STOCK_GRIDS

ALPHAS = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
NOISE = DiscreteVP(ALPHAS)


def exact_remainder(z: float, k: int) -> float:
    """sum_{j > k} z^j / j! in rational arithmetic, rounded once."""
    x = Fraction(z)
    term = x ** (k + 1) / math.factorial(k + 1)
    total, j = Fraction(0), k + 1
    for _ in range(80):
        total += term
        j += 1
        term = term * x / j
    return float(total)


@given(st.floats(-12, 12).filter(lambda z: z == 0 or abs(z) > 1e-12), st.integers(0, 4))
@example(1.5, 4)
@example(-1.5, 4)
@example(math.nextafter(1.5, 0), 4)
@example(-12.0, 4)
@example(12.0, 0)
@example(0.0, 2)
@settings(max_examples=300, deadline=None)
def test_exponential_remainder(z: float, k: int) -> None:
    assert exponential_remainder(z, k) == pytest.approx(exact_remainder(z, k), rel=2e-14, abs=0)


@given(st.floats(-12, 12).filter(lambda z: abs(z) > 1e-3))
@settings(deadline=None)
def test_exponential_remainders_obey_their_recurrence(z: float) -> None:
    # R_k = R_{k-1} - z^k / k!
    for k in range(1, 5):
        left = exponential_remainder(z, k) + z**k / math.factorial(k)
        assert left == pytest.approx(exponential_remainder(z, k - 1), rel=1e-12)


@st.composite
def offsets(draw: st.DrawFn) -> list[float]:
    """One to four distances of active points, at least a tenth of the largest apart from each other and from 0."""
    count = draw(st.integers(1, 4))
    gaps = [draw(st.floats(0.3, 1)) for _ in range(count)]
    scale = draw(st.floats(1e-2, 5))
    behind = draw(st.integers(0, count))
    ahead = np.cumsum(gaps[behind:]) if behind < count else np.zeros(0)
    back = -np.cumsum(gaps[:behind])[::-1] if behind else np.zeros(0)
    return [float(scale * v) for v in (*back, *ahead)]


@given(offsets(), st.data())
@settings(deadline=None)
def test_differences_are_exact_on_polynomials(distances: list[float], data: st.DataObject) -> None:
    # F(lambda) = sum_i c_i lambda^i with degree up to the number of points: F^(k)(0) = k! c_k.
    m = len(distances)
    scale = max(abs(v) for v in distances)
    c = [data.draw(st.floats(-3, 3)) / scale**i for i in range(m + 1)]
    D = np.array(distances)
    F = np.polynomial.polynomial.polyval(D, c)
    for k in range(1, m + 1):
        weights = difference_weights(D, k)
        estimate = float(weights @ (F - c[0]))
        assert estimate == pytest.approx(math.factorial(k) * c[k], rel=1e-9, abs=1e-9 / scale**k)


def test_two_points_are_the_difference_quotient() -> None:
    assert difference_weights(np.array([-0.5]), 1) == pytest.approx([-2.0])


@given(st.floats(0.01, 5), st.booleans())
@settings(deadline=None)
def test_relaxations_are_unipcs(h: float, data: bool) -> None:
    z = -h if data else h

    def factor(kind: Any, c: float = 0.0) -> float:
        return relaxation_factor(Derivative(points=(-2,), relaxation=kind, coefficient=c), h, z)

    exact = exponential_remainder(z, 1)  # z^2 phi_2(z)
    assert factor("none") == 1
    assert factor("scale", 0.3) == 0.3
    assert factor("linear", 0.3) == 1 + 0.3 * h
    # UniPC writes the term as B(h) / 2 with B = z or expm1(z), over z^2 phi_2(z) / z.
    assert factor("bh1") * exact == pytest.approx(0.5 * z * z)
    assert factor("bh2") * exact == pytest.approx(0.5 * z * math.expm1(z))


@given(st.floats(1e-4, 1e-2))
@settings(deadline=None)
def test_relaxations_vanish_with_the_step(h: float) -> None:
    for kind in ("bh1", "bh2"):
        factor = relaxation_factor(Derivative(points=(-2,), relaxation=kind), h, -h)
        assert abs(factor - 1) < h


@pytest.mark.parametrize("nfe", [1, 2, 5, 10, 20])
def test_tables_of_every_preset_are_sound(nfe: int) -> None:
    for name, schedule in all_presets(NOISE, nfe).items():
        tables = compile_schedule(schedule, NOISE)
        assert tables.P.shape == tables.Q.shape == (nfe, nfe), name
        assert tables.nfe == nfe
        assert np.array_equal(tables.P, np.tril(tables.P)), name
        assert np.array_equal(tables.Q, np.tril(tables.Q)), name
        assert tables.times == tuple(NOISE.time(v) for v in schedule.lambdas[:-1])
        # If x_j = alpha_j x0 + sigma_j eps with one x0 and one eps, every solver is exact, whatever its order.
        alpha, sigma = np.array([NOISE.alpha_sigma(v) for v in schedule.lambdas]).T
        np.testing.assert_allclose(tables.P @ alpha[:-1], alpha[1:], rtol=1e-9, err_msg=name)
        np.testing.assert_allclose(
            tables.P @ sigma[:-1] + tables.Q.sum(1), sigma[1:], rtol=1e-9, atol=1e-10, err_msg=name
        )


def test_rows_of_correctors_do_not_grow() -> None:
    # A corrected point leans on its own prediction, so a row needs the last `order + 1` points at most.
    for name, order in [("unipc-2-bh1", 2), ("unipc-2-bh2", 2), ("unipc-3-bh1", 3), ("unipc-3-bh2", 3)]:
        tables = compile_schedule(preset(name, grid("uniform-lambda", NOISE, 30)), NOISE)
        for k in range(30):
            assert not tables.P[k, : max(0, k - order)].any(), (name, k)
            assert not tables.Q[k, : max(0, k - order)].any(), (name, k)


def test_first_order_noise_and_data_steps_are_the_same() -> None:
    lambdas = grid("uniform-t", NOISE, 6)
    one, other = (
        compile_schedule(SolverSchedule.build(lambdas=lambdas, steps=(Step(prediction=p),) * 6), NOISE)
        for p in ("noise", "data")
    )
    np.testing.assert_allclose(one.P, other.P, rtol=1e-10)
    np.testing.assert_allclose(one.Q, other.Q, rtol=1e-9, atol=1e-12)


def test_sigma_zero_gives_the_predicted_image() -> None:
    tables = compile_schedule(preset("ddim", (NOISE.lambda_start, 0.0, math.inf)), NOISE)
    alpha, sigma = NOISE.alpha_sigma(0.0)
    assert tables.P[1] == pytest.approx([0, 1 / alpha])
    assert tables.Q[1] == pytest.approx([0, -sigma / alpha])


@pytest.mark.parametrize("start", [NOISE.lambda_start - 0.06, NOISE.lambda_start + 1.06, 0.0])
def test_a_schedule_for_another_start_is_refused(start: float) -> None:
    schedule = preset("ddim", (start, 1.0, 3.0))
    with pytest.raises(ScheduleError, match=f"starts at lambda = {start:.6g}") as caught:
        compile_schedule(schedule, NOISE)
    assert "\n" not in str(caught.value)


def test_exploding_coefficients_are_refused() -> None:
    lambdas = (NOISE.lambda_start, 0.0, 0.001, 0.002, 0.003, 5.0)
    steps = (Step(), Step(), Step(), Step(), Step(prediction="noise", predictor=taylor(5)))
    with pytest.raises(ScheduleError, match="too close together"):
        compile_schedule(SolverSchedule.build(lambdas=lambdas, steps=steps), NOISE)


@pytest.mark.parametrize("name", [name for name in GRIDS if name not in STOCK_GRIDS])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_grids_rise_over_the_models_range(name: str, steps: int) -> None:
    lambdas = grid(name, NOISE, steps)
    assert len(lambdas) == steps + 1
    assert lambdas[0] == pytest.approx(NOISE.lambda_start)
    assert np.all(np.diff(lambdas) > 0)
    if name.endswith("-zero"):
        assert lambdas[-1] == math.inf
    else:
        assert lambdas[-1] == pytest.approx(NOISE.lambda_end)


@pytest.mark.parametrize("name", PRESETS)
def test_vp_tables_depend_on_the_lambdas_alone(name: str) -> None:
    schedule = preset(name, (NOISE.lambda_start, -2.0, -0.5, 1.0, math.inf))
    one, other = (compile_schedule(schedule, DiscreteVP(ALPHAS**c)) for c in (1.0, 1.001))
    assert np.array_equal(one.P, other.P)
    assert np.array_equal(one.Q, other.Q)
    assert one.times != other.times
