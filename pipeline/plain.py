"""Found schedules as plain lists of sigmas and timesteps, for tools that take no schedule, and what that costs.

Such a tool calls the network at a list of noise levels under one of its own samplers. Of a schedule only its times
survive; its orders, formulas and corrections do not. How far the images move by that is measured: by their distance
from those of the schedule, from the same noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewstep.errors import ConfigurationError, FewstepError
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.projection import REPORT_SEED, SELECTION_SEED, called, on_times
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.models.noise_families import FlowMatching
from fewstep.tasks.models.noise_schedule import DiscreteVP, NoiseSchedule
from fewstep.tasks.sampling.stock_walks import lambda_of
from fewstep.tasks.sampling.walk import sigma_of
from fewstep.tasks.work import Subject, WorkerSettings

if TYPE_CHECKING:
    from torch import Tensor

# Samplers that ComfyUI and k-diffusion have by these names (A1111 by those behind), and which presets they are.
SAMPLERS = {"euler": ("ddim", "Euler"), "dpmpp_2m": ("dpmpp-2m", "DPM++ 2M")}
IMAGES = 32
DIGITS = 6


@dataclass(frozen=True)
class Plain:
    """A list of `sigmas`, ending in zero, under one of SAMPLERS, and the same as a schedule.

    A sigma is the noise's share of a flow and its ratio to the signal elsewhere, as these tools mean it.
    """

    sampler: str
    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]
    schedule: SolverSchedule


def plain_lists(schedule: SolverSchedule, noise: NoiseSchedule) -> list[Plain]:
    """The calls' times of `schedule` under each sampler; ConfigurationError where they are no falling list."""
    lambdas = called(schedule)
    # They are written with a few digits, and what is measured is what is written.
    sigmas = [float(f"{sigma_of(lambda_, noise):.{DIGITS}g}") for lambda_ in lambdas]
    written = (*(lambda_of(sigma, noise) for sigma in sigmas), math.inf)
    times = tuple(float(f"{noise.time(lambda_):.{DIGITS}g}") for lambda_ in lambdas)
    return [
        Plain(name, (*sigmas, 0.0), times, on_times(solver, written, schedule, f"{name} on its times"))
        for name, (solver, _) in SAMPLERS.items()
    ]


def diffusers_lines(plain: Plain, noise: NoiseSchedule) -> list[str]:
    """Python that runs the list in a diffusers pipeline called `pipe`; none where diffusers' class takes no list."""
    if plain.sampler == "euler" and isinstance(noise, FlowMatching):
        return [
            "pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config, shift=1.0, "
            "use_dynamic_shifting=False, shift_terminal=None, use_karras_sigmas=False, use_exponential_sigmas=False, "
            "use_beta_sigmas=False)",
            f"pipe(..., sigmas={list(plain.sigmas[:-1])})",
        ]
    if plain.sampler == "euler" and isinstance(noise, DiscreteVP):
        return [
            "pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config, "
            "use_karras_sigmas=False, use_exponential_sigmas=False, use_beta_sigmas=False)",
            f"pipe(..., sigmas={list(plain.sigmas)})",
        ]
    return []


def measured_plain(
    schedule: SolverSchedule, subject: Subject, execution: ExecutionSettings, images: int = IMAGES
) -> tuple[Plain, dict[str, Any]]:
    """The plain list whose images come nearest to those of `schedule`; and as JSON, with how near they come.

    Distances are root mean squares of pixels in [-1, 1], a mean over the images: `unrelated` is that between images of
    different noise. The list is chosen on one noise and measured on another. ConfigurationError where there is none.
    """
    from fewstep.tasks.worker import Worker

    worker = Worker(WorkerSettings(subject, execution.device))

    def render(of: SolverSchedule, seed: int) -> Tensor:
        return worker.render(of.to_json(), seed, 0, images)

    noise = worker.files.noise
    own, chosen, reasons = render(schedule, SELECTION_SEED), list[tuple[float, int, Plain]](), list[str]()
    for i, option in enumerate(plain_lists(schedule, noise)):
        try:
            chosen.append((_distance(own, render(option.schedule, SELECTION_SEED)), i, option))
        except FewstepError as error:
            reasons.append(f"{option.sampler}: {error}")
    if not chosen:
        raise ConfigurationError(f"schedule {schedule.name or schedule.hash} has no plain list: {'; '.join(reasons)}")
    best = min(chosen)[2]
    own = render(schedule, REPORT_SEED)
    return best, {
        "nfe": schedule.nfe,
        "sampler": best.sampler,
        "a1111": SAMPLERS[best.sampler][1],
        "sigmas": list(best.sigmas),
        "timesteps": list(best.timesteps),
        "guidance": schedule.guidance,
        "diffusers": diffusers_lines(best, noise),
        "distance": _distance(own, render(best.schedule, REPORT_SEED)),
        "unrelated": _distance(own, own.roll(1, 0)),
        "images": images,
        "seed": REPORT_SEED,
    }


def lines(row: Mapping[str, Any]) -> list[str]:
    """What to print of a row: the list to paste, what it costs, and Python for diffusers."""
    sigmas = ", ".join(f"{sigma:g}" for sigma in row["sigmas"])
    loss = row["loss"]["loss"] if "loss" in row else None
    measured = "" if loss is None else f", {row['loss']['metric']} {loss:+.1%}"
    return [
        f"NFE {row['nfe']}: sampler {row['sampler']} (A1111: {row['a1111']}), sigmas {sigmas}",
        f"  its images are {row['distance']:.4f} from the schedule's (unrelated ones {row['unrelated']:.4f}){measured}",
        *(f"  {line}" for line in row["diffusers"]),
    ]


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).double().square().flatten(1).mean(1).sqrt().mean())
