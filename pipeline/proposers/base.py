"""What a search asks of a proposer, whatever it proposes and however."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol

from fewstep.pipeline.trial import Candidate, Trial
from fewstep.search_spaces.point import Point

# What is minimised of a trial that is over, one number or several; None where it is not known (yet, or ever).
Objectives = Callable[[Trial], Sequence[float] | None]
# ScheduleError where a point does not fit the model.
Check = Callable[[Point], None]

REFINED, WARM, WARM_REFINED = "refine:", "warm-start", "warm-start-refined"
# What stands for a preset, one with an analytic first call, and a schedule that was found on another model.
PRESET, ANALYTIC, PORTFOLIO = "preset:", "analytic:", "portfolio:"
KNOWN = (PRESET, ANALYTIC, PORTFOLIO)


def is_refined(origin: str) -> bool:
    """Whether a candidate came from a refinement in this search."""
    return origin.startswith(REFINED)


def is_known(origin: str) -> bool:
    """Whether a candidate was known before this search: a preset, with an analytic first call or not, a portfolio's."""
    return origin.startswith(KNOWN)


def is_outside(candidate: Candidate) -> bool:
    """Whether a candidate is no member of the space that is searched, so that the sampler learns nothing of it."""
    return not candidate.is_drawn


class Proposer(Protocol):
    """Numbers trials, and proposes points as a function of the seed and of the trials so far."""

    def ask(self, nfe: int, seen: AbstractSet[str], trials: Mapping[int, Trial]) -> Candidate | None:
        """A candidate at `nfe` whose hash is not in `seen`; None where none is left to try."""

    def enlist(self, point: Point, origin: str, trials: Mapping[int, Trial]) -> Candidate:
        """Enter a point from elsewhere, a member of the space, as a trial."""

    def admit(self, point: Point, origin: str, trials: Mapping[int, Trial]) -> Candidate:
        """Enter a point outside the space: it is judged beside the others, and teaches nothing."""

    def report(self, trial: Trial, value: float, step: int) -> None:
        """What a trial scored at rung number `step`, while it is under way."""

    def tell(self, trial: Trial, objectives: Sequence[float] | None) -> None:
        """A trial is over, in its `state`."""

    def restore(self, trials: Mapping[int, Trial], objectives: Objectives) -> list[Trial]:
        """Become what it was after these trials; those come back that are over without known objectives."""
