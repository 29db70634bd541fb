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

    A sigma is the noise's share of a flow and its ratio to the signal elsewhere, as these tools mean it. `python` runs
    the list in a diffusers pipeline called `pipe`, if it can; some of these take whole timesteps alone (`rounded`).
    """

    sampler: str
    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]
    schedule: SolverSchedule
    python: tuple[str, ...] = ()
    rounded: bool = False


def plain_lists(schedule: SolverSchedule, noise: NoiseSchedule) -> list[Plain]:
    """The calls' times of `schedule` under each sampler; ConfigurationError where they are no falling list."""
    lambdas = called(schedule)
    # What is measured is what is written, and that has a few digits.
    sigmas = tuple(_short(sigma_of(lambda_, noise)) for lambda_ in lambdas)
    times = tuple(_short(noise.time(lambda_)) for lambda_ in lambdas)
    found = []
    for name, (solver, _) in SAMPLERS.items():
        equal = on_times(solver, (*(lambda_of(sigma, noise) for sigma in sigmas), math.inf), schedule, f"{name} list")
        found.append(Plain(name, (*sigmas, 0.0), times, equal, _euler(sigmas, noise) if name == "euler" else ()))
    whole = [round(time) for time in times]
    if isinstance(noise, DiscreteVP) and len(set(whole)) == len(whole):
        rounded = tuple(noise.lambda_at(float(time)) for time in whole)
        equal = on_times("dpmpp-2m", (*rounded, math.inf), schedule, f"dpmpp_2m at {whole}")
        settings = 'algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero", thresholding=False'
        python = (_scheduler("DPMSolverMultistep", settings), f"pipe(..., timesteps={whole})")
        sigmas = tuple(_short(sigma_of(lambda_, noise)) for lambda_ in rounded)
        found.append(Plain("dpmpp_2m", (*sigmas, 0.0), tuple(map(float, whole)), equal, python, rounded=True))
    return found


def _euler(sigmas: tuple[float, ...], noise: NoiseSchedule) -> tuple[str, ...]:
    if isinstance(noise, FlowMatching):
        settings = "shift=1.0, use_dynamic_shifting=False, shift_terminal=None, stochastic_sampling=False"
        return _scheduler("FlowMatchEulerDiscrete", settings), f"pipe(..., sigmas={list(sigmas)})"
    if isinstance(noise, DiscreteVP):
        return _scheduler("EulerDiscrete", 'timestep_type="discrete"'), f"pipe(..., sigmas={[*sigmas, 0.0]})"
    return ()


def _scheduler(name: str, settings: str) -> str:
    grids = "".join(f", use_{kind}_sigmas=False" for kind in ("karras", "exponential", "beta"))
    return f"pipe.scheduler = diffusers.{name}Scheduler.from_config(pipe.scheduler.config, {settings}{grids})"


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


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
    own = render(schedule, REPORT_SEED)

    def distance(plain: Plain) -> float:
        return _distance(own, render(plain.schedule, REPORT_SEED))

    best = min(chosen)[2]
    if rest := [entry for entry in chosen if not entry[2].rounded]:
        best = min(rest)[2]
    runs = [entry for entry in chosen if entry[2].python]
    python = min(runs)[2] if runs else None
    return best, {
        "nfe": schedule.nfe,
        "sampler": best.sampler,
        "a1111": SAMPLERS[best.sampler][1],
        "sigmas": list(best.sigmas),
        "timesteps": list(best.timesteps),
        "guidance": schedule.guidance,
        "distance": distance(best),
        "unrelated": _distance(own, own.roll(1, 0)),
        "diffusers": {"lines": list(python.python), "distance": distance(python)} if python else None,
        "images": images,
        "seed": REPORT_SEED,
    }


def lines(row: Mapping[str, Any]) -> list[str]:
    """What to print of a row: the list to paste, what it costs, and Python for diffusers."""
    sigmas = ", ".join(f"{sigma:g}" for sigma in row["sigmas"])
    loss = row["loss"]["loss"] if "loss" in row else None
    measured = "" if loss is None else f", {row['loss']['metric']} {loss:+.1%}"
    found = [
        f"NFE {row['nfe']}: sampler {row['sampler']} (A1111: {row['a1111']}), sigmas {sigmas}",
        f"  its images are {row['distance']:.4f} from the schedule's (unrelated ones {row['unrelated']:.4f}){measured}",
    ]
    if python := row["diffusers"]:
        found += [f"  in diffusers, {python['distance']:.4f} from them: {'; '.join(python['lines'])}"]
    return found


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).double().square().flatten(1).mean(1).sqrt().mean())
