"""A ranking of schedules at no call: what moments of features that move linearly with an elite's numbers say of others.

Derivatives are measured once, as a descent on moments measures them. A schedule with as many nodes and the same first
call is the elite with corrections, so what it would score is told by them, the better the less images move:

    FD(mean + d J_mean, covariance + d J_cov)

Unlike a descent's steps, children are not held near by a term for the move: it would prefer those that change nothing.

Shapes: corrections d (n,) or (B, n).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from fewstep.errors import ScheduleError
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.refinement.moment_children import Relatives
from fewstep.tasks.refinement.moment_descent import Known, MomentDescent
from fewstep.tasks.refinement.moment_model import LinearMoments, moments

Array = npt.NDArray[np.float64]
# Of a number: children that differ by less are the elite itself.
LEAST = 1e-6


class MomentRanking:
    """Ranks relatives of what `descent` begins with; EvaluationError where that cannot be sampled."""

    def __init__(self, descent: MomentDescent, relatives: Relatives, derived: int) -> None:
        self.known: Known = descent.begin()
        directions = range(len(descent.directions))
        self.told: LinearMoments = descent.derivatives(self.known, directions, range(derived))
        self._moments = moments(self.known.features)
        self._frechet, self._relatives = descent.judge.frechet, relatives

    def predicted(self, schedule: SolverSchedule) -> float:
        """Its distance; inf where it is the elite itself, or no relative."""
        try:
            corrections = self._relatives.corrections(schedule)
        except ScheduleError:
            return math.inf
        return self.at(corrections) if np.abs(corrections).max() > LEAST else math.inf

    def at(self, corrections: Array) -> float:
        """The distance that corrections (n,) are told to lead to; inf where that is no number."""
        step = torch.from_numpy(corrections).to(self.told.mean)
        mean, covariance = self.told.at(step)
        value = float(self._frechet.of(self._moments[0] + mean, self._moments[1] + covariance))
        return value if math.isfinite(value) else math.inf
