"""Tune a schedule by gradient: small batches by Adam, judged on noise that tuned nothing.

What comes back are schedules to be judged by something better than the loss: the iterate that did best on the
validation noise, and the average of the iterates that did. The start is always the caller's to keep.
Sources: LD3 (2405.15506), GAS ("Generalized Adversarial Solver").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError, EvaluationError, ScheduleError
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.statistics import ModelStatistics
from fewstep.tasks.quantization.kept import Kept
from fewstep.tasks.refinement.execute import Cost
from fewstep.tasks.refinement.features import Judge
from fewstep.tasks.refinement.objectives import Objective, ReferenceObjective, TeacherObjective
from fewstep.tasks.refinement.parameters import Parameters
from fewstep.tasks.refinement.plan import RATES, RefinePlan
from fewstep.tasks.refinement.tables import TablesOf
from fewstep.tasks.sampling.compile import SolverTables, compile_schedule

Array = npt.NDArray[np.float64]
OnCheck = Callable[["Check"], None]
LARGEST_NORM = 1.0


@dataclass(frozen=True)
class Check:
    """Losses on the validation noise after `iteration` steps: of the iterate, and of the average."""

    iteration: int
    loss: float
    averaged: float


@dataclass(frozen=True)
class Refined:
    """What a refinement leaves. `best` may be the start, where nothing did better."""

    start: SolverSchedule
    best: SolverSchedule
    averaged: SolverSchedule
    checks: tuple[Check, ...]
    cost: Cost

    @property
    def better(self) -> tuple[SolverSchedule, float]:
        """Best or averaged iterate, whichever has the lower validation loss, and that loss."""
        losses = min(c.loss for c in self.checks), min(c.averaged for c in self.checks)
        return (self.best, losses[0]) if losses[0] <= losses[1] else (self.averaged, losses[1])

    @property
    def gain(self) -> float:
        """Share of the start's loss that the better of the two has lost."""
        return 1.0 - self.better[1] / self.checks[0].loss


class Refinement:
    """One schedule, its teacher (None for the distance `reference`), and the denoiser that both run.

    `judge` is asked for where the distance is one in features. With a `folder`, it goes on where it was killed.
    """

    def __init__(
        self,
        schedule: SolverSchedule,
        teacher: SolverSchedule | None,
        denoiser: Denoiser,
        plan: RefinePlan,
        statistics: ModelStatistics | None = None,
        folder: Path | None = None,
        judge: Judge | None = None,
    ) -> None:
        files = denoiser.files
        self.schedule, self.teacher, self.denoiser, self.plan = schedule, teacher, denoiser, plan
        self.parameters = Parameters(schedule, plan.parts, plan.window)

        def compile_(candidate: SolverSchedule) -> SolverTables:
            return compile_schedule(candidate, files.noise, files.prediction_type, statistics)

        self.cost = Cost()
        common = TablesOf(self.parameters, compile_), denoiser, plan, self.cost
        self.objective: Objective
        if plan.distance == "reference":
            self.objective = ReferenceObjective(*common, judge)
        elif teacher is None:
            raise ConfigurationError(f"the distance {plan.distance!r} is one to a teacher: give one")
        else:
            self.objective = TeacherObjective(*common, teacher, judge)
        self._kept = Kept(folder / "progress.safetensors" if folder else None)
        self._checks: list[Check] = []

    def _keep_cost(self) -> None:
        self._kept.keep("cost", {"calls": torch.tensor([self.cost.forward, self.cost.backward])})

    def _validate(self, theta: Array) -> float:
        """Loss on the validation noise; inf where the schedule does not compile or explodes."""
        try:
            loss = self.objective.held_out(theta)
        except ScheduleError:
            return math.inf
        return loss if math.isfinite(loss) else math.inf

    # -- the descent ----------------------------------------------------------------------------------

    def run(self, on_check: OnCheck | None = None) -> Refined:
        """Tune to the end; `on_check` hears of every check. EvaluationError where already the start explodes."""
        if "cost" in self._kept:
            forward, backward = self._kept["cost"]["calls"].tolist()
            self.cost.forward, self.cost.backward = int(forward), int(backward)
        self.objective.prepare(self._kept)
        self._keep_cost()
        plan = self.plan
        theta = torch.from_numpy(self.parameters.start.copy()).requires_grad_()
        blocks = [theta.detach()[b.slice].clone().requires_grad_() for b in self.parameters.blocks]
        rates = [plan.speed * RATES[b.part] for b in self.parameters.blocks]
        optimizer = torch.optim.Adam([{"params": [b], "lr": r} for b, r in zip(blocks, rates, strict=True)])
        average, best, smoothest = (self.parameters.start.copy() for _ in range(3))
        begun = 0
        if "state" in self._kept:
            state = self._kept["state"]
            begun = int(state["iteration"])
            average, best, smoothest = (state[name].numpy() for name in ("average", "best", "smoothest"))
            self._restore(optimizer, blocks, state)
            self.objective.restore(state)
            self._checks = [Check(int(i), float(a), float(b)) for i, a, b in state["checks"]]
        if not self._checks:
            loss = self._validate(self.parameters.start)
            if not math.isfinite(loss):
                raise EvaluationError(f"schedule {self.schedule.hash} made values that are not finite")
            self._checks.append(Check(0, loss, loss))
        for iteration in range(begun, plan.iterations):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * iteration / plan.iterations))
            optimizer.zero_grad()
            if not self._step(blocks, optimizer, iteration):
                break
            at = torch.cat([b.detach() for b in blocks]).numpy()
            average = plan.average * average + (1 - plan.average) * at
            if (iteration + 1) % plan.check_every == 0 or iteration + 1 == plan.iterations:
                check = Check(iteration + 1, self._validate(at), self._validate(average))
                best = at.copy() if check.loss < min(c.loss for c in self._checks) else best
                smoothest = average.copy() if check.averaged < min(c.averaged for c in self._checks) else smoothest
                self._checks.append(check)
                self._keep(iteration + 1, optimizer, blocks, average, best, smoothest)
                if on_check:
                    on_check(check)
        found, smooth = self._named(best, "best"), self._named(smoothest, "averaged")
        return Refined(self.schedule, found, smooth, tuple(self._checks), self.cost)

    def _step(self, blocks: list[Tensor], optimizer: torch.optim.Optimizer, iteration: int) -> bool:
        """One step of Adam; False where nothing finite can be stepped along any more."""
        try:
            loss = self.objective.batch_loss(torch.cat(blocks), iteration)
        except ScheduleError:
            return False
        if not bool(torch.isfinite(loss)):
            return False
        loss.backward()  # type: ignore[no-untyped-call]
        if not bool(torch.isfinite(torch.nn.utils.clip_grad_norm_(blocks, LARGEST_NORM))):
            return False
        optimizer.step()
        try:
            self.objective.stepped(torch.cat(blocks).detach(), iteration)
        except ScheduleError:
            return False
        return True

    # -- on disk --------------------------------------------------------------------------------------

    def _keep(
        self,
        iteration: int,
        optimizer: torch.optim.Optimizer,
        blocks: list[Tensor],
        average: Array,
        best: Array,
        smoothest: Array,
    ) -> None:
        moments: dict[str, Tensor] = {}
        for i, block in enumerate(blocks):
            state = optimizer.state[block]
            moments |= {f"value{i}": block, f"first{i}": state["exp_avg"], f"second{i}": state["exp_avg_sq"]}
        checks = torch.tensor([[c.iteration, c.loss, c.averaged] for c in self._checks], dtype=torch.float64)
        arrays = {"average": average, "best": best, "smoothest": smoothest}
        self._kept.keep(
            "state",
            {
                "iteration": torch.tensor(iteration),
                "checks": checks,
                **{name: torch.from_numpy(value) for name, value in arrays.items()},
                **moments,
                **self.objective.state(),
            },
        )
        self._keep_cost()

    @staticmethod
    def _restore(optimizer: torch.optim.Optimizer, blocks: list[Tensor], state: dict[str, Tensor]) -> None:
        for i, block in enumerate(blocks):
            block.data.copy_(state[f"value{i}"])
            optimizer.state[block] = {
                "step": state["iteration"].to(torch.float32),
                "exp_avg": state[f"first{i}"].clone(),
                "exp_avg_sq": state[f"second{i}"].clone(),
            }

    def _named(self, theta: Array, kind: str) -> SolverSchedule:
        """The schedule at a vector, checked, with a note of where it comes from."""
        found = self.parameters.schedule_at(theta)
        origin = {
            "refined_from": self.schedule.hash,
            "teacher": self.teacher.hash if self.teacher and self.plan.distance != "reference" else "",
            "iterate": kind,
            "plan": self.plan.model_dump(mode="json"),
        }
        fields = found.model_dump(exclude={"provenance"}) | {"provenance": {"refinement": origin}}
        return SolverSchedule.build(**fields)
