"""The stock diffusers scheduler nearest to a found schedule: the same times, rounded, under a stock solver."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.pipeline.campaign import evaluate
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.presets import preset
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.models.noise_schedule import DiscreteVP
from fewstep.tasks.work import Subject

# Presets that are DPMSolverMultistepScheduler with custom timesteps, by its solver_order.
SOLVERS = {1: "ddim", 2: "dpmpp-2m", 3: "dpmpp-3m"}

SELECTION_SEED, REPORT_SEED = 0, 1_000_003
SELECTION_IMAGES = 2000


@dataclass(frozen=True)
class Projection:
    """A stock scheduler's class and configuration, the `timesteps` to call it with, and the same as a schedule."""

    scheduler: str
    config: dict[str, Any]
    timesteps: tuple[int, ...]
    schedule: SolverSchedule


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
    called = schedule.lambdas[:-1] if schedule.first_call == "model" else schedule.lambdas[1:-1]
    own = tuple(round(noise.time(lambda_)) for lambda_ in called)
    if len(set(own)) < len(own) or schedule.nfe != len(own):
        raise ConfigurationError(
            f"schedule {schedule.name or schedule.hash} has no projection: stock schedulers call the network once at "
            "each of a falling list of whole timesteps"
        )
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
            equal = preset(solver, lambdas).model_copy(update={"name": f"{solver} at {list(timesteps)}"})
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
    own, stock = evaluate(subject, [schedule, best.schedule], images, REPORT_SEED, root, execution)
    assert own.value is not None
    assert stock.value is not None
    return {
        "nfe": schedule.nfe,
        "scheduler": best.scheduler,
        "config": best.config,
        "timesteps": list(best.timesteps),
        "metric": own.features,
        "fewstep": {"value": own.value, "low": own.low, "high": own.high},
        "stock": {"value": stock.value, "low": stock.low, "high": stock.high},
        "loss": stock.value / own.value - 1.0,
        "images": images,
        "seed": REPORT_SEED,
    }
