"""The critical step by the radius of the shell that latents live on.

BoundaryDiffusion ties the step to the mixing of the chain and observes that inverted latents lie inside the shell of
sampled ones; its program never looks for the step. The criteria here are this project's own. Radii are mean norms of
z over sqrt(D (alpha^2 + sigma^2)), so that pure noise has 1:

    shell   the cleanest step from which on, towards noise, the sampled radius stays within `tolerance` of that at the
            noisiest step: there the chain has mixed, as far as the radius tells
    peak    the step at which inverted latents lie deepest inside the shell of the sampled ones
    gap     the noisiest step from which on, towards clean, |r_sampled - r_inverted| stays within `tolerance`

A fourth looks at the attribute instead, by `readable_step`:

    readable  the noisiest step at which the boundary is as good as anywhere, up to one standard error

Why: an edit wants all the freedom that noise gives, but no more noise than that, for noise costs identity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.tasks.models.noise_schedule import NoiseSchedule

Criterion = Literal["shell", "peak", "gap"]
CRITERIA: tuple[Criterion, ...] = ("shell", "peak", "gap")
TOLERANCE = 0.01


@dataclass(frozen=True)
class Radius:
    """Radii of sampled and of inverted latents at one step."""

    step: float
    time: float
    sampled: float
    inverted: float

    @property
    def gap(self) -> float:
        """How far apart they are."""
        return abs(self.sampled - self.inverted)


def mean_radius(z: Tensor, scale: float = 1.0) -> float:
    """Mean norm of latents (N, ...) over sqrt(D) and `scale`."""
    flat = z.flatten(1)
    return float(flat.double().norm(dim=1).mean()) / math.sqrt(flat.shape[1]) / scale


def radius(step: float, noise: NoiseSchedule, sampled: Tensor, inverted: Tensor) -> Radius:
    """The radii of two sets of latents (N, ...) at a step."""
    scale = math.hypot(*noise.alpha_sigma(step))
    return Radius(step, noise.time(step), mean_radius(sampled, scale), mean_radius(inverted, scale))


def critical_step(radii: Sequence[Radius], criterion: Criterion = "shell", tolerance: float = TOLERANCE) -> Radius:
    """The critical step among those looked at, in any order.

    Where no other step is within the tolerance, it is the noisiest one for `shell`, the cleanest for `gap`.
    ConfigurationError without any step or for an unknown criterion.
    """
    if not radii:
        raise ConfigurationError("no step was looked at: give at least one")
    from_noise = sorted(radii, key=lambda r: r.step)
    match criterion:
        case "shell":
            shell = from_noise[0].sampled
            return list(takewhile(lambda r: abs(r.sampled - shell) <= tolerance, from_noise))[-1]
        case "peak":
            return max(from_noise, key=lambda r: r.gap)
        case "gap":
            near = list(takewhile(lambda r: r.gap <= tolerance, reversed(from_noise)))
            return near[-1] if near else from_noise[-1]
        case _:
            raise ConfigurationError(f"unknown criterion {criterion!r}: choose one of {', '.join(CRITERIA)}")


def readable_step(accuracies: Mapping[float, float], held_out: int) -> float:
    """The noisiest step (lambda) at which held-out accuracy is within one standard error of the best.

    `accuracies` by step, each on `held_out` latents. ConfigurationError without any step.
    """
    if not accuracies:
        raise ConfigurationError("no step was looked at: give at least one")
    best = max(accuracies.values())
    error = math.sqrt(best * (1 - best) / held_out)
    return min(step for step, accuracy in accuracies.items() if accuracy >= best - error)
