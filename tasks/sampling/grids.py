"""Grids of lambdas for a given number of steps, on a model's own range.

Each grid has two ends: `NAME` stops at the least noisy trained time, `NAME-zero` calls the denoiser once
more there-abouts and jumps to sigma = 0. Sources: Karras, "Elucidating the Design Space" (2206.00364), eq. 5,
rho 7; beta, "Beta Sampling is All You Need" (2407.12173); Align Your Steps (2404.14507), its times for Stable
Diffusion 1.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fewstep.errors import ConfigurationError
from fewstep.search_spaces.schedule import SolverSchedule, load_schedule
from fewstep.search_spaces.schedule.presets import SEARCH_PRESETS, intervals, preset
from fewstep.tasks.models.noise_families import EDM, FlowMatching, VarianceExploding
from fewstep.tasks.models.noise_schedule import DiscreteVP, NoiseSchedule

RHO = 7.0
BETA_SHAPE = 0.6
AYS_STEPS = 1000
AYS_TIMES = (999, 850, 736, 645, 545, 455, 343, 233, 124, 24)


def _at_time(noise: NoiseSchedule, share: float) -> float:
    """Lambda where that share of the first time is left; of sigma where the model is told no time but sigma.

    A flow's time is meant before its shift.
    """
    if isinstance(noise, EDM | VarianceExploding):
        last = math.exp(-noise.lambda_end)
        return -math.log(last + share * (math.exp(-noise.lambda_start) - last))
    first, last = noise.time(noise.lambda_start), noise.time(noise.lambda_end)
    if isinstance(noise, FlowMatching):
        first, last = noise.unshifted(first), noise.unshifted(last)
        return noise.lambda_at(noise.shifted(last + share * (first - last)))
    return noise.lambda_at(last + share * (first - last))


def _uniform_t(noise: NoiseSchedule, share: float) -> float:
    return _at_time(noise, 1 - share)


def _quadratic(noise: NoiseSchedule, share: float) -> float:
    return _at_time(noise, (1 - share) ** 2)


def _uniform_lambda(noise: NoiseSchedule, share: float) -> float:
    return noise.lambda_start + share * (noise.lambda_end - noise.lambda_start)


def _karras(noise: NoiseSchedule, share: float) -> float:
    first, last = math.exp(-noise.lambda_start / RHO), math.exp(-noise.lambda_end / RHO)
    return -RHO * math.log(first + share * (last - first))


def _beta(noise: NoiseSchedule, share: float) -> float:
    from scipy.stats import beta  # takes a second, and the settings import the grids' names

    first, last = math.exp(-noise.lambda_start), math.exp(-noise.lambda_end)
    return -math.log(last + float(beta.ppf(1 - share, BETA_SHAPE, BETA_SHAPE)) * (first - last))


def _align_your_steps(noise: NoiseSchedule, share: float, times: tuple[int, ...] = AYS_TIMES) -> float:
    if not isinstance(noise, DiscreteVP) or round(noise.time(noise.lambda_start)) != AYS_STEPS - 1:
        raise ConfigurationError(
            f"grid 'ays-sd' is a list of times for Stable Diffusion: it needs a model with {AYS_STEPS} discrete times"
        )
    lambdas = [noise.lambda_at(float(t)) for t in times]
    return float(np.interp(share, np.linspace(0, 1, len(lambdas)), lambdas))


def _align_to_the_end(noise: NoiseSchedule, share: float) -> float:
    return _align_your_steps(noise, share, (*AYS_TIMES, 0))


SHAPES: dict[str, Callable[[NoiseSchedule, float], float]] = {
    "uniform-t": _uniform_t,
    "uniform-lambda": _uniform_lambda,
    "quadratic": _quadratic,
    "karras": _karras,
    "beta": _beta,
    "ays-sd": _align_your_steps,
}
# Equal ratios of sigma / alpha are equal steps of lambda.
ALIASES = {"exponential": "uniform-lambda", "exponential-zero": "uniform-lambda-zero"}
GRIDS = (*SHAPES, *(f"{shape}-zero" for shape in SHAPES))
_SEARCHED = ("uniform-t", "uniform-lambda", "quadratic", "karras")
SEARCH_GRIDS = (*_SEARCHED, *(f"{shape}-zero" for shape in _SEARCHED))
# Uniform and quadratic grids in t reach t = 0 one step after their last call; the others call there.
_STOPS_SHORT = {"uniform-t", "quadratic"}


def grid(name: str, noise: NoiseSchedule, steps: int) -> tuple[float, ...]:
    """`steps + 1` rising lambdas; ConfigurationError names the valid grids."""
    name = ALIASES.get(name, name)
    if name not in GRIDS:
        raise ConfigurationError(f"unknown grid {name!r}: choose one of {', '.join([*GRIDS, *ALIASES])}")
    shape_name = name.removesuffix("-zero")
    shape = _align_to_the_end if name == "ays-sd" else SHAPES[shape_name]
    if not name.endswith("-zero"):
        return tuple(shape(noise, i / steps) for i in range(steps + 1))
    parts = steps if shape_name in _STOPS_SHORT or steps == 1 else steps - 1
    return (*(shape(noise, i / parts) for i in range(steps)), np.inf)


def preset_on_grid(name: str, noise: NoiseSchedule, nfe: int) -> SolverSchedule:
    """The schedule called PRESET/GRID at that many denoiser calls, for example `unipc-2-bh2/karras`.

    Raises ConfigurationError for unknown names, and where the preset cannot make exactly `nfe` calls.
    """
    solver, _, where = name.partition("/")
    where = where or "uniform-t-zero"
    steps = intervals(solver, nfe, where.endswith("-zero"))
    schedule = preset(solver, grid(where, noise, steps))
    return schedule.model_copy(update={"name": name})


def all_presets(noise: NoiseSchedule, nfe: int, grids: tuple[str, ...] = SEARCH_GRIDS) -> dict[str, SolverSchedule]:
    """Every preset that a search starts from, on each of the grids, by name."""
    names = [f"{solver}/{where}" for solver in SEARCH_PRESETS for where in grids]
    return {name: preset_on_grid(name, noise, nfe) for name in names}


def parse_schedule(text: str, noise: NoiseSchedule) -> SolverSchedule:
    """`PRESET/GRID@CALLS` on a model's noise, or the path of a schedule's JSON file."""
    name, at, calls = text.partition("@")
    if not at:
        return load_schedule(text)
    if not calls.isdecimal() or not 1 <= int(calls) <= 200:
        raise ConfigurationError(f"schedule {text!r}: write PRESET/GRID@CALLS with 1 to 200 calls")
    return preset_on_grid(name, noise, int(calls))
