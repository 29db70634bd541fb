"""Schedules that take pure noise for a point that is hardly noise any more, as diffusers' leading spacing does."""

from __future__ import annotations

from fewstep.search_spaces.schedule import SolverSchedule, Step
from fewstep.search_spaces.schedule.corrections import Corrections
from fewstep.tasks.models.noise_schedule import DiscreteVP, NoiseSchedule
from fewstep.tasks.sampling.compile import START_RANGE


def from_the_start(schedule: SolverSchedule, noise: NoiseSchedule) -> SolverSchedule:
    """The same where the model's noise begins, with a first step without a call, which leaves the noise as it is.

    As it was for a schedule that begins in time, and for models whose noise is not of variance 1 all along.
    """
    start, first = noise.lambda_start, schedule.lambdas[0]
    if not isinstance(noise, DiscreteVP) or first <= start + START_RANGE:
        return schedule
    fields = dict(schedule) | {
        "lambdas": (start, *schedule.lambdas),
        "steps": (Step(), *schedule.steps),
        "first_call": "zero_x0",
        "corrections": None,
    }
    longer = SolverSchedule.build(**fields)
    # What the analytic step from x makes: alpha x0 + sigma eps with eps = x, x0 = (1 - sigma_start) x / alpha_start.
    (a, s), (alpha, sigma) = noise.alpha_sigma(start), noise.alpha_sigma(first)
    kept = alpha * (1 - s) / a + sigma
    told = schedule.corrections.shifts if schedule.corrections else ()
    points = ((1.0 - kept,), *((0.0,) * (k + 1) for k in range(1, longer.nodes)))
    return SolverSchedule.build(
        **fields | {"corrections": Corrections(points=points, shifts=(0.0, *told) if told else ())}
    )
