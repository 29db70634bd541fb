"""Which preset is looked at next: what is known of solvers, grids and first calls, at any number of calls, adds up.

The logarithm of a first look's value is fitted by an intercept for each NFE and one number for each solver, each grid
and an analytic first call, the last by NFE too; ridge regression keeps what was never seen at zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fewstep.search_spaces.point import Point
from fewstep.search_spaces.schedule import SolverSchedule

RIDGE = 0.3
# Beyond this many times the best one's logarithm, how bad a preset is says nothing about the good ones.
WORST = 3.0


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
    """Origins of the first looks: each grid and each solver once.

    One solver goes over the grids, with an analytic first call on every other one; then the others are looked at with
    an analytic first call on the first grid.
    """
    solvers = list(dict.fromkeys(k.solver for k in known))
    grids = list(dict.fromkeys(k.grid for k in known))
    over_grids = [(solvers[0], grid, place % 2 == 0) for place, grid in enumerate(grids)]
    over_solvers = [(solver, grids[0], True) for solver in solvers[1:]]
    origins = {(k.solver, k.grid, k.analytic): k.origin for k in known}
    return [origins[entry] for entry in (*over_grids, *over_solvers) if entry in origins]


def next_best(candidates: Sequence[Known], nfe: int, looks: Sequence[Look]) -> Known:
    """The candidate with the least predicted value, of several the first."""
    predicted = _predicted(candidates, nfe, looks)
    return candidates[int(np.argmin(predicted))]


def _predicted(candidates: Sequence[Known], nfe: int, looks: Sequence[Look]) -> npt.NDArray[np.float64]:
    usable = [look for look in looks if look.value is not None and look.value > 0]
    if not usable:
        return np.zeros(len(candidates))
    best = {n: min(math.log(look.value or 1) for look in usable if look.nfe == n) for n in {u.nfe for u in usable}}
    targets = np.array([min(math.log(look.value or 1) - best[look.nfe], WORST) for look in usable])
    names = _names([look.known for look in usable] + list(candidates), sorted({look.nfe for look in usable} | {nfe}))
    seen = np.array([_row(look.known, look.nfe, names) for look in usable])
    penalty = RIDGE * np.diag([0.0 if name.startswith("nfe") else 1.0 for name in names])
    # An NFE without any look has no intercept; the order needs none.
    penalty += 1e-9 * np.eye(len(names))
    weights = np.linalg.solve(seen.T @ seen + penalty, seen.T @ targets)
    return np.array([_row(k, nfe, names) for k in candidates]) @ weights


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
