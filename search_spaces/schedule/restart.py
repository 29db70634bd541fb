"""A schedule taken up in the middle, as image-to-image sampling does: from one of its calls on, without its history.

A multistep solver starts there as it does at its beginning: each step keeps of its formula what
the points that exist by then can give, and grows to its own order as they come. A derivative drops the points that are
not there, and itself where too few are left; a blend, whose weights belong together, becomes the Taylor formula of as
many points; a step from an intermediate point that is not there becomes a first-order one from where the sample is.
Correctors are treated alike. Times stay as they are, and so do the times that the network is told; what a refinement
added to the tables is left out, since it was fitted to the whole history.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fewstep.search_spaces.schedule.corrections import Corrections
from fewstep.search_spaces.schedule.formula import Derivative, Formula, pseudo_corrector, taylor
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
        _within(step, i + 1, to_clean=lambdas[i + 1] == math.inf) for i, step in enumerate(schedule.steps[node.step :])
    )
    fields = schedule.model_dump(exclude={"lambdas", "steps", "first_call", "corrections"})
    made = SolverSchedule.build(**fields, lambdas=lambdas, steps=steps)
    shifts = schedule.corrections.shifts[first + idle :] if schedule.corrections else ()
    if any(shifts):
        made = made.model_copy(update={"corrections": Corrections(shifts=shifts)})
    assert made.nodes == len(points) - first - idle
    return made, idle


def _within(step: Step, points: int, to_clean: bool) -> Step:
    """The step where only that many points exist before it."""
    predictor = _shortened(step.predictor, points)
    if predictor is None:
        order = _order(step.predictor, points)
        predictor = Formula() if to_clean or step.predictor.start != -1 else taylor(order)
    prediction = step.prediction
    if to_clean and predictor.blend is None:
        prediction = "data"
    corrector = step.corrector
    if corrector is not None:
        # The predicted point is one more.
        corrector = _shortened(corrector, points + 1) or pseudo_corrector(_order(corrector, points), points)
    changes = {"prediction": prediction, "predictor": predictor, "corrector": corrector}
    return step.model_copy(update=changes)


def _order(formula: Formula, points: int) -> int:
    """The order of the Taylor formula that stands in a blend's place: as many points as it had, and as there are."""
    return min(formula.order, points)


def _shortened(formula: Formula, points: int) -> Formula | None:
    """The formula on the newest `points`; None where its start is not among them, or it is a blend of more."""
    if formula.oldest >= -points:
        return formula
    if formula.blend is not None or formula.start < -points:
        return None
    kept: list[Derivative] = []
    for k, derivative in enumerate(formula.derivatives, 1):
        there = tuple(p for p in derivative.points if p >= -points)
        if len(there) < k:
            break
        kept.append(derivative.model_copy(update={"points": there}))
    return formula.model_copy(update={"derivatives": tuple(kept)})
