"""One candidate's way through the ladder."""

from __future__ import annotations

from dataclasses import dataclass, field

from optuna.trial import TrialState

from fewstep.pipeline.candidate import Candidate
from fewstep.pipeline.ladder import Rung
from fewstep.storage.records import EvaluationRecord

Work = tuple[Candidate, Rung]


@dataclass
class Trial:
    """A candidate, its records by rung, and how far it is: running, or over in one of Optuna's ways."""

    candidate: Candidate
    records: dict[str, EvaluationRecord] = field(default_factory=dict)
    state: TrialState = TrialState.RUNNING
    promoted: bool = False

    @property
    def number(self) -> int:
        """Its number."""
        return self.candidate.trial

    def value(self, rung: Rung) -> float | None:
        """Its value at a rung; None where it has none."""
        record = self.records.get(rung.name)
        return None if record is None or record.status != "complete" else record.value
