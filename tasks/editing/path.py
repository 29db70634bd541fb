"""The way between the clean image and an edit step: a part of a schedule, in either direction, with or without noise.

Inversion by any deterministic solver is that solver on the reversed grid: it starts at the clean end, and its order
grows from there as it does in sampling. DDIM's inversion is the first-order case. The clean end is the least noisy
time the network was trained on, where the image itself is taken for x_t.

Noise (eta): a step from lambda_s to lambda_t goes on to a less noisy lambda_d and gets the difference back as fresh
noise of variance eta^2 sigma_t^2 (1 - e^{-2h}), h = lambda_t - lambda_s, which is DDIM's (2010.02502, equation 16);
the deterministic part is the schedule's own formula with lambda_d = lambda_t - log(1 - eta^2 (1 - e^{-2h})) / 2 as
its end, so the same definition serves solvers of every order.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fewstep.errors import ConfigurationError, ScheduleError
from fewstep.search_spaces.edit import Way
from fewstep.search_spaces.schedule import MIN_GAP, Prediction, SolverSchedule
from fewstep.search_spaces.schedule.formula import Formula
from fewstep.tasks.models.noise_families import FlowMatching
from fewstep.tasks.models.noise_schedule import NoiseSchedule
from fewstep.tasks.sampling.compile import Array, Compiler, SolverTables
from fewstep.tasks.sampling.grids import preset_on_grid


def narrowed(noise: NoiseSchedule, start: float, end: float | None = None) -> NoiseSchedule:
    """The same noise schedule, beginning at lambda `start` and ending at `end`: grids then lie in between."""
    last = noise.lambda_end if end is None else end
    base = type(noise)

    class Narrowed(base):  # type: ignore[misc,valid-type]
        lambda_start = property(lambda self: start)
        lambda_end = property(lambda self: last)
        shaped_ends = property(lambda self: (self.alpha_sigma(start)[1], self.alpha_sigma(last)[1]))

    part = copy.copy(noise)
    part.__class__ = Narrowed
    # Its own scheduler knows nothing of a part.
    part.stock = None
    if isinstance(part, FlowMatching):
        part.terminal = None
    return part


def check_step(step: float, noise: NoiseSchedule) -> None:
    """ConfigurationError where an edit step is outside the model's range."""
    if not noise.lambda_start <= step <= noise.lambda_end - 2 * MIN_GAP:
        raise ConfigurationError(
            f"edit step lambda = {step:.4g} is outside this model's range {noise.lambda_start:.4g} (all noise) to "
            f"{noise.lambda_end:.4g} (clean): choose one in between"
        )


def way_of(text: str) -> Way:
    """`PRESET/GRID@CALLS` as it is, or a schedule from a JSON file."""
    from fewstep.search_spaces.schedule import load_schedule

    return text if "@" in text else load_schedule(text)


def segment(way: Way, noise: NoiseSchedule, start: float, end: float | None = None) -> SolverSchedule:
    """The schedule that goes from lambda `start` to the clean end (or to `end`).

    A preset is laid on its grid between the two. A schedule's times are stretched in lambda, its solver kept; its
    first call is then always made, since what replaces it holds for pure noise only. ConfigurationError or
    ScheduleError where the way cannot be read or does not fit.
    """
    if isinstance(way, SolverSchedule):
        if way.needs_statistics:
            raise ScheduleError("edits run without the model's statistics: give a schedule that needs none")
        return _stretched(way, start, end)
    name, at, calls = way.partition("@")
    if not at or not calls.isdecimal() or not 1 <= int(calls) <= 200:
        raise ConfigurationError(f"way {way!r}: write PRESET/GRID@CALLS with 1 to 200 calls, or give a schedule")
    return preset_on_grid(name, narrowed(noise, start, end), int(calls))


def _stretched(schedule: SolverSchedule, start: float, end: float | None) -> SolverSchedule:
    finite = np.array([value for value in schedule.lambdas if math.isfinite(value)])
    last = float(finite[-1]) if end is None else end
    span = finite[-1] - finite[0]
    if not last > start or span <= 0:
        raise ScheduleError(f"schedule {schedule.hash} ends at lambda = {last:.4g}, before the edit step {start:.4g}")
    moved = [float(value) for value in start + (finite - finite[0]) * (last - start) / span]
    tail = [] if end is not None else [value for value in schedule.lambdas if value == math.inf]
    steps = schedule.steps if len(moved) + len(tail) == len(schedule.lambdas) else schedule.steps[: len(moved) - 1]
    fields = schedule.model_dump(exclude={"lambdas", "steps", "first_call"})
    return SolverSchedule.build(**fields, lambdas=(*moved, *tail), steps=steps)


def towards_noise(part: SolverSchedule, noise: NoiseSchedule) -> SolverSchedule:
    """A segment run backwards, from the clean end to its start, as many calls as it has steps.

    A last step to sigma = 0 becomes one to the network's least noisy time, or is left out where it ends there anyway.
    Its lambdas fall, so only `compile_part` reads it.
    """
    lambdas, steps = list(part.lambdas), list(part.steps)
    if lambdas[-1] == math.inf:
        lambdas.pop()
        if noise.lambda_end - lambdas[-1] >= MIN_GAP:
            lambdas.append(noise.lambda_end)
        else:
            steps.pop()
    if not steps:
        raise ScheduleError("one step from the edit step to the clean image cannot be run backwards: give more calls")
    # A call at the corrected point of what is now the last step would serve nobody.
    steps[-1] = steps[-1].model_copy(update={"implicit": False})
    return part.model_copy(update={"lambdas": tuple(reversed(lambdas)), "steps": tuple(steps)})


@dataclass(frozen=True)
class NoisyTables:
    """Tables, and the standard deviation of the noise that each row's result gets."""

    tables: SolverTables
    scales: tuple[float, ...]

    @property
    def nfe(self) -> int:
        """Number of denoiser calls for one image."""
        return self.tables.nfe


class _Ancestral(Compiler):
    """Rows that end less noisy than their node is, see the module's docstring; `lower` maps the one to the other."""

    lower: dict[float, float]
    node_lambdas: list[float]

    def point(self, lambda_: float):  # type: ignore[no-untyped-def]
        self.node_lambdas.append(lambda_)
        return super().point(lambda_)

    def advance(self, formula: Formula, prediction: Prediction, lambda_: float) -> Array:
        target = self.lower.get(lambda_, lambda_)
        row = super().advance(formula, prediction, target)
        if target == lambda_:
            return row
        return np.asarray(row * (self.noise.alpha_sigma(lambda_)[0] / self.noise.alpha_sigma(target)[0]), np.float64)


def compile_part(
    part: SolverSchedule,
    noise: NoiseSchedule,
    output: str,
    eta: float = 0.0,
    window: tuple[float, float] = (0.0, 1.0),
) -> NoisyTables:
    """Compile a segment, in either direction; with `eta` the steps that begin within the window get noise.

    ScheduleError where coefficients explode, or where noise is asked for on the way towards it.
    """
    lambdas = part.lambdas
    falling = lambdas[0] > lambdas[-1]
    if falling and eta:
        raise ScheduleError("inversion is deterministic: leave eta at 0")
    lower: dict[float, float] = {}
    shares: dict[float, float] = {}
    if eta:
        last = next(value for value in reversed(lambdas) if math.isfinite(value))
        for a, b in pairwise(lambdas):
            share = (a - lambdas[0]) / (last - lambdas[0])
            if window[0] <= share < window[1] and math.isfinite(b):
                kept = 1 - eta * eta * -math.expm1(-2 * (b - a))
                lower[b] = b - 0.5 * math.log(kept)
                shares[b] = eta * math.sqrt(-math.expm1(-2 * (b - a)))
    compiler = _Ancestral(part, noise, output, None)
    compiler.lower, compiler.node_lambdas = lower, []
    tables = compiler.run()
    ends = [*compiler.node_lambdas[1:], lambdas[-1]]
    return NoisyTables(tables, tuple(noise.alpha_sigma(b)[1] * shares.get(b, 0.0) for b in ends))
