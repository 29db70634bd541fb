"""The schedule that a model's own diffusers scheduler walks, read off the scheduler itself.

Its times are the scheduler's own (`set_timesteps`), and so is what the network is told, which diffusers rounds here and
there; its formulas are those of the class, in `stock_walks`. What no schedule can say is refused: noise drawn on the
way, x0 clipped without its noise, steps that do not end where the next one begins.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fewstep.errors import ConfigurationError, ScheduleError
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.corrections import LARGEST_SHIFT, Corrections
from fewstep.tasks.models.from_diffusers import from_config
from fewstep.tasks.models.noise_schedule import NoiseSchedule
from fewstep.tasks.models.stock_times import StockTimes
from fewstep.tasks.sampling.stock_walks import WALKS, refuse

# Told times that differ by less are one time.
SAME_TIME = 1e-9
# A step that is shorter in lambda is one to the same place, but for float32's rounding.
NOWHERE = 1e-5


def asked_for(stock: StockTimes, steps: int, nfe: int) -> Any:
    """diffusers' scheduler, its times set, that calls the network `nfe` times in `steps` steps; ConfigurationError."""
    scheduler = stock.asked(steps)
    if (count := len(scheduler.timesteps)) != nfe:
        raise ConfigurationError(f"{stock.name} makes {count} calls where it is asked for {nfe}")
    return scheduler


def stock_schedule(config: Mapping[str, Any], nfe: int, noise: NoiseSchedule | None = None) -> SolverSchedule:
    """The schedule of `nfe` calls that diffusers makes of a scheduler's configuration.

    `noise` is what was read from it, where the model's pipeline gives the scheduler more than a number of steps.
    Raises ModelError for a configuration that is not understood, ConfigurationError where diffusers refuses it, where
    its sampler is no schedule, or where it cannot make that number of calls.
    """
    noise = from_config(config) if noise is None else noise
    assert noise.stock is not None
    name = noise.stock.name
    if name not in WALKS:
        raise ConfigurationError(f"{name} draws noise on its way, or walks in a way that is not known: no schedule")
    walk = WALKS[name](noise.stock.config)
    steps = walk.steps(nfe)
    if steps is None:
        raise ConfigurationError(f"{name} cannot make {nfe} calls: give {walk.possible}")
    scheduler = asked_for(noise.stock, steps, nfe)
    times = [float(t) for t in scheduler.timesteps]
    lambdas = walk.lambdas(scheduler, noise)
    if len(lambdas) > 2 and abs(lambdas[-1] - lambdas[-2]) < NOWHERE:
        raise ConfigurationError(f"{name}: its last call changes nothing, for its last step goes nowhere: no schedule")
    if any(not a < b for a, b in itertools.pairwise(lambdas)):
        raise ConfigurationError(f"{name}: its times {times} do not fall, which is no sampler")
    made = walk.formulas(scheduler, lambdas)
    threshold = walk.threshold(noise.threshold)
    if noise.threshold is not None and threshold != noise.threshold:
        raise refuse(name, "thresholding", "it does not keep x0 in range as other samplers of this model do")
    schedule = SolverSchedule.build(
        lambdas=tuple(lambdas), steps=tuple(made), name=f"{name}@{nfe}", threshold=threshold
    )
    return _told(schedule, times, noise)


def _told(schedule: SolverSchedule, times: Sequence[float], noise: NoiseSchedule) -> SolverSchedule:
    """The schedule, its network told `times` where those are not the times of its lambdas."""
    called = _called(schedule)
    if len(called) != len(times):
        raise ConfigurationError(f"{schedule.name} has {len(times)} timesteps for {len(called)} points: no schedule")
    shifts = []
    for lambda_, time in zip(called, times, strict=True):
        if abs(noise.time(lambda_) - time) <= SAME_TIME * max(1.0, abs(time)):
            shifts.append(0.0)
            continue
        told = noise.lambda_at(time)
        if not (math.isfinite(told) and math.isfinite(lambda_) and abs(told - lambda_) <= LARGEST_SHIFT):
            raise ScheduleError(
                f"{schedule.name} tells the network {time:g}, the time of lambda = {told:.6g}, at {lambda_:.6g}: "
                "no schedule can"
            )
        shifts.append(told - lambda_)
    if not any(shifts):
        return schedule
    return schedule.model_copy(update={"corrections": Corrections(shifts=tuple(shifts))})


def _called(schedule: SolverSchedule) -> list[float]:
    """Lambda at every call, in their order."""
    found: list[float] = []
    for i, step in enumerate(schedule.steps):
        # An implicit corrector calls twice: where its predictor arrives, and where it moves that to.
        found += [schedule.lambdas[i]] * (2 if i and schedule.steps[i - 1].implicit else 1)
        assert step.corrector is None or i + 1 < len(schedule.steps)
    return found


def is_stock_flow(config: Mapping[str, Any], method: str) -> bool:
    """Whether a scheduler's configuration names diffusers' flow scheduler of that method, `euler` or `heun`."""
    named = {"FlowMatchEulerDiscreteScheduler": "euler", "FlowMatchHeunDiscreteScheduler": "heun"}
    return named.get(str(config.get("_class_name"))) == method
