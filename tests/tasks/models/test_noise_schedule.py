"""Noise schedules: variance preserving, invertible, and exactly the model's own at its training steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.errors import ModelError, ScheduleError
from fewstep.tasks.models.from_diffusers import from_diffusers
from fewstep.tasks.models.noise_schedule import DiscreteVP

ALPHAS = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
NOISE = DiscreteVP(ALPHAS)


@given(st.floats(-30, 30))
@settings(deadline=None)
def test_variance_is_preserved(lambda_: float) -> None:
    alpha, sigma = NOISE.alpha_sigma(lambda_)
    assert math.isclose(alpha**2 + sigma**2, 1, rel_tol=1e-14)
    assert math.isclose(math.log(alpha / sigma), lambda_, rel_tol=1e-12, abs_tol=1e-12)


def test_the_clean_end() -> None:
    assert NOISE.alpha_sigma(math.inf) == (1.0, 0.0)
    assert NOISE.time(math.inf) == NOISE.time(NOISE.lambda_end + 1) == 0.0
    assert NOISE.prior_scale(NOISE.lambda_start) == 1.0


@given(st.floats(0, 999))
@settings(deadline=None)
def test_lambda_at_inverts_time(time: float) -> None:
    lambda_ = NOISE.lambda_at(time)
    assert NOISE.lambda_start <= lambda_ <= NOISE.lambda_end
    assert math.isclose(NOISE.time(lambda_), time, rel_tol=0, abs_tol=1e-7)


@given(st.floats(0, 1))
@settings(deadline=None)
def test_time_inverts_lambda_at(share: float) -> None:
    lambda_ = NOISE.lambda_start + share * (NOISE.lambda_end - NOISE.lambda_start)
    assert math.isclose(NOISE.lambda_at(NOISE.time(lambda_)), lambda_, rel_tol=0, abs_tol=1e-9)


@given(st.floats(0, 999), st.floats(0, 999))
@settings(deadline=None)
def test_time_falls_as_lambda_rises(a: float, b: float) -> None:
    if a < b:
        assert NOISE.lambda_at(a) >= NOISE.lambda_at(b)


def test_training_steps_are_the_models_own() -> None:
    for t in range(1000):
        lambda_ = NOISE.lambda_at(t)
        alpha, sigma = NOISE.alpha_sigma(lambda_)
        assert math.isclose(alpha**2, ALPHAS[t], rel_tol=1e-12)
        assert math.isclose(sigma**2, 1 - ALPHAS[t], rel_tol=1e-10)
        assert abs(NOISE.time(lambda_) - t) < 1e-8
    assert math.isclose(NOISE.lambda_at(999), NOISE.lambda_start, rel_tol=1e-12)
    assert math.isclose(NOISE.lambda_at(0), NOISE.lambda_end, rel_tol=1e-12)


@given(st.integers(0, 998), st.floats(0, 1))
@settings(deadline=None)
def test_log_alpha_is_linear_between_training_steps(t: int, share: float) -> None:
    alpha, _ = NOISE.alpha_sigma(NOISE.lambda_at(t + share))
    expected = 0.5 * ((1 - share) * math.log(ALPHAS[t]) + share * math.log(ALPHAS[t + 1]))
    assert math.isclose(math.log(alpha), expected, rel_tol=1e-9)


@pytest.mark.parametrize("lambda_", [NOISE.lambda_start - 0.01, -math.inf, math.nan])
def test_noisier_than_the_model_is_refused(lambda_: float) -> None:
    with pytest.raises(ScheduleError, match=r"lambda = .* start") as caught:
        NOISE.time(lambda_)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("time", [-1e-9, 999.001, math.nan, math.inf])
def test_times_outside_the_model_are_refused(time: float) -> None:
    with pytest.raises(ScheduleError, match="outside the model's range 0 to 999"):
        NOISE.lambda_at(time)


@pytest.mark.parametrize(
    "values",
    [[], [0.5], [0.5, 0.5], [0.5, 0.6], [1.0, 0.5], [0.5, -0.1], [0.5, math.nan], [[0.9, 0.5]], 0.5],
)
def test_alphas_that_do_not_fall_are_refused(values: object) -> None:
    with pytest.raises(ModelError, match="alphas_cumprod"):
        DiscreteVP(np.asarray(values))


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_diffusers_schedulers_are_read_exactly(kind: type, betas: str) -> None:
    scheduler = kind(beta_schedule=betas)
    noise = from_diffusers(scheduler)
    own = scheduler.alphas_cumprod.to(torch.float64).numpy()
    for t in (0, 1, 500, 998, 999):
        assert math.isclose(noise.alpha_sigma(noise.lambda_at(t))[0] ** 2, own[t], rel_tol=1e-12)


def test_euler_has_the_same_schedule() -> None:
    assert from_diffusers(EulerDiscreteScheduler()).lambda_start == from_diffusers(DDPMScheduler()).lambda_start
