"""Our presets against diffusers' schedulers in float64, on the same denoiser, timesteps and noise.

The schedulers keep float32 betas and sigmas; both sides start from those betas, and the sigmas are computed
again in float64. DPMSolverMultistepScheduler rounds the sample to float32 at each step, which alone costs
about 1e-7 relative a step.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.presets import ALIASES, PRESETS, preset
from fewstep.tasks.models.from_diffusers import from_diffusers
from fewstep.tasks.models.noise_schedule import DiscreteVP
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import sample

NFES = (1, 2, 3, 5, 10, 14, 15, 20)
ZERO, SIGMA_MIN = "zero", "sigma_min"


def in_double(scheduler: Any, steps: int) -> Any:
    """The scheduler with timesteps set, its tables in float64."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(steps)
    if isinstance(scheduler, DDIMScheduler):
        scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
        return scheduler
    sigmas = (1 / scheduler.alphas_cumprod - 1).sqrt()
    if scheduler.config.final_sigmas_type == SIGMA_MIN:
        last = sigmas[:1]
    else:
        # UniPC's bh1 multiplies B(h) = -inf by 0 at sigma = 0 and returns NaN; its limit is what is meant.
        last = torch.full_like(sigmas[:1], 1e-12 if scheduler.config.solver_type == "bh1" else 0.0)
    scheduler.sigmas = torch.cat([sigmas[scheduler.timesteps], last])
    return scheduler


def theirs(scheduler: Any, mixture: Any, x: Tensor) -> Tensor:
    for t in scheduler.timesteps:
        a = float(scheduler.alphas_cumprod[t])
        eps = mixture.eps(x, math.sqrt(a), math.sqrt(1 - a))
        x = scheduler.step(eps, t, x, return_dict=False)[0]
    return x


def our_schedule(name: str, scheduler: Any) -> tuple[SolverSchedule, DiscreteVP]:
    """The preset on the scheduler's own timesteps, and the model's noise from its first timestep on."""
    whole = from_diffusers(scheduler)
    times = [int(t) for t in scheduler.timesteps]
    noise = DiscreteVP(scheduler.alphas_cumprod.numpy()[: times[0] + 1])
    clean = getattr(scheduler.config, "final_sigmas_type", ZERO) == ZERO
    last = math.inf if clean else whole.lambda_end
    return preset(name, [*(whole.lambda_at(t) for t in times), last]), noise


def assert_parity(name: str, scheduler: Any, mixture: Any, x: Tensor, limit: float) -> None:
    schedule, noise = our_schedule(name, scheduler)
    assert schedule.nfe == len(scheduler.timesteps)
    calls = []

    def denoiser(v: Tensor, time: float) -> Tensor:
        calls.append(time)
        assert abs(time - round(time)) < 1e-6  # their integer timesteps
        a = float(scheduler.alphas_cumprod[round(time)])
        return mixture.eps(v, math.sqrt(a), math.sqrt(1 - a))

    ours = sample(compile_schedule(schedule, noise), denoiser, x)
    np.testing.assert_allclose(calls, scheduler.timesteps.tolist(), atol=1e-6)
    expected = theirs(scheduler, mixture, x)
    assert expected.dtype == torch.float64
    assert float((ours - expected).norm() / expected.norm()) < limit


@pytest.mark.parametrize("steps", [2, 5, 10, 20])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim(steps: int, spacing: str, two_bumps: Any, x64: Tensor) -> None:
    # 1000 is a multiple of these steps: elsewhere their trailing steps end beside the next timestep.
    scheduler = DDIMScheduler(timestep_spacing=spacing, clip_sample=False, set_alpha_to_one=True)
    assert_parity("ddim", in_double(scheduler, steps), two_bumps, x64, 1e-10)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", NFES)
@pytest.mark.parametrize(("order", "name"), [(2, "dpmpp-2m"), (3, "dpmpp-3m")])
@pytest.mark.parametrize("final", [ZERO, SIGMA_MIN])
def test_dpm_solver(order: int, name: str, steps: int, spacing: str, final: str, two_bumps: Any, x64: Tensor) -> None:
    scheduler = DPMSolverMultistepScheduler(
        solver_order=order,
        algorithm_type="dpmsolver++",
        lower_order_final=True,
        final_sigmas_type=final,
        timestep_spacing=spacing,
    )
    assert_parity(name, in_double(scheduler, steps), two_bumps, x64, 1e-6)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", NFES)
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("final", [ZERO, SIGMA_MIN])
def test_unipc(order: int, variant: str, steps: int, spacing: str, final: str, two_bumps: Any, x64: Tensor) -> None:
    scheduler = UniPCMultistepScheduler(
        solver_order=order,
        solver_type=variant,
        predict_x0=True,
        lower_order_final=True,
        final_sigmas_type=final,
        timestep_spacing=spacing,
    )
    assert_parity(f"unipc-{order}-{variant}", in_double(scheduler, steps), two_bumps, x64, 1e-9)


def test_every_preset_is_the_scheduler_that_it_claims_to_be() -> None:
    """All prediction types and families, by the command that the documentation names."""
    root = Path(__file__).parents[3]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.diffusers_parity"]
    # The tests hide the working directory from Python; who types the command does not.
    env = os.environ | {"PYTHONSAFEPATH": ""}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout)
    assert line["max_relative_difference"] <= 1e-5
    claimed = {ALIASES.get(row[0], row[0]) for row in line["rows"]}
    # No scheduler stops Adams and Bashforth's weights at order 2 or 3.
    assert claimed == set(PRESETS) - {"ipndm-2", "ipndm-3", "ipndm-v-2", "ipndm-v-3", "ipndm-v-4"}
