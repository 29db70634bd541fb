"""Finals: the best go on to more images, once."""

from __future__ import annotations

from fewstep.pipeline.candidate import Candidate
from fewstep.pipeline.search import Search
from fewstep.pipeline.trial import Trial, Work
from fewstep.storage.records import EvaluationRecord


class Quiet:
    """Base of stages: one that does nothing."""

    def owns(self, candidate: Candidate) -> bool:
        """See Stage."""
        return False

    def cost(self, search: Search, candidate: Candidate) -> int:
        """See Stage."""
        return 0

    def next_work(self, search: Search) -> Work | None:
        """See Stage."""
        return None

    def take(self, search: Search, trial: Trial, record: EvaluationRecord) -> bool:
        """See Stage."""
        return False

    def queue(self, search: Search) -> None:
        """See Stage."""


class Finals(Quiet):
    """What the policy names goes on to the finals' images."""

    def queue(self, search: Search) -> None:
        """See Stage."""
        finals = search.ladder.finals
        for trial in search.policy.finalists(search):
            if finals.name not in trial.records:
                search.wait_for(trial.candidate, finals)
