"""Evolution on a Pareto front, for any space with several objectives; S^3 where a surrogate ranks the children.

A proposal is a function of the seed, the trial's number and the trials before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from random import Random
from typing import Any, cast

from fewstep.errors import ConfigurationError, ScheduleError
from fewstep.pipeline.proposers.base import Check, Objectives, is_outside
from fewstep.pipeline.proposers.options import OnRefit, S3Options, milestone
from fewstep.pipeline.proposers.pareto import PARENTS, ordered
from fewstep.pipeline.proposers.surrogate.encoder import Example
from fewstep.pipeline.proposers.surrogate.registry import Surrogate, make_surrogate
from fewstep.pipeline.trial import Candidate, Trial
from fewstep.search_spaces.point import Point
from fewstep.search_spaces.space import Space

OWN = "evolution"
ATTEMPTS = 60
EXPLORE, CROSSOVER = 0.1, 0.5

# Trials that may have children, best first, of one NFE or (None) of all; PARENTS of them are enough.
Standing = Callable[[Mapping[int, Trial], int | None], Sequence[Trial]]


class ParetoEvolution:
    """Proposes random members and children of the front; see the module's docstring.

    With a `surrogate` (not none) a child is the best of several by the objectives that are predicted for them.
    """

    def __init__(
        self,
        space: Space[Any],
        seed: int,
        check: Check,
        standing: Standing,
        screened: Objectives,
        surrogate: str = "none",
        on_refit: OnRefit | None = None,
    ) -> None:
        self.space, self._seed, self._check = space, seed, check
        self._standing, self._screened = standing, screened
        self._options, self._on_refit = S3Options(surrogate=surrogate), on_refit
        self._surrogate: Surrogate | None = None
        self._fitted_at = 0
        self._seconds = 0.0

    def ask(self, nfe: int, seen: AbstractSet[str], trials: Mapping[int, Trial]) -> Candidate | None:
        """See Proposer."""
        number = _next(trials)
        rng = Random(f"{self._seed}/{number}")
        parents, others = self._standing(trials, nfe), self._standing(trials, None)
        self._refit(trials, number)
        for attempt in range(ATTEMPTS):
            # When children repeat what is known, there is little left near the parents.
            lost = attempt > ATTEMPTS // 2
            fresh = lost or len(parents) < 2 or rng.random() < EXPLORE
            genome = self.space.random(nfe, rng) if fresh else self._offspring(parents, others, seen, rng)
            try:
                point = self.space.point(genome)
                if point.hash in seen:
                    continue
                self._check(point)
            except (ScheduleError, ConfigurationError):
                continue
            return Candidate(number, point, "random" if fresh else OWN, self.space.parameters(genome))
        return None

    def enlist(self, point: Point, origin: str, trials: Mapping[int, Trial]) -> Candidate:
        """See Proposer."""
        number = _next(trials)
        return Candidate(number, point, origin, self.space.parameters(self.space.genome(point)))

    def admit(self, point: Point, origin: str, trials: Mapping[int, Trial]) -> Candidate:
        """See Proposer."""
        return Candidate(_next(trials), point, origin)

    def report(self, trial: Trial, value: float, step: int) -> None:
        """Nothing to keep: the trials themselves are what it learns from."""

    def tell(self, trial: Trial, objectives: Sequence[float] | None) -> None:
        """Nothing to keep."""

    def restore(self, trials: Mapping[int, Trial], objectives: Objectives) -> list[Trial]:
        """Nothing to rebuild."""
        return []

    # -- children -------------------------------------------------------------------------------------

    def _offspring(self, parents: Sequence[Trial], others: Sequence[Trial], seen: AbstractSet[str], rng: Random) -> Any:
        if self._surrogate is None or not self._surrogate.ready or rng.random() < self._options.explore:
            return self._child(parents, others, rng)
        children = [self._child(parents, others, rng) for _ in range(self._options.children)]
        fresh = [child for child in children if self.space.point(child).hash not in seen] or children
        begun = time.perf_counter()
        predicted = self._surrogate.predict([self.space.encode(child) for child in fresh])
        self._seconds += time.perf_counter() - begun
        return fresh[ordered([[float(v) for v in row] for row in predicted])[0]]

    def _child(self, parents: Sequence[Trial], others: Sequence[Trial], rng: Random) -> Any:
        first = self._genome(_pick(parents, rng))
        if rng.random() < CROSSOVER:
            # The second parent may have another NFE: what of it does not depend on that fits all the same.
            second = self._genome(_pick(parents if rng.random() < 0.5 else others, rng))
            first = self.space.cross(first, second, rng)
        return self.space.mutate(first, rng)

    def _genome(self, trial: Trial) -> Any:
        return self.space.genome(trial.candidate.point)

    def _refit(self, trials: Mapping[int, Trial], number: int) -> None:
        at = milestone(number, self._options)
        if not at or at == self._fitted_at or self._options.surrogate == "none":
            return
        before = [t for n, t in sorted(trials.items()) if n < at and not is_outside(t.candidate)]
        known = [(t, values) for t in before if (values := self._screened(t)) is not None]
        if not known:
            return
        examples = [self._example(trial, values) for trial, values in known]
        own = [
            e
            for e, (t, _) in zip(examples, known, strict=True)
            if t.number >= self._fitted_at and t.candidate.origin == OWN
        ]
        tau = self._surrogate.tau(own, 0) if self._surrogate is not None and own else None
        surrogate = make_surrogate(self._options.surrogate, len(known[0][1]), self._seed)
        begun = time.perf_counter()
        surrogate.fit(examples)
        self._seconds += time.perf_counter() - begun
        if surrogate.ready:
            self._surrogate, self._fitted_at = surrogate, at
            if self._on_refit:
                self._on_refit(len(examples), tau, self._seconds)
            self._seconds = 0.0

    def _example(self, trial: Trial, values: Sequence[float]) -> Example:
        return Example(self.space.encode(self._genome(trial)), trial.candidate.nfe, tuple(values))


def _next(trials: Mapping[int, Trial]) -> int:
    """The number after the last one: trials are in the order of their numbers."""
    return next(reversed(cast("dict[int, Trial]", trials)), -1) + 1


def _pick(trials: Sequence[Trial], rng: Random) -> Trial:
    """One of the first PARENTS trials; the first is twice as likely as the middle one."""
    count = min(len(trials), PARENTS)
    return trials[rng.choices(range(count), range(count, 0, -1))[0]]
