"""The way to a step and back: closed forms, orders, and DDIM's noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewstep.errors import ConfigurationError, ScheduleError
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.editing.path import check_step, compile_part, narrowed, segment, towards_noise
from fewstep.tasks.models.noise_families import EDM, FlowMatching
from fewstep.tasks.models.noise_schedule import DiscreteVP, NoiseSchedule
from fewstep.tasks.sampling.execute import Program
from fewstep.tasks.sampling.grids import preset_on_grid

NOISE = DiscreteVP(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
STEP = NOISE.lambda_at(500.0)
SPREAD = 0.6


def gaussian(noise: NoiseSchedule, x: Tensor, time: float) -> Tensor:
    """Exact eps of data from N(0, SPREAD^2): sigma x / (alpha^2 SPREAD^2 + sigma^2)."""
    alpha, sigma = noise.alpha_sigma(noise.lambda_at(time))
    return sigma * x / (alpha**2 * SPREAD**2 + sigma**2)


def exact_ratio(noise: NoiseSchedule, start: float, end: float) -> float:
    """The flow of Gaussian data keeps x over its standard deviation."""
    (a, s), (b, t) = noise.alpha_sigma(start), noise.alpha_sigma(end)
    return math.hypot(b * SPREAD, t) / math.hypot(a * SPREAD, s)


def inversion_error(way: str) -> float:
    part = towards_noise(segment(way, NOISE, STEP), NOISE)
    x = torch.linspace(-1, 1, 16, dtype=torch.float64).view(1, 1, 4, 4)
    z = Program(compile_part(part, NOISE, "epsilon").tables)(lambda x, t: gaussian(NOISE, x, t), x)
    return float((z - x * exact_ratio(NOISE, part.lambdas[0], STEP)).abs().max())


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("dpm-solver-2m", 2)])
def test_inversion_converges_at_the_solvers_order(solver: str, order: int) -> None:
    coarse, fine = (inversion_error(f"{solver}/uniform-lambda@{n}") for n in (40, 80))
    assert math.log2(coarse / fine) > order - 0.35


@pytest.mark.parametrize("way", ["ddim/uniform-t@9", "dpmpp-2m/karras-zero@9", "unipc-2-bh2/quadratic-zero@9"])
def test_a_segment_lies_between_step_and_clean_end(way: str) -> None:
    part = segment(way, NOISE, STEP)
    assert part.lambdas[0] == pytest.approx(STEP)
    assert part.nfe == 9
    back = towards_noise(part, NOISE)
    assert back.lambdas[-1] == part.lambdas[0]
    assert back.lambdas[0] == pytest.approx(NOISE.lambda_end, abs=1e-9)
    assert all(a > b for a, b in zip(back.lambdas, back.lambdas[1:], strict=False))


def test_a_searched_schedule_is_stretched_and_keeps_its_solver() -> None:
    schedule = preset_on_grid("unipc-3-bh2/quadratic-zero", NOISE, 7).model_copy(update={"first_call": "zero_x0"})
    part = segment(schedule, NOISE, STEP)
    assert (part.lambdas[0], part.lambdas[-1]) == (pytest.approx(STEP), math.inf)
    assert part.steps == schedule.steps
    # What replaces the first call of pure noise means nothing in the middle.
    assert part.first_call == "model"
    gaps, own = np.diff(part.lambdas[:-1]), np.diff(schedule.lambdas[:-1])
    assert np.allclose(gaps / gaps[0], own / own[0])


@settings(max_examples=25, deadline=None)
@given(eta=st.floats(0, 1), t=st.integers(150, 999), calls=st.integers(1, 12))
def test_noise_is_ddims(eta: float, t: int, calls: int) -> None:
    """Against 2010.02502, equations 12 and 16, step by step."""
    part = segment(f"ddim/uniform-t@{calls}", NOISE, NOISE.lambda_at(float(t)))
    noisy = compile_part(part, NOISE, "epsilon", eta)
    for k, (a, b) in enumerate(zip(part.lambdas, part.lambdas[1:], strict=False)):
        (alpha, sigma), (alpha2, sigma2) = NOISE.alpha_sigma(a), NOISE.alpha_sigma(b)
        std = eta * sigma2 / sigma * math.sqrt(max(0.0, 1 - alpha**2 / alpha2**2))
        assert noisy.scales[k] == pytest.approx(std, abs=1e-12)
        assert noisy.tables.P[k, k] == pytest.approx(alpha2 / alpha, rel=1e-9)
        eps = math.sqrt(sigma2**2 - std**2) - alpha2 / alpha * sigma
        assert noisy.tables.Q[k, k] == pytest.approx(eps, rel=1e-8, abs=1e-12)


def spread_of_samples(solver: str, calls: int) -> float:
    """Standard deviation of samples of Gaussian data under eta = 1, in closed form.

    With a linear denoiser every point is linear in the start and the noises, which are independent.
    """
    part = segment(f"{solver}/uniform-lambda@{calls}", NOISE, STEP)
    noisy = compile_part(part, NOISE, "epsilon", 1.0)
    alpha, sigma = NOISE.alpha_sigma(STEP)
    program = Program(noisy.tables)
    sources = torch.eye(calls + 1, dtype=torch.float64)
    held = {0: sources[0] * math.hypot(alpha * SPREAD, sigma)}
    for k, scale in enumerate(noisy.scales):
        held[2 * k + 1] = gaussian(NOISE, held[2 * k], noisy.tables.times[k])
        held[2 * k + 2] = program.next_node(k, held) + scale * sources[k + 1]
    return float(held[2 * len(noisy.scales)].norm())


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "unipc-2-bh2"])
def test_noise_keeps_the_marginals(solver: str) -> None:
    """Under the exact denoiser, noise leaves the samples' spread that of the data, up to an error of first order."""
    end = math.hypot(*(a * b for a, b in zip(NOISE.alpha_sigma(NOISE.lambda_end), (SPREAD, 1.0), strict=True)))
    coarse, fine = (abs(spread_of_samples(solver, n) - end) for n in (50, 200))
    assert fine < 0.02
    assert fine < 0.4 * coarse


def test_noise_only_within_its_window() -> None:
    part = segment("ddim/uniform-lambda@10", NOISE, STEP)
    scales = compile_part(part, NOISE, "epsilon", 1.0, (0.0, 0.5)).scales
    assert all(s > 0 for s in scales[:5])
    assert not any(scales[5:])


@pytest.mark.parametrize("noise", [EDM(0.01, 20.0, 0.5), FlowMatching(1000.0, 1.0)])
def test_other_families_have_segments(noise: NoiseSchedule) -> None:
    middle = 0.5 * (max(noise.lambda_start, -4.0) + min(noise.lambda_end, 4.0))
    part = segment("ddim/uniform-t@5", noise, middle)
    assert part.lambdas[0] == pytest.approx(middle)
    assert narrowed(noise, middle).lambda_start == middle
    compile_part(part, noise, "epsilon" if isinstance(noise, EDM) else "flow_prediction", 0.5)


def test_bad_ways_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="PRESET/GRID@CALLS"):
        segment("ddim/uniform-t", NOISE, STEP)
    with pytest.raises(ConfigurationError, match="outside this model's range"):
        check_step(NOISE.lambda_start - 1, NOISE)
    with pytest.raises(ScheduleError, match="deterministic"):
        compile_part(towards_noise(segment("ddim/uniform-t@4", NOISE, STEP), NOISE), NOISE, "epsilon", 0.5)
    mean = preset_on_grid("ddim/uniform-t", NOISE, 4).model_copy(update={"first_call": "mean_x0"})
    with pytest.raises(ScheduleError, match="statistics"):
        segment(SolverSchedule.from_json(mean.to_json()), NOISE, STEP)
