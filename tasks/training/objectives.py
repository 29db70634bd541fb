"""What a network is trained to answer: the noise (DDPM), EDM's preconditioned F, or a flow's velocity.

Shapes: images (or latents) and noise (B, C, H, W), times (B,).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from fewstep.tasks.training.recipe import TrainingRecipe

FLOW_STEPS = 1000
# What is left of the noise at t = 0, so that the path's density is defined there.
FLOW_SIGMA = 1e-5


class Lesson(NamedTuple):
    """One batch: what the network is shown, the time it is told, and what it should answer."""

    shown: Tensor
    time: Tensor
    answer: Tensor


class Objective(Protocol):
    """Draws lessons; `scheduler` is what is saved with the network."""

    scheduler: Any

    def draw(self, x0: Tensor, rng: torch.Generator, device: str) -> Lesson:
        """A lesson on the images x0, a function of the generator's state."""


class NoisePrediction:
    """The noise at uniform discrete times (2006.11239, eq. 14)."""

    def __init__(self, recipe: TrainingRecipe) -> None:
        self.scheduler = DDPMScheduler(
            num_train_timesteps=1000,
            beta_schedule=recipe.beta_schedule,
            clip_sample=False,
            prediction_type="epsilon",
        )

    def draw(self, x0: Tensor, rng: torch.Generator, device: str) -> Lesson:
        """x_t, t and the noise in it."""
        noise = torch.randn(x0.shape, generator=rng).to(device)
        t = torch.randint(0, 1000, (len(x0),), generator=rng).to(device)
        a = self.scheduler.alphas_cumprod.to(device)[t].view(-1, 1, 1, 1)
        return Lesson(a.sqrt() * x0.to(device) + (1 - a).sqrt() * noise, t, noise)


class Preconditioned:
    """EDM: log-normal sigmas, F = (x0 - c_skip x) / c_out at unit weight (2206.00364, eq. 8 and table 1)."""

    def __init__(self, recipe: TrainingRecipe) -> None:
        self.recipe = recipe
        self.scheduler = EDMEulerScheduler(
            sigma_min=recipe.sigma_min,
            sigma_max=recipe.sigma_max,
            sigma_data=recipe.sigma_data,
            prediction_type="epsilon",
        )

    def draw(self, x0: Tensor, rng: torch.Generator, device: str) -> Lesson:
        """c_in x, c_noise = log(sigma) / 4, and F."""
        r = self.recipe
        log_sigma = r.sigma_log_mean + r.sigma_log_std * torch.randn(len(x0), generator=rng)
        log_sigma = log_sigma.clamp(math.log(r.sigma_min), math.log(r.sigma_max)).to(device)
        sigma = log_sigma.exp().view(-1, 1, 1, 1)
        x0 = x0.to(device)
        x = x0 + sigma * torch.randn(x0.shape, generator=rng).to(device)
        square = sigma**2 + r.sigma_data**2
        c_skip, c_out = r.sigma_data**2 / square, sigma * r.sigma_data / square.sqrt()
        return Lesson(x / square.sqrt(), 0.25 * log_sigma, (x0 - c_skip * x) / c_out)


class Velocity:
    """Straight paths from noise (t = 1) to data (t = 0), t uniform ("Flow Matching in Latent Space", 2307.08698).

    z_t = (1 - t) z0 + (s + (1 - s) t) z1, answer (1 - s) z1 - z0, s = 1e-5. The network is told 1000 t, the
    time of diffusers' flow schedulers: their sinusoids hardly change over [0, 1]. Samplers take s as 0.
    """

    def __init__(self) -> None:
        self.scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=FLOW_STEPS)

    def draw(self, x0: Tensor, rng: torch.Generator, device: str) -> Lesson:
        """z_t, 1000 t and the velocity."""
        t = torch.rand(len(x0), generator=rng).to(device)
        noise = torch.randn(x0.shape, generator=rng).to(device)
        x0, at = x0.to(device), t.view(-1, 1, 1, 1)
        shown = (1 - at) * x0 + (FLOW_SIGMA + (1 - FLOW_SIGMA) * at) * noise
        return Lesson(shown, FLOW_STEPS * t, (1 - FLOW_SIGMA) * noise - x0)


def objective_of(recipe: TrainingRecipe) -> Objective:
    """The objective that a recipe names."""
    if recipe.objective == "flow":
        return Velocity()
    return Preconditioned(recipe) if recipe.objective == "edm" else NoisePrediction(recipe)
