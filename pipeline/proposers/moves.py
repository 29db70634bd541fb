"""Moves of the continuous decisions alone, around the best member found: CMA-ES (the `cmaes` package, 1604.00772).

Evolution changes one decision or the other; continuous ones, such as times and coefficients, act together. What is told
to CMA-ES are the members that share all discrete decisions with the best one, in the order in which they were proposed,
whoever proposed them: so the move is a function of the search's history, and a resumed search repeats it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

from cmaes import CMA
from optuna.trial import FrozenTrial

from fewstep.search_spaces.space import Space

G = TypeVar("G")
# First standard deviation, in units of a move.
SPREAD = 0.2


def local_move(space: Space[G], members: Sequence[tuple[FrozenTrial, G]], rung: int, seed: str) -> G | None:
    """A genome near the best of `members` (all of one NFE) by their values at `rung`.

    None where none has a value, or where the space has no two continuous decisions.
    """
    judged = [(t, g) for t, g in members if rung in t.intermediate_values]
    if not judged:
        return None
    best = min(judged, key=lambda entry: (entry[0].intermediate_values[rung], entry[0].number))[1]
    start = space.to_vector(best)
    if len(start) < 2:
        return None
    key = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")
    optimizer = CMA(start, SPREAD, seed=key)
    kept = space.discrete(best)
    alike = [(space.to_vector(g), t.intermediate_values[rung]) for t, g in judged if space.discrete(g) == kept]
    size = optimizer.population_size
    for i in range(0, len(alike) - size + 1, size):
        optimizer.tell(alike[i : i + size])
    return space.at_vector(best, optimizer.ask())
