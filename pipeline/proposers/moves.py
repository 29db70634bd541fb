"""Moves of the continuous decisions alone, around the best member found: CMA-ES (the `cmaes` package, 1604.00772).

Evolution changes one decision or the other; continuous ones, such as times and coefficients, act together. What is told
to CMA-ES are the members that share all discrete decisions with the best one, in the order in which they were proposed,
whoever proposed them: so the move is a function of the search's history, and a resumed search repeats it.
"""

from __future__ import annotations

import hashlib
from bisect import insort
from collections import deque
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
    """Members of one NFE with their values at one rung, and moves near the best of them.

    CMA-ES is told every member once, however many moves are asked for: what it knew is kept until the best changes.
    """

    def __init__(self, space: Space[G]) -> None:
        self._space = space
        self._alike: dict[object, list[tuple[int, Vector, float]]] = {}
        self._best: tuple[float, int, G] | None = None
        self._told: deque[tuple[int, CMA]] = deque(maxlen=KEPT)

    def add(self, number: int, genome: G, value: float) -> None:
        """A member has a value now."""
        kind = self._space.discrete(genome)
        group = self._alike.setdefault(kind, [])
        late = bool(group) and group[-1][0] > number
        insort(group, (number, self._space.to_vector(genome), value), key=lambda entry: entry[0])
        if self._best is None or (value, number) < self._best[:2]:
            self._best = value, number, genome
            self._told.clear()
        elif late and self._told and kind == self._space.discrete(self._best[2]):
            place = next(i for i in range(len(group) - 1, -1, -1) if group[i][0] == number)
            while self._told and self._told[-1][0] > place:
                self._told.pop()

    def move(self, seed: str) -> G | None:
        """A genome near the best; None where nothing has a value, or the space has no two continuous decisions."""
        if self._best is None:
            return None
        best = self._best[2]
        start = self._space.to_vector(best)
        if len(start) < 2:
            return None
        key = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")
        group = self._alike[self._space.discrete(best)]
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
