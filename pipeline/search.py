"""What a search knows and what it wants next, whatever it searches.

A search is a function of its settings and its records, in order: replaying the records of a killed one gives the state
it had, and nothing else is kept. In-process, where one evaluation follows the other, a search that was killed and
continued therefore equals one that was never killed. The proposer says what is tried, the policy who climbs on, the
stages what else is done.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol

from optuna.trial import TrialState

from fewstep.errors import ConfigurationError, ScheduleError
from fewstep.pipeline.trial import Candidate, Ladder, Rung, Trial, Work, candidate_of, kept
from fewstep.search_spaces.point import Point
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.faults import may_succeed
from fewstep.tasks.metrics.metric import metric_class

if TYPE_CHECKING:
    from fewstep.pipeline.proposers.base import Proposer

Seed = tuple[str, Point]


class Policy(Protocol):
    """Who climbs on, what candidates cost, and what is minimised."""

    @property
    def seeds(self) -> Sequence[Seed]:
        """(origin, point) to begin with, in their order."""

    @property
    def admits_outsiders(self) -> bool:
        """Whether seeds that are no members of the space are tried all the same."""

    def fits(self, point: Point) -> None:
        """ScheduleError or ConfigurationError where a seed does not fit the model."""

    def account(self, of: Point | Candidate) -> int:
        """Under which number of `nfes` a candidate's calls are booked."""

    def cost(self, search: Search, candidate: Candidate) -> int:
        """Denoiser calls that a candidate commits the search to when it is adopted."""

    def least(self, search: Search, account: int) -> int:
        """What must be there for a candidate of that number to be proposed: as much as one may cost."""

    def decide(self, search: Search, trial: Trial, record: EvaluationRecord) -> None:
        """What a new record means for its trial."""

    def objectives(self, search: Search, trial: Trial) -> Sequence[float] | None:
        """What is minimised of a trial that is over; None where it is not known."""

    def finalists(self, search: Search) -> list[Trial]:
        """Whom the finals are held among."""


class Paid(Enum):
    """What pays for a promotion: the account's room, what a stage has reserved, or what was booked with the trial."""

    NOT_YET = auto()
    RESERVED = auto()
    BOOKED = auto()


class Stage:
    """Something that a search does besides proposing; as it stands, nothing. `rungs` names those of its own."""

    rungs: tuple[str, ...] = ()

    def owns(self, candidate: Candidate) -> bool:
        """Whether a candidate is this stage's."""
        return False

    def cost(self, search: Search, candidate: Candidate) -> int:
        """Denoiser calls that a candidate of its own commits the search to."""
        return 0

    def reserve(self, search: Search, account: int) -> int:
        """Denoiser calls of an account that are kept for it, and that nothing else may take."""
        return 0

    def holds(self, search: Search, account: int) -> bool:
        """Whether nothing is proposed at an account before more is known of it."""
        return False

    def next_work(self, search: Search) -> Work | None:
        """What comes before anything new is proposed, with nothing waiting; None for nothing."""
        return None

    def take(self, search: Search, trial: Trial, record: EvaluationRecord) -> bool:
        """A new record of any trial; True where it is this stage's and the policy has no say in it."""
        return False

    def queue(self, search: Search) -> None:
        """The budget is spent and nothing in flight: `search.wait_for` what is to be evaluated now."""


def enlisted(
    proposer: Proposer, point: Point, origin: str, trials: Mapping[int, Trial], outsiders: bool
) -> Candidate | None:
    """A point from elsewhere as a candidate: of the space, or else, with `outsiders`, beside it."""
    try:
        return proposer.enlist(point, origin, trials)
    except (ScheduleError, ConfigurationError):
        return proposer.admit(point, origin, trials) if outsiders else None


class Search:
    """What `pipeline/loop.py` drives: `next_work`, `enter_finals`, `learn`.

    Every number of `nfes` is an account with an equal share of the budget, less the `prepaid` calls that all have in
    common. Nothing is begun that its account cannot pay, beside what the stages reserve.
    """

    def __init__(
        self,
        nfes: Sequence[int],
        budget: int,
        ladder: Ladder,
        proposer: Proposer,
        policy: Policy,
        stages: Sequence[Stage],
        patience: int = 0,
        prepaid: int = 0,
    ) -> None:
        self.prepaid = prepaid
        self.nfes, self.budget, self.patience, self.ladder = tuple(nfes), budget, patience, ladder
        self.proposer, self.policy, self.stages = proposer, policy, stages
        self.trials: dict[int, Trial] = {}
        self.by_hash: dict[str, int] = {}
        self.committed = dict.fromkeys(self.nfes, 0)
        self._waiting: deque[Seed] = deque(policy.seeds)
        self._pending: deque[Work] = deque()
        self._untold: list[Trial] = []
        self._held: dict[int, list[EvaluationRecord]] = {}
        self._stage = 0
        self._closed: set[int] = set()
        self._credited: list[EvaluationRecord] = []
        self.news: list[tuple[str, str]] = []
        self._front: dict[int, float] = {}
        self._calls = self._moved_at = 0
        # By account, the value and number of the trial that controls its screens.
        self._controls: dict[int, tuple[float, int]] = {}

    def replay(self, records: Sequence[EvaluationRecord]) -> Search:
        """Become what it would be after `records`, whatever was under way when they end; for a new search only.

        What was evaluated at other rungs, by its report or beside it, is none of its business. Where a lost file held
        a trial's record, and one of a higher rung is there, it is evaluated again before that counts. Failures of the
        machine, and those of the finals, are as if they had not ended yet: they are tried again.
        """
        rungs = {rung.name for rung in self.ladder[:-1]} | {name for stage in self.stages for name in stage.rungs}
        asked = [r for r in records if r.rung in rungs]
        ours = [r for r in asked if not self._tried_again(r)]
        first = {r.trial: r for r in reversed(ours)}
        again = [r for r in asked if r.rung == self.ladder.screen.name and r.trial not in first]
        first |= {r.trial: r for r in again}
        for record in ours:
            if record.trial not in self.trials:
                # As they came: what a candidate costs may depend on what was known by then.
                self.adopt(candidate_of(first[record.trial]))
            if self._below(record) is None:
                self._note(record)
                self._held[record.trial] = [r for r in self._held.pop(record.trial, ()) if not self._noted(r)]
            else:
                self._held.setdefault(record.trial, []).append(record)
        for number in sorted(set(first) - set(self.trials)):
            self.adopt(candidate_of(first[number]))
        self.trials = dict(sorted(self.trials.items()))
        self._waiting = deque(s for s in self._waiting if s[1].hash not in self.by_hash)
        self._held = {number: held for number, held in self._held.items() if held}
        for number, held in self._held.items():
            if self._below(held[0]) == self.ladder.screen:
                candidate = self.trials[number].candidate
                self.wait_for(candidate, self.aimed(candidate, self.ladder.screen))
            else:
                self._promote_again(self.trials[number])
        self._pending = deque((c, rung) for c, rung in self._pending if rung.name not in self.trials[c.trial].records)
        renewed = [self.trials[r.trial].candidate for r in again]
        self._pending.extend((candidate, self.aimed(candidate, self.ladder.screen)) for candidate in renewed)
        self._untold = self.proposer.restore(self.trials, lambda trial: self.policy.objectives(self, trial))
        # Where a lost file held a part of the search, its calls are spent again before any further finals.
        if any(r.rung == self.ladder.finals.name for r in ours) and not self.may_propose and not self._held:
            self.enter_finals()
        # What was credited is restored with its trial.
        self._credited.clear()
        self.news.clear()
        for trial in self.trials.values():
            trial.slim()
        return self

    def _below(self, record: EvaluationRecord) -> Rung | None:
        """The lowest rung that a trial must have been at for this record, and has none of yet."""
        trial, rungs = self.trials[record.trial], self.ladder[:-1]
        if record.rung == rungs[0].name:
            return None
        names = [rung.name for rung in rungs]
        if record.rung not in names or any(stage.owns(trial.candidate) for stage in self.stages):
            return None
        below = rungs[: names.index(record.rung)]
        return next((rung for rung in below if rung.name not in trial.records), None)

    def _noted(self, record: EvaluationRecord) -> bool:
        """Take in a record that was held back, if its turn has come."""
        if self._below(record) is not None:
            return False
        self._note(record)
        return True

    def _promote_again(self, trial: Trial) -> None:
        """A trial with a record of a higher rung was promoted, whatever the ranks say now."""
        if not trial.promoted and self.ladder.main.name != self.ladder.screen.name:
            trial.state = TrialState.RUNNING
            self._untold = [entry for entry in self._untold if entry is not trial]
            self.promote(trial)

    def _tried_again(self, record: EvaluationRecord) -> bool:
        finals = record.rung == self.ladder.finals.name
        return record.status != "complete" and (finals or may_succeed(record.error))

    # -- what comes next ------------------------------------------------------------------------------

    def next_work(self) -> Work | None:
        """The next evaluation to run; None where nothing is left to do before more results come in."""
        if self._pending:
            return self._pending.popleft()
        candidate = self._next_seed()
        if candidate is None and (work := self._of_stages()) is not None:
            return work
        if self._pending:
            return self._pending.popleft()
        candidate = candidate or self._next_candidate()
        if candidate is None:
            # An account that has just been closed may be what a stage waits for.
            return self._of_stages()
        self.adopt(candidate)
        return candidate, self.aimed(candidate, self.ladder.screen)

    def _of_stages(self) -> Work | None:
        return next((work for stage in self.stages if (work := stage.next_work(self)) is not None), None)

    def aimed(self, candidate: Candidate, rung: Rung) -> Rung:
        """A rung as it is for a candidate: where its metric is controlled, by the best schedule that can.

        That one was judged, and measured on as many images as the rung has. Without one, as after a warm start's first
        look, it is the main rung's metric on so many.
        """
        if not metric_class(rung.metric).controlled:
            return rung
        control = self._controls.get(self.policy.account(candidate))
        if control is None:
            return replace(rung, metric=self.ladder.main.metric)
        return rung.controlled_by(self.trials[control[1]].candidate.point, self.ladder.main)

    def _consider_control(self, trial: Trial) -> None:
        if (value := trial.value(self.ladder.main)) is None:
            return
        metric, account = metric_class(self.ladder.screen.metric), self.policy.account(trial.candidate)
        if not metric.controlled or self._controls.get(account, (math.inf, 0)) <= (value, 0):
            return
        complete = [r for r in trial.records.values() if r.status == "complete" and r.metric == metric.figure]
        if any(r.images == self.ladder.screen.images for r in complete):
            self._controls[account] = (value, trial.number)

    def _next_seed(self) -> Candidate | None:
        while self._waiting and self.may_propose:
            origin, point = self._waiting.popleft()
            if point.hash not in self.by_hash and (seed := self._seeded(origin, point)) is not None:
                return seed
        return None

    def _next_candidate(self) -> Candidate | None:
        while (account := self._hungriest) is not None:
            candidate = self.proposer.ask(account, self.by_hash.keys(), self.trials)
            if candidate is not None and self.policy.cost(self, candidate) <= self._room_of(candidate):
                return candidate
            self._closed.add(account)
            if candidate is None:
                where = f" at NFE {account}" if account else ""
                self.news.append(("exhausted", f"no candidate is left to try{where}: widen what is searched"))
        return None

    def _room_of(self, of: Point | Candidate) -> int:
        return self.room(self.policy.account(of))

    def _seeded(self, origin: str, point: Point) -> Candidate | None:
        """A seed as a candidate; None where it does not fit, or its account does not pay it."""
        try:
            self.policy.fits(point)
        except (ScheduleError, ConfigurationError):
            return None
        candidate = enlisted(self.proposer, point, origin, self.trials, self.policy.admits_outsiders)
        if candidate is None or self.policy.cost(self, candidate) <= self._room_of(point):
            return candidate
        reason = f"the budget does not pay for {origin} {point.name}: it is left out"
        self.news.append(("left_out", reason))
        return None

    def enter_finals(self) -> bool:
        """With the budget spent and nothing in flight, queue what the next stages want; False once all are over."""
        while not self._pending and self._stage < len(self.stages):
            self.stages[self._stage].queue(self)
            self._stage += 1
        return bool(self._pending)

    def wait_for(self, candidate: Candidate, rung: Rung) -> None:
        """Evaluate a candidate as soon as there is room, unless that was done."""
        if rung.name in self.trials[candidate.trial].records:
            return
        if rung.name not in (record.rung for record in self._held.get(candidate.trial, ())):
            self._pending.append((candidate, rung))

    @property
    def spent(self) -> int:
        """Denoiser calls of everything proposed and promoted so far, in flight included, and those prepaid."""
        return self.prepaid + sum(self.committed.values())

    @property
    def share(self) -> int:
        """Denoiser calls of each account."""
        return (self.budget - self.prepaid) // len(self.nfes)

    def left(self, account: int) -> int:
        """Denoiser calls of an account that are not booked yet."""
        return self.share - self.committed[account]

    def room(self, account: int) -> int:
        """The same without what the stages reserve."""
        return self.left(account) - sum(stage.reserve(self, account) for stage in self.stages)

    @property
    def open(self) -> list[int]:
        """Accounts that can pay a candidate, while a front still moves."""
        if self._stage or (self.patience and self._calls - self._moved_at >= self.patience):
            return []
        return [n for n in self.nfes if n not in self._closed and self.room(n) >= self.policy.least(self, n)]

    @property
    def may_propose(self) -> bool:
        """Whether there is budget left to propose with, and a front that still moves."""
        return bool(self.open)

    @property
    def _hungriest(self) -> int | None:
        """The NFE on which least was spent, among those that can pay a candidate and wait for nothing."""
        free = (n for n in self.open if not any(stage.holds(self, n) for stage in self.stages))
        return min(free, key=lambda n: (self.committed[n], n), default=None)

    def best(self, nfe: int, rung: Rung) -> list[Trial]:
        """Trials of an NFE that have a value at a rung, best first."""
        having = [(t.value(rung), t) for t in self.trials.values() if self.policy.account(t.candidate) == nfe]
        return [t for v, t in sorted(((v, t) for v, t in having if v is not None), key=lambda entry: entry[0])]

    # -- what was learned -----------------------------------------------------------------------------

    def learn(self, record: EvaluationRecord) -> None:
        """Take in a record of a trial under way, decide whether it climbs on, and tell the proposer."""
        self._note(record)
        trial = self.trials[record.trial]
        self._report(trial, record)
        for credited in self._credited:
            self._report(self.trials[credited.trial], credited)
        self._credited.clear()
        untold, self._untold = self._untold, []
        for entry in untold:
            objectives = self.policy.objectives(self, entry) if entry.state != TrialState.FAIL else None
            if entry.state == TrialState.COMPLETE and objectives is None:
                self._untold.append(entry)
            else:
                self.proposer.tell(entry, objectives)
                entry.slim()
        for known in self._held.pop(record.trial, ()):
            if self._below(known) is None:
                self.learn(known)
            else:
                self._held.setdefault(record.trial, []).append(known)

    def _report(self, trial: Trial, record: EvaluationRecord) -> None:
        rungs = list(dict.fromkeys((self.ladder.screen.name, self.ladder.main.name)))
        if record.rung in rungs and record.value is not None:
            self.proposer.report(trial, record.value, rungs.index(record.rung))

    def credit(self, trial: Trial, record: EvaluationRecord) -> None:
        """A rung's record that needs no evaluation, since another one has measured the same."""
        trial.records[record.rung] = record
        self._credited.append(record)
        self.policy.decide(self, trial, record)

    def _note(self, record: EvaluationRecord) -> None:
        trial = self.trials[record.trial]
        if record.rung in trial.records:
            return
        trial.records[record.rung] = record
        self._watch(record)
        self._consider_control(trial)
        if not any(stage.take(self, trial, record) for stage in self.stages):
            self.policy.decide(self, trial, record)
        if self._held.get(record.trial) and record.rung == self.ladder.screen.name:
            self._promote_again(trial)

    def _watch(self, record: EvaluationRecord) -> None:
        # Not the calls that were measured: another life, another machine or a cache makes others of the same records.
        self._calls += record.nfe * record.images
        if record.rung != self.ladder.main.name or record.status != "complete" or record.value is None:
            return
        if record.value < self._front.get(record.nfe, float("inf")):
            self._front[record.nfe], self._moved_at = record.value, self._calls

    def adopt(self, candidate: Candidate) -> None:
        """Make a candidate a trial."""
        owner = next((stage for stage in self.stages if stage.owns(candidate)), None)
        self.trials[candidate.trial] = Trial(candidate)
        if owner is None:
            self.by_hash[candidate.hash] = candidate.trial
        else:
            # Under way it may be known by another trial, that of its start.
            self.by_hash.setdefault(candidate.hash, candidate.trial)
        self.commit(candidate, (owner or self.policy).cost(self, candidate))

    def commit(self, candidate: Candidate, calls: int) -> None:
        """Book denoiser calls."""
        self.committed[self.policy.account(candidate)] += calls

    def promote(self, trial: Trial, paid: Paid = Paid.NOT_YET) -> None:
        """A trial goes on to the main rung, if that is paid or its account has room; else it is over."""
        main = self.ladder.main
        calls = trial.candidate.nfe * (main.images - kept(trial.records.values(), main))
        if paid is Paid.NOT_YET and calls > self._room_of(trial.candidate):
            self.finish(trial, TrialState.PRUNED)
            return
        trial.promoted = True
        self.wait_for(trial.candidate, main)
        if paid is not Paid.BOOKED:
            self.commit(trial.candidate, calls)

    def finish(self, trial: Trial, state: TrialState) -> None:
        """A trial is over."""
        trial.state = state
        self._untold.append(trial)
