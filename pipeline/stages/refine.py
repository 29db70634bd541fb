"""Refinement: once the searched share of the budget is spent, the best schedules are tuned before more is tried."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import TrialState

from fewstep.pipeline.proposers.base import REFINED, is_refined
from fewstep.pipeline.search import Search, Stage
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.trial import Candidate, Rung, Trial, Work, candidate_of
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.refinement.moment_plan import MomentPlan

RUNG = "refine"


class Refine(Stage):
    """Tunes elites of the NFE with the fewest refinements; what comes of one is judged like any promoted candidate."""

    rung = RUNG

    def __init__(self, settings: SearchSettings, teacher_nfe: int) -> None:
        self._settings, self._teacher_nfe = settings, teacher_nfe

    def owns(self, candidate: Candidate) -> bool:
        """See Stage."""
        return is_refined(candidate.origin)

    def cost(self, search: Search, candidate: Candidate) -> int:
        """The plan's calls."""
        nfe = candidate.nfe
        return self._settings.refine_plan(nfe, self._teacher_nfe).calls(nfe, self._teacher_nfe)

    def next_work(self, search: Search) -> Work | None:
        """The best judged schedule that was not refined yet, of the NFE with the fewest refinements."""
        s, main = self._settings, search.ladder.main
        searched = search.spent >= (1 - s.refine) * s.budget and search.seeds_are_tried
        if not (s.refine and searched and search.may_propose):
            return None
        refined = [t.candidate for t in search.trials.values() if is_refined(t.candidate.origin)]
        starts = {candidate.origin.partition(":")[2] for candidate in refined}
        elites = {
            nfe: [t for t in search.best(nfe, main) if not is_refined(t.candidate.origin)][: s.refined_elites]
            for nfe in s.nfes
        }
        waiting = {nfe: [t for t in trials if t.candidate.hash not in starts] for nfe, trials in elites.items()}
        done = {nfe: sum(candidate.nfe == nfe for candidate in refined) for nfe in s.nfes}
        open_ = [nfe for nfe in s.nfes if waiting[nfe] and done[nfe] < s.refinements_each]
        if not open_:
            return None
        nfe = min(open_, key=lambda n: (done[n], n))
        elite = waiting[nfe][0].candidate
        candidate = search.proposer.admit(elite.point, f"{REFINED}{elite.hash}", search.trials)
        search.adopt(candidate)
        return candidate, self._rung(nfe, [t.candidate.schedule.to_json() for t in waiting[nfe][1:]])

    def _rung(self, nfe: int, others: Sequence[str]) -> Rung:
        plan = self._settings.refine_plan(nfe, self._teacher_nfe)
        if isinstance(plan, MomentPlan):
            plan = plan.model_copy(update={"others": tuple(others)})
        return Rung(RUNG, "refine", plan.seen, plan.noise_seed, {"plan": plan.model_dump_json()})

    def take(self, search: Search, trial: Trial, record: EvaluationRecord) -> bool:
        """What came of a refinement goes straight to the main rung, unless it is what it started from."""
        if record.rung != RUNG:
            return False
        if record.status != "complete":
            search.finish(trial, TrialState.FAIL)
            return True
        trial.candidate = candidate_of(record)
        if search.by_hash.setdefault(trial.candidate.hash, trial.number) == trial.number:
            search.promote(trial)
        else:
            search.finish(trial, TrialState.PRUNED)
        return True
