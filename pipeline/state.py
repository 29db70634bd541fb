"""What a search of schedules knows and what it wants next: a function of its settings and the records, in order.

In-process, where one evaluation follows the other, a search that was killed and continued therefore equals one
that was never killed. What it shares with other searches: see `climb.py`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from optuna.trial import TrialState

from fewstep.pipeline.climb import WARM, Climb, Trial, Work, candidate_of
from fewstep.pipeline.evaluator import Candidate
from fewstep.pipeline.ladder import Rung, promoted
from fewstep.pipeline.proposers.optuna import REFINED, WARM_REFINED, Proposer, is_refined
from fewstep.pipeline.proposers.s3 import OnRefit
from fewstep.pipeline.scope import Scope
from fewstep.pipeline.settings import BASELINE_GRID, SearchSettings
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.refinement.moment_plan import MomentPlan
from fewstep.tasks.sampling.grids import all_presets

__all__ = ["BASELINE", "SearchState", "Trial", "Work"]

BASELINE = f"ddim/{BASELINE_GRID}"


class SearchState(Climb):
    """Learns from records, proposes work. See the module's docstring."""

    def __init__(self, settings: SearchSettings, scope: Scope, on_refit: OnRefit | None = None) -> None:
        super().__init__(settings)
        self._teacher_nfe = scope.teacher_nfe
        self.proposer = Proposer(settings, scope, on_refit)
        self.presets = {nfe: all_presets(scope.noise, nfe, settings.grids) for nfe in settings.nfes}
        warm = [SolverSchedule.from_json(text) for text in settings.warm_start]
        first = {s.hash: (WARM, s) for s in warm if s.nfe in settings.nfes}
        presets = {s.hash: (f"preset:{name}", s) for nfe in settings.nfes for name, s in self.presets[nfe].items()}
        self._waiting_presets = deque((presets | {k: v for k, v in first.items() if k not in presets}).values())
        self._screened: dict[int, list[float]] = {nfe: [] for nfe in settings.nfes}
        self._untold: list[Trial] = []

    @classmethod
    def replay(
        cls,
        settings: SearchSettings,
        scope: Scope,
        records: Sequence[EvaluationRecord],
        on_refit: OnRefit | None = None,
    ) -> SearchState:
        """The state after `records`, whatever was under way when they end."""
        state = cls(settings, scope, on_refit)
        state._resume(records)
        state._untold = state.proposer.restore(state.trials, state._objective)
        return state

    # -- what comes next ------------------------------------------------------------------------------

    def _next_candidate(self) -> Candidate | None:
        if self._waiting_presets:
            origin, schedule = self._waiting_presets.popleft()
            if schedule.corrections is not None:
                return self.proposer.admit(schedule, WARM_REFINED)
            return self.proposer.enlist(schedule, origin)
        return self.proposer.propose(self._hungriest, set(self._by_hash)) if self._may_propose else None

    def _finalists(self) -> list[Trial]:
        return [t for nfe in self.settings.nfes for t in self.best(nfe, self.judge)[: self.settings.finalists]]

    def _drop_known(self) -> None:
        self._waiting_presets = deque(p for p in self._waiting_presets if p[1].hash not in self._by_hash)

    # -- refinement -----------------------------------------------------------------------------------

    def next_work(self) -> Work | None:
        """As any search; once the searched share of the budget is spent, elites are refined before more is tried."""
        if not self._pending and (work := self._next_refinement()):
            return work
        return super().next_work()

    def _next_refinement(self) -> Work | None:
        """The best judged schedule that was not refined yet, of the NFE with the fewest refinements."""
        s = self.settings
        searched = self.spent >= (1 - s.refine) * s.budget and not self._waiting_presets
        if not (s.refine and searched and self._may_propose):
            return None
        starts = {origin.partition(":")[2] for t in self.trials.values() if is_refined(origin := t.candidate.origin)}
        elites = {
            nfe: [t for t in self.best(nfe, self.judge) if not is_refined(t.candidate.origin)][: s.refined_elites]
            for nfe in s.nfes
        }
        waiting = {nfe: [t for t in trials if t.candidate.hash not in starts] for nfe, trials in elites.items()}
        done = {nfe: self._refinements(nfe) for nfe in s.nfes}
        open_ = [nfe for nfe in s.nfes if waiting[nfe] and done[nfe] < s.refinements_each]
        if not open_:
            return None
        nfe = min(open_, key=lambda n: (done[n], n))
        elite = waiting[nfe][0].candidate
        candidate = self.proposer.admit(elite.schedule, f"{REFINED}{elite.hash}")
        self._adopt(candidate)
        others = [t.candidate.schedule.to_json() for t in waiting[nfe][1:]]
        return candidate, self._refinement(nfe, others)

    def _refinements(self, nfe: int) -> int:
        found = [t.candidate for t in self.trials.values()]
        return sum(is_refined(c.origin) and c.schedule.nfe == nfe for c in found)

    def _refinement(self, nfe: int, others: Sequence[str]) -> Rung:
        plan = self.settings.refine_plan(nfe, self._teacher_nfe)
        if isinstance(plan, MomentPlan):
            plan = plan.model_copy(update={"others": tuple(others)})
        return Rung("refine", "refine", plan.seen, plan.noise_seed, plan.model_dump_json())

    def _adopt(self, candidate: Candidate) -> None:
        if not is_refined(candidate.origin):
            super()._adopt(candidate)
            return
        # Under way it is known by its start, which has a trial of its own.
        nfe = candidate.schedule.nfe
        self.trials[candidate.trial] = Trial(candidate)
        self._by_hash.setdefault(candidate.hash, candidate.trial)
        self._committed[nfe] += self.settings.refine_plan(nfe, self._teacher_nfe).calls(nfe, self._teacher_nfe)

    def _take_refined(self, trial: Trial, record: EvaluationRecord) -> None:
        """What came of a refinement goes straight to the judge, unless it is what it started from."""
        if record.status != "complete":
            self._finish(trial, TrialState.FAIL)
            return
        trial.candidate = candidate_of(record)
        known = self._by_hash.setdefault(trial.candidate.hash, trial.candidate.trial)
        if known == trial.candidate.trial:
            self._promote(trial)
        else:
            self._finish(trial, TrialState.PRUNED)

    # -- what was learned -----------------------------------------------------------------------------

    def learn(self, record: EvaluationRecord) -> None:
        """Take in a record of a trial under way, decide whether it climbs on, and tell the sampler."""
        self._note(record)
        trial = self.trials[record.trial]
        if record.rung in (self.screen.name, self.judge.name) and record.value is not None:
            self.proposer.report(trial.candidate, record.value, step=0 if record.rung == self.screen.name else 1)
        untold, self._untold = self._untold, []
        for entry in untold:
            objective = self._objective(entry)
            if entry.state == TrialState.COMPLETE and objective is None:
                self._untold.append(entry)
            else:
                self.proposer.tell(entry.candidate, entry.state, objective)

    def _finish(self, trial: Trial, state: TrialState) -> None:
        trial.state = state
        self._untold.append(trial)

    def _decide(self, trial: Trial, record: EvaluationRecord) -> None:
        complete = record.status == "complete" and record.value is not None
        if record.rung == "refine":
            self._take_refined(trial, record)
        elif record.rung == self.judge.name:
            self._finish(trial, TrialState.COMPLETE if complete else TrialState.FAIL)
        elif record.rung == self.screen.name:
            if record.value is not None:
                self._screened[record.nfe].append(record.value)
            if not complete:
                self._finish(trial, TrialState.FAIL)
            if record.origin.startswith("preset:"):
                self._promote_presets(record)
            elif record.origin in (WARM, WARM_REFINED) and complete:
                self._promote(trial)
            elif record.value is not None and complete:
                if promoted(record.value, self._screened[record.nfe], self.settings.keep):
                    self._promote(trial)
                else:
                    self._finish(trial, TrialState.PRUNED)

    def _promote_presets(self, record: EvaluationRecord) -> None:
        """Once every preset of an NFE is screened, the best grids of each go on, and the baseline."""
        table = self.presets[record.nfe]
        trials = {name: self.trials[self._by_hash[s.hash]] for name, s in table.items() if s.hash in self._by_hash}
        if len(trials) < len(table) or any(not t.records for t in trials.values()):
            return
        chosen = {BASELINE}
        known = {name: value for name, trial in trials.items() if (value := trial.value(self.screen)) is not None}
        each = self.settings.preset_grids
        solvers = sorted({f"{name.partition('/')[0]}/" for name in table}) if each else [""]
        for solver in solvers:
            names = sorted((n for n in known if n.startswith(solver)), key=lambda name: (known[name], name))
            chosen |= set(names[: max(1, each)])
        numbers = {trials[name].candidate.trial for name in chosen}
        for trial in {t.candidate.trial: t for t in trials.values()}.values():
            if trial.state == TrialState.RUNNING and trial.candidate.trial in numbers:
                self._promote(trial)
            elif trial.state == TrialState.RUNNING:
                self._finish(trial, TrialState.PRUNED)

    def _objective(self, trial: Trial) -> float | None:
        """What Optuna minimises: log of the Frechet distance over the baseline's at the same NFE.

        Raw distances differ by orders of magnitude between NFEs, and would tell a sampler little else.
        """
        nfe = trial.candidate.schedule.nfe
        number = self._by_hash.get(self.presets[nfe][BASELINE].hash)
        baseline = self.trials[number].value(self.judge) if number is not None else None
        value = trial.value(self.judge)
        if value is None or not baseline:
            return None
        return math.log(max(value, 1e-12) / baseline)
