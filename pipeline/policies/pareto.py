"""Several objectives at once: who is on the best fronts of the screen climbs on, the front goes to the finals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from optuna.trial import TrialState

from fewstep.pipeline.proposers.base import Check
from fewstep.pipeline.proposers.pareto import front, ordered
from fewstep.pipeline.search import Search, Seed
from fewstep.pipeline.trial import Candidate, Ladder, Rung, Trial
from fewstep.search_spaces.point import Point
from fewstep.storage.records import EvaluationRecord

# Of a record: all that is minimised, None where it is not whole.
Vector = tuple[float, ...]
VectorOf = Callable[[EvaluationRecord | None], Vector | None]


class ParetoPolicy:
    """Promotes the share `keep` of the screened trials, by front; `most` members of the front reach the finals.

    Seeds whose origin begins with `always` are what the rest is compared with, and always climb. `extra` are calls that
    adopting a candidate costs besides its screen.
    """

    admits_outsiders = False

    def __init__(
        self,
        ladder: Ladder,
        seeds: Sequence[Seed],
        vector: VectorOf,
        keep: float,
        most: int,
        check: Check,
        always: str = "",
        extra: Callable[[Search, Candidate], int] = lambda search, candidate: 0,
    ) -> None:
        self.ladder = ladder
        self.seeds, self.vector, self.keep, self.most, self.fits = seeds, vector, keep, most, check
        self._always, self._extra = always, extra

    def account(self, point: Point) -> int:
        """Its NFE."""
        return point.nfe

    def cost(self, search: Search, candidate: Candidate) -> int:
        """The screen, and what making its network takes."""
        return candidate.nfe * self.ladder.screen.images + self._extra(search, candidate)

    def least(self, search: Search, account: int) -> int:
        """The screen."""
        return account * self.ladder.screen.images

    def decide(self, search: Search, trial: Trial, record: EvaluationRecord) -> None:
        """See Policy."""
        if self.vector(record) is None:
            search.finish(trial, TrialState.FAIL)
        elif record.rung == self.ladder.main.name:
            search.finish(trial, TrialState.COMPLETE)
        elif record.rung == self.ladder.screen.name:
            if self._climbs(search, trial):
                search.promote(trial)
            else:
                search.finish(trial, TrialState.PRUNED)

    def _climbs(self, search: Search, trial: Trial) -> bool:
        if self._always and trial.candidate.origin.startswith(self._always):
            return True
        screened = self.ranked(search.trials, self.ladder.screen)
        return any(t is trial for t in screened[: max(1, math.ceil(self.keep * len(screened)))])

    def objectives(self, search: Search, trial: Trial) -> Vector | None:
        """Those of the main rung, or of the screen where it went no further."""
        found = self.vector(trial.records.get(self.ladder.main.name))
        return found if found is not None else self.screened(trial)

    def screened(self, trial: Trial) -> Vector | None:
        """Those of the screen."""
        return self.vector(trial.records.get(self.ladder.screen.name))

    def finalists(self, search: Search) -> list[Trial]:
        """The front of the main rung."""
        known = self._known(search.trials, self.ladder.main)
        return [known[i][0] for i in front([values for _, values in known], self.most)]

    # -- fronts ---------------------------------------------------------------------------------------

    def front(self, search: Search) -> list[Trial]:
        """The Pareto front of the dearest rung that anything was evaluated at, `most` members at most."""
        for rung in (self.ladder.finals, self.ladder.main, self.ladder.screen):
            known = self._known(search.trials, rung)
            if known:
                return [known[i][0] for i in front([values for _, values in known], self.most)]
        return []

    def ranked(self, trials: Mapping[int, Trial], rung: Rung, nfe: int | None = None) -> list[Trial]:
        """Trials that have objectives at a rung, best first: by front, the loneliest of a front first."""
        known = self._known(trials, rung, nfe)
        return [known[i][0] for i in ordered([values for _, values in known])]

    def standing(self, trials: Mapping[int, Trial], nfe: int | None) -> list[Trial]:
        """Who may have children, best first: those of the main rung, then those that were only screened."""
        judged = self.ranked(trials, self.ladder.main, nfe)
        known = {t.number for t in judged}
        return judged + [t for t in self.ranked(trials, self.ladder.screen, nfe) if t.number not in known]

    def _known(self, trials: Mapping[int, Trial], rung: Rung, nfe: int | None = None) -> list[tuple[Trial, Vector]]:
        having = [(t, self.vector(t.records.get(rung.name))) for _, t in sorted(trials.items())]
        return [(t, v) for t, v in having if v is not None and nfe in (None, t.candidate.nfe)]
