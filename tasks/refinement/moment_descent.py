"""Gauss-Newton on feature moments: tune a schedule on the images that it is judged by, without a backward pass.

A Frechet distance knows of a set of images only the mean and covariance of their features, and on fixed noise these
are smooth functions of a schedule's numbers. So every number is changed a little once, on all images, and tells not one
figure but how a whole mean and covariance move. The distance itself is kept as it is: the step is the one that makes it
least for moments that move linearly, within a region where images move little:

    min_d  FD(mean + d J_mean, covariance + d J_cov) + lambda FD(mean, covariance) E|d J_features|^2

(Levenberg and Marquardt's damping, in the images' own measure, so that numbers that do nearly the same may move far
against each other.) What moments did differently on a step corrects J (Broyden's update).

A change of row k leaves all calls before it as they were, so the later a row, the less do its derivatives and steps
cost: the last one only adds up what is known, and is fitted anew, at no call, after every step. So the descent sweeps
backwards from the end, over the numbers that change the last call, the last two, the last three, and each further
sweep reaches a call further. Where moments are is told by all images, how they move by the first few, so that the calls
last for sweeps that reach the first ones, which decide most.

Tuned are the corrections of each row by the starting noise and by every output before it, and the told times: these
span whatever times, orders and coefficients could do. Shapes: features (N, D), J_mean (n, D), J_cov (n, D, D).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.errors import EvaluationError, ScheduleError
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.corrections import LARGEST_TUNED_SHIFT, Corrections
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.statistics import ModelStatistics
from fewstep.tasks.refinement.execute import Cost, counted
from fewstep.tasks.refinement.features import Judge
from fewstep.tasks.refinement.moment_model import LinearMoments, directions_of, moments
from fewstep.tasks.refinement.moment_plan import AT_ONCE, MomentPlan
from fewstep.tasks.refinement.moment_progress import Progress
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import Program
from fewstep.tasks.sampling.noise import starting_noise

Array = npt.NDArray[np.float64]
# Changes by which derivatives are measured: of a coefficient, and of a told time in lambda.
PROBE = {"points": 0.003, "outputs": 0.003, "shifts": 0.015}
# Of the distance: the further off, the less do large steps keep what they promise.
FIRST_DAMPING, LARGEST_DAMPING, LAST_ROW_DAMPING = 0.5, 2.0, 0.12
# Dampings that are tried beside each other, of the last one that was best; and what follows where none helps.
DAMPINGS = (4.0, 1.0, 0.25)
FAILED = 16.0
LAST_ROW_STEPS = 3
# Calls from the end that the first sweep reaches.
FIRST_REACH = 3
# A sweep over everything that gains less than the first share is the last, a try that gains less than the second too.
LEAST_GAIN, LEAST_OF_TRY = 0.02, 0.005


@dataclass(frozen=True)
class Known:
    """A schedule's nodes and outputs on the images, in pieces of AT_ONCE, and their features."""

    theta: Array
    held: list[dict[int, Tensor]]
    features: Tensor
    value: float


OnRound = Callable[[Known, Progress], None]


def _pieces(images: range) -> list[range]:
    return [range(a, min(a + AT_ONCE, images.stop)) for a in range(images.start, images.stop, AT_ONCE)]


class MomentDescent:
    """One schedule on `plan.images` images of the plan's noise."""

    def __init__(
        self,
        schedule: SolverSchedule,
        denoiser: Denoiser,
        plan: MomentPlan,
        judge: Judge,
        statistics: ModelStatistics | None = None,
        cost: Cost | None = None,
    ) -> None:
        self.schedule, self.denoiser, self.plan = denoiser.fitted(schedule), denoiser, plan
        self._statistics = statistics
        self.cost = cost or Cost()
        self.judge = judge
        self.directions = directions_of(self.schedule)
        self._all, self._probed = range(plan.images), range(min(plan.probed, plan.images))
        self._last = self.schedule.nodes - 1

    # -- schedules ------------------------------------------------------------------------------------

    def schedule_at(self, theta: Array) -> SolverSchedule:
        """The schedule with its corrections moved by theta, one number a direction."""
        nodes, held = self.schedule.nodes, self.schedule.corrections or Corrections()
        tables = {
            name: [list(row) for row in getattr(held, name)] or [[0.0] * (k + 1) for k in range(nodes)]
            for name in ("points", "outputs")
        }
        shifts = list(held.shifts) or [0.0] * nodes
        for direction, value in zip(self.directions, theta, strict=True):
            if direction.part == "shifts":
                moved = shifts[direction.row] + float(value)
                shifts[direction.row] = min(max(moved, -LARGEST_TUNED_SHIFT), LARGEST_TUNED_SHIFT)
            else:
                tables[direction.part][direction.row][direction.column] += float(value)
        corrections = Corrections.model_validate({**held.model_dump(), **tables, "shifts": shifts})
        return self.schedule.model_copy(update={"corrections": corrections})

    def _program(self, theta: Array) -> Program:
        files = self.denoiser.files
        tables = compile_schedule(self.schedule_at(theta), files.noise, files.prediction_type, self._statistics)
        return Program(tables, self.denoiser.device)

    # -- images ---------------------------------------------------------------------------------------

    def _run(self, program: Program, held: dict[int, Tensor], row: int, again: bool, indices: Sequence[int]) -> Tensor:
        """The sample, from node `row` on, which is called where `again`; what is before it is held."""
        call = counted(self.denoiser.on(indices, self.schedule.guidance, self.schedule.skips), self.cost)
        for k in range(row, len(program.rows)):
            if program.called[k] and (again or k > row):
                x = held[2 * k]
                held[2 * k + 1] = program.limited(k, x, call(program.model_input(k, x), program.times[k]))
            held[2 * k + 2] = program.next_node(k, held)
        return held[2 * len(program.rows)]

    @torch.no_grad()
    def _sampled(self, theta: Array) -> Known:
        """All images from their noise; ScheduleError or EvaluationError where that fails."""
        program, parts, held = self._program(theta), [], []
        for indices in _pieces(self._all):
            shape, device = self.denoiser.shape, self.denoiser.device
            noise = starting_noise(self.plan.noise_seed, indices.start, len(indices), shape, device)
            held.append({0: self.denoiser.begin(noise, indices, self.schedule.lambdas[0])})
            parts.append(self.judge(self._run(program, held[-1], 0, True, indices), indices))
        return self._known(theta, held, self._finite(torch.cat(parts)))

    def _known(self, theta: Array, held: list[dict[int, Tensor]], features: Tensor) -> Known:
        return Known(theta, held, features, float(self.judge.frechet.of(*moments(features))))

    def _finite(self, features: Tensor) -> Tensor:
        if not bool(torch.isfinite(features).all()):
            raise EvaluationError(f"schedule {self.schedule.hash} made values that are not finite")
        return features

    @torch.no_grad()
    def _resampled(
        self, theta: Array, known: Known, row: int, again: bool, images: range
    ) -> tuple[list[dict[int, Tensor]], Tensor]:
        """What is held of each piece, and features: node `row` and what is before it stay as they are known."""
        program, parts, pieces = self._program(theta), [], []
        for indices in _pieces(images):
            past = known.held[indices.start // AT_ONCE].items()
            held = {i: tensor for i, tensor in past if i <= 2 * row or (i == 2 * row + 1 and not again)}
            if again:
                # A call may change its input, see PipelineDenoiser.
                held[2 * row] = held[2 * row].clone()
            parts.append(self.judge(self._run(program, held, row, again, indices), indices))
            pieces.append(held)
        return pieces, self._finite(torch.cat(parts))

    # -- steps ----------------------------------------------------------------------------------------

    def _block(self, reach: int) -> list[int]:
        return [i for i, d in enumerate(self.directions) if d.calls(self.schedule.nodes) <= reach]

    def change(self, known: Known, direction: int, images: range | None = None) -> Tensor:
        """Change of features (N, D) by one unit of a direction, measured by a small one, of all images or some."""
        at = self.directions[direction]
        theta = known.theta.copy()
        theta[direction] += PROBE[at.part]
        _, features = self._resampled(theta, known, at.row, at.calls_again, images or self._all)
        return (features - known.features[: len(features)]) / PROBE[at.part]

    def derivatives(self, known: Known, directions: Sequence[int], images: range) -> LinearMoments:
        """How moments move with some directions, as the first images tell it."""
        before = known.features[: len(images)]
        mean, covariance = moments(before)
        means, covariances, changes = [], [], []
        for i in directions:
            change, probe = self.change(known, i, images), PROBE[self.directions[i].part]
            moved, spread = moments(before + probe * change)
            means.append((moved - mean) / probe)
            covariances.append((spread - covariance) / probe)
            changes.append(change.flatten())
        flat = torch.stack(changes)
        return LinearMoments(torch.stack(means), torch.stack(covariances), flat @ flat.T / len(before))

    def _step(
        self, known: Known, told: LinearMoments, directions: Sequence[int], damping: float
    ) -> tuple[Array, Tensor]:
        """Theta after the damped step, and the step."""
        step = told.step(known.features, self.judge.frechet, damping * known.value)
        theta = known.theta.copy()
        theta[list(directions)] += step.cpu().numpy()
        return theta, step

    def fitted(self, known: Known) -> Known:
        """Steps of the row that makes the sample, which cost no call."""
        free, damping = self._block(0), LAST_ROW_DAMPING
        for _ in range(LAST_ROW_STEPS):
            try:
                theta, _ = self._step(known, self.derivatives(known, free, self._all), free, damping)
                moved = self._known(theta, *self._resampled(theta, known, self._last, False, self._all))
            except (ScheduleError, EvaluationError):
                damping *= 10
                continue
            if moved.value < known.value:
                known = moved
            else:
                damping *= 10
        return known

    def begin(self, theta: Array | None = None) -> Known:
        """The schedule as it is, or moved by theta; EvaluationError where it explodes."""
        return self._sampled(np.zeros(len(self.directions)) if theta is None else theta)

    def run(self, known: Known, at: Progress | None = None, on_round: OnRound | None = None) -> Known:
        """Go down from there until a sweep over everything gains little, or as far as the plan's calls lead.

        `on_round` hears of what is known after every measurement, and `at` is what it has heard.
        """
        at = at or Progress(min(FIRST_REACH, self._last), known.value, self.cost.calls)
        while True:
            while at.near <= at.reach:
                near, at.near = at.near, at.near + 1
                if self.cost.calls + self._calls_of_derivatives(near) + self._calls_of_try(near) > self.plan.limit:
                    continue
                known, damping = self._round(known, near, at.dampings.get(near, FIRST_DAMPING), at.tried)
                at.dampings[near], at.tried = damping, at.tried + self.plan.tries
                if on_round:
                    on_round(known, at)
            ended = at.reach == self._last and known.value > (1 - LEAST_GAIN) * at.before
            if ended or self.cost.calls == at.before_calls:
                return known
            at = at.next_sweep(min(at.reach + 1, self._last), known.value, self.cost.calls)

    def _round(self, known: Known, reach: int, damping: float, tried: int) -> tuple[Known, float]:
        """Measure the numbers that reach so many calls, try steps of them: the better, and its damping."""
        try:
            told = self.derivatives(known, self._block(reach), self._probed)
        except (ScheduleError, EvaluationError):
            return known, damping
        for i in range(self.plan.tries):
            if self.cost.calls + self._calls_of_try(reach) > self.plan.limit:
                break
            before = known.value
            known, damping = self._try(known, told, reach, damping, self._look(tried + 1 + i))
            if known.value > (1 - LEAST_OF_TRY) * before:
                break
        return known, min(damping, LARGEST_DAMPING)

    def _look(self, number: int) -> range:
        start = number % (self.plan.images // self.plan.look) * self.plan.look
        return range(start, start + self.plan.look)

    def _calls_of_derivatives(self, reach: int) -> int:
        return len(self._probed) * sum(self.directions[i].calls(self.schedule.nodes) for i in self._block(reach))

    def _calls_of_try(self, reach: int) -> int:
        return reach * (self.plan.images + (len(DAMPINGS) - 1) * self.plan.look)

    def _try(self, known: Known, told: LinearMoments, reach: int, damping: float, look: range) -> tuple[Known, float]:
        """Steps of several dampings on a part of the images, the best of them on all: what is better, and its damping.

        On the part they are compared by what their moments gain over the same images' before: few tell much.
        """
        row, block = self._last - reach, self._block(reach)
        mean, covariance = moments(known.features)
        base = moments(known.features[look.start : look.stop])
        found: list[tuple[float, float, Array, Tensor, tuple[list[dict[int, Tensor]], Tensor]]] = []
        for factor in DAMPINGS:
            try:
                theta, step = self._step(known, told, block, factor * damping)
                part = self._resampled(theta, known, row, False, look)
            except (ScheduleError, EvaluationError):
                continue
            seen = moments(part[1])
            value = float(self.judge.frechet.of(mean + seen[0] - base[0], covariance + seen[1] - base[1]))
            found.append((value, factor * damping, theta, step, part))
        if not found:
            return known, FAILED * damping
        value, best, theta, step, part = min(found, key=lambda entry: entry[:2])
        if value >= known.value:
            return known, FAILED * damping
        sides = range(look.start), range(look.stop, self.plan.images)
        empty: tuple[list[dict[int, Tensor]], Tensor] = ([], part[1][:0])
        try:
            before, after = (self._resampled(theta, known, row, False, side) if side else empty for side in sides)
        except EvaluationError:
            return known, FAILED * damping
        features = torch.cat([before[1], part[1], after[1]])
        tried = self._known(theta, [*before[0], *part[0], *after[0]], features)
        moved = moments(features)
        told.correct(step, moved[0] - mean, moved[1] - covariance)
        tried = self.fitted(tried)
        return (tried if tried.value < known.value else known), best
