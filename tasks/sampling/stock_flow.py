"""The schedules that diffusers' flow schedulers walk, from their configurations (shift, sigmas).

Both call the network at their own sigmas, from t = sigma_0 (1 unless told otherwise) to 0. Their Euler step is the
first-order step here; their Heun step is `heun-flow`'s, with Euler's step to 0.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

from fewstep.errors import ConfigurationError, ModelError
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.presets import intervals, preset

# diffusers' class, our preset.
STOCK = {"FlowMatchEulerDiscreteScheduler": "ddim", "FlowMatchHeunDiscreteScheduler": "heun-flow"}


def is_stock_flow(config: dict[str, Any], method: str) -> bool:
    """Whether a scheduler's configuration names diffusers' flow scheduler of that method, `euler` or `heun`."""
    return {"ddim": "euler", "heun-flow": "heun"}.get(STOCK.get(str(config.get("_class_name")), "")) == method


def stock_schedule(config: dict[str, Any], nfe: int) -> SolverSchedule:
    """The schedule of `nfe` calls that diffusers makes of a flow scheduler's configuration.

    Raises ModelError for other schedulers, ConfigurationError where diffusers refuses the configuration (dynamic
    shifting needs the image's size) or where its method cannot make that number of calls.
    """
    import diffusers

    name = str(config.get("_class_name"))
    if name not in STOCK:
        raise ModelError(f"{name} is not a flow scheduler of diffusers: give one of {', '.join(STOCK)}")
    if config.get("stochastic_sampling"):
        raise ConfigurationError(f"{name} is set to stochastic_sampling: only deterministic sampling is a schedule")
    steps = intervals(STOCK[name], nfe, to_zero=True)
    scheduler = getattr(diffusers, name).from_config(config)
    try:
        scheduler.set_timesteps(steps)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{name} with {steps} steps: diffusers says {error}") from error
    sigmas = [float(sigma) for sigma in scheduler.sigmas.double()]
    # Heun's list holds every sigma but the first and the last twice.
    times = sigmas if STOCK[name] == "ddim" else [*sigmas[:1], *sigmas[1:-1:2], sigmas[-1]]
    if any(a <= b for a, b in itertools.pairwise(times)):
        raise ConfigurationError(f"{name}: its sigmas {times} do not fall: inverted sigmas are not a sampler")
    schedule = preset(STOCK[name], [_lambda(t) for t in times])
    return schedule.model_copy(update={"name": f"{name}@{nfe}"})


def _lambda(t: float) -> float:
    return math.inf if t <= 0 else -math.inf if t >= 1 else math.log1p(-t) - math.log(t)
