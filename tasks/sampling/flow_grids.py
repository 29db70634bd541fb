"""Grids of a flow model: shapes in its time t, as diffusers' flow schedulers make them; t falls from 1.

`NAME-zero` are the times of the calls of FlowMatchEulerDiscreteScheduler, and 0. `uniform-t-zero` bends the times
1, 1 - 1/n, .. 1/n that pipelines give it (FLUX and most others); karras, exponential and beta lie between 1 and what it
makes of its smallest sigma, as with `use_karras_sigmas` and its like. `NAME` are as many steps of the same shape, from
1 to the least noisy trained time. Shapes (n + 1,), sources: see `grids`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from fewstep.tasks.models.noise_families import FlowMatching

RHO = 7.0
BETA_SHAPE = 0.6


def _karras(first: float, last: float, share: float) -> float:
    a, b = first ** (1 / RHO), last ** (1 / RHO)
    return float((a + share * (b - a)) ** RHO)


def _exponential(first: float, last: float, share: float) -> float:
    return float(first * (last / first) ** share)


def _beta(first: float, last: float, share: float) -> float:
    from scipy.stats import beta  # takes a second, and the settings import the grids' names

    return last + float(beta.ppf(1 - share, BETA_SHAPE, BETA_SHAPE)) * (first - last)


SHAPED: dict[str, Callable[[float, float, float], float]] = {
    "karras": _karras,
    "exponential": _exponential,
    "beta": _beta,
}
# The power of the share that is left, before the shift.
EVEN = {"uniform-t": 1, "quadratic": 2}


def flow_grid(name: str, noise: FlowMatching, steps: int) -> tuple[float, ...]:
    """`steps + 1` rising lambdas of a grid of SHAPED or EVEN, -inf at t = 1."""
    shape = name.removesuffix("-zero")
    first, last = noise.shaped_ends
    if not name.endswith("-zero"):
        last = noise.time(noise.lambda_end) / noise.scale
        if shape in SHAPED:
            times = [SHAPED[shape](first, last, i / steps) for i in range(steps + 1)]
        else:
            a, b = noise.unshifted(first * noise.scale), noise.unshifted(last * noise.scale)
            times = [
                noise.shifted(b + (1 - i / steps) ** EVEN[shape] * (a - b)) / noise.scale for i in range(steps + 1)
            ]
        return tuple(_lambda(t) for t in times)
    if shape in SHAPED:
        times = [SHAPED[shape](first, last, i / max(steps - 1, 1)) for i in range(steps)]
    else:
        start = noise.unshifted(first * noise.scale) / noise.scale
        times = noise.bent([start * (1 - i / steps) ** EVEN[shape] for i in range(steps)])
    return (*(_lambda(t) for t in times), math.inf)


def _lambda(t: float) -> float:
    return -math.inf if t >= 1 else math.log1p(-t) - math.log(t)
