"""Closed-form denoisers and a smooth noise schedule, for claims that need no trained model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fewstep.errors import ScheduleError
from fewstep.tasks.models.noise_schedule import VariancePreserving


@dataclass(frozen=True)
class LinearVP(VariancePreserving):
    """Continuous VP schedule with beta from `beta_0` to `beta_1`, t in (0, 1]. The told time is lambda itself."""

    beta_0: float = 0.1
    beta_1: float = 20.0
    lambda_end: float = 5.0
    scale: float = 1.0

    def at(self, t: float) -> float:
        """Lambda at time t."""
        log_alpha = -0.25 * t * t * (self.beta_1 - self.beta_0) - 0.5 * t * self.beta_0
        return log_alpha - 0.5 * math.log(-math.expm1(2 * log_alpha))

    @property
    def lambda_start(self) -> float:
        return self.at(1.0)

    def prior_scale(self, lambda_: float) -> float:
        return self.scale

    def time(self, lambda_: float) -> float:
        if lambda_ < self.lambda_start - 1e-6:
            raise ScheduleError(f"lambda = {lambda_} is noisier than {self.lambda_start}")
        return lambda_

    def lambda_at(self, time: float) -> float:
        return time


@dataclass(frozen=True)
class StartingAt(LinearVP):
    """The same, for noise that starts at `start` instead of t = 1."""

    start: float = -3.0

    @property
    def lambda_start(self) -> float:
        return self.start


class Mixture:
    """Exact noise prediction of an isotropic Gaussian mixture: means (M, D), stds (M,), weights (M,)."""

    def __init__(self, means: list[list[float]], stds: list[float], weights: list[float]) -> None:
        self.means, self.stds, self.weights = (torch.tensor(v, dtype=torch.float64) for v in (means, stds, weights))

    def eps(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[eps | x] for x (B, ...) with D entries an image: -sigma times the score."""
        flat = x.reshape(len(x), 1, -1)
        variance = (alpha * self.stds) ** 2 + sigma**2
        difference = flat - alpha * self.means
        dim = self.means.shape[1]
        logits = self.weights.log() - 0.5 * (difference**2).sum(-1) / variance - 0.5 * dim * variance.log()
        shares = torch.softmax(logits, 1)
        return (sigma * (shares[..., None] * difference / variance[:, None]).sum(1)).reshape(x.shape)

    def denoiser(self, alpha_sigma: Callable[[float], tuple[float, float]]) -> Callable[[Tensor, float], Tensor]:
        """As the executor wants it: x and the told time, whose alpha and sigma `alpha_sigma` gives."""
        return lambda x, time: self.eps(x, *alpha_sigma(time))


@pytest.fixture(scope="session")
def linear_vp() -> LinearVP:
    return LinearVP()


@pytest.fixture(scope="session")
def starting_at() -> type[StartingAt]:
    return StartingAt


@pytest.fixture(scope="session")
def two_bumps() -> Mixture:
    return Mixture(
        [[0.8, -0.3, 0.2, 0.5], [-0.6, 0.4, -0.9, 0.1]],
        [0.5, 0.35],
        [0.4, 0.6],
    )


@pytest.fixture(scope="session")
def mixture() -> type[Mixture]:
    return Mixture


@pytest.fixture
def x64() -> Tensor:
    """Six starting noises (6, 1, 2, 2) in float64."""
    return torch.randn(6, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
