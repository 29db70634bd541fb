"""Schedules that take pure noise for a point that is hardly noise any more, as diffusers' leading spacing does."""

from __future__ import annotations

import math

from fewstep.search_spaces.schedule import SolverSchedule, Step
from fewstep.search_spaces.schedule.corrections import Corrections
from fewstep.tasks.models.noise_families import FlowMatching
from fewstep.tasks.models.noise_schedule import DiscreteVP, NoiseSchedule
from fewstep.tasks.sampling.compile import START_RANGE


def from_the_start(schedule: SolverSchedule, noise: NoiseSchedule, left_out: float = math.inf) -> SolverSchedule:
    """The same where the model's noise begins, with a first step without a call, which leaves the noise as it is.

    As it was for a schedule that begins in time, and for models whose noise only grows. A flow's begins at t = 1; so
    much of it as `left_out` may be missing, or what a schedule that begins in time lacks.
    """
    first = schedule.lambdas[0]
    alpha, sigma = noise.alpha_sigma(first)
    late = first > noise.lambda_start + START_RANGE
    if isinstance(noise, DiscreteVP) and late:
        start = noise.lambda_start
        a, s = noise.alpha_sigma(start)
        # What the analytic step from x makes: alpha x0 + sigma eps with eps = x, x0 = (1 - s) x / a.
        kept = alpha * (1 - s) / a + sigma
    elif isinstance(noise, FlowMatching) and (late or 1 - sigma > left_out):
        # There eps = x, and x0 is none of it.
        start, kept = -math.inf, sigma
    else:
        return schedule
    fields = dict(schedule) | {
        "lambdas": (start, *schedule.lambdas),
        "steps": (Step(), *schedule.steps),
        "first_call": "zero_x0",
        "corrections": None,
    }
    longer = SolverSchedule.build(**fields)
    told = schedule.corrections.shifts if schedule.corrections else ()
    # Corrections count in units of the radius of the point that they add to.
    points = (((1.0 - kept) / math.hypot(alpha, sigma),), *((0.0,) * (k + 1) for k in range(1, longer.nodes)))
    shifts = (0.0, *told) if told else ()
    return SolverSchedule.build(**fields | {"corrections": Corrections(points=points, shifts=shifts)})
