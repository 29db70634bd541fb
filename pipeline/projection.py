"""The stock diffusers scheduler nearest to a found schedule: the same times, rounded, under a stock solver."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.pipeline.campaign import evaluate
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.presets import preset
from fewstep.search_spaces.schedule.restart import nodes
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.models.noise_schedule import DiscreteVP
from fewstep.tasks.work import Subject

# Presets that are DPMSolverMultistepScheduler with custom timesteps, by its solver_order.
SOLVERS = {1: "ddim", 2: "dpmpp-2m", 3: "dpmpp-3m"}

SELECTION_SEED, REPORT_SEED = 0, 1_000_003
SELECTION_IMAGES = 2000
ONE_CALL = "stock schedulers call the network once at each of a falling list of"


@dataclass(frozen=True)
class Projection:
    """A stock scheduler's class and configuration, the `timesteps` to call it with, and the same as a schedule."""

    scheduler: str
    config: dict[str, Any]
    timesteps: tuple[int, ...]
    schedule: SolverSchedule


def called(schedule: SolverSchedule) -> tuple[float, ...]:
    """Lambda at every call; ConfigurationError where they do not rise, as those of stock schedulers do."""
    points = [node.lambda_ for node in nodes(schedule)]
    lambdas = tuple(points if schedule.first_call == "model" else points[1:])
    if any(not a < b for a, b in itertools.pairwise(lambdas)):
        raise ConfigurationError(f"schedule {schedule.name or schedule.hash} has no projection: {ONE_CALL} times")
    return lambdas


def on_times(solver: str, lambdas: Sequence[float], schedule: SolverSchedule, name: str) -> SolverSchedule:
    """A preset on the times that are left of `schedule`, guided as that is."""
    return preset(solver, lambdas).model_copy(update={"name": name, "guidance": schedule.guidance})


def projections(schedule: SolverSchedule, files: ModelFiles) -> list[Projection]:
    """Stock schedulers at the calls' times of `schedule`, as they are and with the model's first time in front.

    Raises ConfigurationError for models whose stock schedulers take no timesteps, and for schedules whose calls
    are no falling sequence of times.
    """
    noise = files.noise
    if not isinstance(noise, DiscreteVP):
        raise ConfigurationError(
            f"{files.name}: a projection onto stock schedulers needs a variance-preserving model with discrete "
            "timesteps; use the exported FewStepScheduler"
        )
    own = tuple(round(noise.time(lambda_)) for lambda_ in called(schedule))
    if len(set(own)) < len(own):
        raise ConfigurationError(f"schedule {schedule.name or schedule.hash} has no projection: {ONE_CALL} whole times")
    start = round(noise.time(noise.lambda_start))
    found = []
    for timesteps in dict.fromkeys((own, (start, *own[1:]))):
        lambdas = (*(noise.lambda_at(float(t)) for t in timesteps), math.inf)
        for order, solver in SOLVERS.items():
            config = {
                "algorithm_type": "dpmsolver++",
                "solver_order": order,
                "final_sigmas_type": "zero",
                "use_karras_sigmas": False,
                "thresholding": False,
            }
            equal = on_times(solver, lambdas, schedule, f"{solver} at {list(timesteps)}")
            found.append(Projection("DPMSolverMultistepScheduler", config, timesteps, equal))
    return found


def measured_projection(
    schedule: SolverSchedule, subject: Subject, images: int, root: Path, execution: ExecutionSettings
) -> dict[str, Any]:
    """The projection that is best on the selection noise; Frechet distances, with intervals, on the report noise.

    `loss` is how much larger the stock scheduler's distance is, as a share. Measurements are kept in `root`.
    """
    selected: list[tuple[float, int, Projection]] = []
    for option in projections(schedule, subject.files):
        try:
            (record,) = evaluate(
                subject, [option.schedule], min(images, SELECTION_IMAGES), SELECTION_SEED, root, execution
            )
        except EvaluationError:
            # A first time that pure noise is too far from: no candidate.
            continue
        selected.append((record.value or 0.0, len(selected), option))
    if not selected:
        raise ConfigurationError(f"schedule {schedule.name or schedule.hash}: none of its projections can be sampled")
    best = min(selected)[2]
    return {
        "nfe": schedule.nfe,
        "scheduler": best.scheduler,
        "config": best.config,
        "timesteps": list(best.timesteps),
        **measured_loss(schedule, best.schedule, subject, images, root, execution),
    }


def measured_loss(
    schedule: SolverSchedule,
    stock: SolverSchedule,
    subject: Subject,
    images: int,
    root: Path,
    execution: ExecutionSettings,
) -> dict[str, Any]:
    """Frechet distances of a schedule and of what stands in its place, on the report noise, and the loss as a share."""
    own, other = evaluate(subject, [schedule, stock], images, REPORT_SEED, root, execution)
    assert own.value is not None
    assert other.value is not None
    return {
        "metric": own.features,
        "fewstep": {"value": own.value, "low": own.low, "high": own.high},
        "stock": {"value": other.value, "low": other.low, "high": other.high},
        "loss": other.value / own.value - 1.0,
        "images": images,
        "seed": REPORT_SEED,
    }
