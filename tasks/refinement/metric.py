"""A refinement as an evaluation: its point has the schedule that it starts from, what comes of it another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from fewstep.errors import EvaluationError
from fewstep.search_spaces.point import Point, parse_point, schedule_of, with_schedule
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.metrics.metric import FeatureMetric, Score
from fewstep.tasks.work import Measured, Part, Task

if TYPE_CHECKING:
    from fewstep.tasks.refinement.execute import Cost
    from fewstep.tasks.worker import Worker

BEFORE, AFTER, CALLS = "loss_before", "loss", "calls"


class Refinement(FeatureMetric):
    """Tunes a schedule by the argument `plan` (JSON) on noise of the plan's own; `teacher` is a schedule (JSON)."""

    figure: ClassVar[str] = "refinement-loss"
    standalone: ClassVar[bool] = False
    taught: ClassVar[bool] = True

    @property
    def identity(self) -> dict[str, object]:
        """The features alone, as addresses that are stored have it."""
        return {"features": self.setting.extractor.hash}

    @property
    def standard(self) -> dict[str, object]:
        """As a distance to the teacher has it."""
        return {"kind": "refine", "reference": self.reference}

    def measure(self, worker: Worker, task: Task) -> Measured:
        """The tuned schedule, the losses before and after, and denoiser calls, of which a backward pass is two."""
        from fewstep.tasks.refinement.features import Judge
        from fewstep.tasks.refinement.moment_plan import MomentPlan, parse_plan

        point, plan = parse_point(task.point), parse_plan(task.arguments["plan"])
        start = schedule_of(point)
        if start is None:
            raise EvaluationError("only schedules can be refined")
        network = worker.network(point).denoiser
        judge = Judge(self.setting, network, worker.decode)
        if isinstance(plan, MomentPlan):
            from fewstep.tasks.refinement.descend import descend

            descended = descend(start, network, plan, judge, worker.statistics)
            return _measured(
                with_schedule(point, descended.schedule), descended.before, descended.after, descended.cost
            )
        from fewstep.tasks.refinement.tune import Refinement as Descent

        teacher = SolverSchedule.from_json(task.arguments["teacher"])
        descent = Descent(start, teacher, network, plan, worker.statistics, judge=judge)
        try:
            found = descent.run()
        finally:
            worker.spend(2 * descent.cost.backward)
        schedule, loss = found.better
        return _measured(with_schedule(point, schedule), found.checks[0].loss, loss, found.cost)

    def score(self, parts: Sequence[Part], figures: Mapping[str, float]) -> Score:
        """The loss of what came of it."""
        return Score(figures[AFTER], figures=figures)


def _measured(point: Point, before: float, after: float, cost: Cost) -> Measured:
    figures = {BEFORE: before, AFTER: after, CALLS: float(cost.calls)}
    return Measured(figures=figures, point=point.to_json())
