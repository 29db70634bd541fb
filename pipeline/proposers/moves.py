"""Moves of the continuous decisions alone, around the best member found: CMA-ES (the `cmaes` package, 1604.00772).

Evolution changes one decision or the other; continuous ones, such as times and coefficients, act together. What is told
to CMA-ES are the members that share all discrete decisions with the best one, in the order in which they were proposed,
whoever proposed them: so the move is a function of the search's history, and a resumed search repeats it.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import numpy as np
from cmaes import CMA

from fewstep.search_spaces.space import Space, Vector

G = TypeVar("G")
# First standard deviation, in units of a move.
SPREAD = 0.2
# Generations that are kept to go back to, when a value comes in out of turn.
KEPT = 64


class LocalMoves(Generic[G]):
    """Moves near the best of the members of one NFE that have a value at one rung.

    `valued` gives them all: (number, genome, value). CMA-ES is told every member once, however many moves are asked
    for: what it knew is kept until the best changes.
    """

    def __init__(self, space: Space[G], valued: Callable[[], Iterable[tuple[int, G, float]]]) -> None:
        self._space, self._valued = space, valued
        self._best: tuple[float, int, G] | None = None
        # Those that are like the best, by rising number, once they were asked for.
        self._group: list[tuple[int, Vector, float]] | None = None
        self._told: deque[tuple[int, CMA]] = deque(maxlen=KEPT)

    def add(self, number: int, genome: G, value: float) -> None:
        """A member has a value now."""
        before, group = self._best, self._group
        like = before is not None and self._space.alike(before[2], genome)
        if group is not None and like:
            place = bisect_left(group, number, key=lambda entry: entry[0])
            group.insert(place, (number, self._space.to_vector(genome), value))
            # Told in another order it would be another.
            while place + 1 < len(group) and self._told and self._told[-1][0] > place:
                self._told.pop()
        if before is None or (value, number) < before[:2]:
            self._best = value, number, genome
            self._told.clear()
            if not like:
                self._group = None

    def move(self, seed: str) -> G | None:
        """A genome near the best; None where nothing has a value, or the space has no two continuous decisions."""
        if self._best is None:
            return None
        best = self._best[2]
        start = self._space.to_vector(best)
        if len(start) < 2:
            return None
        if self._group is None:
            like = sorted((e for e in self._valued() if self._space.alike(best, e[1])), key=lambda entry: entry[0])
            self._group = [(number, self._space.to_vector(genome), value) for number, genome, value in like]
        group = self._group
        key = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")
        count, optimizer = self._told[-1] if self._told else (0, CMA(start, SPREAD, seed=key))
        size = optimizer.population_size
        while count + size <= len(group):
            optimizer = _copied(optimizer)
            optimizer.tell([(vector, value) for _, vector, value in group[count : count + size]])
            count += size
            self._told.append((count, optimizer))
        optimizer.reseed_rng(key)
        return self._space.at_vector(best, optimizer.ask())


def _copied(optimizer: CMA) -> CMA:
    """Its own copy; pickling it, as `copy` does, would round its covariance."""
    made = object.__new__(CMA)
    for name, value in vars(optimizer).items():
        setattr(made, name, value.copy() if isinstance(value, np.ndarray) else value)
    made._rng = np.random.RandomState()
    return made
