"""The ranking of an elite's children as an evaluation: its point is the elite, its figures are which are the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from fewstep.errors import EvaluationError, ScheduleError
from fewstep.search_spaces.point import parse_point, schedule_of
from fewstep.search_spaces.schedule.genome import to_schedule
from fewstep.tasks.metrics.metric import FeatureMetric, Score
from fewstep.tasks.work import Measured, Part, Task

if TYPE_CHECKING:
    from fewstep.tasks.worker import Worker

# Figures: a chosen child's place in its brood and what it is told to score, both numbered; how many could be ranked.
CHILD, TOLD, RANKED, CALLS = "child", "told", "ranked", "calls"


class Brood(FeatureMetric):
    """Ranks the brood of the argument `plan` (JSON)."""

    figure: ClassVar[str] = "brood"
    standalone: ClassVar[bool] = False

    def measure(self, worker: Worker, task: Task) -> Measured:
        """Numbers of the best children, the best first, and what they are told to score; denoiser calls."""
        from fewstep.tasks.refinement.brood_plan import BroodPlan
        from fewstep.tasks.refinement.execute import Cost
        from fewstep.tasks.refinement.features import Judge
        from fewstep.tasks.refinement.moment_children import Relatives
        from fewstep.tasks.refinement.moment_descent import MomentDescent
        from fewstep.tasks.refinement.moment_plan import AT_ONCE, MomentPlan
        from fewstep.tasks.refinement.moment_ranking import MomentRanking

        elite, plan = schedule_of(parse_point(task.point)), BroodPlan.model_validate_json(task.arguments["plan"])
        if elite is None:
            raise EvaluationError("only schedules have children that are ranked by their moments")
        files, cost = worker.files, Cost()
        judge = Judge(self.setting, worker.exact, worker.decode).leading()
        images = MomentPlan(images=plan.images, look=AT_ONCE, limit=1, seed=plan.seed)
        relatives = Relatives(elite, files.noise, files.prediction_type, worker.statistics)
        descent = MomentDescent(elite, worker.exact, images, judge, worker.statistics, cost)
        ranking = MomentRanking(descent, relatives, plan.derived)
        told: dict[float, int] = {}
        for i, child in enumerate(plan.brood(elite, files.noise, files.skips)):
            try:
                value = ranking.predicted(to_schedule(child))
            except ScheduleError:
                continue
            # What is told to score the same is the same sampler.
            told.setdefault(value, i)
        told.pop(math.inf, None)
        best = sorted(told)[: plan.kept]
        if not best:
            raise EvaluationError(f"no child of schedule {elite.hash} is the elite with corrections")
        figures = {CALLS: float(cost.calls), RANKED: float(len(told))}
        figures |= {f"{CHILD}.{k}": float(told[value]) for k, value in enumerate(best)}
        return Measured(figures=figures | {f"{TOLD}.{k}": value for k, value in enumerate(best)})

    def score(self, parts: Sequence[Part], figures: Mapping[str, float]) -> Score:
        """What the best child is told to score."""
        return Score(figures[f"{TOLD}.0"], figures=figures)
