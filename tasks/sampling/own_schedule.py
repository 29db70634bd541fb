"""How a model's own scheduler, as its pipeline ships it, is shown beside other samplers at a number of calls.

Most can be read as schedules (`stock`). Of one that cannot, because it draws noise on its way or clips x0 as no
schedule does, first-order deterministic steps on its timesteps are shown instead, and the reason is told.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fewstep.errors import ConfigurationError, ModelError, ScheduleError
from fewstep.search_spaces.schedule import SolverSchedule, Step, Threshold
from fewstep.search_spaces.schedule.corrections import Corrections
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.models.noise_schedule import DiscreteVP
from fewstep.tasks.models.scheduler_settings import SCORE_SDE, build_scheduler
from fewstep.tasks.sampling.compile import START_RANGE, compile_schedule
from fewstep.tasks.sampling.stock import stock_schedule, told_times
from fewstep.tasks.sampling.stock_walks import WALKS

UNREADABLE = (ConfigurationError, ModelError, ScheduleError)
# In the names of those that walk from images to noise.
_INVERSE = "Inverse"


@dataclass(frozen=True)
class OwnScheduler:
    """The class, or what is shown in its place, as `name`; `schedule` is None where nothing can, `note` says why."""

    name: str
    schedule: SolverSchedule | None
    note: str = ""


def own_schedule(files: ModelFiles, nfe: int) -> OwnScheduler:
    """What a model's own scheduler does in `nfe` calls. Nothing is raised: what cannot be shown is told."""
    try:
        scheduler = build_scheduler(files.scheduler_config)
    except ModelError as error:
        return OwnScheduler(str(files.scheduler_config.get("_class_name")), None, str(error))
    name = type(scheduler).__name__
    try:
        return OwnScheduler(name, _from_the_start(stock_schedule(files.scheduler_config, nfe), files))
    except UNREADABLE as error:
        reason = _reason(name, error)
    try:
        shown = _from_the_start(_ddim(scheduler, files, nfe), files)
    except UNREADABLE:
        return OwnScheduler(name, None, reason)
    following = ", the noise following the clipped x0," if shown.threshold or files.noise.threshold else ""
    return OwnScheduler(f"{name} by DDIM", shown, f"{reason}; DDIM on its timesteps{following} is shown instead")


def _reason(name: str, error: Exception) -> str:
    if name in WALKS:
        return str(error)
    if _INVERSE in name:
        return f"{name} walks from images to noise: it is no sampler"
    return f"{name} is stochastic: its own sampling is no schedule"


def _ddim(scheduler: Any, files: ModelFiles, nfe: int) -> SolverSchedule:
    """First-order steps from each of a scheduler's timesteps to the next, the noise following where x0 is clipped."""
    name, config = type(scheduler).__name__, scheduler.config
    if name in SCORE_SDE or _INVERSE in name:
        raise ConfigurationError(f"the timesteps of {name} are not what its network is told from noise to images")
    times = told_times(scheduler, nfe, nfe)
    clips = config.get("clip_sample")
    return SolverSchedule.build(
        lambdas=(*(files.noise.lambda_at(t) for t in times), math.inf),
        steps=(Step(),) * nfe,
        name=f"{name} by DDIM@{nfe}",
        threshold=Threshold(kind="static", limit=config.get("clip_sample_range", 1.0)) if clips else None,
    )


def _from_the_start(schedule: SolverSchedule, files: ModelFiles) -> SolverSchedule:
    """The same where the model's noise begins; ScheduleError where it does not fit the model.

    With few steps, diffusers' leading spacing takes pure noise for a point that is hardly noise any more. A schedule
    says that by a first step without a call, which leaves the noise as it is.
    """
    noise, output = files.noise, files.prediction_type
    if isinstance(noise, DiscreteVP) and schedule.lambdas[0] > noise.lambda_start + START_RANGE:
        fields = dict(schedule) | {
            "lambdas": (noise.lambda_start, *schedule.lambdas),
            "steps": (Step(), *schedule.steps),
            "first_call": "zero_x0",
            "corrections": None,
        }
        longer = SolverSchedule.build(**fields)
        kept = float(compile_schedule(longer, noise, output).P[0, 0])
        rows = tuple((0.0,) * (k + 1) for k in range(1, longer.nodes))
        told = schedule.corrections.shifts if schedule.corrections else ()
        shifts = (0.0, *told) if told else ()
        schedule = SolverSchedule.build(
            **fields | {"corrections": Corrections(points=((1.0 - kept,), *rows), shifts=shifts)}
        )
    compile_schedule(schedule, noise, output)
    return schedule
