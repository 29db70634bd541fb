"""What a search of quantised networks knows and wants next: quality, size and cost at once, on a Pareto front.

A function of its settings and the records, in order, as every `Climb`. Objectives, all to be small:

    quality   distance to the full-precision teacher at the screen, Frechet distance at the other rungs
    size      bytes of the packed network
    latency   bit operations an image: multiply-adds x weight bits x activation bits x NFE, a stand-in that is the
              same on every machine, and no measured time
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from optuna.trial import TrialState

from fewstep.pipeline.climb import Climb, Trial
from fewstep.pipeline.evaluator import Candidate
from fewstep.pipeline.ladder import Rung
from fewstep.pipeline.proposers.evolution import NAMED, QuantizationProposer
from fewstep.pipeline.proposers.pareto import front, ordered
from fewstep.pipeline.scope import Scope
from fewstep.pipeline.settings import SearchSettings
from fewstep.storage.records import EvaluationRecord

Objectives = tuple[float, float, float]


def objectives(record: EvaluationRecord | None) -> Objectives | None:
    """Quality, size and latency of a complete record; None without one."""
    if record is None or record.status != "complete" or record.value is None:
        return None
    figures = record.metrics
    return record.value, figures["size_bytes"], figures["bit_operations_a_call"] * record.nfe


class QuantizationState(Climb):
    """Learns from records, proposes work. See the module's docstring."""

    def __init__(self, settings: SearchSettings, scope: Scope) -> None:
        super().__init__(settings)
        assert scope.calibration is not None
        self.calibration = scope.calibration
        self.proposer = QuantizationProposer(settings, scope)
        self._waiting = deque(self.proposer.seeds())
        self._calibrated: set[str] = set()

    @classmethod
    def replay(cls, settings: SearchSettings, scope: Scope, records: Sequence[EvaluationRecord]) -> QuantizationState:
        """The state after `records`, whatever was under way when they end."""
        state = cls(settings, scope)
        state._resume(records)
        return state

    # -- fronts ---------------------------------------------------------------------------------------

    def ranked(self, rung: Rung, nfe: int | None = None) -> list[Trial]:
        """Trials that have a value at a rung, best first: by front, the loneliest of a front first."""
        known = self._known(rung, nfe)
        return [known[i][0] for i in ordered([values for _, values in known])]

    def front(self) -> list[Trial]:
        """The Pareto front of the dearest rung that anything was evaluated at, `settings.front` members at most."""
        for rung in (self.finals, self.judge, self.screen):
            known = self._known(rung)
            if known:
                return [known[i][0] for i in front([values for _, values in known], self.settings.front)]
        return []

    def _known(self, rung: Rung, nfe: int | None = None) -> list[tuple[Trial, Objectives]]:
        trials = [self.trials[number] for number in sorted(self.trials)]
        having = [(t, objectives(t.records.get(rung.name))) for t in trials]
        return [(t, v) for t, v in having if v is not None and nfe in (None, t.candidate.schedule.nfe)]

    # -- what comes next ------------------------------------------------------------------------------

    def _next_candidate(self) -> Candidate | None:
        if not self._may_propose:
            return None
        number = max(self.trials, default=-1) + 1
        if self._waiting:
            return self.proposer.candidate(number, self._waiting.popleft())
        nfe = self._hungriest
        return self.proposer.propose(number, nfe, self._standing(nfe), self._standing(None), set(self._by_hash))

    def _standing(self, nfe: int | None) -> list[Trial]:
        """Who may have children, best first: the judged ones, then those that were only screened."""
        judged = self.ranked(self.judge, nfe)
        known = {t.candidate.trial for t in judged}
        return judged + [t for t in self.ranked(self.screen, nfe) if t.candidate.trial not in known]

    def _finalists(self) -> list[Trial]:
        known = self._known(self.judge)
        return [known[i][0] for i in front([values for _, values in known], self.settings.front)]

    def _drop_known(self) -> None:
        known = self._by_hash
        self._waiting = deque(s for s in self._waiting if self.proposer.candidate(0, s).hash not in known)

    def _adopt(self, candidate: Candidate) -> None:
        super()._adopt(candidate)
        config = candidate.quantization
        if config is not None and config.hash not in self._calibrated:
            # The trajectories that it is calibrated on; a config is calibrated once, whatever its schedules.
            self._calibrated.add(config.hash)
            self._committed[candidate.schedule.nfe] += config.images * self.calibration.nfe

    # -- what was learned -----------------------------------------------------------------------------

    def _decide(self, trial: Trial, record: EvaluationRecord) -> None:
        complete = objectives(record) is not None
        if not complete:
            trial.state = TrialState.FAIL
        elif record.rung == self.judge.name:
            trial.state = TrialState.COMPLETE
        elif record.rung == self.screen.name:
            if self._climbs(trial):
                self._promote(trial)
            else:
                trial.state = TrialState.PRUNED

    def _climbs(self, trial: Trial) -> bool:
        """Whether a screened trial is judged: one of the best share `keep` of all that are screened, by front.

        Named configs on a schedule that is kept are what the rest is compared with, and always are.
        """
        if self.settings.space == "quantization" and trial.candidate.origin.startswith(NAMED):
            return True
        screened = self.ranked(self.screen)
        return any(t is trial for t in screened[: max(1, math.ceil(self.settings.keep * len(screened)))])
