"""Closed-form velocities of Gaussian mixtures, for claims that need no trained model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from fewstep.tasks.models.noise_schedule import NoiseSchedule


@dataclass
class Mixture:
    """Isotropic Gaussian mixture of latents (B, D); every call of a denoiser is written down."""

    means: Tensor
    stds: Tensor
    weights: Tensor
    calls: list[tuple[int, float]] = field(default_factory=list)

    def _mean(self, x: Tensor, alpha: float, sigma: float, of: tuple[Tensor, Tensor]) -> Tensor:
        """E[f | x] at x = alpha x0 + sigma eps, (B, ...), where E[f | x, k] = base_k + slope_k (x - alpha mean_k)."""
        flat = x.double().flatten(1)[:, None]
        variance = (alpha * self.stds) ** 2 + sigma**2
        r = flat - alpha * self.means
        logits = self.weights.log() - 0.5 * (r**2).sum(-1) / variance - 0.5 * r.shape[-1] * variance.log()
        mean = (torch.softmax(logits, 1)[..., None] * (of[0] + of[1][:, None] * r)).sum(1)
        return mean.reshape(x.shape).to(x.dtype)

    def x0(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[x0 | x]."""
        variance = (alpha * self.stds) ** 2 + sigma**2
        return self._mean(x, alpha, sigma, (self.means, alpha * self.stds**2 / variance))

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """E[eps - x0 | x] of the flow at t."""
        variance = ((1 - t) * self.stds) ** 2 + t**2
        return self._mean(x, 1 - t, t, (-self.means, (t - (1 - t) * self.stds**2) / variance))

    def raw(self, x: Tensor, output: str, noise: NoiseSchedule, lambda_: float) -> Tensor:
        """What a perfect network with that prediction type returns."""
        alpha, sigma = noise.alpha_sigma(lambda_)
        if output == "flow_prediction":
            return self.velocity(x, sigma)
        x0 = self.x0(x, alpha, sigma)
        if output == "sample":
            return x0
        means = noise.output_map(output, lambda_)
        return (x0 - means.x0_x * x) / means.x0_o

    def denoiser(self, noise: NoiseSchedule, output: str) -> Callable[[Tensor, float | Tensor], Tensor]:
        """As a model's network would be called: scaled input and the told time, or one for each image."""

        def call(x: Tensor, time: float | Tensor) -> Tensor:
            if isinstance(time, Tensor):
                return torch.cat([call(x[i : i + 1], float(time[i])) for i in range(len(x))])
            self.calls.append((len(x), time))
            lambda_ = noise.lambda_at(time)
            return self.raw(x / noise.input_scale(lambda_), output, noise, lambda_)

        return call

    def on(
        self, noise: NoiseSchedule, output: str
    ) -> Callable[[Sequence[int]], Callable[[Tensor, float | Tensor], Tensor]]:
        """The same for any image indices."""
        return lambda _: self.denoiser(noise, output)


@pytest.fixture
def two_bumps() -> Mixture:
    means = [[0.8, -0.3, 0.2, 0.5], [-0.6, 0.4, -0.9, 0.1]]
    return Mixture(*(torch.tensor(v, dtype=torch.float64) for v in (means, [0.5, 0.35], [0.4, 0.6])))


@pytest.fixture
def one_bump() -> tuple[Mixture, Callable[[Tensor], Tensor]]:
    """A single Gaussian and its exact map from noise to sample: eps -> mean + std eps."""
    mean, std = torch.tensor([[0.7, -0.2, 0.4, -1.1]], dtype=torch.float64), 0.45
    mixture = Mixture(mean, torch.tensor([std], dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    return mixture, lambda eps: mean.reshape(1, *eps.shape[1:]) + std * eps


@pytest.fixture
def x64() -> Tensor:
    """Six starting noises (6, 1, 2, 2) in float64."""
    return torch.randn(6, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
