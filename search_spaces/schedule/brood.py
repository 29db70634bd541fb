"""The children of one member that a ranking chooses among: a function of the member and a seed."""

from __future__ import annotations

from random import Random

from fewstep.search_spaces.schedule.evolution import mutate
from fewstep.search_spaces.schedule.genome import Genome
from fewstep.search_spaces.schedule.solver_space import SolverSpace

# Of what is changed: as S^3 mutates.
RATES = (0.05, 0.12, 0.25)


def brood(space: SolverSpace, elite: Genome, seed: str, count: int) -> list[Genome]:
    """`count` different mutants, or as many as there are hardly more than."""
    rng, found = Random(seed), {elite: None}
    for _ in range(4 * count):
        if len(found) > count:
            break
        found.setdefault(mutate(space, elite, rng, rng.choice(RATES)))
    return list(found)[1:]
