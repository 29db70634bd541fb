"""Gauss-Newton on feature moments: tune a schedule on the images that it is judged by, without a backward pass.

A Frechet distance knows of a set of images only the mean and covariance of their features, and on fixed noise these
are smooth functions of a schedule's numbers. So every small change of a number is tried once, on few images (`probes`),
and tells not one figure but how a whole mean and covariance move. The distance itself is kept as it is: the step is
the one that makes it least for moments that move linearly, within a region where images move little:

    min_d  FD(mean + d J_mean, covariance + d J_cov) + lambda FD(mean, covariance) E|d J_features|^2

(Levenberg and Marquardt's damping, in the images' own measure, so that numbers that do nearly the same may move far
against each other.) Each step is tried on all images; what their moments did differently corrects J (Broyden's
update). Two things make this cheap in denoiser calls. A change of row k leaves all calls before it as they were, so
its trial starts there. And the last row only adds up what is known: it is fitted anew, at no call, after every step.

Tuned are the corrections of each row by the starting noise and by every output before it, and the told times: these
span whatever times, orders and coefficients could do. Shapes: features (N, D), J_mean (n, D), J_cov (n, D, D).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.errors import EvaluationError, ScheduleError
from fewstep.search_spaces.corrections import LARGEST_SHIFT, Corrections
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.statistics import ModelStatistics
from fewstep.tasks.refinement.execute import Cost, counted
from fewstep.tasks.refinement.features import OwnFeatures
from fewstep.tasks.refinement.moment_plan import AT_ONCE, MomentPlan
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import Program
from fewstep.tasks.sampling.noise import starting_noise

Array = npt.NDArray[np.float64]
# Changes by which derivatives are measured: of a coefficient, and of a told time in lambda.
PROBE = {"points": 0.003, "outputs": 0.003, "shifts": 0.015}
# Of the distance: the further off, the less do large steps keep what they promise.
FIRST_DAMPING, LAST_ROW_DAMPING = 0.5, 0.12
TINY = 1e-12
# Dampings that are tried beside each other, of the last one that was best; and what follows where none helps.
DAMPINGS = (4.0, 1.0, 0.25)
FAILED = 16.0
LAST_ROW_STEPS = 3
# A round that gains less than this share is the last from its start.
LEAST_GAIN = 0.02


@dataclass(frozen=True)
class Direction:
    """One number that is tuned: entry (row, column) of `points` or `outputs`, or the shift of call `row`."""

    part: str
    row: int
    column: int

    @property
    def calls_again(self) -> bool:
        """Whether node `row` itself has to be called again."""
        return self.part == "shifts"


def directions_of(schedule: SolverSchedule) -> list[Direction]:
    """All that change something of their own: nodes are sums of the starting noise and of outputs."""
    first = int(schedule.first_call != "model")
    nodes = schedule.nodes
    found = [Direction("points", k, 0) for k in range(nodes)]
    found += [Direction("outputs", k, j) for k in range(nodes) for j in range(first, k + 1)]
    # The first call stays where the prior is.
    return found + [Direction("shifts", j, 0) for j in range(1, nodes)]


@dataclass(frozen=True)
class Known:
    """A schedule's nodes and outputs on the images, in pieces of AT_ONCE, and their features."""

    theta: Array
    held: list[dict[int, Tensor]]
    features: Tensor
    value: float


@dataclass
class _Jacobian:
    """How moments move with each direction, and E|change of features|^2 as a form."""

    mean: Tensor
    covariance: Tensor
    metric: Tensor

    def at(self, step: Tensor) -> tuple[Tensor, Tensor]:
        return step @ self.mean, torch.einsum("n,nij->ij", step, self.covariance)

    def correct(self, step: Tensor, mean: Tensor, covariance: Tensor) -> None:
        """Broyden's update: as little as makes the step's moments come out right."""
        told_mean, told_covariance = self.at(step)
        share = step / step.square().sum()
        self.mean = self.mean + share[:, None] * (mean - told_mean)
        self.covariance = self.covariance + share[:, None, None] * (covariance - told_covariance)


def _pieces(images: range) -> list[range]:
    return [range(a, min(a + AT_ONCE, images.stop)) for a in range(images.start, images.stop, AT_ONCE)]


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance."""
    return features.mean(0), torch.cov(features.T)


class MomentDescent:
    """One schedule on `plan.images` images of the plan's noise."""

    def __init__(
        self,
        schedule: SolverSchedule,
        denoiser: Denoiser,
        plan: MomentPlan,
        statistics: ModelStatistics | None = None,
        cost: Cost | None = None,
        judge: OwnFeatures | None = None,
    ) -> None:
        self.schedule, self.denoiser, self.plan = schedule, denoiser, plan
        self._statistics = statistics
        self.cost = cost or Cost()
        self.judge = judge or OwnFeatures(denoiser)
        self.directions = directions_of(schedule)
        self._all = range(plan.images)

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
                shifts[direction.row] = min(max(moved, -LARGEST_SHIFT), LARGEST_SHIFT)
            else:
                tables[direction.part][direction.row][direction.column] += float(value)
        corrections = Corrections.model_validate({**tables, "shifts": shifts})
        return self.schedule.model_copy(update={"corrections": corrections})

    def _program(self, theta: Array) -> Program:
        files = self.denoiser.files
        tables = compile_schedule(self.schedule_at(theta), files.noise, files.prediction_type, self._statistics)
        return Program(tables, self.denoiser.device)

    def _is_free(self, direction: Direction) -> bool:
        return direction.row == self.schedule.nodes - 1 and not direction.calls_again

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
    def _sampled(self, theta: Array, images: range) -> tuple[list[dict[int, Tensor]], Tensor]:
        """What is held of each piece, and all features; ScheduleError or EvaluationError where that fails."""
        program, files, parts, held = self._program(theta), self.denoiser.files, [], []
        for indices in _pieces(images):
            noise = starting_noise(self.plan.noise_seed, indices.start, len(indices), files.shape, self.denoiser.device)
            held.append({0: noise * program.tables.prior_scale})
            parts.append(self.judge(self._run(program, held[-1], 0, True, indices)))
        return held, self._finite(torch.cat(parts))

    def _known(self, theta: Array, held: list[dict[int, Tensor]], features: Tensor) -> Known:
        return Known(theta, held, features, float(self.judge.frechet.of(*moments(features))))

    @torch.no_grad()
    def _changed(self, known: Known, direction: int, images: range) -> Tensor:
        """Change of features (images, D) by one unit of a direction, measured by a small one."""
        at = self.directions[direction]
        theta = known.theta.copy()
        theta[direction] += PROBE[at.part]
        program, parts = self._program(theta), []
        reach = 2 * at.row + (1 if at.calls_again else 2)
        for indices in _pieces(images):
            held = {i: tensor for i, tensor in known.held[indices.start // AT_ONCE].items() if i < reach}
            parts.append(self.judge(self._run(program, held, at.row, at.calls_again, indices)))
        return (torch.cat(parts) - known.features[images.start : images.stop]) / PROBE[at.part]

    def _jacobian(self, known: Known, directions: Sequence[int], images: range) -> _Jacobian:
        """Measured on some images; for directions that cost no call on all of them."""
        means, covariances, changes = [], [], []
        for i in directions:
            direction = self.directions[i]
            used = self._all if self._is_free(direction) else images
            base, probe = known.features[used.start : used.stop], PROBE[direction.part]
            change = self._changed(known, i, used)
            (mean, covariance), (moved, spread) = moments(base), moments(base + probe * change)
            means.append((moved - mean) / probe)
            covariances.append((spread - covariance) / probe)
            first = images.start - used.start
            changes.append(change[first : first + len(images)].flatten())
        flat = torch.stack(changes)
        return _Jacobian(torch.stack(means), torch.stack(covariances), flat @ flat.T / len(images))

    # -- steps ----------------------------------------------------------------------------------------

    def _step(self, known: Known, jacobian: _Jacobian, damping: float) -> Tensor:
        """The damped step; EvaluationError where the derivatives are not finite."""
        mean, covariance = moments(known.features)
        # In units in which each number moves images alike.
        scale = jacobian.metric.diagonal().clamp_min(TINY).rsqrt()
        z = torch.zeros_like(scale, requires_grad=True)
        optimizer = torch.optim.LBFGS([z], max_iter=80, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            step = scale * z
            moved = jacobian.at(step)
            loss = self.judge.frechet.of(mean + moved[0], covariance + moved[1])
            loss = loss + damping * known.value * (step @ jacobian.metric @ step)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        step = (scale * z).detach()
        if not bool(torch.isfinite(step).all()):
            raise EvaluationError(f"schedule {self.schedule.hash} moves to what is not finite")
        return step

    def fitted(self, known: Known) -> Known:
        """Steps of the row that makes the sample, which cost no call; on all images."""
        free = [i for i, d in enumerate(self.directions) if self._is_free(d)]
        damping = LAST_ROW_DAMPING
        for _ in range(LAST_ROW_STEPS):
            jacobian = self._jacobian(known, free, self._all)
            theta = known.theta.copy()
            try:
                theta[free] += self._step(known, jacobian, damping).numpy()
                moved = self._last_row_at(known, theta)
            except (ScheduleError, EvaluationError):
                damping *= 10
                continue
            if moved.value < known.value:
                known = moved
            else:
                damping *= 10
        return known

    @torch.no_grad()
    def _last_row_at(self, known: Known, theta: Array) -> Known:
        program, last = self._program(theta), self.schedule.nodes - 1
        parts = []
        for held, indices in zip(known.held, _pieces(self._all), strict=True):
            parts.append(self.judge(self._run(program, dict(held), last, False, indices)))
        return self._known(theta, known.held, self._finite(torch.cat(parts)))

    def _finite(self, features: Tensor) -> Tensor:
        if not bool(torch.isfinite(features).all()):
            raise EvaluationError(f"schedule {self.schedule.hash} made values that are not finite")
        return features

    def begin(self) -> Known:
        """The schedule as it is; EvaluationError where it explodes."""
        theta = np.zeros(len(self.directions))
        return self._known(theta, *self._sampled(theta, self._all))

    def run(self, known: Known) -> Known:
        """Go down from there until a round gains little, or as far as the plan's calls lead."""
        round_ = 0
        while self.cost.calls + self._calls_of_jacobian() + self._calls_of_try() <= self.plan.limit:
            before, damping = known.value, FIRST_DAMPING
            jacobian = self._jacobian(known, range(len(self.directions)), self._probes(round_))
            for i in range(self.plan.tries):
                if self.cost.calls + self._calls_of_try() > self.plan.limit:
                    break
                known, damping = self._try(known, jacobian, damping, self._probes(round_ + 1 + i))
            if known.value > (1 - LEAST_GAIN) * before:
                break
            round_ += 1
        return known

    def _probes(self, number: int) -> range:
        start = number % (self.plan.images // self.plan.probes) * self.plan.probes
        return range(start, start + self.plan.probes)

    def _calls_of_jacobian(self) -> int:
        called = [j for j in range(self.schedule.nodes) if j or self.schedule.first_call == "model"]
        again = [sum(j > d.row - d.calls_again for j in called) for d in self.directions]
        return self.plan.probes * sum(again)

    def _calls_of_try(self) -> int:
        return self.schedule.nfe * (self.plan.images + (len(DAMPINGS) - 1) * self.plan.probes)

    def _try(self, known: Known, jacobian: _Jacobian, damping: float, look: range) -> tuple[Known, float]:
        """Steps of several dampings on a part of the images, the best of them on all: what is better, and its damping.

        On the part they are compared by what their moments gain over the same images' before: few tell much.
        """
        mean, covariance = moments(known.features)
        base = moments(known.features[look.start : look.stop])
        found: list[tuple[float, float, Tensor, list[dict[int, Tensor]], Tensor]] = []
        for factor in DAMPINGS:
            try:
                step = self._step(known, jacobian, factor * damping)
                held, features = self._sampled(known.theta + step.numpy(), look)
            except (ScheduleError, EvaluationError):
                continue
            seen = moments(features)
            value = float(self.judge.frechet.of(mean + seen[0] - base[0], covariance + seen[1] - base[1]))
            found.append((value, factor * damping, step, held, features))
        if not found:
            return known, FAILED * damping
        value, best, step, held, features = min(found, key=lambda entry: entry[:2])
        if value >= known.value:
            return known, FAILED * damping
        theta = known.theta + step.numpy()
        sides = range(look.start), range(look.stop, self.plan.images)
        try:
            before, after = (self._sampled(theta, part) if part else ([], features[:0]) for part in sides)
        except EvaluationError:
            return known, FAILED * damping
        tried = self._known(theta, [*before[0], *held, *after[0]], torch.cat([before[1], features, after[1]]))
        moved = moments(tried.features)
        jacobian.correct(step, moved[0] - mean, moved[1] - covariance)
        tried = self.fitted(tried)
        return (tried if tried.value < known.value else known), best


@dataclass(frozen=True)
class Descended:
    """A tuned schedule, the distance of the first start and its own, on the plan's images, and what it cost."""

    schedule: SolverSchedule
    before: float
    after: float
    cost: Cost


def descend(
    schedule: SolverSchedule, denoiser: Denoiser, plan: MomentPlan, statistics: ModelStatistics | None = None
) -> Descended:
    """Tune the schedule, or whichever of it and the plan's others is best once its last row is fitted.

    EvaluationError where none of them can be sampled.
    """
    cost, judge = Cost(), OwnFeatures(denoiser)
    starts = [schedule, *(SolverSchedule.from_json(text) for text in plan.others)]
    begun: list[tuple[MomentDescent, Known]] = []
    before = math.inf
    for i, start in enumerate(starts):
        if i and cost.calls + plan.images * start.nfe > plan.limit:
            break
        descent = MomentDescent(start, denoiser, plan, statistics, cost, judge)
        try:
            known = descent.begin()
        except (ScheduleError, EvaluationError):
            continue
        before = known.value if i == 0 else before
        begun.append((descent, descent.fitted(known)))
    if not begun:
        raise EvaluationError(f"schedule {schedule.hash} made values that are not finite")
    best = min(begun, key=lambda pair: pair[1].value)
    for descent, known in sorted(begun, key=lambda pair: pair[1].value):
        best = min(best, (descent, descent.run(known)), key=lambda pair: pair[1].value)
    descent, known = best
    found = descent.schedule_at(known.theta)
    origin = {"refined_from": descent.schedule.hash, "plan": plan.model_dump(mode="json", exclude={"others"})}
    fields = found.model_dump(exclude={"provenance"}) | {"provenance": {"refinement": origin}}
    return Descended(SolverSchedule.build(**fields), before, known.value, cost)
