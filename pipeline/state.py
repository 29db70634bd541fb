"""What a search knows and what it wants next: a function of its settings and the records, in order.

Replaying the records of a killed search gives the state it had; nothing else is kept. In-process, where
one evaluation follows the other, the continued search therefore equals one that was never killed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from optuna.trial import TrialState

from fewstep.pipeline.evaluation import Candidate
from fewstep.pipeline.proposer import Proposer
from fewstep.pipeline.rungs import Rung, ladder, promoted
from fewstep.pipeline.s3_sampler import OnRefit
from fewstep.pipeline.scope import Scope
from fewstep.pipeline.settings import SearchSettings
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.sampling.grids import all_presets

BASELINE = "ddim/uniform-t-zero"
WARM = "warm-start"
Work = tuple[Candidate, Rung]


@dataclass
class Trial:
    """One candidate's way through the ladder."""

    candidate: Candidate
    records: dict[str, EvaluationRecord] = field(default_factory=dict)
    state: TrialState = TrialState.RUNNING
    promoted: bool = False

    def value(self, rung: Rung) -> float | None:
        """Its value at a rung; None where it has none."""
        record = self.records.get(rung.name)
        return None if record is None or record.status != "complete" else record.value


class SearchState:
    """Learns from records, proposes work. See the module's docstring."""

    def __init__(self, settings: SearchSettings, scope: Scope, on_refit: OnRefit | None = None) -> None:
        self.settings = settings
        self.screen, self.judge, self.finals, self.report = ladder(settings)
        self.proposer = Proposer(settings, scope, on_refit)
        self.trials: dict[int, Trial] = {}
        self.presets = {nfe: all_presets(scope.noise, nfe) for nfe in settings.nfes}
        warm = [SolverSchedule.from_json(text) for text in settings.warm_start]
        first = {s.hash: (WARM, s) for s in warm if s.nfe in settings.nfes}
        presets = {s.hash: (f"preset:{name}", s) for nfe in settings.nfes for name, s in self.presets[nfe].items()}
        self._waiting_presets = deque((presets | {k: v for k, v in first.items() if k not in presets}).values())
        self._by_hash: dict[str, int] = {}
        self._committed = dict.fromkeys(settings.nfes, 0)
        self._screened: dict[int, list[float]] = {nfe: [] for nfe in settings.nfes}
        self._pending: deque[Work] = deque()
        self._untold: list[Trial] = []
        self._finals_due = True

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
        ours = [r for r in records if r.rung != state.report.name]
        first = {r.trial: r for r in reversed(ours)}
        for number in sorted(first):
            record = first[number]
            schedule = SolverSchedule.from_json(record.candidate_json)
            state._adopt(Candidate(number, schedule, record.origin, record.parameters))
        known = set(state._by_hash)
        state._waiting_presets = deque(p for p in state._waiting_presets if p[1].hash not in known)
        for record in ours:
            state._note(record)
        state._pending = deque(
            (c, rung) for c, rung in state._pending if rung.name not in state.trials[c.trial].records
        )
        if any(r.rung == state.finals.name for r in ours):
            state.enter_finals()
        state._untold = state.proposer.restore(state.trials, state._objective)
        return state

    # -- what comes next ------------------------------------------------------------------------------

    def next_work(self) -> Work | None:
        """The next evaluation to run; None where nothing is left to do before more results come in."""
        if self._pending:
            return self._pending.popleft()
        if self._waiting_presets:
            origin, schedule = self._waiting_presets.popleft()
            candidate = self.proposer.enlist(schedule, origin)
        elif self.spent < self.settings.budget and self._finals_due:
            nfe = min(self.settings.nfes, key=lambda n: (self._committed[n], n))
            candidate = self.proposer.propose(nfe, set(self._by_hash))
        else:
            return None
        self._adopt(candidate)
        return candidate, self.screen

    def enter_finals(self) -> bool:
        """With the budget spent and nothing in flight, queue the finals; False once they are over."""
        due, self._finals_due = self._finals_due, False
        if due:
            for nfe in self.settings.nfes:
                for trial in self.best(nfe, self.judge)[: self.settings.finalists]:
                    if self.finals.name not in trial.records:
                        self._pending.append((trial.candidate, self.finals))
        return bool(self._pending)

    @property
    def spent(self) -> int:
        """Denoiser calls of everything proposed and promoted so far, in flight included, the finals not."""
        return sum(self._committed.values())

    def best(self, nfe: int, rung: Rung) -> list[Trial]:
        """Trials that have a value at a rung, best first."""
        having = [(t.value(rung), t) for t in self.trials.values() if t.candidate.schedule.nfe == nfe]
        return [t for v, t in sorted(((v, t) for v, t in having if v is not None), key=lambda entry: entry[0])]

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

    def _adopt(self, candidate: Candidate) -> None:
        self.trials[candidate.trial] = Trial(candidate)
        self._by_hash[candidate.schedule.hash] = candidate.trial
        self._commit(candidate, self.screen)

    def _commit(self, candidate: Candidate, rung: Rung) -> None:
        self._committed[candidate.schedule.nfe] += candidate.schedule.nfe * rung.images

    def _finish(self, trial: Trial, state: TrialState) -> None:
        trial.state = state
        self._untold.append(trial)

    def _promote(self, trial: Trial) -> None:
        trial.promoted = True
        self._pending.append((trial.candidate, self.judge))
        self._commit(trial.candidate, self.judge)

    def _note(self, record: EvaluationRecord) -> None:
        trial = self.trials[record.trial]
        if record.rung in trial.records:
            return
        trial.records[record.rung] = record
        complete = record.status == "complete" and record.value is not None
        if record.rung == self.judge.name:
            self._finish(trial, TrialState.COMPLETE if complete else TrialState.FAIL)
        elif record.rung == self.screen.name:
            if record.value is not None:
                self._screened[record.nfe].append(record.value)
            if not complete:
                self._finish(trial, TrialState.FAIL)
            if record.origin.startswith("preset:"):
                self._promote_presets(record)
            elif record.origin == WARM and complete:
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
        for solver in sorted({name.partition("/")[0] for name in table}):
            grids = [name for name in table if name.startswith(f"{solver}/")]
            values = {name: trials[name].value(self.screen) for name in grids}
            known = {name: value for name, value in values.items() if value is not None}
            chosen |= set(sorted(known, key=lambda name: (known[name], name))[: self.settings.preset_grids])
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
