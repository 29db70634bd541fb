"""Every named grid is what the stock scheduler makes itself of a number of steps: no times are handed over."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from fewstep.errors import ConfigurationError
from fewstep.tasks.models.from_diffusers import from_diffusers
from fewstep.tasks.models.noise_families import FlowMatching
from fewstep.tasks.models.noise_schedule import NoiseSchedule
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import sample
from fewstep.tasks.sampling.grids import all_presets, grid, preset_on_grid

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SDXL = {**SD, "timestep_spacing": "leading", "steps_offset": 1}
FLOW_SIGMAS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
CALLS = (1, 2, 6, 13)


def _made(name: str, steps: int, **settings: Any) -> Any:
    scheduler = getattr(diffusers, name)(**settings)
    scheduler.set_timesteps(steps)
    return scheduler


def _noise(name: str, **settings: Any) -> NoiseSchedule:
    return from_diffusers(getattr(diffusers, name)(**settings))


def _shares(noise: NoiseSchedule, lambdas: tuple[float, ...]) -> list[float]:
    """The noise's share of a flow, or its ratio to the signal."""
    pairs = [noise.alpha_sigma(value) for value in lambdas]
    return [s if isinstance(noise, FlowMatching) else s / a for a, s in pairs]


@pytest.mark.parametrize("steps", CALLS)
@pytest.mark.parametrize("shape", ["karras", "exponential", "beta"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("EulerDiscreteScheduler", SD),
        ("DPMSolverMultistepScheduler", SD),
        ("UniPCMultistepScheduler", {}),
        ("FlowMatchEulerDiscreteScheduler", {}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 0.5, "num_train_timesteps": 400}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 2.0, "shift_terminal": 0.1}),
    ],
)
def test_shapes_are_those_of_the_flag_of_that_name(name: str, settings: dict[str, Any], shape: str, steps: int) -> None:
    if steps == 1 and (settings.get("shift_terminal") or name == "EulerDiscreteScheduler"):
        return  # diffusers divides zero by zero, or makes its one call where there is no noise.
    theirs = _made(name, steps, **settings, **{f"use_{shape}_sigmas": True}).sigmas
    noise = _noise(name, **settings)
    np.testing.assert_allclose(_shares(noise, grid(f"{shape}-zero", noise, steps)), theirs, rtol=1e-4, atol=1e-6)


def test_the_published_figure_of_stable_diffusion_3() -> None:
    noise = _noise("FlowMatchEulerDiscreteScheduler", shift=3.0)
    found = [round(share, 3) for share in _shares(noise, grid("beta-zero", noise, 6))]
    assert found == [1.0, 0.878, 0.641, 0.368, 0.131, 0.009, 0.0]


@pytest.mark.parametrize("steps", CALLS[1:])
@pytest.mark.parametrize("schedule", ["karras", "exponential"])
@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_shapes_of_edm_are_its_schedulers_own(name: str, schedule: str, steps: int) -> None:
    theirs = _made(name, steps, sigma_schedule=schedule).sigmas
    noise = _noise(name, sigma_schedule=schedule)
    np.testing.assert_allclose(_shares(noise, grid("own", noise, steps)), theirs, rtol=1e-6)
    np.testing.assert_allclose(_shares(noise, grid(f"{schedule}-zero", noise, steps)), theirs, rtol=1e-5)


@pytest.mark.parametrize("steps", [2, 7, 20])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize(
    "name", ["EulerDiscreteScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"]
)
def test_spacings_are_those_of_the_models_own_class(name: str, spacing: str, offset: int, steps: int) -> None:
    theirs = _made(name, steps, **SD, timestep_spacing=spacing, steps_offset=offset).timesteps
    # Whatever the model's own spacing is, and whatever shape its times have.
    other = {"use_karras_sigmas": True} if name.startswith("DPM") else {"timestep_spacing": "trailing"}
    noise = _noise(name, **SD, steps_offset=offset, **other)
    lambdas = grid(spacing, noise, steps)
    np.testing.assert_allclose([noise.time(v) for v in lambdas[:-1]], theirs, atol=0.05)
    assert lambdas[-1] == math.inf


@pytest.mark.parametrize("steps", [2, 7, 20])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("EulerDiscreteScheduler", SDXL),
        ("EulerDiscreteScheduler", {**SDXL, "use_karras_sigmas": True}),
        ("EulerAncestralDiscreteScheduler", SDXL),
        ("HeunDiscreteScheduler", SDXL),
        ("KDPM2DiscreteScheduler", SD),
        ("LCMScheduler", SD),
        ("DDPMScheduler", {}),
        ("DDIMScheduler", {**SDXL, "set_alpha_to_one": False}),
        ("PNDMScheduler", {**SDXL, "skip_prk_steps": True}),
        ("CogVideoXDDIMScheduler", {"snr_shift_scale": 3.0, "timestep_spacing": "trailing"}),
        ("DDPMScheduler", {"trained_betas": list(np.linspace(1e-4, 0.05, 300)), "num_train_timesteps": 300}),
        ("DPMSolverMultistepScheduler", {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}),
    ],
)
def test_a_models_own_times_are_there_for_every_solver(name: str, settings: dict[str, Any], steps: int) -> None:
    scheduler = _made(name, steps, **settings)
    noise = _noise(name, **settings)
    times = [noise.time(v) for v in grid("own", noise, steps)[:-1]]
    told = (
        scheduler.timesteps
        if name != "KDPM2DiscreteScheduler"
        else [*scheduler.timesteps[:1], *scheduler.timesteps[2::2]]
    )
    np.testing.assert_allclose(times, list(dict.fromkeys(float(t) for t in told)), atol=0.5)
    for solver in ("ddim", "unipc-2-bh2", "dpmpp-2s", "deis-3", "ipndm-4"):
        schedule = preset_on_grid(f"{solver}/own", noise, steps)
        assert schedule.nfe == compile_schedule(schedule, noise).nfe == steps
    ends_at_zero = math.isinf(grid("own", noise, steps)[-1])
    assert preset_on_grid("heun/own", noise, 5 if ends_at_zero else 4).nfe in (4, 5)


@pytest.mark.parametrize("steps", [1, 4, 9])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_beta_sigmas": True}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "stochastic_sampling": True}),
        ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
        ("FlowMatchLCMScheduler", {"shift": 3.0}),
        ("UniPCMultistepScheduler", {**FLOW_SIGMAS, "flow_shift": 5.0}),
        ("UniPCMultistepScheduler", {**FLOW_SIGMAS, "flow_shift": 5.0, "shift_terminal": 0.1}),
        ("DPMSolverMultistepScheduler", {**FLOW_SIGMAS, "flow_shift": 3.0}),
        ("DPMSolverSinglestepScheduler", {**FLOW_SIGMAS, "flow_shift": 3.0, "lower_order_final": True}),
    ],
)
def test_a_flows_own_times_are_its_schedulers(name: str, settings: dict[str, Any], steps: int) -> None:
    if steps == 1 and settings.get("shift_terminal"):
        return
    scheduler, noise = _made(name, steps, **settings), _noise(name, **settings)
    sigmas = list(dict.fromkeys(float(s) for s in scheduler.sigmas))
    if len(sigmas) == steps:  # The list of this class ends with its last call.
        sigmas.append(0.0)
    np.testing.assert_allclose(_shares(noise, grid("own", noise, steps)), sigmas, rtol=1e-6)


@pytest.mark.parametrize("first", [{"steps_offset": 1}, {"steps_offset": 0}])
def test_a_leading_grid_that_starts_late_takes_pure_noise_as_diffusers_does(first: dict[str, int]) -> None:
    settings = {**SD, "timestep_spacing": "leading", **first}
    scheduler, noise = _made("EulerDiscreteScheduler", 4, **settings), _noise("EulerDiscreteScheduler", **settings)
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def network(y: torch.Tensor, time: float) -> torch.Tensor:
        return torch.tanh(1.3 * y) * (1 + time / 1000) - 0.1 * y * y

    theirs = x * scheduler.init_noise_sigma
    for time in scheduler.timesteps:
        given = scheduler.scale_model_input(theirs, time)
        theirs = scheduler.step(network(given, float(time)), time, theirs, return_dict=False)[0]
    ours = sample(compile_schedule(preset_on_grid("euler/leading", noise, 4), noise), network, x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)


def test_a_search_starts_from_the_models_own_grid_where_it_is_another() -> None:
    def grids(noise: NoiseSchedule) -> set[str]:
        return {name.partition("/")[2] for name in all_presets(noise, 4)}

    assert "own" in grids(_noise("FlowMatchEulerDiscreteScheduler", shift=3.0))
    assert "own" in grids(_noise("EulerDiscreteScheduler", **SDXL))
    # Karras' times, and those that pipelines give a scheduler with dynamic shifting, are there under their own names.
    assert "own" not in grids(_noise("EDMEulerScheduler"))
    flux = from_diffusers(diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), 1024)
    assert "own" not in grids(flux)
    assert "own" not in grids(FlowMatching(1000.0, 3.0))


@pytest.mark.parametrize(
    ("noise", "name", "words"),
    [
        (FlowMatching(1000.0, 3.0), "own", "there is none here"),
        (_noise("FlowMatchEulerDiscreteScheduler"), "leading", "has no timestep_spacing"),
        (_noise("EDMEulerScheduler"), "trailing", "has no timestep_spacing"),
        (_noise("UniPCMultistepScheduler", **FLOW_SIGMAS), "leading", "has no timestep_spacing"),
        (_noise("DDIMScheduler", set_alpha_to_one=False), "leading", "does not lead from 4 falling times"),
        (_noise("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True), "own", "image_seq_len"),
    ],
)
def test_a_grid_that_the_models_scheduler_does_not_make_is_refused(noise: NoiseSchedule, name: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        grid(name, noise, 4)
