"""A closed-form flow, whose told time may be a tensor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

Velocity = Callable[[Tensor, float | Tensor], Tensor]
MEAN, SPREAD = 0.4, 0.3


@pytest.fixture(scope="session")
def gaussian_flow() -> Velocity:
    """The velocity of data N(MEAN, SPREAD^2) under x_t = (1 - t) x0 + t eps, bent so that it is not linear in x."""

    def velocity(x: Tensor, time: float | Tensor) -> Tensor:
        t = torch.as_tensor(time, dtype=x.dtype)
        alpha, variance = 1 - t, ((1 - t) * SPREAD) ** 2 + t**2
        off = x - alpha * MEAN
        eps, x0 = t * off / variance, MEAN + alpha * SPREAD**2 * off / variance
        return eps - x0 + 0.1 * torch.sin(3 * x) * t

    return velocity
