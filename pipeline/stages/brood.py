"""Broods: moments of features rank many children of the best schedule, the best of them are screened and judged.

What a ranking takes is measured once an elite, and counted. A part of the proposals' calls is kept for it, once the
others are spent: as many rounds as that pays, each from the best judged member of the space that had none. How the
screen orders what was ranked is told as a surrogate's rank correlation: on values that it has not seen, among siblings.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from optuna.trial import TrialState
from scipy.stats import kendalltau

from fewstep.errors import ScheduleError
from fewstep.pipeline.proposers.base import BRED, BROOD, is_refined
from fewstep.pipeline.proposers.options import OnRefit
from fewstep.pipeline.search import Paid, Search, Stage, enlisted
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.sizes import plan as sizes_of
from fewstep.pipeline.trial import Candidate, Rung, Trial, Work, kept
from fewstep.search_spaces.point import Point, as_point
from fewstep.search_spaces.schedule.genome import to_genome, to_schedule
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.models.noise_schedule import NoiseSchedule
from fewstep.tasks.refinement.brood import CHILD, TOLD
from fewstep.tasks.refinement.brood_plan import BroodPlan

RUNG = "brood"
# Of the calls of an NFE's proposals: what is kept for broods.
SHARE = 0.5
# Children of a round that are screened, at least and at most, and how many of them are judged.
FEWEST, MOST, JUDGED = 8, 32, 1


@dataclass
class _Round:
    """Children that wait to be screened, what they are told to score and what the screen said, by hash."""

    elite: float
    seconds: float
    waiting: deque[Point]
    told: dict[str, float]
    found: dict[str, float] = field(default_factory=dict)


class Broods(Stage):
    """See the module's docstring. `noise` and `skips` are the model's."""

    rungs = (RUNG,)

    def __init__(
        self, settings: SearchSettings, noise: NoiseSchedule, skips: int, on_refit: OnRefit | None = None
    ) -> None:
        self._settings = s = settings
        self._noise, self._skips, self._on_refit = noise, skips, on_refit
        self._plan = BroodPlan(kept=MOST, seed=s.seed, decisions=s.decisions, guidance_range=s.guidance_range)
        self._used: dict[int, int] = {}
        self._over: set[int] = set()
        self._measuring: set[int] = set()
        self._rounds: dict[int, _Round] = {}

    def owns(self, candidate: Candidate) -> bool:
        """See Stage."""
        return candidate.origin.startswith((BROOD, BRED))

    def cost(self, search: Search, candidate: Candidate) -> int:
        """Of a measurement its plan's calls, of a child its screen."""
        nfe, calls = candidate.nfe, candidate.nfe * search.ladder.screen.images
        if candidate.origin.startswith(BROOD):
            calls = self._plan.calls(candidate.schedule)
            self._measuring.add(nfe)
        elif (now := self._rounds.get(nfe)) is not None:
            # In a replay it comes from its record.
            now.waiting = deque(point for point in now.waiting if point.hash != candidate.hash)
        self._used[nfe] = self._used.get(nfe, 0) + calls
        return calls

    def reserve(self, search: Search, account: int) -> int:
        """What is kept, less what was used of it; nothing once that pays no further round of any elite."""
        left = int(SHARE * sizes_of(self._settings, account).search) - self._used.get(account, 0)
        under_way = account in self._measuring or account in self._rounds
        payable = left >= self._round(search, account, self._plan.least(account))
        return max(0, left) if under_way or (payable and account not in self._over) else 0

    @staticmethod
    def _round(search: Search, nfe: int, measured: int) -> int:
        """Calls of the smallest round whose measurement takes so many."""
        return measured + nfe * (FEWEST * search.ladder.screen.images + JUDGED * search.ladder.main.images)

    # -- a round --------------------------------------------------------------------------------------

    def next_work(self, search: Search) -> Work | None:
        """Children that wait; or the measurement of another elite, of an NFE that can pay no more proposals."""
        for nfe in search.nfes:
            if (now := self._rounds.get(nfe)) is not None:
                if (child := self._child(search, now)) is not None:
                    return child, search.aimed(child, search.ladder.screen)
                continue
            settled = nfe in self._over or nfe in search.open
            if not settled and (work := self._measured(search, nfe)) is not None:
                return work
        return None

    def _child(self, search: Search, now: _Round) -> Candidate | None:
        if now.waiting:
            child = enlisted(search.proposer, now.waiting.popleft(), BRED, search.trials, True)
            assert child is not None
            search.adopt(child)
            return child
        return None

    def _measured(self, search: Search, nfe: int) -> Work | None:
        if any(t.state == TrialState.RUNNING for t in search.trials.values() if t.candidate.nfe == nfe):
            return None
        elite = self._elite(search, nfe)
        if elite is None:
            self._over.add(nfe)
            if nfe not in self._used:
                why = "the proposals' calls do not pay for it, or no member of the space was judged"
                search.news.append(("not_bred", f"nothing is ranked by moments at NFE {nfe}: {why}"))
            return None
        plan = self._plan
        candidate = search.proposer.admit(elite.candidate.point, f"{BROOD}{elite.candidate.hash}", search.trials)
        search.adopt(candidate)
        return candidate, Rung(RUNG, RUNG, plan.images, plan.seed, {"plan": plan.model_dump_json()})

    def _elite(self, search: Search, nfe: int) -> Trial | None:
        """The best judged member of the space that had no brood, and that can be paid."""
        had = {t.candidate.origin.removeprefix(BROOD) for t in search.trials.values()}
        for trial in search.best(nfe, search.ladder.main):
            if is_refined(trial.candidate.origin) or trial.candidate.hash in had:
                continue
            schedule = trial.candidate.schedule
            if self._round(search, nfe, self._plan.calls(schedule)) > self.reserve(search, nfe):
                continue
            try:
                to_genome(schedule)
            except ScheduleError:
                continue
            return trial
        return None

    # -- what comes of it -----------------------------------------------------------------------------

    def take(self, search: Search, trial: Trial, record: EvaluationRecord) -> bool:
        """The measurement's record, and children's screens: the best of a round are judged once all are in."""
        nfe, of_child = record.nfe, trial.candidate.origin == BRED
        if record.rung == RUNG:
            self._bear(search, trial, record)
            return True
        if not of_child or record.rung != search.ladder.screen.name:
            return False
        now = self._rounds.get(nfe)
        if now is None or record.candidate not in now.told:
            search.finish(trial, TrialState.PRUNED)
            return True
        if record.status != "complete" or record.value is None:
            now.told.pop(record.candidate)
            search.finish(trial, TrialState.FAIL)
        else:
            now.found[record.candidate] = record.value
        self._close(search, nfe, now)
        return True

    def _bear(self, search: Search, trial: Trial, record: EvaluationRecord) -> None:
        nfe, elite = record.nfe, trial.candidate.schedule
        left = self.reserve(search, nfe) - nfe * JUDGED * search.ladder.main.images
        self._measuring.discard(nfe)
        if record.status != "complete":
            search.finish(trial, TrialState.FAIL)
            search.news.append(("not_bred", f"no children of {elite.hash} are ranked: {record.error}"))
            return
        search.finish(trial, TrialState.PRUNED)
        ladder, plan = search.ladder, self._plan
        children = plan.brood(elite, self._noise, self._skips)
        payable = max(FEWEST, left // (nfe * ladder.screen.images))
        ranked = [k for k in range(plan.kept) if f"{CHILD}.{k}" in record.metrics]
        points: dict[str, Point] = {}
        told: dict[str, float] = {}
        for k in ranked:
            point = as_point(to_schedule(children[int(record.metrics[f"{CHILD}.{k}"])]))
            if point.hash not in search.by_hash and len(points) < payable:
                points[point.hash], told[point.hash] = point, record.metrics[f"{TOLD}.{k}"]
        if not points:
            return
        start = search.trials[search.by_hash[trial.candidate.hash]].value(ladder.main)
        self._rounds[nfe] = _Round(np.inf if start is None else start, record.seconds, deque(points.values()), told)

    def _close(self, search: Search, nfe: int, now: _Round) -> None:
        """With the last screen the best are judged that seem better than the elite."""
        if now.waiting or len(now.found) < len(now.told):
            return
        best = sorted(now.found, key=lambda name: now.found[name])
        for i, name in enumerate(best):
            trial = search.trials[search.by_hash[name]]
            calls = nfe * (search.ladder.main.images - kept(trial.records.values(), search.ladder.main))
            if i < JUDGED and now.found[name] < now.elite and calls <= self.reserve(search, nfe):
                self._used[nfe] += calls
                search.promote(trial, Paid.RESERVED)
            else:
                search.finish(trial, TrialState.PRUNED)
        del self._rounds[nfe]
        if self._on_refit and len(now.told) > 2:
            tau = float(kendalltau([now.told[h] for h in best], [now.found[h] for h in best]).statistic)
            self._on_refit(len(best), tau if np.isfinite(tau) else None, now.seconds)
