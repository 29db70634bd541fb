"""Schedules taken up in the middle: as many calls as were left, at the same times, at the orders that are available."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fewstep.errors import FewstepError
from fewstep.search_spaces.schedule import SolverSchedule, Step
from fewstep.search_spaces.schedule.corrections import Corrections
from fewstep.search_spaces.schedule.formula import blended, pseudo_corrector, taylor
from fewstep.search_spaces.schedule.presets import ADAMS_BASHFORTH, intervals, preset
from fewstep.search_spaces.schedule.restart import nodes, restarted

SOLVERS = ["ddim", "dpmpp-2m", "dpmpp-3m", "dpmpp-2s", "dpmpp-3s", "unipc-3-bh2", "ipndm-4", "heun"]


def _schedules(calls: int) -> list[SolverSchedule]:
    found = []
    for solver in SOLVERS:
        for last in (math.inf, 2.5):
            try:
                steps = intervals(solver, calls, last == math.inf)
            except FewstepError:
                continue
            found.append(preset(solver, (*np.linspace(-4, 2, steps).tolist(), last)))
    assert len(found) > 10
    return found


@pytest.mark.parametrize("calls", [4, 7])
def test_what_is_left_is_called(calls: int) -> None:
    for schedule in _schedules(calls):
        points = nodes(schedule)
        assert len(points) == schedule.nodes == calls
        for first, point in enumerate(points):
            rest, idle = restarted(schedule, first)
            left = [p.lambda_ for p in points[first:]]
            if rest is None:
                assert (first, idle, point.step) == (calls - 1, 1, len(schedule.steps))
                continue
            assert [p.lambda_ for p in nodes(rest)] == left[idle:]
            assert left[:idle] == [point.lambda_] * idle
            assert rest.lambdas[-1] == schedule.lambdas[-1]
        whole, idle = restarted(schedule, 0)
        assert (whole, idle) == (schedule.model_copy(update={"name": whole.name if whole else ""}), 0)


def test_orders_grow_as_at_a_beginning() -> None:
    for order in (2, 3, 4):
        lambdas = (-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
        multistep = SolverSchedule.build(
            lambdas=lambdas,
            steps=tuple(
                Step(predictor=taylor(min(order, i + 1)), corrector=pseudo_corrector(min(order, i + 1), i + 1))
                for i in range(7)
            ),
        )
        rest, _ = restarted(multistep, 3)
        assert rest is not None
        assert [step.predictor.order for step in rest.steps] == [min(order, i + 1) for i in range(4)]
        assert rest.steps == multistep.steps[:4]
        blends = SolverSchedule.build(
            lambdas=lambdas,
            steps=tuple(
                Step(prediction="noise", predictor=blended(ADAMS_BASHFORTH[min(order, i + 1)])) for i in range(7)
            ),
        )
        rest, _ = restarted(blends, 2)
        assert rest is not None
        assert rest.steps == blends.steps[:5]


def test_a_step_from_a_point_that_is_not_there_starts_where_the_sample_is() -> None:
    lambdas = (-3.0, -2.0, -1.0, math.inf)
    pair = Step(prediction="noise", predictor=blended((1.0,), start=-2))
    schedule = SolverSchedule.build(lambdas=lambdas, steps=(Step(), pair, Step()))
    rest, _ = restarted(schedule, 1)
    assert rest is not None
    assert rest.steps == (Step(), Step())
    to_clean = SolverSchedule.build(lambdas=(-3.0, -2.0, math.inf), steps=(Step(prediction="noise"), pair))
    rest, _ = restarted(to_clean, 1)
    assert rest is not None
    assert rest.steps == (Step(),)


def test_correctors_stay_where_they_are() -> None:
    """They say how often the network is called, at the end and where they are implicit."""
    late = Step(predictor=taylor(3), corrector=pseudo_corrector(3, 4), implicit=True)
    steps = (Step(), Step(), Step(), late, Step(predictor=taylor(2), corrector=pseudo_corrector(2, 5)))
    schedule = SolverSchedule.build(lambdas=(-3.0, -2.0, -1.0, 0.0, 1.0, 2.0), steps=steps)
    rest, _ = restarted(schedule, 3)
    assert rest is not None
    assert rest.steps[0] == Step(corrector=pseudo_corrector(1, 1), implicit=True)
    assert rest.steps[1] == steps[4]
    assert rest.nodes == 4


def test_told_times_stay_and_what_was_fitted_to_the_whole_goes() -> None:
    steps = (Step(), Step(corrector=pseudo_corrector(1, 2), implicit=True), Step(predictor=taylor(2)))
    schedule = SolverSchedule.build(lambdas=(-3.0, -2.0, -1.0, math.inf), steps=(*steps[:2], Step()))
    assert schedule.nodes == 4
    more = Corrections(shifts=(0.1, 0.2, 0.3, 0.4), points=((1.0,), (1.0, 0.0), (0.0,) * 3, (0.0,) * 4))
    refined = schedule.model_copy(update={"corrections": more})
    for first, shifts in ((0, (0.1, 0.2, 0.3, 0.4)), (1, (0.2, 0.3, 0.4)), (2, (0.4,)), (3, (0.4,))):
        rest, idle = restarted(refined, first)
        assert rest is not None
        assert rest.corrections == Corrections(shifts=shifts)
        assert idle == int(first == 2)


def test_a_call_that_only_corrects_the_last_step_has_nothing_left() -> None:
    schedule = SolverSchedule.build(lambdas=(-3.0, -2.0, 0.0), steps=(Step(), Step(corrector=pseudo_corrector(1, 2))))
    assert schedule.nodes == 3
    assert restarted(schedule, 2) == (None, 1)
