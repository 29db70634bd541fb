"""One objective: successive halving by a cheap screen, whose best share is judged on more images."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Sequence

from optuna.trial import TrialState

from fewstep.pipeline.proposers.base import WARM, WARM_REFINED, is_known, is_refined
from fewstep.pipeline.search import Paid, Search, Seed
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.sizes import KEPT
from fewstep.pipeline.trial import Candidate, Trial, grown, promoted
from fewstep.search_spaces.point import Point
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.metrics.metric import metric_class


class HalvingPolicy:
    """Promotes the best share of the screen as values come in; `seeds`, what a user starts from, always climb."""

    admits_outsiders = True

    def __init__(self, settings: SearchSettings, seeds: Sequence[Seed]) -> None:
        self._settings, self.seeds = settings, seeds
        self._signed = metric_class(settings.objective).signed
        self._screened: dict[int, list[float]] = {nfe: [] for nfe in settings.nfes}
        self._scale: dict[int, float] = {}

    def fits(self, point: Point) -> None:
        """Nothing: what does not fit fails when it is evaluated."""

    def account(self, of: Point | Candidate) -> int:
        """Its NFE."""
        return of.nfe

    def cost(self, search: Search, candidate: Candidate) -> int:
        """The screen, and the main rung of what climbs in any case."""
        screen, main = search.ladder.screen, search.ladder.main
        further = grown(screen, main) if candidate.origin in (WARM, WARM_REFINED) else 0
        return candidate.nfe * (screen.images + further)

    def least(self, search: Search, account: int) -> int:
        """The screen."""
        return account * search.ladder.screen.images

    def decide(self, search: Search, trial: Trial, record: EvaluationRecord) -> None:
        """See Policy."""
        complete = record.status == "complete" and record.value is not None
        if record.rung == search.ladder.main.name:
            if complete and record.value is not None:
                self._scale.setdefault(record.nfe, record.value)
            search.finish(trial, TrialState.COMPLETE if complete else TrialState.FAIL)
        elif record.rung == search.ladder.screen.name:
            if record.value is not None:
                insort(self._screened[record.nfe], record.value)
            if not complete:
                search.finish(trial, TrialState.FAIL)
            elif record.origin in (WARM, WARM_REFINED):
                search.promote(trial, Paid.BOOKED)
            elif self._is_good(record):
                search.promote(trial)
            else:
                search.finish(trial, TrialState.PRUNED)

    def _is_good(self, record: EvaluationRecord) -> bool:
        screened = self._screened[record.nfe]
        return record.value is not None and promoted(record.value, screened, self._settings.keep or KEPT)

    def objectives(self, search: Search, trial: Trial) -> tuple[float] | None:
        """Log of the value over that of the first one that was judged at its NFE; None where it is not known.

        Raw distances differ by orders of magnitude between NFEs, and would tell a sampler little else. Of a metric that
        may be 0 or below, or is there, the difference takes the place of the ratio.
        """
        value, scale = trial.value(search.ladder.main), self._scale.get(trial.candidate.nfe)
        if value is None or scale is None:
            return None
        return (math.log(max(value, 1e-12) / scale) if scale > 0 and not self._signed else value - scale,)

    def finalists(self, search: Search) -> list[Trial]:
        """The best of the main rung at each NFE; the best preset among them where there are several.

        So is the best that was tuned where there are three: what it was tuned on may be more images than it is judged
        on, and only the finals tell.
        """
        return [trial for nfe in self._settings.nfes for trial in self._finalists(search, nfe)]

    def _finalists(self, search: Search, nfe: int) -> list[Trial]:
        best = search.best(nfe, search.ladder.main)
        wanted = (is_known, is_refined)[: self._settings.finalists - 1]
        always = {next((t.number for t in best if kind(t.candidate.origin)), None) for kind in wanted}
        chosen = sorted(best, key=lambda t: t.number not in always)[: self._settings.finalists]
        return [t for t in best if t in chosen]
