"""Schedules of diffusers' own schedulers: the same samples as their loops, or a reason why not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from fewstep.errors import ConfigurationError
from fewstep.tasks.models.from_diffusers import from_config
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import sample
from fewstep.tasks.sampling.stock import is_stock_flow, stock_schedule

DYNAMIC = {"use_dynamic_shifting": True}
FLOW_SIGMAS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
EULER, HEUN = FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler


def _denoiser(x: torch.Tensor, time: float) -> torch.Tensor:
    """A velocity that bends in state and time, so that a wrong time or order shows."""
    t = time / 1000
    return torch.tanh(1.7 * x) * (1 + t) - 0.3 * x * x * t


@pytest.mark.parametrize(
    ("kind", "config", "calls"),
    [
        (EULER, {}, 1),
        (EULER, {}, 7),
        (EULER, {"shift": 3.0}, 4),
        (EULER, {"use_karras_sigmas": True}, 5),
        (EULER, {"use_exponential_sigmas": True}, 5),
        (EULER, {"use_beta_sigmas": True}, 6),
        (EULER, {"shift": 2.0, "shift_terminal": 0.02}, 5),
        (EULER, {"shift": 2.0, "shift_terminal": 0.1, "use_karras_sigmas": True}, 5),
        (EULER, DYNAMIC, 4),
        (EULER, {**DYNAMIC, "time_shift_type": "linear"}, 5),
        (EULER, {**DYNAMIC, "use_beta_sigmas": True}, 6),
        (HEUN, {}, 3),
        (HEUN, {"shift": 3.0}, 7),
        (UniPCMultistepScheduler, {**FLOW_SIGMAS, "flow_shift": 3.0}, 6),
        (UniPCMultistepScheduler, {**FLOW_SIGMAS, **DYNAMIC, "shift_terminal": 0.1}, 6),
        (DPMSolverMultistepScheduler, {**FLOW_SIGMAS, "flow_shift": 3.0}, 6),
        (DPMSolverMultistepScheduler, {**FLOW_SIGMAS, **DYNAMIC}, 6),
    ],
)
def test_samples_are_those_of_the_stock_loop(kind: Any, config: dict[str, Any], calls: int) -> None:
    scheduler, config = kind(**config), {**config, "_class_name": kind.__name__}
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = from_config(config, image_seq_len=1024)
    schedule = stock_schedule(config, calls, noise)
    assert schedule.nfe == calls
    tables = compile_schedule(schedule, noise, "flow_prediction")
    ours = sample(tables, _denoiser, x * tables.prior_scale)
    steps = (calls + 1) // 2 if kind is HEUN else calls
    if not config.get("use_dynamic_shifting"):
        scheduler.set_timesteps(steps)
    elif kind is EULER:
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=0.63)
    else:
        scheduler.set_timesteps(steps, mu=0.63)
    # Some start at a little less than pure noise.
    theirs = x * tables.prior_scale
    for time in scheduler.timesteps:
        theirs = scheduler.step(_denoiser(theirs, float(time)), time, theirs, return_dict=False)[0]
    torch.testing.assert_close(ours, theirs.double(), rtol=0, atol=2e-6)


def test_it_says_which_scheduler_it_is() -> None:
    config = {"_class_name": "FlowMatchHeunDiscreteScheduler"}
    assert is_stock_flow(config, "heun")
    assert not is_stock_flow(config, "euler")
    assert not is_stock_flow({"_class_name": "DDIMScheduler"}, "euler")


def test_what_is_no_schedule_is_refused() -> None:
    name = EULER.__name__
    with pytest.raises(ConfigurationError, match="it keeps the noise"):
        stock_schedule({"_class_name": "DDIMScheduler"}, 4)
    with pytest.raises(ConfigurationError, match="draws noise"):
        stock_schedule({"_class_name": "DDPMScheduler"}, 4)
    left_over = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "steps_offset": 1, "thresholding": True}
    with pytest.raises(ConfigurationError, match="with thresholding is no schedule"):
        stock_schedule(left_over, 4)
    with pytest.raises(ConfigurationError, match="an odd number"):
        stock_schedule({"_class_name": HEUN.__name__}, 4)
    with pytest.raises(ConfigurationError, match="deterministic"):
        stock_schedule({"_class_name": name, "stochastic_sampling": True}, 4)
    with pytest.raises(ConfigurationError, match="image_seq_len"):
        stock_schedule({"_class_name": name, "use_dynamic_shifting": True}, 4)
    with pytest.raises(ConfigurationError, match="invert_sigmas = True"):
        stock_schedule({"_class_name": name, "invert_sigmas": True}, 4)
