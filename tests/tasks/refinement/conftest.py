"""A closed-form flow, whose told time may be a tensor, and random corrections."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.corrections import Corrections

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


def random_corrections(schedule: SolverSchedule, size: float, seed: int = 0) -> Corrections:
    """Corrections of everything, uniform within `size`."""
    rng, K = np.random.default_rng(seed), schedule.nodes
    rows = [tuple(tuple(rng.uniform(-size, size, k + 1).tolist()) for k in range(K)) for _ in range(2)]
    return Corrections(points=rows[0], outputs=rows[1], shifts=tuple(rng.uniform(-size, size, K).tolist()))


@pytest.fixture(scope="session")
def corrections() -> Callable[..., Corrections]:
    return random_corrections
