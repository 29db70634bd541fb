"""Grids that a model's own diffusers scheduler makes for a number of steps, for any solver to step on.

`own` are its times as its configuration says and its pipeline asks for them. `leading`, `linspace` and `trailing` are
those of its class with that `timestep_spacing` and its own `steps_offset`. They end where the scheduler ends: at
sigma = 0, or at its least noisy time.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

from fewstep.errors import ConfigurationError, ScheduleError
from fewstep.tasks.models.noise_schedule import NoiseSchedule
from fewstep.tasks.models.scheduler_settings import SCORE_SDE, heeds
from fewstep.tasks.sampling.stock_walks import WALKS, Ddim

OWN = "own"
SPACINGS = ("leading", "linspace", "trailing")
STOCK_GRIDS = (OWN, *SPACINGS)
# Settings that say where times are whatever their spacing is.
_OTHER_TIMES = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "interpolation_type": "linear",
}
# Lambdas, and numbers of steps, that are meant to be one.
NEAR = 1e-3
# Steps that are shorter in lambda lead nowhere.
_NOWHERE = 1e-5


def stock_grid(name: str, noise: NoiseSchedule, steps: int) -> tuple[float, ...]:
    """`steps + 1` rising lambdas. ConfigurationError where the model's scheduler has no such times."""
    stock = noise.stock
    if stock is None:
        raise ConfigurationError(f"grid {name!r} is of a model's own scheduler, and there is none here")
    if stock.name in SCORE_SDE or "Inverse" in stock.name:
        raise ConfigurationError(
            f"grid {name!r}: the timesteps of {stock.name} lead from noise to images in no way known"
        )
    settings: dict[str, Any] = {}
    if name in SPACINGS:
        if not heeds(stock.name, "timestep_spacing") or stock.config.get("use_flow_sigmas"):
            raise ConfigurationError(
                f"grid {name!r}: {stock.name} has no timestep_spacing: its own times are grid {OWN!r}"
            )
        settings = {"timestep_spacing": name} | {k: v for k, v in _OTHER_TIMES.items() if k in stock.config}
    try:
        lambdas = _ends(noise, steps, settings)
    except ScheduleError as error:
        raise ConfigurationError(f"grid {name!r} in {steps} steps of {stock.name}: {error}") from None
    if len(lambdas) != steps + 1 or any(not b - a > _NOWHERE for a, b in itertools.pairwise(lambdas)):
        raise ConfigurationError(
            f"grid {name!r}: {stock.name} in {steps} steps does not lead from {steps} falling times to a last one, but "
            f"over lambda = {', '.join(f'{value:.4g}' for value in lambdas)}"
        )
    return tuple(lambdas)


def _ends(noise: NoiseSchedule, steps: int, settings: dict[str, Any]) -> list[float]:
    """Lambdas of the scheduler's times and of its end; where noise begins late, the last of those of more steps.

    So many more as a pipeline of that strength has to be asked for to make `steps` of them.
    """
    stock = noise.stock
    assert stock is not None
    walk, strength = WALKS.get(stock.name, Ddim), getattr(noise, "strength", 1.0)
    if strength == 1:
        return list(walk.ends(stock.asked(steps, **settings), noise))
    begin = noise.lambda_start - NEAR * max(1.0, abs(noise.lambda_start))
    for more in range(steps, math.ceil((steps + 1) / strength) + 1):
        if int(more * strength + NEAR) == steps:
            kept = walk.ends(stock.asked(more, **settings), noise)[-steps - 1 :]
            if kept[0] >= begin:
                return list(kept)
    raise ScheduleError(f"no number of steps leaves {steps} from lambda = {noise.lambda_start:.4g} on")
