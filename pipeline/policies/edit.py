"""Edits: success, identity and calls on a Pareto front that is screened once; the balanced and the spread out go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from optuna.trial import TrialState

from fewstep.pipeline.proposers.pareto import PARENTS, Fronts, front
from fewstep.pipeline.search import Search, Seed
from fewstep.pipeline.trial import Candidate, Ladder, Rung, Trial
from fewstep.search_spaces.point import Point
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.editing.measures import balance

Vector = tuple[float, float, float]


def edit_objectives(record: EvaluationRecord | None) -> Vector | None:
    """Failure, loss of identity and calls, all to be small; None without a complete record."""
    if record is None or record.status != "complete":
        return None
    return 1 - record.metrics["success"], 1 - record.metrics["identity"], record.metrics["nfe"]


class EditPolicy:
    """No rung between screen and finals. `calls` are those of an edit by its ways; `most_calls` bounds the choice."""

    admits_outsiders = False

    def __init__(
        self, ladder: Ladder, seeds: Sequence[Seed], calls: Callable[[Point], int], finalists: int, most_calls: int
    ) -> None:
        self.ladder = ladder
        self.seeds, self.calls, self._most, self.most_calls = seeds, calls, finalists, most_calls
        self._screened = Fronts()

    def fits(self, point: Point) -> None:
        """See Policy."""
        self.calls(point)

    def account(self, of: Point | Candidate) -> int:
        """All under one number: edits of different calls share a budget."""
        return 0

    def cost(self, search: Search, candidate: Candidate) -> int:
        """The screen; the way to the step costs about as much as its name says."""
        return self.ladder.screen.images * self.calls(candidate.point)

    def least(self, search: Search, account: int) -> int:
        """One call: what an edit costs only its ways tell."""
        return 1

    def decide(self, search: Search, trial: Trial, record: EvaluationRecord) -> None:
        """The screen says all that the sampler learns."""
        if record.rung == self.ladder.screen.name:
            vector = edit_objectives(record)
            if vector is not None:
                self._screened.add(trial.number, vector)
            search.finish(trial, TrialState.COMPLETE if vector else TrialState.FAIL)

    def objectives(self, search: Search, trial: Trial) -> Vector | None:
        """Those of the screen."""
        return self.screened(trial)

    def objectives_at(self, trial: Trial, rung: Rung) -> Vector | None:
        """Those of a rung."""
        return edit_objectives(trial.records.get(rung.name))

    def finalists(self, search: Search) -> list[Trial]:
        """Of the front within the bound on calls: the best balanced, then the most spread out."""
        screen = self.ladder.screen
        members = [t for t in self.front(search, screen) if self.allowed(t, screen)]
        balanced = sorted(members, key=lambda t: -self.balance(t, screen))[: (self._most + 1) // 2]
        spread = self._front(members, screen, self._most)
        return list({t.number: t for t in [*balanced, *spread]}.values())[: self._most]

    def front(self, search: Search, rung: Rung) -> list[Trial]:
        """Trials at a rung that no other one dominates."""
        return self._front([t for _, t in sorted(search.trials.items())], rung, 0)

    def standing(self, trials: Mapping[int, Trial], nfe: int | None) -> list[Trial]:
        """Who may have children: the screened, best front first."""
        return [trials[number] for number in islice(self._screened, PARENTS)]

    def screened(self, trial: Trial) -> Vector | None:
        """Those of the screen."""
        return self.objectives_at(trial, self.ladder.screen)

    def _having(self, trials: Sequence[Trial], rung: Rung) -> list[tuple[Trial, Vector]]:
        return [(t, values) for t in trials if (values := self.objectives_at(t, rung)) is not None]

    def _front(self, trials: Sequence[Trial], rung: Rung, most: int) -> list[Trial]:
        having = self._having(trials, rung)
        return [having[i][0] for i in front([values for _, values in having], most)] if having else []

    def allowed(self, trial: Trial, rung: Rung, most: int | None = None) -> bool:
        """Whether a trial keeps to the bound on calls."""
        bound = self.most_calls if most is None else most
        return not bound or trial.records[rung.name].metrics["nfe"] <= bound

    @staticmethod
    def balance(trial: Trial, rung: Rung) -> float:
        """Harmonic mean of success and identity at a rung."""
        figures = trial.records[rung.name].metrics
        return balance(figures["success"], figures["identity"])
