"""Which preset is looked at next: what is known of solvers, grids and first calls, at any number of calls, adds up.

First one solver goes over the grids, then each other solver is looked at on the best grid so far. From then on a model
says: the logarithm of a first look's value is fitted by an intercept for each NFE and one number for each solver, each
grid and an analytic first call, the last by NFE too; ridge regression keeps what was never seen at zero.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fewstep.pipeline.proposers.base import PORTFOLIO
from fewstep.search_spaces.point import Point
from fewstep.search_spaces.schedule import SolverSchedule

RIDGE = 0.3
# The solver that goes over the grids: of second order it is among the better ones on each of them.
PIVOT = "unipc-2-bh2"
CONTROL_GRID = "uniform-lambda"
# How the name of a grid ends that goes on to t = 0.
TO_ZERO = "-zero"
# Beyond this logarithm above the best one's, how bad a preset is says nothing about the good ones.
WORST = 1.0
# The same where there is no logarithm, in what the median exceeds the best by.
WORST_MEDIANS = 3.0


class Known(NamedTuple):
    """A schedule that was known before: its origin, and what it is made of."""

    origin: str
    solver: str
    grid: str
    analytic: bool
    point: Point


class Look(NamedTuple):
    """What a first look at one gave; None where it failed."""

    known: Known
    nfe: int
    value: float | None


def design(known: Sequence[Known]) -> list[str]:
    """Origins of the first looks: PIVOT on each grid, without and with an analytic first call, and portfolio between.

    What a grid and an analytic first call are worth depends on one another. A grid that goes to t = 0 besides one that
    stops short of it is left to the model.
    """
    portfolio = [k.origin for k in known if k.origin.startswith(PORTFOLIO)]
    known = [k for k in known if not k.origin.startswith(PORTFOLIO)]
    solver = PIVOT if any(k.solver == PIVOT for k in known) else known[0].solver if known else PIVOT
    grids = list(dict.fromkeys(k.grid for k in known))
    kept = [grid for grid in grids if not grid.endswith(TO_ZERO) or grid.removesuffix(TO_ZERO) not in grids]
    origins = {(k.solver, k.grid, k.analytic): k.origin for k in known}
    asked = [(solver, grid, analytic) for grid in kept for analytic in (False, True)]
    pivot = [origins[entry] for entry in asked if entry in origins]
    return [origin for pair in zip_longest(pivot, portfolio) for origin in pair if origin is not None]


def is_control(known: Known) -> bool:
    """Whether it is the one by which first looks are controlled: what is best on many models, or near it."""
    return (known.solver, known.grid, known.analytic) == (PIVOT, CONTROL_GRID, True)


def new_solver(candidates: Sequence[Known], nfe: int, looks: Sequence[Look], tried: Collection[str]) -> Known | None:
    """The first candidate of a solver that was not `tried`, made like the best look at `nfe`; None without one."""
    own = [look for look in looks if look.nfe == nfe and look.value is not None]
    for look in sorted(own, key=lambda look: look.value or 0.0):
        like = (look.known.grid, look.known.analytic)
        found = next((k for k in candidates if k.solver not in tried and (k.grid, k.analytic) == like), None)
        if found is not None:
            return found
    return None


def next_best(candidates: Sequence[Known], nfe: int, looks: Sequence[Look], signed: bool = False) -> Known:
    """The candidate with the least predicted value, of several the first.

    Of values that may be 0 or below (`signed`), what they exceed the best by takes the place of the logarithm, in units
    of what the median does.
    """
    predicted = _predicted(candidates, nfe, looks, signed)
    return candidates[int(np.argmin(predicted))]


def _predicted(candidates: Sequence[Known], nfe: int, looks: Sequence[Look], signed: bool) -> npt.NDArray[np.float64]:
    usable = [look for look in looks if look.value is not None and (signed or look.value > 0)]
    if not usable:
        return np.zeros(len(candidates))
    targets = _excess(usable) if signed else _log_excess(usable)
    names = _names([look.known for look in usable] + list(candidates), sorted({look.nfe for look in usable} | {nfe}))
    seen = np.array([_row(look.known, look.nfe, names) for look in usable])
    penalty = RIDGE * np.diag([0.0 if name.startswith("nfe") else 1.0 for name in names])
    # An NFE without any look has no intercept; the order needs none.
    penalty += 1e-9 * np.eye(len(names))
    weights = np.linalg.solve(seen.T @ seen + penalty, seen.T @ targets)
    return np.array([_row(k, nfe, names) for k in candidates]) @ weights


def _log_excess(looks: Sequence[Look]) -> npt.NDArray[np.float64]:
    """Logarithms less the best one's at the same NFE."""
    best = {n: min(math.log(look.value or 1) for look in looks if look.nfe == n) for n in {u.nfe for u in looks}}
    return np.array([min(math.log(look.value or 1) - best[look.nfe], WORST) for look in looks])


def _excess(looks: Sequence[Look]) -> npt.NDArray[np.float64]:
    """Values less the best one's at the same NFE, over what the median exceeds it by."""
    values = {n: [look.value or 0.0 for look in looks if look.nfe == n] for n in {u.nfe for u in looks}}
    units = {n: float(np.median(v)) - min(v) or 1.0 for n, v in values.items()}
    return np.array(
        [min(((look.value or 0.0) - min(values[look.nfe])) / units[look.nfe], WORST_MEDIANS) for look in looks]
    )


def _names(known: Sequence[Known], nfes: Sequence[int]) -> list[str]:
    solvers, grids = sorted({k.solver for k in known}), sorted({k.grid for k in known})
    every = [f"nfe {n}" for n in nfes] + [f"analytic {n}" for n in nfes]
    return [*every, "analytic", *(f"solver {s}" for s in solvers), *(f"grid {g}" for g in grids)]


def _row(known: Known, nfe: int, names: Sequence[str]) -> npt.NDArray[np.float64]:
    own = {f"nfe {nfe}", f"solver {known.solver}", f"grid {known.grid}"}
    if known.analytic:
        own |= {"analytic", f"analytic {nfe}"}
    return np.array([float(name in own) for name in names])


def of_schedule(origin: str, schedule: SolverSchedule, point: Point) -> Known:
    """A preset by its name, SOLVER/GRID; anything else is of its own kind."""
    solver, _, grid = schedule.name.partition("/")
    # The analytic call of one that starts late, by its corrections, is no choice of the first call.
    analytic = schedule.first_call != "model" and schedule.corrections is None
    return Known(origin, solver, grid or "own", analytic, point)
