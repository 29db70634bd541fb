"""Well-known solvers as schedules: functions from a grid of lambdas (n + 1,) to a `SolverSchedule`.

The lower-order start and end follow what diffusers' schedulers do. Sources: DDIM (2010.02502),
DPM-Solver++ (2211.01095), UniPC (2302.04867).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from fewstep.errors import ConfigurationError
from fewstep.search_spaces.formula import Derivative, Formula, Relaxation, pseudo_corrector, taylor
from fewstep.search_spaces.schedule import SolverSchedule, Step

Preset = Callable[[Sequence[float]], SolverSchedule]
LONG = 15


def _multistep_order(i: int, steps: int, order: int) -> int:
    """Order at step i: warm up from 1, and come down to 1 at the end."""
    return min(order, i + 1, steps - i)


def _dpmpp_order(i: int, lambdas: Sequence[float], order: int) -> int:
    """The same for DPM-Solver++, which comes down only below LONG steps, or for a last step to sigma = 0."""
    steps = len(lambdas) - 1
    if steps < LONG:
        return _multistep_order(i, steps, order)
    to_zero = i + 1 == steps and math.isinf(lambdas[-1])
    return 1 if to_zero else min(order, i + 1)


def ddim(lambdas: Sequence[float]) -> SolverSchedule:
    """DDIM, which is the first-order step of every solver here."""
    steps = (Step(),) * (len(lambdas) - 1)
    return SolverSchedule.build(lambdas=tuple(lambdas), steps=steps, name="ddim")


def dpmpp_2m(lambdas: Sequence[float]) -> SolverSchedule:
    """DPM-Solver++ 2M (midpoint)."""
    orders = [_dpmpp_order(i, lambdas, 2) for i in range(len(lambdas) - 1)]
    steps = tuple(Step(predictor=taylor(order, relaxation="bh2")) for order in orders)
    return SolverSchedule.build(lambdas=tuple(lambdas), steps=steps, name="dpmpp-2m")


def dpmpp_3m(lambdas: Sequence[float]) -> SolverSchedule:
    """DPM-Solver++ 3M as published: its second derivative enters with half the Taylor weight."""
    third = Formula(
        derivatives=(
            Derivative(points=(-3, -2)),
            Derivative(points=(-3, -2), relaxation="scale", coefficient=0.5),
        )
    )
    orders = [_dpmpp_order(i, lambdas, 3) for i in range(len(lambdas) - 1)]
    steps = tuple(Step(predictor=third if order == 3 else taylor(order, relaxation="bh2")) for order in orders)
    return SolverSchedule.build(lambdas=tuple(lambdas), steps=steps, name="dpmpp-3m")


def unipc(order: int, variant: Relaxation, lambdas: Sequence[float]) -> SolverSchedule:
    """UniPC of that order with B(h) `bh1` or `bh2`, data prediction, corrected at every step but the last."""
    n = len(lambdas) - 1
    steps = []
    for i in range(n):
        p = _multistep_order(i, n, order)
        predictor = taylor(p, relaxation=variant if p == 2 else "none")
        corrector = pseudo_corrector(p, i + 1, variant) if i + 1 < n else None
        steps.append(Step(predictor=predictor, corrector=corrector))
    return SolverSchedule.build(lambdas=tuple(lambdas), steps=tuple(steps), name=f"unipc-{order}-{variant}")


PRESETS: dict[str, Preset] = {
    "ddim": ddim,
    "dpmpp-2m": dpmpp_2m,
    "dpmpp-3m": dpmpp_3m,
    "unipc-2-bh1": partial(unipc, 2, "bh1"),
    "unipc-2-bh2": partial(unipc, 2, "bh2"),
    "unipc-3-bh1": partial(unipc, 3, "bh1"),
    "unipc-3-bh2": partial(unipc, 3, "bh2"),
}


def preset(name: str, lambdas: Sequence[float]) -> SolverSchedule:
    """The named preset on a grid; ConfigurationError names the valid ones."""
    if name not in PRESETS:
        raise ConfigurationError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name](lambdas)
