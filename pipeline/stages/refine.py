"""Refinement: once the searched share of the budget is spent, the best schedules are tuned before more is tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optuna.trial import TrialState

from fewstep.pipeline.proposers.base import REFINED, is_refined
from fewstep.pipeline.search import Paid, Search, Stage
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.stages.refine_plan import refine_plan
from fewstep.pipeline.trial import Candidate, Rung, Trial, Work, candidate_of
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.refinement.moment_plan import MomentPlan

RUNG = "refine"
# Of a descent on moments' calls, for sampling more starts than one.
STARTS = 0.3
# Of a record: the denoiser calls that the refinement took.
CALLS = "calls"


def calls_of_each(settings: SearchSettings, share: int, nfe: int) -> int:
    """Calls of one refinement of sized settings: its part of an account's share, less what judging it takes."""
    assert settings.frechet_images is not None
    return int((settings.refine or 0) * share) // settings.refinements_each - nfe * settings.frechet_images


# What may be tuned at an NFE, the best first: nothing that was.
Elites = Callable[[Search, int], Sequence[Trial]]


def judged(search: Search, nfe: int) -> list[Trial]:
    """What was judged at an NFE and not tuned, the best first."""
    return [t for t in search.best(nfe, search.ladder.main) if not is_refined(t.candidate.origin)]


class Refine(Stage):
    """Tunes elites of an NFE once its searched share is spent; what comes of one is judged like any promoted candidate.

    What it leaves of its share goes back to the search.
    """

    rungs = (RUNG,)

    def __init__(self, settings: SearchSettings, teacher_nfe: int, elites: Elites = judged) -> None:
        self._settings, self._teacher_nfe, self._elites = settings, teacher_nfe, elites
        self._taken: dict[int, int] = {}
        self._plans: dict[int, int] = {}
        self._over: set[int] = set()

    def owns(self, candidate: Candidate) -> bool:
        """See Stage."""
        return is_refined(candidate.origin)

    def _each(self, search: Search, nfe: int) -> int:
        return calls_of_each(self._settings, search.share, nfe)

    def cost(self, search: Search, candidate: Candidate) -> int:
        """The plan's calls."""
        nfe = candidate.nfe
        plan = refine_plan(self._settings, nfe, self._teacher_nfe, self._each(search, nfe))
        calls = plan.calls(nfe, self._teacher_nfe)
        self._plans[candidate.trial] = calls
        self._taken[nfe] = self._taken.get(nfe, 0) + calls + nfe * search.ladder.main.images
        return calls

    def reserve(self, search: Search, account: int) -> int:
        """See Stage."""
        if account in self._over or not self._settings.refine:
            return 0
        return max(0, int(self._settings.refine * search.share) - self._taken.get(account, 0))

    def next_work(self, search: Search) -> Work | None:
        """The best judged schedule that was not refined yet, of an NFE that can pay no more candidates."""
        for nfe in search.nfes if self._settings.refine else ():
            if nfe not in self._over and nfe not in search.open:
                work = self._refined(search, nfe)
                if work is not None:
                    return work
        return None

    def _refined(self, search: Search, nfe: int) -> Work | None:
        s = self._settings
        done = [t.candidate for t in self._of(search, nfe) if is_refined(t.candidate.origin)]
        running = any(t.state == TrialState.RUNNING for t in self._of(search, nfe))
        if running or len(done) >= s.refinements_each:
            return None
        starts = {candidate.origin.partition(":")[2] for candidate in done}
        waiting = [t for t in self._elites(search, nfe)[: s.refined_elites] if t.candidate.hash not in starts]
        plan = refine_plan(s, nfe, self._teacher_nfe, self._each(search, nfe))
        calls = plan.calls(nfe, self._teacher_nfe)
        payable = search.room(nfe) + self.reserve(search, nfe)
        if not waiting or calls + nfe * search.ladder.main.images > payable:
            self._end(search, nfe, "no judged schedule is left" if not waiting else "the budget does not pay it")
            return None
        elite = waiting[0].candidate
        candidate = search.proposer.admit(elite.point, f"{REFINED}{elite.hash}", search.trials)
        search.adopt(candidate)
        if isinstance(plan, MomentPlan) and s.refinements_each == 1:
            starts_paid = int(STARTS * plan.limit / (plan.images * nfe))
            others = tuple(t.candidate.schedule.to_json() for t in waiting[1 : max(1, starts_paid)])
            plan = plan.model_copy(update={"others": others})
        return candidate, Rung(RUNG, "refine", plan.seen, plan.noise_seed, {"plan": plan.model_dump_json()})

    def take(self, search: Search, trial: Trial, record: EvaluationRecord) -> bool:
        """What came of a refinement goes straight to the main rung, unless it is what it started from."""
        if record.rung != RUNG:
            return False
        nfe, planned = record.nfe, self._plans.get(trial.number, 0)
        failed = record.status != "complete"
        spent = round(record.metrics.get(CALLS, planned)) if not failed else min(planned, record.denoiser_calls)
        search.commit(trial.candidate, spent - planned)
        done = sum(is_refined(t.candidate.origin) and RUNG in t.records for t in self._of(search, nfe))
        if failed:
            search.finish(trial, TrialState.FAIL)
            back = planned - spent
            search.news.append(
                (
                    "tuning_failed",
                    f"tuning {trial.candidate.origin} failed: {record.error}; {back:,} calls go back to the search",
                )
            )
        else:
            trial.candidate = candidate_of(record)
            if search.by_hash.setdefault(trial.candidate.hash, trial.number) == trial.number:
                search.promote(trial, Paid.RESERVED)
            else:
                search.finish(trial, TrialState.PRUNED)
        if done >= self._settings.refinements_each:
            self._over.add(nfe)
        return True

    @staticmethod
    def _of(search: Search, nfe: int) -> list[Trial]:
        return [t for t in search.trials.values() if t.candidate.nfe == nfe]

    def _end(self, search: Search, nfe: int, reason: str) -> None:
        self._over.add(nfe)
        search.news.append(("not_tuned", f"no more is tuned at NFE {nfe}: {reason}; its calls go back to the search"))
