"""Grids of lambdas for a given number of steps, on a model's own range.

Each grid has two ends: `NAME` stops at the least noisy trained time, `NAME-zero` calls the denoiser once
more there-abouts and jumps to sigma = 0. Karras: "Elucidating the Design Space" (2206.00364), eq. 5, rho 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fewstep.errors import ConfigurationError
from fewstep.search_spaces.presets import PRESETS, preset
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.models.noise_schedule import NoiseSchedule

RHO = 7.0


def _uniform_t(noise: NoiseSchedule, share: float) -> float:
    return noise.lambda_at(noise.time(noise.lambda_start) * (1 - share))


def _quadratic(noise: NoiseSchedule, share: float) -> float:
    return noise.lambda_at(noise.time(noise.lambda_start) * (1 - share) ** 2)


def _uniform_lambda(noise: NoiseSchedule, share: float) -> float:
    return noise.lambda_start + share * (noise.lambda_end - noise.lambda_start)


def _karras(noise: NoiseSchedule, share: float) -> float:
    first, last = math.exp(-noise.lambda_start / RHO), math.exp(-noise.lambda_end / RHO)
    return -RHO * math.log(first + share * (last - first))


SHAPES: dict[str, Callable[[NoiseSchedule, float], float]] = {
    "uniform-t": _uniform_t,
    "uniform-lambda": _uniform_lambda,
    "quadratic": _quadratic,
    "karras": _karras,
}
GRIDS = (*SHAPES, *(f"{shape}-zero" for shape in SHAPES))
# Uniform and quadratic grids in t reach t = 0 one step after their last call; the other two call there.
_STOPS_SHORT = {"uniform-t", "quadratic"}


def grid(name: str, noise: NoiseSchedule, steps: int) -> tuple[float, ...]:
    """`steps + 1` rising lambdas; ConfigurationError names the valid grids."""
    if name not in GRIDS:
        raise ConfigurationError(f"unknown grid {name!r}: choose one of {', '.join(GRIDS)}")
    shape_name = name.removesuffix("-zero")
    shape = SHAPES[shape_name]
    if not name.endswith("-zero"):
        return tuple(shape(noise, i / steps) for i in range(steps + 1))
    parts = steps if shape_name in _STOPS_SHORT or steps == 1 else steps - 1
    return (*(shape(noise, i / parts) for i in range(steps)), np.inf)


def preset_on_grid(name: str, noise: NoiseSchedule, nfe: int) -> SolverSchedule:
    """The schedule called PRESET/GRID at that many denoiser calls, for example `unipc-2-bh2/karras`."""
    solver, _, where = name.partition("/")
    schedule = preset(solver, grid(where or "uniform-t-zero", noise, nfe))
    return schedule.model_copy(update={"name": name})


def all_presets(noise: NoiseSchedule, nfe: int) -> dict[str, SolverSchedule]:
    """Every preset on every grid, by name."""
    names = [f"{solver}/{where}" for solver in PRESETS for where in GRIDS]
    return {name: preset_on_grid(name, noise, nfe) for name in names}
