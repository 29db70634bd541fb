"""What a flow model's pipeline gives its scheduler: the shift of the image's size, and even sigmas."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import numpy as np
import pytest
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps

from fewstep.errors import ConfigurationError, ModelError
from fewstep.tasks.models.from_diffusers import from_config, from_diffusers
from fewstep.tasks.models.noise_families import FlowMatching
from fewstep.tasks.models.stock_times import dynamic_mu
from fewstep.tasks.sampling.grids import grid

EULER = diffusers.FlowMatchEulerDiscreteScheduler
FLUX = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
FLOW_SIGMAS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "use_dynamic_shifting": True}


def _times(noise: Any, name: str, steps: int) -> list[float]:
    return [noise.time(value) for value in grid(name, noise, steps)[:-1]]


def _mu(config: Any, tokens: int) -> float:
    return calculate_shift(
        tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )


def test_flux_at_512_pixels_is_shifted_by_less_than_two() -> None:
    noise = from_diffusers(EULER(**FLUX), image_seq_len=1024)
    assert isinstance(noise, FlowMatching)
    assert noise.shift == pytest.approx(math.exp(0.63)) == pytest.approx(1.8776, abs=1e-4)


@pytest.mark.parametrize("tokens", [64, 1024, 4096])
@pytest.mark.parametrize("steps", [1, 4, 11])
@pytest.mark.parametrize(
    "settings",
    [
        FLUX,
        {**FLUX, "time_shift_type": "linear"},
        {**FLUX, "base_shift": 0.6, "max_shift": 0.6},
        {**FLUX, "base_image_seq_len": 1024, "max_image_seq_len": 8192, "max_shift": 2.05},
        {**FLUX, "num_train_timesteps": 500},
        {**FLUX, "use_karras_sigmas": True},
        {**FLUX, "shift_terminal": 0.1},
    ],
)
def test_times_are_those_that_the_pipeline_of_flux_asks_for(settings: dict[str, Any], steps: int, tokens: int) -> None:
    if steps == 1 and settings.get("shift_terminal"):
        return
    theirs = EULER(**settings)
    sigmas = np.linspace(1.0, 1 / steps, steps)
    times, _ = retrieve_timesteps(theirs, None, "cpu", sigmas=sigmas, mu=_mu(theirs.config, tokens))
    noise = from_config({**settings, "_class_name": "FlowMatchEulerDiscreteScheduler"}, image_seq_len=tokens)
    np.testing.assert_allclose(_times(noise, "own", steps), times, rtol=1e-6)
    if not settings.get("use_karras_sigmas"):
        np.testing.assert_allclose(_times(noise, "uniform-t-zero", steps), times, rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 4, 11])
def test_times_are_those_that_the_pipeline_of_stable_diffusion_3_asks_for(steps: int) -> None:
    """It gives mu alone."""
    theirs = EULER(**FLUX)
    theirs.set_timesteps(steps, mu=_mu(theirs.config, 1024))
    noise = from_diffusers(EULER(**FLUX), image_seq_len=1024, even=False)
    np.testing.assert_allclose(_times(noise, "own", steps), theirs.timesteps, rtol=1e-6)


@pytest.mark.parametrize("flag", ["karras", "exponential", "beta"])
def test_shapes_end_where_a_scheduler_with_dynamic_shifting_ends_them(flag: str) -> None:
    theirs = EULER(**FLUX, **{f"use_{flag}_sigmas": True})
    theirs.set_timesteps(7, mu=_mu(theirs.config, 1024))
    noise = from_diffusers(EULER(**FLUX), image_seq_len=1024)
    np.testing.assert_allclose(_times(noise, f"{flag}-zero", 7), theirs.timesteps, rtol=1e-5)


def test_a_fixed_shift_may_be_given_even_sigmas_too() -> None:
    """As FLUX.1-schnell is."""
    noise = from_diffusers(EULER(shift=1.0), even=True)
    np.testing.assert_allclose(_times(noise, "own", 4), [1000, 750, 500, 250], rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"]
)
def test_other_schedulers_of_flows_shift_by_the_size_too(name: str) -> None:
    kind = getattr(diffusers, name)
    theirs = kind(**FLOW_SIGMAS, lower_order_final=True)
    theirs.set_timesteps(5, mu=_mu(theirs.config, 400))
    noise = from_diffusers(kind(**FLOW_SIGMAS, lower_order_final=True), image_seq_len=400)
    assert isinstance(noise, FlowMatching)
    assert noise.shift == pytest.approx(math.exp(_mu(theirs.config, 400)))
    np.testing.assert_allclose(_times(noise, "own", 5), theirs.sigmas[:-1] * 1000, rtol=1e-6)


def test_a_pipelines_own_mu_goes_before_that_of_the_size() -> None:
    noise = from_diffusers(EULER(**FLUX), image_seq_len=1024, mu=2.0)
    assert isinstance(noise, FlowMatching)
    assert noise.shift == pytest.approx(math.exp(2.0))


def test_without_the_size_only_what_needs_the_shift_is_refused() -> None:
    noise = from_diffusers(EULER(**FLUX))
    assert isinstance(noise, FlowMatching)
    assert noise.time(noise.lambda_start) == pytest.approx(999.0)
    assert grid("uniform-lambda-zero", noise, 3)[0] == noise.lambda_start
    for name in ("own", "uniform-t-zero", "karras"):
        with pytest.raises((ConfigurationError, ModelError), match="give the number of its tokens as image_seq_len"):
            grid(name, noise, 4)


def test_equal_lengths_give_no_slope() -> None:
    with pytest.raises(ModelError, match="both 256"):
        dynamic_mu({"max_image_seq_len": 256}, 100)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"_class_name": "FlowMatchHeunDiscreteScheduler", "use_dynamic_shifting": True}, "which it does not heed"),
        ({"_class_name": "FlowMatchHeunDiscreteScheduler", "shift_terminal": 0.1}, "which it does not heed"),
        ({"_class_name": "UniPCMultistepScheduler", "use_dynamic_shifting": True}, "with use_flow_sigmas"),
        ({"_class_name": "DDIMScheduler", "use_dynamic_shifting": True}, "which it does not heed"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift_terminal": 1.5}, "between 0 and 1"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 0.0}, "must be positive"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "time_shift_type": "cubic"}, "time_shift_type"),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", **FLUX, "time_shift_type": "linear", "base_shift": -9.0},
            "must be positive",
        ),
    ],
)
def test_a_shift_that_is_none_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        from_config(config, image_seq_len=256)
