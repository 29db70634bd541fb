"""Grids of lambdas for a given number of steps, on a model's own range.

Each shape has two ends: `NAME` stops at the least noisy trained time, `NAME-zero` calls the denoiser once
more there-abouts and jumps to sigma = 0. The second is what diffusers' schedulers make themselves of the flags of that
name: in sigma / alpha, or in t where the model is a flow (`flow_grids`), which starts at t = 1 (lambda = -inf) but on
the grids that are even in lambda. `own`, `leading`, `linspace` and `trailing` are asked of the model's own scheduler
(`stock_grids`). Sources: Karras, "Elucidating the Design Space" (2206.00364), eq. 5, rho 7; beta, "Beta Sampling is All
You Need" (2407.12173); Align Your Steps (2404.14507), its times for Stable Diffusion 1.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from fewstep.errors import ConfigurationError
from fewstep.search_spaces.schedule import SolverSchedule, load_schedule
from fewstep.search_spaces.schedule.presets import SEARCH_PRESETS, intervals, preset
from fewstep.tasks.models.noise_families import EDM, FlowMatching, VarianceExploding
from fewstep.tasks.models.noise_schedule import DiscreteVP, NoiseSchedule
from fewstep.tasks.sampling.flow_grids import BETA_SHAPE, EVEN, RHO, SHAPED, flow_grid
from fewstep.tasks.sampling.late_start import from_the_start
from fewstep.tasks.sampling.stock_grids import OWN, STOCK_GRIDS, stock_grid

# The lambdas of two grids that are one, float32's rounding apart; and a first step no shorter than which is searched.
SAME, SHORTEST = 1e-3, 0.1
AYS_STEPS = 1000
AYS_TIMES = (999, 850, 736, 645, 545, 455, 343, 233, 124, 24)


def _at_time(noise: NoiseSchedule, share: float) -> float:
    """Lambda where that share of the first time is left; of sigma where the model is told no time but sigma."""
    if isinstance(noise, EDM | VarianceExploding):
        last = math.exp(-noise.lambda_end)
        return -math.log(last + share * (math.exp(-noise.lambda_start) - last))
    first, last = noise.time(noise.lambda_start), noise.time(noise.lambda_end)
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
# Equal ratios of sigma / alpha are equal steps of lambda. A flow's are ratios of t.
ALIASES = {"exponential": "uniform-lambda", "exponential-zero": "uniform-lambda-zero"}
GRIDS = (*SHAPES, *(f"{shape}-zero" for shape in SHAPES), *STOCK_GRIDS)
_SEARCHED = ("uniform-t", "uniform-lambda", "quadratic", "karras")
# What a model ships with comes second: solvers are looked at on the first, and small budgets see few grids.
SEARCH_GRIDS = (_SEARCHED[0], OWN, *_SEARCHED[1:], *(f"{shape}-zero" for shape in _SEARCHED))
# Uniform and quadratic grids in t reach t = 0 one step after their last call; the others call there.
_STOPS_SHORT = {"uniform-t", "quadratic"}


def grid(name: str, noise: NoiseSchedule, steps: int) -> tuple[float, ...]:
    """`steps + 1` rising lambdas; ConfigurationError names the valid grids."""
    if name not in GRIDS and name not in ALIASES:
        raise ConfigurationError(f"unknown grid {name!r}: choose one of {', '.join([*GRIDS, *ALIASES])}")
    if name in STOCK_GRIDS:
        return stock_grid(name, noise, steps)
    shape_name = name.removesuffix("-zero")
    if isinstance(noise, FlowMatching) and shape_name in (*SHAPED, *EVEN):
        return flow_grid(name, noise, steps)
    name = ALIASES.get(name, name)
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
    solver, where = _parts(name)
    lambdas = grid(where, noise, _steps(solver, where, noise, nfe))
    return _named(name, preset(solver, lambdas), noise)


def all_presets(noise: NoiseSchedule, nfe: int, grids: tuple[str, ...] = SEARCH_GRIDS) -> dict[str, SolverSchedule]:
    """Every preset that a search starts from, on each of the grids, by name: from finite lambdas, as it searches.

    Left out: grids of the model's own scheduler that are one of the others, or that it does not make.
    """
    found: dict[str, tuple[float, ...]] = {}
    for where in grids:
        try:
            found[where] = grid(where, noise, nfe)
        except ConfigurationError:
            if where not in STOCK_GRIDS or len(grids) == 1:
                raise
    shapes = [lambdas for where, lambdas in found.items() if where not in STOCK_GRIDS]
    kept = {w: v for w, v in found.items() if w not in STOCK_GRIDS or not any(_is_same(v, other) for other in shapes)}
    names = [(f"{solver}/{where}", lambdas) for solver in SEARCH_PRESETS for where, lambdas in kept.items()]
    return {name: _searched(name, lambdas, noise) for name, lambdas in names}


def _parts(name: str) -> tuple[str, str]:
    solver, _, where = name.partition("/")
    return solver, where or "uniform-t-zero"


def _steps(solver: str, where: str, noise: NoiseSchedule, nfe: int) -> int:
    # Where the model's own scheduler ends, only its times tell.
    to_zero = math.isinf(grid(where, noise, nfe)[-1]) if where in STOCK_GRIDS else where.endswith("-zero")
    return intervals(solver, nfe, to_zero)


def _searched(name: str, lambdas: Sequence[float], noise: NoiseSchedule) -> SolverSchedule:
    """From the model's own start where the grid starts noisier, as at a flow's t = 1."""
    first = lambdas[0]
    if first < noise.lambda_start:
        first = min(noise.lambda_start, lambdas[1] - SHORTEST)
    return _named(name, preset(_parts(name)[0], (first, *lambdas[1:])), noise)


def _named(name: str, schedule: SolverSchedule, noise: NoiseSchedule) -> SolverSchedule:
    if _parts(name)[1] in STOCK_GRIDS:
        schedule = from_the_start(schedule, noise)
    return schedule.model_copy(update={"name": name})


def _is_same(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and all(a == b or abs(a - b) < SAME for a, b in zip(one, other, strict=True))


def parse_schedule(text: str, noise: NoiseSchedule) -> SolverSchedule:
    """`PRESET/GRID@CALLS` on a model's noise, or the path of a schedule's JSON file."""
    name, at, calls = text.partition("@")
    if not at:
        return load_schedule(text)
    if not calls.isdecimal() or not 1 <= int(calls) <= 200:
        raise ConfigurationError(f"schedule {text!r}: write PRESET/GRID@CALLS with 1 to 200 calls")
    return preset_on_grid(name, noise, int(calls))
