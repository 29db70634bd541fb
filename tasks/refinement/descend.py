"""A descent on moments from the best of several schedules, which goes on where it was killed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from fewstep.errors import EvaluationError, ScheduleError
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.statistics import ModelStatistics
from fewstep.tasks.quantization.kept import Kept
from fewstep.tasks.refinement.execute import Cost
from fewstep.tasks.refinement.features import Judge
from fewstep.tasks.refinement.moment_descent import Known, MomentDescent
from fewstep.tasks.refinement.moment_plan import MomentPlan
from fewstep.tasks.refinement.moment_progress import Progress

OnCalls = Callable[[int, float], None]


@dataclass(frozen=True)
class Descended:
    """A tuned schedule, distances on the plan's images of the first start that could be sampled and of it, its cost."""

    schedule: SolverSchedule
    before: float
    after: float
    cost: Cost


class Descending:
    """A descent's state after each of its measurements, by the hash of its start."""

    def __init__(self, path: Path | None, cost: Cost, on_calls: OnCalls | None) -> None:
        self._kept, self._cost, self._on_calls = Kept(path), cost, on_calls

    def run(self, descent: MomentDescent, known: Known) -> Known:
        """To the end, from where it stands. What a resumed one samples again is not counted again."""
        name, at = descent.schedule.hash, None
        if name in self._kept:
            state = self._kept[name]
            known, at = descent.begin(state["theta"].numpy()), Progress.of(state)
            self._cost.forward = int(state["calls"])

        def keep(found: Known, progress: Progress) -> None:
            numbers = {"theta": torch.from_numpy(found.theta), "calls": torch.tensor(self._cost.calls)}
            self._kept.keep(name, {**progress.tensors(), **numbers})
            if self._on_calls:
                self._on_calls(self._cost.calls, found.value)

        return descent.run(known, at, keep)


def descend(
    schedule: SolverSchedule,
    denoiser: Denoiser,
    plan: MomentPlan,
    judge: Judge,
    statistics: ModelStatistics | None = None,
    path: Path | None = None,
    on_calls: OnCalls | None = None,
) -> Descended:
    """Tune the schedule, or whichever of it and the plan's others is best once its last row is fitted: that one alone.

    The schedule itself is sampled in any case, each of the others where the plan's calls pay for it.
    Progress lies at `path`, and the same call goes on there; `on_calls` hears of calls and distance.
    EvaluationError where none of them can be sampled.
    """
    cost, judge = Cost(), judge.leading()
    starts = [schedule, *(SolverSchedule.from_json(text) for text in plan.others)]
    best: tuple[MomentDescent, Known] | None = None
    before: float | None = None
    for i, start in enumerate(starts):
        if i and cost.calls + plan.images * start.nfe > plan.limit:
            break
        descent = MomentDescent(start, denoiser, plan, judge, statistics, cost)
        try:
            known = descent.begin()
        except (ScheduleError, EvaluationError):
            continue
        before = known.value if before is None else before
        known = descent.fitted(known)
        if best is None or known.value < best[1].value:
            # What the others hold of their images is let go.
            best = descent, known
    if best is None or before is None:
        raise EvaluationError(f"schedule {schedule.hash} made values that are not finite")
    descent, known = best[0], Descending(path, cost, on_calls).run(*best)
    found = descent.schedule_at(known.theta)
    origin = {"refined_from": descent.schedule.hash, "plan": plan.model_dump(mode="json", exclude={"others"})}
    fields = found.model_dump(exclude={"provenance"}) | {"provenance": {"refinement": origin}}
    return Descended(SolverSchedule.build(**fields), before, known.value, cost)
