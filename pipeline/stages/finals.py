"""Finals: the best meet on images that chose none of them, as many as the budget has left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fewstep.pipeline.search import Search, Stage
from fewstep.pipeline.sizes import MOST_IMAGES_OF_FINALS
from fewstep.pipeline.trial import Rung, Trial
from fewstep.tasks.work import GROUP

# With fewer images nothing is told apart: then the main rung has the last word.
FEWEST = 50
CONTROL = "finals-control"


class Finals(Stage):
    """What the policy names goes on to the finals' images: `images`, or else as many as `share` of the budget pays.

    Without a share they come on top of the budget. With `paired`, a controlled metric, half of the images of each NFE
    go to its first finalist, which the others are compared with on what is left: it is measured, then compared with
    itself, so that all is there when they come. Where that leaves it less than twice their images, each counts alone.
    """

    rungs = (CONTROL,)

    def __init__(
        self, share: float | None = None, images: int | None = None, each: int = 1, paired: str | None = None
    ) -> None:
        self._share, self._images, self._each, self._paired = share, images, each, paired
        self._over = False
        self._left: list[Trial] | None = None
        self._controls: dict[int, Trial] = {}
        self._control: Rung | None = None

    def reserve(self, search: Search, account: int) -> int:
        """See Stage."""
        if self._share is None or self._over:
            return 0
        return self._each * self._images * account if self._images else int(self._share * search.share)

    def queue(self, search: Search) -> bool:
        """See Stage."""
        if self._left is None:
            self._left = self._begun(search)
            if self._control is None:
                return self._send(search, self._left)
            # The first of each NFE is its best so far.
            self._controls = {t.candidate.nfe: t for t in reversed(self._left)}
            for trial in self._controls.values():
                self._wait(search, trial, self._control)
            return bool(self._left)
        due = [t for t in self._left if t in self._controls.values()] or self._left
        self._left = [t for t in self._left if t not in due]
        self._send(search, due)
        return bool(self._left)

    def _begun(self, search: Search) -> list[Trial]:
        """The finalists, whose finals have their number of images now; none where that does not pay."""
        self._over = True
        finals, chosen = search.ladder.finals, search.policy.finalists(search)
        begun = [t.records[finals.name] for t in chosen if finals.name in t.records]
        controls = [t.records[CONTROL] for t in chosen if CONTROL in t.records]
        left = sum(max(0, search.left(account)) for account in search.nfes)
        payable = left // max(1, sum(t.candidate.nfe for t in chosen))
        images, control = min(self._images or MOST_IMAGES_OF_FINALS, payable), 0
        if self._paired and chosen and not self._images:
            images, control = self._halved(left, chosen)
        if controls:
            control = controls[0].images
        if begun:
            # What has begun goes on on the same images.
            finals = replace(finals, images=begun[0].images, seed=begun[0].seed)
        elif self._share is not None and chosen:
            if images < min(FEWEST, self._images or FEWEST):
                search.news.append(("no_finals", f"{left:,} calls are left, too few for finals"))
                return []
            finals = replace(finals, images=images)
        if control and self._paired:
            self._control = replace(finals, name=CONTROL, images=control, also=())
            finals = replace(finals, metric=self._paired)
        search.ladder = search.ladder._replace(finals=finals)
        return chosen

    @staticmethod
    def _halved(left: int, chosen: Sequence[Trial]) -> tuple[int, int]:
        """Images of every finalist and of each NFE's control; none of that where it does not pay."""
        each, controls = sum(t.candidate.nfe for t in chosen), sum({t.candidate.nfe for t in chosen})
        control = min(left // (2 * controls), MOST_IMAGES_OF_FINALS) // GROUP * GROUP
        images = min((left - control * controls) // each, control // 2)
        return (images, control) if images >= FEWEST else (min(MOST_IMAGES_OF_FINALS, left // each), 0)

    def _send(self, search: Search, trials: Sequence[Trial]) -> bool:
        finals = search.ladder.finals
        for trial in trials:
            control = self._controls.get(trial.candidate.nfe)
            measured = control is not None and control.records.get(CONTROL)
            rung = finals
            if self._control is not None:
                if control is not None and measured and measured.status == "complete":
                    rung = finals.controlled_by(control.candidate.point, self._control)
                else:
                    rung = replace(finals, metric=self._control.metric)
            self._wait(search, trial, rung)
        return False

    def _wait(self, search: Search, trial: Trial, rung: Rung) -> None:
        search.wait_for(trial.candidate, rung)
        if self._share is not None:
            search.commit(trial.candidate, trial.candidate.nfe * rung.images)
