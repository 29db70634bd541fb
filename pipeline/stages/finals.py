"""Finals: the best meet on images that chose none of them, as many as the budget has left."""

from __future__ import annotations

from dataclasses import replace

from fewstep.pipeline.search import Search, Stage
from fewstep.pipeline.sizes import MOST_IMAGES_OF_FINALS

# With fewer images nothing is told apart: then the main rung has the last word.
FEWEST = 50


class Finals(Stage):
    """What the policy names goes on to the finals' images: `images`, or else as many as `share` of the budget pays.

    Without a share they come on top of the budget.
    """

    def __init__(self, share: float | None = None, images: int | None = None, each: int = 1) -> None:
        self._share, self._images, self._each = share, images, each
        self._over = False

    def reserve(self, search: Search, account: int) -> int:
        """See Stage."""
        if self._share is None or self._over:
            return 0
        return self._each * self._images * account if self._images else int(self._share * search.share)

    def queue(self, search: Search) -> None:
        """See Stage."""
        finals = search.ladder.finals
        self._over = True
        chosen = search.policy.finalists(search)
        begun = [t.records[finals.name] for t in chosen if finals.name in t.records]
        if begun:
            # What has begun goes on on the same images.
            finals = replace(finals, images=begun[0].images, seed=begun[0].seed)
            search.ladder = search.ladder._replace(finals=finals)
        elif self._share is not None and chosen:
            left = sum(max(0, search.left(account)) for account in search.nfes)
            payable = left // sum(t.candidate.nfe for t in chosen)
            images = min(self._images or MOST_IMAGES_OF_FINALS, payable)
            if images < min(FEWEST, self._images or FEWEST):
                search.news.append(("no_finals", f"{left:,} calls are left, too few for finals"))
                return
            finals = replace(finals, images=images)
            search.ladder = search.ladder._replace(finals=finals)
        for trial in chosen:
            search.wait_for(trial.candidate, finals)
            if self._share is not None:
                search.commit(trial.candidate, trial.candidate.nfe * finals.images)
