"""How a model's own scheduler, as its pipeline ships it, is shown beside other samplers at a number of calls.

Most can be read as schedules (`stock`). Of one that cannot, because it draws noise on its way or clips x0 as no
schedule does, first-order deterministic steps on its timesteps are shown instead, and the reason is told.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fewstep.errors import ConfigurationError, ModelError, ScheduleError
from fewstep.search_spaces.schedule import SolverSchedule, Step, Threshold
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.models.scheduler_settings import SCORE_SDE
from fewstep.tasks.models.stock_times import StockTimes
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.late_start import from_the_start
from fewstep.tasks.sampling.stock import asked_for, stock_schedule
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
        stock = files.noise.stock
        assert stock is not None
    except ModelError as error:
        return OwnScheduler(str(files.scheduler_config.get("_class_name")), None, str(error))
    name = stock.name
    try:
        return OwnScheduler(name, _fitting(stock_schedule(files.scheduler_config, nfe, files.noise), files))
    except UNREADABLE as error:
        reason = _reason(name, error)
    try:
        shown = _fitting(_ddim(stock, files, nfe), files)
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


def _ddim(stock: StockTimes, files: ModelFiles, nfe: int) -> SolverSchedule:
    """First-order steps from each of a scheduler's timesteps to the next, the noise following where x0 is clipped."""
    name, config = stock.name, stock.config
    if name in SCORE_SDE or _INVERSE in name:
        raise ConfigurationError(f"the timesteps of {name} are not what its network is told from noise to images")
    times = [float(t) for t in asked_for(stock, nfe, nfe).timesteps]
    clips = config.get("clip_sample")
    return SolverSchedule.build(
        lambdas=(*(files.noise.lambda_at(t) for t in times), math.inf),
        steps=(Step(),) * nfe,
        name=f"{name} by DDIM@{nfe}",
        threshold=Threshold(kind="static", limit=config.get("clip_sample_range", 1.0)) if clips else None,
    )


def _fitting(schedule: SolverSchedule, files: ModelFiles) -> SolverSchedule:
    """The same where the model's noise begins; ScheduleError where it does not fit the model."""
    schedule = from_the_start(schedule, files.noise)
    compile_schedule(schedule, files.noise, files.prediction_type)
    return schedule
