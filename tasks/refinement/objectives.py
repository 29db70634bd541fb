"""What a refinement makes small: the distance to a teacher's samples, or to the reference's statistics.

`TeacherObjective` compares each sample with what the teacher makes of the same noise. It cannot lead past the teacher,
and many calls are not always best: where a coarse sampler's errors happen to help, a fine one is the worse teacher.

`ReferenceObjective` needs none: the Frechet distance between features of the samples and the reference's moments, of
the batch at hand together with those of the batches before it, on noise that is new in every iteration. It is the
figure that searches are judged by, differentiated; what is found still has to hold on the judge's and the report's
noise. Shapes: noise and samples (B, C, H, W), features (N, D).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.errors import DataError, EvaluationError
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.quantization.kept import Kept
from fewstep.tasks.refinement.distances import Distance, judged
from fewstep.tasks.refinement.execute import Cost, counted, run
from fewstep.tasks.refinement.features import Judge
from fewstep.tasks.refinement.plan import MEMORY, RefinePlan
from fewstep.tasks.refinement.soft_target import SoftTarget, radius
from fewstep.tasks.refinement.tables import TablesOf
from fewstep.tasks.sampling.execute import Program
from fewstep.tasks.sampling.noise import starting_noise

Array = npt.NDArray[np.float64]
AT_ONCE = 64


class Objective(ABC):
    """A loss of theta on batches, and on noise held out."""

    def __init__(self, tables: TablesOf, denoiser: Denoiser, plan: RefinePlan, cost: Cost) -> None:
        self.tables, self.denoiser, self.plan, self.cost = tables, denoiser, plan, cost
        self.schedule = tables.parameters.schedule

    @abstractmethod
    def prepare(self, kept: Kept) -> None:
        """What has to be sampled once; what `kept` holds is not sampled again."""

    @abstractmethod
    def batch_loss(self, theta: Tensor, iteration: int) -> Tensor:
        """The loss of one iteration, with its gradient; ScheduleError where the schedule does not compile."""

    @abstractmethod
    def held_out(self, theta: Array) -> float:
        """The loss on validation noise; ScheduleError as above."""

    def stepped(self, theta: Tensor, iteration: int) -> None:
        """What follows a step of the schedule, which is now at theta; the loss before it has passed its gradient."""
        del theta, iteration  # Nothing follows.

    def state(self) -> dict[str, Tensor]:
        """What has to be kept between iterations."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        del state  # Nothing was kept.

    def on(self, indices: Sequence[int], schedule: SolverSchedule) -> Callable[..., Tensor]:
        """The counted denoiser for some images."""
        return counted(self.denoiser.on(indices, schedule.guidance, schedule.skips), self.cost)

    def noise(self, indices: range) -> Tensor:
        """Starting noise of images first .. last."""
        shape, device = self.denoiser.files.shape, self.denoiser.device
        return starting_noise(self.plan.noise_seed, indices.start, len(indices), shape, device)

    def samples(self, theta: Tensor, indices: Sequence[int], noise: Tensor) -> Tensor:
        """Samples of the schedule at theta."""
        fixed = self.tables.tables(theta.detach().cpu().numpy())
        return run(self.tables(theta), fixed, self.on(indices, self.schedule), noise)


class TeacherObjective(Objective):
    """Mean distance to the samples of `teacher`, in a space that `distance` names."""

    def __init__(
        self,
        tables: TablesOf,
        denoiser: Denoiser,
        plan: RefinePlan,
        cost: Cost,
        teacher: SolverSchedule,
        judge: Judge | None,
    ) -> None:
        super().__init__(tables, denoiser, plan, cost)
        self.teacher = teacher
        self.distance = Distance(plan.distance, denoiser, plan.noise_seed, cost, judge)
        self._pairs: tuple[Tensor, Tensor, Tensor | None] | None = None
        self._soft: SoftTarget | None = None
        # Of the last batch: its images, the noise that gradients have passed to, the losses.
        self._last: tuple[list[int], Tensor, Tensor] | None = None

    def prepare(self, kept: Kept) -> None:
        """The teacher's samples and their features, of training and validation noise."""
        count = self.plan.images + self.plan.validation
        noise = self.noise(range(count))
        if "pairs" not in kept:
            kept.keep("pairs", self._sampled(noise))
        held = {name: value.to(noise) for name, value in kept["pairs"].items()}
        if len(held["target"]) != count:
            raise DataError(f"{kept.path} holds {len(held['target'])} pairs, not {count}: delete it")
        self._pairs = noise, held["target"], held.get("seen")
        if self.plan.soft_target:
            self._soft = SoftTarget(noise, radius(self.plan.soft_target, noise, self.schedule.nfe))

    @torch.no_grad()
    def _sampled(self, noise: Tensor) -> dict[str, Tensor]:
        program = Program(self.tables.compile(self.teacher), self.denoiser.device)
        targets, features = [], []
        for start in range(0, len(noise), AT_ONCE):
            indices = range(start, min(start + AT_ONCE, len(noise)))
            x = noise[indices.start : indices.stop] * program.tables.prior_scale
            targets.append(program(self.on(indices, self.teacher), x))
            found = self.distance.features(targets[-1], indices)
            features += [] if found is None else [found]
        target = torch.cat(targets)
        if not bool(torch.isfinite(target).all()):
            name = self.teacher.name or self.teacher.hash
            raise EvaluationError(f"the teacher {name} made values that are not finite")
        return {"target": target} | ({"seen": torch.cat(features)} if features else {})

    def _losses(self, theta: Tensor, indices: list[int], start: Tensor | None = None) -> Tensor:
        """Distances (B,) of the samples from `start`, or from where the images' noises are now."""
        assert self._pairs is not None
        noise, target, seen = self._pairs
        at = torch.tensor(indices, device=noise.device)
        if start is None:
            start = (noise if self._soft is None else self._soft.now)[at]
        samples = self.samples(theta, indices, start)
        return self.distance(samples, target[at], None if seen is None else seen[at], indices).double()

    def batch_loss(self, theta: Tensor, iteration: int) -> Tensor:
        """Passes over all training images, each in an order of its own, whatever came before."""
        plan = self.plan
        a_pass = plan.images // plan.batch
        bits = np.random.Philox(key=np.array([plan.noise_seed, iteration // a_pass], np.uint64))
        order = np.random.Generator(bits).permutation(plan.images)
        at = iteration % a_pass * plan.batch
        return self._free(theta, [int(i) for i in order[at : at + plan.batch]]).mean()

    def _free(self, theta: Tensor, indices: list[int]) -> Tensor:
        """Losses (B,) whose gradient reaches the noises too, where these may move."""
        if self._soft is None:
            return self._losses(theta, indices)
        start = self._soft.now[indices].requires_grad_()
        losses = self._losses(theta, indices, start)
        self._last = indices, start, losses.detach()
        return losses

    def stepped(self, theta: Tensor, iteration: int) -> None:
        """Move the batch's noises and, after each pass over the training images, those of validation."""
        if self._soft is None:
            return
        self._follow(theta)
        plan = self.plan
        if (iteration + 1) % (plan.images // plan.batch) == 0:
            for indices in _in_batches(plan.images, plan.seen):
                self._free(theta, indices).sum().backward()  # type: ignore[no-untyped-call]
                self._follow(theta)

    def _follow(self, theta: Tensor) -> None:
        """Move the noises that gradients have just reached, where that brings their samples nearer."""
        assert self._soft is not None
        assert self._last is not None
        indices, start, before = self._last
        assert start.grad is not None
        at = torch.tensor(indices, device=start.device)
        tried = self._soft.tried(at, start.grad)
        with torch.no_grad():
            self._soft.move(at, tried, self._losses(theta, indices, tried) < before)

    def state(self) -> dict[str, Tensor]:
        """Where the noises are."""
        return {} if self._soft is None else {"noises": self._soft.now}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take that back."""
        if self._soft is not None:
            self._soft.now = state["noises"].to(self._soft.drawn)

    @torch.no_grad()
    def held_out(self, theta: Array) -> float:
        """Mean over the validation images."""
        total = 0.0
        for indices in _in_batches(self.plan.images, self.plan.seen):
            total += float(self._losses(torch.from_numpy(theta), indices).sum())
        return total / self.plan.validation


def _in_batches(first: int, end: int) -> list[list[int]]:
    return [list(range(start, min(start + AT_ONCE, end))) for start in range(first, end, AT_ONCE)]


class ReferenceObjective(Objective):
    """Frechet distance to the moments of the subject's reference, in features that gradients pass through."""

    def __init__(self, tables: TablesOf, denoiser: Denoiser, plan: RefinePlan, cost: Cost, judge: Judge | None) -> None:
        super().__init__(tables, denoiser, plan, cost)
        self.judge = judged(plan.distance, judge)
        self._memory = torch.zeros(0)

    @torch.no_grad()
    def _of(self, theta: Array, indices: range) -> Tensor:
        parts = []
        for start in range(indices.start, indices.stop, AT_ONCE):
            some = range(start, min(start + AT_ONCE, indices.stop))
            parts.append(self.judge(self.samples(torch.from_numpy(theta), some, self.noise(some)), some))
        return torch.cat(parts)

    def prepare(self, kept: Kept) -> None:
        """The features that the first batch joins, of the schedule as it starts."""
        if "memory" not in kept:
            first = self.plan.validation
            start = self.tables.parameters.start
            kept.keep("memory", {"features": self._of(start, range(first, first + MEMORY - self.plan.batch))})
        self._memory = kept["memory"]["features"].to(self.denoiser.device)

    def batch_loss(self, theta: Tensor, iteration: int) -> Tensor:
        """Of a new batch and the newest features before it, which then make room for the batch's."""
        first = self.plan.validation + MEMORY + iteration * self.plan.batch
        indices = range(first, first + self.plan.batch)
        fresh = self.judge(self.samples(theta, indices, self.noise(indices)), indices)
        both = torch.cat([self._memory, fresh])
        self._memory = both[self.plan.batch :].detach()
        return self.judge.frechet(both)

    def held_out(self, theta: Array) -> float:
        """The distance of the validation images, as biased as their number makes it, alike for all schedules."""
        with torch.no_grad():
            return float(self.judge.frechet(self._of(theta, range(self.plan.validation))))

    def state(self) -> dict[str, Tensor]:
        """The features of the newest batches."""
        return {"features": self._memory}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take them back."""
        self._memory = state["features"].to(self.denoiser.device)
