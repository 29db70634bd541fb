"""Presets: what was known before is looked at first, by successive halving within its share of the budget.

A preset's first look is at a few images of common noise; which one is looked at next, the looks before say. The best
go on to the screen like any other candidate. Where looks are paired, one preset is judged before, by which the others
are controlled, and those that seem better are judged at once. Where screens are compared, there is a second look before
that, at the images of a screen by Frechet distance, and a third by the distance to the teacher: the screen is the one
of both that ordered them as the second look does. What is known already is not measured again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import numpy as np
from optuna.trial import TrialState
from scipy.stats import kendalltau

from fewstep.pipeline.proposers.base import is_known
from fewstep.pipeline.search import Paid, Search, Stage, enlisted
from fewstep.pipeline.stages.preset_order import Known, Look, design, is_control, new_solver, next_best
from fewstep.pipeline.trial import Candidate, Rung, Trial, Work, grown
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.metrics.metric import metric_class

FIRST, SECOND, PAIRED = "presets", "presets-look", "presets-distance"
FIRST_SHARE = 0.65
FEWEST_LOOKS, FEWEST_SECOND = 6, 2
# Pairs of presets at one NFE by which screens are compared, at least.
ENOUGH_PAIRS = 6
# Presets that are judged to control looks by, while they fail.
MOST_CONTROLS = 3


class Screens(NamedTuple):
    """What the screen may be: a small Frechet distance, or the distance to the teacher, for which calls are `due`."""

    frechet: Rung
    distance: Rung
    due: int


class Presets(Stage):
    """`known` are the presets by NFE, `share` is what they may take of the budget. See the module's docstring.

    `first` is the rung of the first look, paired where its metric is controlled; `compare` are the screens to choose
    among, None where that is settled.
    """

    rungs = (FIRST, SECOND, PAIRED)

    def __init__(
        self,
        known: Mapping[int, Sequence[Known]],
        share: float,
        first: Rung,
        compare: Screens | None = None,
    ) -> None:
        self._known, self._share, self._first, self._compare = known, share, first, compare
        self._by_origin = {nfe: {k.origin: k for k in entries} for nfe, entries in known.items()}
        self._designs = {nfe: design(entries) for nfe, entries in known.items()}
        self._controlled = bool(metric_class(first.metric).controlled)
        self._looked: set[int] = set()
        self._over: set[int] = set()
        # Trials of controls that were sent to their first look, which comes after they were judged.
        self._sent: set[int] = set()
        # The presets among the trials, and up to where those were looked through.
        self._met: list[Trial] = []
        self._seen: tuple[Mapping[int, Trial], int] = {}, 0

    # -- what it costs --------------------------------------------------------------------------------

    def owns(self, candidate: Candidate) -> bool:
        """See Stage."""
        return is_known(candidate.origin)

    def cost(self, search: Search, candidate: Candidate) -> int:
        """The first look, and judging a control."""
        nfe, controls = candidate.nfe, False
        if self._controlled and nfe in self._known and nfe not in self._looked:
            controls = self._control(search, self._mine(search)[nfe]) is None
        return nfe * (self._first.images + controls * search.ladder.main.images)

    def _calls(self, search: Search, nfe: int) -> int:
        """What presets of an NFE may take, less what judging the best of them does."""
        if self._controlled:
            return int(self._share * search.share) - nfe * search.ladder.main.images
        judged = nfe * grown(self._second(search), search.ladder.main)
        return int(self._share * search.share) - (judged if judged < 0.4 * self._share * search.share else 0)

    def looks(self, search: Search, nfe: int) -> int:
        """How many presets of an NFE are looked at."""
        judged = nfe * search.ladder.main.images
        seconds = judged if self._controlled else FEWEST_SECOND * nfe * self._second(search).images
        calls = min(FIRST_SHARE * self._calls(search, nfe), self._calls(search, nfe) - seconds)
        return min(len(self._known[nfe]), max(FEWEST_LOOKS, int(calls // (nfe * self._first.images))))

    def seconds(self, search: Search, nfe: int) -> int:
        """How many of them are looked at again."""
        left = self._calls(search, nfe) - self.looks(search, nfe) * nfe * self._first.images
        if self._controlled:
            return max(0, int(left // (nfe * search.ladder.main.images)))
        each = nfe * (self._second(search).images + (self._first.images if self._compare else 0))
        return max(FEWEST_SECOND, int(left // each))

    def reserve(self, search: Search, account: int) -> int:
        """Until it is over, nothing is proposed beside it that its share would pay."""
        if account in self._over:
            return 0
        return max(0, int(self._share * search.share) - search.committed[account])

    def holds(self, search: Search, account: int) -> bool:
        """Until a control was judged there is nothing to aim a paired screen by."""
        if not self._controlled or account in self._over:
            return False
        control = self._control(search, self._mine(search)[account])
        return control is None or FIRST not in control.records

    # -- what it does ---------------------------------------------------------------------------------

    def next_work(self, search: Search) -> Work | None:
        """The next first look, at the NFE with the fewest."""
        mine = self._mine(search)
        for nfe in sorted(mine, key=lambda n: (len(mine[n]), n)):
            if nfe in self._looked:
                continue
            if self._controlled and (control := self._control(search, mine[nfe])) is None:
                # Nothing is looked at before its control was judged.
                if any(t.state == TrialState.RUNNING and not t.records for t in mine[nfe]):
                    continue
                first = self._first_control(search, nfe, mine[nfe])
                if first is not None:
                    return self._adopted(search, first), search.ladder.main
                self._looked.add(nfe)
                self._judge(search, nfe, [t for t in mine[nfe] if t.state == TrialState.RUNNING], 0)
                continue
            if self._controlled and control and FIRST not in control.records:
                # Nor before its own look is there, which the others are compared with.
                if control.number in self._sent:
                    continue
                self._sent.add(control.number)
                return control.candidate, self._look(search, mine[nfe])
            if len(mine[nfe]) < self.looks(search, nfe) and (known := self._next(search, nfe, mine)) is not None:
                return self._adopted(search, known), self._look(search, mine[nfe])
        # Where nothing could be looked at, nothing calls back.
        for nfe in mine:
            self._halve(search, nfe, mine[nfe])
        return None

    @staticmethod
    def _control(search: Search, trials: Sequence[Trial]) -> Trial | None:
        """What first looks are controlled by: the first that was judged."""
        return next((trial for trial in trials if trial.value(search.ladder.main) is not None), None)

    @staticmethod
    def _adopted(search: Search, known: Known) -> Candidate:
        candidate = enlisted(search.proposer, known.point, known.origin, search.trials, outsiders=True)
        assert candidate is not None
        search.adopt(candidate)
        return candidate

    def _first_control(self, search: Search, nfe: int, trials: Sequence[Trial]) -> Known | None:
        """What is judged to be a control; None where several failed already."""
        if sum(search.ladder.main.name in t.records for t in trials) >= MOST_CONTROLS:
            return None
        left = [k for k in self._known[nfe] if k.point.hash not in search.by_hash]
        return min(left, key=lambda k: not is_control(k), default=None)

    def _look(self, search: Search, trials: Sequence[Trial]) -> Rung:
        """The first look, controlled by the first trial that can."""
        if not self._controlled:
            return self._first
        control = self._control(search, trials)
        assert control is not None
        return self._first.controlled_by(control.candidate.point, search.ladder.main)

    def _next(self, search: Search, nfe: int, mine: Mapping[int, Sequence[Trial]]) -> Known | None:
        left = [k for k in self._known[nfe] if k.point.hash not in search.by_hash]
        if not left:
            return None
        looks = [
            Look(known, n, t.value(self._first))
            for n, trials in mine.items()
            for t in trials
            if t.records and (known := self._by_origin[n].get(t.candidate.origin))
        ]
        # At whatever NFE each of the design was looked at, it need not be again.
        started = {t.candidate.origin for trials in mine.values() for t in trials}
        fresh = {k.origin: k for k in left if k.origin not in started}
        due = next((fresh[origin] for origin in self._designs[nfe] if origin in fresh), None)
        tried = {known.solver for origin in started for n in mine if (known := self._by_origin[n].get(origin))}
        due = due or new_solver(left, nfe, looks, tried)
        return due or next_best(left, nfe, looks, metric_class(self._first.metric).signed)

    def take(self, search: Search, trial: Trial, record: EvaluationRecord) -> bool:
        """See Stage."""
        if record.rung not in self.rungs:
            return False
        if record.status != "complete" and record.rung != PAIRED and trial.state == TrialState.RUNNING:
            search.finish(trial, TrialState.FAIL)
        nfe = trial.candidate.nfe
        if nfe not in self._known or nfe in self._over:
            return True
        if record.rung == FIRST:
            self._halve(search, nfe, self._mine(search)[nfe])
        elif self._compare is not None:
            self._settle(search, self._compare)
        return True

    def _mine(self, search: Search) -> dict[int, list[Trial]]:
        found: dict[int, list[Trial]] = {nfe: [] for nfe in self._known}
        if len(self._over) == len(self._known):
            return found
        if self._seen[0] is not search.trials:
            self._seen, self._met = (search.trials, 0), []
        trials, seen = self._seen
        # Trials only come to it, so that those before need no second look.
        new = list(islice(reversed(search.trials.values()), len(search.trials) - seen))[::-1]
        self._met += [t for t in new if is_known(t.candidate.origin) and t.candidate.nfe in found]
        self._seen = trials, len(search.trials)
        for trial in self._met:
            found[trial.candidate.nfe].append(trial)
        return found

    def _halve(self, search: Search, nfe: int, trials: Sequence[Trial]) -> None:
        """Once all first looks of an NFE are known, the best go on to the second."""
        if nfe in self._looked or any(not t.records for t in trials):
            return
        if self._controlled and ((control := self._control(search, trials)) is None or FIRST not in control.records):
            return
        exhausted = all(k.point.hash in search.by_hash for k in self._known[nfe])
        if len(trials) < self.looks(search, nfe) and not exhausted:
            return
        self._looked.add(nfe)
        ranked = sorted((v, t.number, t) for t in trials if (v := t.value(self._first)) is not None)
        count = self.seconds(search, nfe)
        if self._controlled:
            self._judge(search, nfe, [t for _, _, t in ranked if t.state == TrialState.RUNNING], count)
            return
        for place, (_, _, trial) in enumerate(ranked):
            if place >= count:
                search.finish(trial, TrialState.PRUNED)
                continue
            second = self._second(search)
            search.wait_for(trial.candidate, second)
            search.commit(trial.candidate, nfe * second.images)
            if self._compare is not None:
                search.wait_for(trial.candidate, self._paired(self._compare))
                search.commit(trial.candidate, nfe * self._first.images)
        if self._compare is None:
            self._over.add(nfe)
        else:
            self._settle(search, self._compare)

    def _judge(self, search: Search, nfe: int, ranked: Sequence[Trial], count: int) -> None:
        """Of paired looks, the best that seem better than what controls them are judged."""
        controls = [v for t in self._mine(search)[nfe] if (v := t.value(search.ladder.main)) is not None]
        self._over.add(nfe)
        for place, trial in enumerate(ranked):
            value = trial.value(self._first)
            if place < count and controls and value is not None and value < min(controls):
                search.promote(trial, Paid.RESERVED)
            else:
                search.finish(trial, TrialState.PRUNED)

    def _second(self, search: Search) -> Rung:
        """Where those go on to that did best at the first look."""
        return replace(self._compare.frechet, name=SECOND) if self._compare else search.ladder.screen

    def _paired(self, screens: Screens) -> Rung:
        return replace(screens.distance, name=PAIRED, images=self._first.images)

    def _settle(self, search: Search, screens: Screens) -> None:
        """When all second looks are known, the screen is chosen, and those that were looked at twice go on to it."""
        if len(self._looked) < len(self._known) or self._over:
            return
        mine = self._mine(search)
        due = {nfe: [t for t in trials if t.state == TrialState.RUNNING] for nfe, trials in mine.items()}
        if any(not {SECOND, PAIRED} <= set(t.records) for trials in due.values() for t in trials):
            return
        self._choose(search, screens, due)
        for nfe, trials in due.items():
            self._over.add(nfe)
            ranked = sorted(trials, key=lambda t: (t.value(self._second(search)) or 0.0, t.number))
            for place, trial in enumerate(ranked):
                self._on(search, trial, best=not place)

    def _on(self, search: Search, trial: Trial, best: bool) -> None:
        """To the screen: what was looked at twice has passed it already, or it must be paid, for the best at least."""
        screen, nfe = search.ladder.screen, trial.candidate.nfe
        if screen.metric == self._second(search).metric:
            search.credit(trial, replace(trial.records[SECOND], rung=screen.name))
            return
        calls = nfe * screen.images
        paid = search.committed[nfe] + calls <= int(self._share * search.share)
        if calls > search.left(nfe) or not (best or paid):
            search.finish(trial, TrialState.PRUNED)
            return
        search.commit(trial.candidate, calls)
        search.wait_for(trial.candidate, screen)

    def _choose(self, search: Search, screens: Screens, due: Mapping[int, Sequence[Trial]]) -> None:
        pairs, taus = 0, dict.fromkeys((FIRST, PAIRED), 0.0)
        for trials in due.values():
            values = [
                tuple(t.records[name].value if name in t.records else None for name in (FIRST, PAIRED, SECOND))
                for t in trials
            ]
            whole = np.array([v for v in values if None not in v], np.float64).reshape(-1, 3)
            count = len(whole) * (len(whole) - 1) // 2
            pairs += count
            for column, name in enumerate(taus):
                tau = float(kendalltau(whole[:, column], whole[:, 2]).statistic) if count else 0.0
                taus[name] += count * (tau if math.isfinite(tau) else 0.0)
        mean = {name: total / pairs if pairs else 0.0 for name, total in taus.items()}
        by_distance = pairs >= ENOUGH_PAIRS and mean[PAIRED] > mean[FIRST]
        screen = screens.distance if by_distance else screens.frechet
        search.ladder = search.ladder._replace(screen=screen)
        if by_distance:
            search.prepaid += screens.due
        told = (
            f"of {pairs} pairs of presets {self._first.images} images order (Kendall's tau) {mean[FIRST]:.2f} by "
            f"{self._first.metric}, {mean[PAIRED]:.2f} by their distance to the teacher"
        )
        search.news.append(("screen", f"candidates are screened by {screen.metric}: {told}"))
