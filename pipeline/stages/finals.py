"""Finals: the best go on to more images, once."""

from __future__ import annotations

from fewstep.pipeline.search import Search, Stage


class Finals(Stage):
    """What the policy names goes on to the finals' images."""

    def queue(self, search: Search) -> None:
        """See Stage."""
        finals = search.ladder.finals
        for trial in search.policy.finalists(search):
            if finals.name not in trial.records:
                search.wait_for(trial.candidate, finals)
