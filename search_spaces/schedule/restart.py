"""A schedule taken up in the middle, as image-to-image sampling does: from one of its calls on, without its history.

A multistep solver starts there as it does at its beginning: a step that would reach further back than the run goes is
taken as the schedule's own step of that place is, which was made for as few points, and orders grow as they do there.
Times stay as they are, the number of calls too, and the times that the network is told. What a refinement added to the
tables is left out, since it was fitted to the whole history.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fewstep.search_spaces.schedule.corrections import Corrections
from fewstep.search_spaces.schedule.formula import Formula, pseudo_corrector
from fewstep.search_spaces.schedule.solver import SolverSchedule, Step


@dataclass(frozen=True)
class Node:
    """A point that has a row: at the start of step `step`; `again` where an implicit corrector calls once more."""

    lambda_: float
    step: int
    again: bool = False


def nodes(schedule: SolverSchedule) -> list[Node]:
    """The points of a schedule in the order of its calls (an analytic first one included)."""
    found = [Node(schedule.lambdas[0], 0)]
    last = len(schedule.steps) - 1
    for i, step in enumerate(schedule.steps):
        if i < last or step.corrector is not None:
            found.append(Node(schedule.lambdas[i + 1], i + 1))
        if step.implicit:
            found.append(Node(schedule.lambdas[i + 1], i + 1, again=True))
    return found


def restarted(schedule: SolverSchedule, first: int) -> tuple[SolverSchedule | None, int]:
    """What is left of `schedule` from its node `first` on, and how many calls before that change nothing.

    As many nodes are called as were left. The first of two calls at one point is idle without the step that led there,
    and so is one that would only correct the last step, which leaves no schedule (None).
    """
    points = nodes(schedule)
    node = points[first]
    idle = int(not node.again and first + 1 < len(points) and points[first + 1].again)
    if node.step == len(schedule.steps):
        return None, len(points) - first
    lambdas = schedule.lambdas[node.step :]
    steps = tuple(
        _within(step, schedule.steps[i], i + 1, to_clean=lambdas[i + 1] == math.inf)
        for i, step in enumerate(schedule.steps[node.step :])
    )
    fields = schedule.model_dump(exclude={"lambdas", "steps", "first_call", "corrections"})
    made = SolverSchedule.build(**fields, lambdas=lambdas, steps=steps)
    shifts = schedule.corrections.shifts[first + idle :] if schedule.corrections else ()
    if any(shifts):
        made = made.model_copy(update={"corrections": Corrections(shifts=shifts)})
    assert made.nodes == len(points) - first - idle
    return made, idle


def _within(step: Step, beginning: Step, points: int, to_clean: bool) -> Step:
    """The step where only that many points exist before it; `beginning` is the schedule's own of that place."""
    fits = step.predictor.oldest >= -points
    # The predicted point is one more.
    if fits and (step.corrector is None or step.corrector.oldest >= -points - 1):
        return step
    prediction, predictor = beginning.prediction, beginning.predictor
    if to_clean:
        prediction, predictor = "data", Formula()
    corrector = step.corrector and (beginning.corrector or pseudo_corrector(1, points))
    return step.model_copy(update={"prediction": prediction, "predictor": predictor, "corrector": corrector})
