"""S^3, predictor-guided search, for any space with one objective (USF, section 4).

Every candidate's genome is decided at once, from the seed, the trial's number and the trials before it: first random
members, then children of the best known ones, ranked by a surrogate that is trained on everything evaluated so far. The
values it learns from are those of the rungs. What a proposal takes does not grow with the search, but for the fits of
a surrogate, which come at ever longer intervals.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from random import Random
from typing import Any

from optuna.trial import TrialState

from fewstep.pipeline.garbage import without_collection
from fewstep.pipeline.proposers.base import Check, Objectives, is_outside
from fewstep.pipeline.proposers.drawn import Drawn
from fewstep.pipeline.proposers.members import Member, Members
from fewstep.pipeline.proposers.options import ATTEMPTS, OnRefit, S3Options, milestone
from fewstep.pipeline.proposers.random_member import IMPOSSIBLE, new_random_member
from fewstep.pipeline.proposers.surrogate.encoder import Example
from fewstep.pipeline.proposers.surrogate.registry import Surrogate, make_surrogate
from fewstep.pipeline.trial import Candidate, Trial
from fewstep.search_spaces.point import Point
from fewstep.search_spaces.space import Space

NEIGHBOURS = 5
MUTATION_RATES = (0.05, 0.12, 0.25)


class S3Proposer:
    """Proposes whole members of a space; see the module's docstring. `rungs` name those it learns from, in order."""

    def __init__(
        self,
        space: Space[Any],
        nfes: Sequence[int],
        check: Check,
        rungs: Sequence[str],
        seed: int = 0,
        options: S3Options | None = None,
        on_refit: OnRefit | None = None,
        origin: str = "s3",
    ) -> None:
        self._space, self._nfes, self._check, self._origin = space, nfes, check, origin
        self._rungs, self._seed, self._on_refit = tuple(rungs), seed, on_refit
        self._options = options or S3Options()
        # A ladder of one rung is learned from as one of two whose second is never reached.
        self._fidelities = max(2, len(self._rungs))
        self._members: dict[int, Member[Any]] = {}
        self._by_nfe: dict[int, Members[Any]] = {}
        self._surrogate: Surrogate | None = None
        self._fitted_at = 0
        self._seconds = 0.0
        self._next = 0
        # Trials that were there before, in order, until something is asked: many a study is only looked at.
        self._unread: list[Trial] = []

    # -- trials ---------------------------------------------------------------------------------------

    def ask(self, nfe: int, seen: AbstractSet[str], trials: Mapping[int, Trial]) -> Candidate | None:
        """See Proposer. Where children repeat what is known again and again, in the end random members are tried."""
        self._read()
        for _ in range(ATTEMPTS):
            number, self._next = self._next, self._next + 1
            try:
                drawn = self._drawn(number, self._space.parameters(self.propose(nfe, number)))
                point = self._space.point(self._space.suggest(drawn))
                self._check(point)
            except IMPOSSIBLE:
                continue
            if point.hash not in seen:
                return self._entered(Candidate(number, point, self._origin, drawn.parameters))
        return self._anything_new(nfe, seen, trials)

    def _anything_new(self, nfe: int, seen: AbstractSet[str], trials: Mapping[int, Trial]) -> Candidate | None:
        point = new_random_member(self._space, nfe, f"{self._seed}/{self._next}", self._check, seen)
        return None if point is None else self.enlist(point, "random", trials)

    def enlist(self, point: Point, origin: str, trials: Mapping[int, Trial]) -> Candidate:
        """See Proposer."""
        self._read()
        drawn = self._drawn(self._next, self._space.parameters(self._space.genome(point)))
        self._space.suggest(drawn)
        self._next += 1
        return self._entered(Candidate(drawn.number, point, origin, drawn.parameters))

    def admit(self, point: Point, origin: str, trials: Mapping[int, Trial]) -> Candidate:
        """See Proposer."""
        self._next += 1
        return Candidate(self._next - 1, point, origin)

    def _drawn(self, number: int, parameters: Mapping[str, Any]) -> Drawn:
        return Drawn(number, parameters, f"{self._seed}/{number}")

    def _entered(self, candidate: Candidate) -> Candidate:
        member = Member(candidate.trial, self._space.genome(candidate.point), own=candidate.origin == self._origin)
        self._members[candidate.trial] = member
        self._at(self._space.nfe(member.genome)).add(member, candidate.origin)
        return candidate

    def _at(self, nfe: int) -> Members[Any]:
        if nfe not in self._by_nfe:
            self._by_nfe[nfe] = Members(self._space, self._fidelities)
        return self._by_nfe[nfe]

    def report(self, trial: Trial, value: float, step: int) -> None:
        """See Proposer."""
        self._read()
        if (member := self._members.get(trial.number)) is not None:
            self._at(self._space.nfe(member.genome)).report(member, step, value)

    def tell(self, trial: Trial, objectives: Sequence[float] | None) -> None:
        """See Proposer; only a failure says more than the rungs do."""
        self._read()
        if trial.state == TrialState.FAIL and (member := self._members.get(trial.number)) is not None:
            self._at(self._space.nfe(member.genome)).fail(member)

    def restore(self, trials: Mapping[int, Trial], objectives: Objectives) -> list[Trial]:
        """See Proposer."""
        self._unread = [trial for _, trial in sorted(trials.items()) if not is_outside(trial.candidate)]
        self._next = max(trials, default=-1) + 1
        return []

    def _read(self) -> None:
        """Take in the trials that were there before."""
        unread, self._unread = self._unread, []
        if unread:
            with without_collection():
                self._enter_all(unread)

    def _enter_all(self, unread: Sequence[Trial]) -> None:
        found: dict[int, list[tuple[Member[Any], str]]] = {}
        for trial in unread:
            candidate = trial.candidate
            records = [(step, trial.records.get(rung)) for step, rung in enumerate(self._rungs)]
            values = {step: r.value for step, r in records if r is not None and r.value is not None}
            failed, own = trial.state == TrialState.FAIL, candidate.origin == self._origin
            member = Member(candidate.trial, candidate.genome(self._space), values, failed, own)
            self._members[candidate.trial] = member
            found.setdefault(self._space.nfe(member.genome), []).append((member, candidate.origin))
        for nfe, members in found.items():
            self._at(nfe).restore(members)

    # -- proposals ------------------------------------------------------------------------------------

    def propose(self, nfe: int, number: int) -> Any:
        """The genome of trial `number` at `nfe`; none that is known, unless there is hardly another."""
        rng, mine = Random(f"{self._seed}/{number}"), self._at(nfe)
        # Stored studies drew a number of calls here, whatever they were asked for.
        rng.choice(self._nfes)
        if mine.drawn < self._options.random_trials:
            return self._space.random(nfe, rng)
        share = rng.random()
        found = None
        if share < self._options.across:
            found = self._from_neighbour(nfe, rng)
        elif share < self._options.across + self._options.local:
            found = mine.moves[mine.fidelity].move(f"{self._seed}/{number}")
        if found is not None and found not in mine.seen:
            return found
        parents = mine.best(self._options.parents)
        self._refit(number)
        guided = self._surrogate is not None and self._surrogate.ready
        if guided and rng.random() >= self._options.explore:
            begun = time.perf_counter()
            chosen = self._evolve_on_surrogate(parents, mine.fidelity, mine.seen, rng)
            self._seconds += time.perf_counter() - begun
            return chosen
        for _ in range(100):
            child = self._child(parents, rng)
            if child not in mine.seen:
                return child
        return self._space.random(nfe, rng)

    def _from_neighbour(self, nfe: int, rng: Random) -> Any | None:
        """An elite of the nearest other NFE on either side, with as many steps added or dropped as it takes."""
        nfes = [n for n, members in self._by_nfe.items() if members.seen]
        beside = [max((n for n in nfes if n < nfe), default=0), min((n for n in nfes if n > nfe), default=0)]
        beside = [n for n in beside if n]
        if not beside:
            return None
        source = rng.choice(beside)
        return self._space.with_nfe(rng.choice(self._at(source).best(NEIGHBOURS)), nfe, rng)

    def _child(self, parents: list[Any], rng: Random) -> Any:
        # Linear ranking: the best parent is twice as likely as the middle one.
        a, b = rng.choices(range(len(parents)), range(len(parents), 0, -1), k=2)
        crossed = rng.random() < self._options.crossover
        mixed = self._space.cross(parents[a], parents[b], rng) if crossed else parents[a]
        return self._space.mutate(mixed, rng, rng.choice(MUTATION_RATES))

    def _evolve_on_surrogate(self, parents: list[Any], fidelity: int, seen: set[Any], rng: Random) -> Any:
        assert self._surrogate is not None
        pool: dict[Any, float] = {}
        breeders = parents
        for _ in range(self._options.generations):
            batch = [g for g in (self._child(breeders, rng) for _ in range(self._options.children)) if g not in seen]
            if batch:
                # What little the dear rung has told, and the many values of the cheap one.
                scores = self._surrogate.predict([self._space.encode(g) for g in batch])[:, : fidelity + 1].sum(axis=1)
                pool.update(zip(batch, map(float, scores), strict=True))
            breeders = sorted(pool, key=lambda g: pool[g])[: self._options.parents] or parents
        return breeders[0]

    def _refit(self, number: int) -> None:
        at = milestone(number, self._options)
        if not at or at == self._fitted_at or self._options.surrogate == "none":
            return
        usable = [member for member in self._members.values() if member.number < at and member.values]
        examples = [self._example(member) for member in usable]
        # Held out, and children of the elites: what a ranking chooses among.
        fresh = [self._example(member) for member in usable if member.own and member.number >= self._fitted_at]
        tau = self._surrogate.tau(fresh, 0) if self._surrogate is not None and fresh else None
        surrogate = make_surrogate(self._options.surrogate, self._fidelities, self._seed)
        begun = time.perf_counter()
        surrogate.fit(examples)
        self._seconds += time.perf_counter() - begun
        if surrogate.ready:
            self._surrogate, self._fitted_at = surrogate, at
            if self._on_refit:
                self._on_refit(len(examples), tau, self._seconds)
            self._seconds = 0.0

    def _example(self, member: Member[Any]) -> Example:
        values = (member.values.get(rung, float("nan")) for rung in range(self._fidelities))
        return Example(self._space.encode(member.genome), self._space.nfe(member.genome), tuple(values))
