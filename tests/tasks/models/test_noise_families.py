"""Every family of noise: what its formulas promise, whatever the network answers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import EDMEulerScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from fewstep.errors import ModelError, ScheduleError
from fewstep.tasks.models.noise_families import EDM, FlowMatching, VarianceExploding
from fewstep.tasks.models.noise_schedule import ContinuousVP, DiscreteVP, NoiseSchedule

FAMILIES: dict[str, NoiseSchedule] = {
    "discrete": DiscreteVP([0.999 * 0.99**k for k in range(1000)]),
    "continuous": ContinuousVP(scale=999.0),
    "exploding": VarianceExploding(0.01, 50.0),
    "edm": EDM(0.002, 80.0, 0.5),
    "flow": FlowMatching(1000.0, 3.0),
}
OUTPUTS = [
    *(("discrete", o) for o in ("epsilon", "sample", "v_prediction")),
    *(("continuous", o) for o in ("epsilon", "sample", "v_prediction")),
    *(("exploding", o) for o in ("score", "epsilon", "sample")),
    *(("edm", o) for o in ("epsilon", "v_prediction")),
    *(("flow", o) for o in ("flow_prediction", "epsilon", "sample")),
]
SHARES = st.floats(0, 1)


def _lambda(noise: NoiseSchedule, share: float) -> float:
    return noise.lambda_start + share * (noise.lambda_end - noise.lambda_start)


@pytest.mark.parametrize("family", FAMILIES)
@given(share=SHARES)
@settings(deadline=None)
def test_lambda_is_the_logarithm_of_alpha_over_sigma(family: str, share: float) -> None:
    lambda_ = _lambda(FAMILIES[family], share)
    alpha, sigma = FAMILIES[family].alpha_sigma(lambda_)
    assert math.log(alpha / sigma) == pytest.approx(lambda_, abs=1e-9)
    assert FAMILIES[family].alpha_sigma(math.inf) == pytest.approx((1.0, 0.0))


@pytest.mark.parametrize("family", FAMILIES)
@given(share=SHARES)
@settings(deadline=None)
def test_time_and_lambda_are_inverse(family: str, share: float) -> None:
    noise = FAMILIES[family]
    lambda_ = _lambda(noise, share)
    assert noise.lambda_at(noise.time(lambda_)) == pytest.approx(lambda_, abs=1e-6)


@pytest.mark.parametrize(("family", "output"), OUTPUTS)
@given(share=SHARES, x=st.floats(-3, 3), o=st.floats(-3, 3))
@settings(deadline=None)
def test_whatever_the_network_answers_x_is_alpha_x0_plus_sigma_eps(
    family: str, output: str, share: float, x: float, o: float
) -> None:
    noise = FAMILIES[family]
    lambda_ = _lambda(noise, share)
    alpha, sigma = noise.alpha_sigma(lambda_)
    means = noise.output_map(output, lambda_)
    x0, eps = means.x0_x * x + means.x0_o * o, means.eps_x * x + means.eps_o * o
    scale = max(1.0, abs(alpha * x0), abs(sigma * eps))
    assert alpha * x0 + sigma * eps == pytest.approx(x, abs=1e-9 * scale)


MEANING = {
    "epsilon": lambda alpha, sigma, x0, eps: eps,
    "sample": lambda alpha, sigma, x0, eps: x0,
    "v_prediction": lambda alpha, sigma, x0, eps: alpha * eps - sigma * x0,
    "flow_prediction": lambda alpha, sigma, x0, eps: eps - x0,
    "score": lambda alpha, sigma, x0, eps: -eps / sigma,
}


@pytest.mark.parametrize(("family", "output"), [pair for pair in OUTPUTS if pair[0] != "edm"])
@given(share=SHARES, x0=st.floats(-2, 2), eps=st.floats(-3, 3))
@settings(deadline=None)
def test_the_right_answer_gives_back_image_and_noise(
    family: str, output: str, share: float, x0: float, eps: float
) -> None:
    noise = FAMILIES[family]
    lambda_ = _lambda(noise, share)
    alpha, sigma = noise.alpha_sigma(lambda_)
    x, answer = alpha * x0 + sigma * eps, MEANING[output](alpha, sigma, x0, eps)
    means = noise.output_map(output, lambda_)
    size = abs(means.x0_x * x) + abs(means.x0_o * answer) + 1
    assert means.x0_x * x + means.x0_o * answer == pytest.approx(x0, abs=1e-9 * size)
    size = abs(means.eps_x * x) + abs(means.eps_o * answer) + 1
    assert means.eps_x * x + means.eps_o * answer == pytest.approx(eps, abs=1e-9 * size)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sigma", [0.002, 0.3, 80.0])
def test_edm_is_diffusers_preconditioning(prediction: str, sigma: float) -> None:
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, prediction_type=prediction)
    noise, lambda_ = FAMILIES["edm"], -math.log(sigma)
    x, F = torch.tensor(1.7, dtype=torch.float64), torch.tensor(-0.4, dtype=torch.float64)
    theirs: Any = scheduler.precondition_outputs(x, F, torch.tensor(sigma, dtype=torch.float64))
    means = noise.output_map(prediction, lambda_)
    assert means.x0_x * 1.7 + means.x0_o * -0.4 == pytest.approx(float(theirs), rel=1e-9)
    assert noise.input_scale(lambda_) == pytest.approx(1 / math.sqrt(sigma**2 + 0.25))
    assert noise.time(lambda_) == pytest.approx(float(scheduler.precondition_noise(torch.tensor(sigma))), abs=1e-6)


@given(st.floats(1e-3, 1))
@settings(deadline=None)
def test_the_continuous_schedule_integrates_its_betas(t: float) -> None:
    noise = ContinuousVP(0.1, 20.0)
    integral = quad(lambda s: 0.1 + s * (20.0 - 0.1), 0, t)[0]
    alpha, _ = noise.alpha_sigma(noise.lambda_at(t))
    assert math.log(alpha) == pytest.approx(-0.5 * integral, abs=1e-9)


@given(share=st.floats(0, 1), shift=st.floats(0.2, 10))
@settings(deadline=None)
def test_a_shift_keeps_the_ends_and_is_undone(share: float, shift: float) -> None:
    noise = FlowMatching(1000.0, shift)
    assert noise.unshifted(noise.shifted(1000 * share)) == pytest.approx(1000 * share, abs=1e-8)
    assert (noise.shifted(0), noise.shifted(1000)) == pytest.approx((0, 1000))


def test_a_flow_reaches_both_infinities() -> None:
    noise = FlowMatching()
    assert (noise.lambda_at(1.0), noise.lambda_at(0.0)) == (-math.inf, math.inf)
    assert noise.alpha_sigma(-math.inf) == (0.0, 1.0)
    assert noise.output_map("flow_prediction", -math.inf) == (1.0, -1.0, 1.0, 0.0)
    with pytest.raises(ScheduleError, match="says nothing about x0"):
        noise.output_map("epsilon", -math.inf)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: VarianceExploding(2.0, 1.0), "sigma_min"),
        (lambda: EDM(0.1, 1.0, 0.0), "sigma_data"),
        (lambda: FlowMatching(shift=0.0), "positive"),
        (lambda: ContinuousVP(20.0, 0.1), "beta_0"),
        (lambda: FAMILIES["edm"].output_map("sample", 0.0), "not one of EDM's"),
        (lambda: FAMILIES["flow"].output_map("v_prediction", 0.0), "flow_prediction"),
        (lambda: FAMILIES["discrete"].output_map("score", 0.0), "not known"),
    ],
)
def test_what_a_family_cannot_be_is_named(make: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        make()


def test_noisier_than_the_start_is_refused() -> None:
    for family in ("continuous", "exploding", "edm"):
        with pytest.raises(ScheduleError, match="noisier than the model's start"):
            FAMILIES[family].time(FAMILIES[family].lambda_start - 0.1)
