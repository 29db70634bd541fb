"""Several objectives at once: who is on the best fronts of the screen climbs on, the front goes to the finals."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

from optuna.trial import TrialState

from fewstep.pipeline.proposers.base import Check, is_outside, is_refined
from fewstep.pipeline.proposers.pareto import PARENTS, Fronts, front
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
    adopting a candidate costs besides its screen, `dearest` the most that they can be.
    """

    admits_outsiders = True

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
        dearest: Callable[[], int] = lambda: 0,
    ) -> None:
        self.ladder = ladder
        self.seeds, self.vector, self.keep, self.most, self.fits = seeds, vector, keep, most, check
        self._always, self._extra, self._dearest = always, extra, dearest
        # By rung, and by NFE or of all.
        self._fronts: dict[tuple[str, int | None], Fronts] = defaultdict(Fronts)

    def account(self, of: Point | Candidate) -> int:
        """Its NFE."""
        return of.nfe

    def cost(self, search: Search, candidate: Candidate) -> int:
        """The screen, and what making its network takes."""
        return candidate.nfe * self.ladder.screen.images + self._extra(search, candidate)

    def least(self, search: Search, account: int) -> int:
        """The screen, and the dearest network.

        Where less is left, whether a proposal can be paid would depend on when it was asked for.
        """
        return account * self.ladder.screen.images + self._dearest()

    def decide(self, search: Search, trial: Trial, record: EvaluationRecord) -> None:
        """See Policy."""
        vector = self.vector(record)
        if vector is not None and record.rung in (self.ladder.screen.name, self.ladder.main.name):
            for nfe in (None, trial.candidate.nfe):
                self._fronts[record.rung, nfe].add(trial.number, vector)
        if vector is None:
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
        screened = self._fronts[self.ladder.screen.name, None]
        return screened.place(trial.number) < max(1, math.ceil(self.keep * len(screened)))

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

    def tunable(self, search: Search, nfe: int) -> list[Trial]:
        """The front of the main rung at an NFE without what was tuned, the best quality first."""
        judged = self._known(search.trials, self.ladder.main)
        known = [(t, v) for t, v in judged if t.candidate.nfe == nfe and not is_refined(t.candidate.origin)]
        chosen = [known[i] for i in front([values for _, values in known], self.most)]
        return [t for t, _ in sorted(chosen, key=lambda entry: (entry[1], entry[0].number))]

    # -- fronts ---------------------------------------------------------------------------------------

    def front(self, search: Search) -> list[Trial]:
        """The Pareto front of the dearest rung that anything was evaluated at, `most` members at most."""
        for rung in (self.ladder.finals, self.ladder.main, self.ladder.screen):
            known = self._known(search.trials, rung)
            if known:
                return [known[i][0] for i in front([values for _, values in known], self.most)]
        return []

    def standing(self, trials: Mapping[int, Trial], nfe: int | None) -> list[Trial]:
        """Who may have children, best first: those of the main rung, then those that were only screened."""
        numbers = list(islice(self._members(trials, self.ladder.main, nfe), PARENTS))
        judged = set(numbers)
        screened = (n for n in self._members(trials, self.ladder.screen, nfe) if n not in judged)
        return [trials[n] for n in [*numbers, *islice(screened, PARENTS - len(numbers))]]

    def _members(self, trials: Mapping[int, Trial], rung: Rung, nfe: int | None) -> Iterator[int]:
        """Who stands on a rung's fronts, the best first; what was tuned is no member of the space: no children."""
        return (n for n in self._fronts[rung.name, nfe] if not is_outside(trials[n].candidate))

    def _known(self, trials: Mapping[int, Trial], rung: Rung) -> list[tuple[Trial, Vector]]:
        having = [(t, self.vector(t.records.get(rung.name))) for _, t in sorted(trials.items())]
        return [(t, v) for t, v in having if v is not None]
