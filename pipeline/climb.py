"""Candidates on the ladder of rungs: what every search keeps, whatever it searches.

A search is a function of its settings and its records, in order: replaying the records of a killed one gives the
state it had, and nothing else is kept. Subclasses say what is proposed, and who climbs on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from optuna.trial import TrialState

from fewstep.pipeline.evaluator import Candidate
from fewstep.pipeline.ladder import Rung, ladder
from fewstep.pipeline.settings import SearchSettings
from fewstep.search_spaces.quantization import QuantizationConfig
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.records import EvaluationRecord

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


def candidate_of(record: EvaluationRecord) -> Candidate:
    """The candidate that a record is about."""
    schedule = SolverSchedule.from_json(record.candidate_json)
    config = QuantizationConfig.from_json(record.quantization) if record.quantization else None
    return Candidate(record.trial, schedule, record.origin, record.parameters, config)


class Climb(ABC):
    """What `pipeline/loop.py` drives: `next_work`, `enter_finals`, `learn`."""

    def __init__(self, settings: SearchSettings) -> None:
        self.settings = settings
        self.screen, self.judge, self.finals, self.report = ladder(settings)
        self.trials: dict[int, Trial] = {}
        self._by_hash: dict[str, int] = {}
        self._committed = dict.fromkeys(settings.nfes, 0)
        self._pending: deque[Work] = deque()
        self._finals_due = True
        self._front: dict[int, float] = {}
        self._calls = self._moved_at = 0

    # -- what a subclass decides ----------------------------------------------------------------------

    @abstractmethod
    def _next_candidate(self) -> Candidate | None:
        """A candidate that is new, to be screened; None where there is none."""

    @abstractmethod
    def _finalists(self) -> list[Trial]:
        """Whom the finals are held among, once the budget is spent."""

    @abstractmethod
    def _decide(self, trial: Trial, record: EvaluationRecord) -> None:
        """What a new record of a trial means for it."""

    @abstractmethod
    def _drop_known(self) -> None:
        """Forget what still waits to be screened and is a trial already."""

    # -- what comes next ------------------------------------------------------------------------------

    def next_work(self) -> Work | None:
        """The next evaluation to run; None where nothing is left to do before more results come in."""
        if self._pending:
            return self._pending.popleft()
        candidate = self._next_candidate()
        if candidate is None:
            return None
        self._adopt(candidate)
        return candidate, self.screen

    def enter_finals(self) -> bool:
        """With the budget spent and nothing in flight, queue the finals; False once they are over."""
        due, self._finals_due = self._finals_due, False
        if due:
            for trial in self._finalists():
                if self.finals.name not in trial.records:
                    self._pending.append((trial.candidate, self.finals))
        return bool(self._pending)

    @property
    def spent(self) -> int:
        """Denoiser calls of everything proposed and promoted so far, in flight included, the finals not."""
        return sum(self._committed.values())

    @property
    def _may_propose(self) -> bool:
        return self.spent < self.settings.budget and self._finals_due and not self._stalled

    @property
    def _stalled(self) -> bool:
        """Whether the best judged values have stayed what they are for as many calls as patience allows."""
        return bool(self.settings.patience) and self._calls - self._moved_at >= self.settings.patience

    def _watch(self, record: EvaluationRecord) -> None:
        self._calls += record.denoiser_calls
        if record.rung != self.judge.name or record.status != "complete" or record.value is None:
            return
        if record.value < self._front.get(record.nfe, float("inf")):
            self._front[record.nfe], self._moved_at = record.value, self._calls

    @property
    def _hungriest(self) -> int:
        """The NFE on which least was spent."""
        return min(self.settings.nfes, key=lambda n: (self._committed[n], n))

    def best(self, nfe: int, rung: Rung) -> list[Trial]:
        """Trials that have a value at a rung, best first."""
        having = [(t.value(rung), t) for t in self.trials.values() if t.candidate.schedule.nfe == nfe]
        return [t for v, t in sorted(((v, t) for v, t in having if v is not None), key=lambda entry: entry[0])]

    # -- what was learned -----------------------------------------------------------------------------

    def learn(self, record: EvaluationRecord) -> None:
        """Take in a record of a trial under way, and decide whether it climbs on."""
        self._note(record)

    def _note(self, record: EvaluationRecord) -> None:
        trial = self.trials[record.trial]
        if record.rung not in trial.records:
            trial.records[record.rung] = record
            self._watch(record)
            self._decide(trial, record)

    def _adopt(self, candidate: Candidate) -> None:
        self.trials[candidate.trial] = Trial(candidate)
        self._by_hash[candidate.hash] = candidate.trial
        self._commit(candidate, self.screen)

    def _commit(self, candidate: Candidate, rung: Rung) -> None:
        self._committed[candidate.schedule.nfe] += candidate.schedule.nfe * rung.images

    def _promote(self, trial: Trial) -> None:
        trial.promoted = True
        self._pending.append((trial.candidate, self.judge))
        self._commit(trial.candidate, self.judge)
        if self.screen.kind == "moments" and self.screen.name in trial.records:
            # The judge goes on from the screen's images.
            self._committed[trial.candidate.schedule.nfe] -= trial.candidate.schedule.nfe * self.screen.images

    def _resume(self, records: Sequence[EvaluationRecord]) -> None:
        """Become what a new state would be after `records`, whatever was under way when they end."""
        ours = [r for r in records if r.rung != self.report.name]
        first = {r.trial: r for r in reversed(ours)}
        for number in sorted(first):
            self._adopt(candidate_of(first[number]))
        self._drop_known()
        for record in ours:
            self._note(record)
        self._pending = deque((c, rung) for c, rung in self._pending if rung.name not in self.trials[c.trial].records)
        if any(r.rung == self.finals.name for r in ours):
            self.enter_finals()
