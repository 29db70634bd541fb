"""Noise schedules read off diffusers' scheduler classes."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from fewstep.errors import ModelError
from fewstep.tasks.models.from_diffusers import from_diffusers, prediction_type
from fewstep.tasks.models.noise_families import EDM, FlowMatching, VarianceExploding
from fewstep.tasks.models.noise_schedule import SMALLEST_ALPHA, ContinuousVP, DiscreteVP

VP = [
    "DDPMScheduler",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
]
SETTINGS: list[dict[str, Any]] = [
    {"beta_schedule": "linear"},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": list(np.linspace(1e-4, 0.03, 200)), "num_train_timesteps": 200},
]


@pytest.mark.parametrize("name", VP)
@pytest.mark.parametrize("settings", SETTINGS, ids=["linear", "scaled", "cosine", "trained"])
def test_every_training_step_has_the_schedulers_signal(name: str, settings: dict[str, Any]) -> None:
    scheduler = getattr(diffusers, name)(**settings)
    noise = from_diffusers(scheduler)
    assert isinstance(noise, DiscreteVP)
    for t in (0, 57, len(scheduler.alphas_cumprod) - 1):
        alpha, _ = noise.alpha_sigma(noise.lambda_at(float(t)))
        assert alpha**2 == pytest.approx(float(scheduler.alphas_cumprod[t]), rel=1e-6)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_a_rescaled_end_without_signal_stays_finite(name: str) -> None:
    noise = from_diffusers(getattr(diffusers, name)(rescale_betas_zero_snr=True))
    assert math.isfinite(noise.lambda_start)
    alpha, _ = noise.alpha_sigma(noise.lambda_start)
    assert alpha**2 <= 2 * SMALLEST_ALPHA


def test_the_other_families() -> None:
    flow = from_diffusers(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    assert isinstance(flow, FlowMatching)
    assert (flow.scale, flow.shift) == (1000.0, 3.0)
    solver = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=2.0
    )
    other = from_diffusers(solver)
    assert isinstance(other, FlowMatching)
    assert other.shift == 2.0
    edm = from_diffusers(diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=20.0, sigma_data=0.7))
    assert isinstance(edm, EDM)
    assert (edm.sigma_min, edm.sigma_max, edm.sigma_data) == (0.01, 20.0, 0.7)
    exploding = from_diffusers(diffusers.ScoreSdeVeScheduler(sigma_min=0.02, sigma_max=100.0))
    assert isinstance(exploding, VarianceExploding)
    assert exploding.sigma_max == 100.0


def test_flow_sigmas_are_the_schedulers_own() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(7)
    noise = from_diffusers(scheduler)
    for time, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
        assert noise.alpha_sigma(noise.lambda_at(float(time)))[1] == pytest.approx(float(sigma), rel=1e-5)


def test_the_score_sde_is_told_t_times_999() -> None:
    from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler

    noise = from_diffusers(ScoreSdeVpScheduler())
    assert isinstance(noise, ContinuousVP)
    assert noise.time(noise.lambda_start) == pytest.approx(999.0)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"_class_name": "DDPMScheduler"}, "epsilon"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}, "v_prediction"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow_prediction"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "score"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "epsilon"}, "epsilon"),
    ],
)
def test_what_the_network_returns(config: dict[str, Any], expected: str) -> None:
    assert prediction_type(config) == expected


def test_a_scheduler_without_a_noise_schedule_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="'VQDiffusionScheduler' describes no noise schedule"):
        from_diffusers(diffusers.VQDiffusionScheduler(num_vec_classes=4))


def test_a_diffusers_scheduler_without_betas_in_float64_loses_nothing_we_see() -> None:
    """alphas_cumprod is float32 in diffusers; its lambdas are ours to float32's precision."""
    scheduler = diffusers.DDPMScheduler()
    exact = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    noise, ours = from_diffusers(scheduler), DiscreteVP(exact)
    assert torch.allclose(
        torch.tensor([noise.lambda_at(float(t)) for t in (0, 500, 999)]),
        torch.tensor([ours.lambda_at(float(t)) for t in (0, 500, 999)]),
        atol=1e-3,
    )
