"""Moves of the continuous decisions alone, around the best member found: CMA-ES (the `cmaes` package, 1604.00772).

Evolution changes one decision or the other; times and coefficients act together. What is told to CMA-ES are the
members that share all discrete decisions with the best one, in the order in which they were proposed, whoever
proposed them: so the move is a function of the search's history, and a resumed search repeats it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from cmaes import CMA
from optuna.trial import FrozenTrial

from fewstep.search_spaces.evolution import repair
from fewstep.search_spaces.genome import Genes, Genome
from fewstep.search_spaces.solver_space import SolverSpace

Array = npt.NDArray[np.float64]
# Of a gap, as its log: more than any space is wide.
LARGEST = 4.0
# First standard deviation of logs of gaps; other decisions are scaled to move as far.
SPREAD, COEFFICIENT_SCALE, GUIDANCE_SCALE, SKIP_SCALE = 0.2, 0.25, 1.0, 0.1


def local_move(
    space: SolverSpace, members: Sequence[tuple[FrozenTrial, Genome]], rung: int, seed: str
) -> Genome | None:
    """A genome near the best of `members` (all of one NFE) by their values at `rung`; None where none has a value.

    Its times move (as logs of their gaps), the coefficients of linear relaxations, guidance and the skips' factors.
    """
    judged = [(t, g) for t, g in members if rung in t.intermediate_values]
    if not judged:
        return None
    best = min(judged, key=lambda entry: (entry[0].intermediate_values[rung], entry[0].number))[1]
    start = to_vector(best)
    if len(start) < 2:
        return None
    key = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")
    optimizer = CMA(start, SPREAD, seed=key)
    alike = [(to_vector(g), t.intermediate_values[rung]) for t, g in judged if _discrete(g) == _discrete(best)]
    size = optimizer.population_size
    for i in range(0, len(alike) - size + 1, size):
        optimizer.tell(alike[i : i + size])
    return at_vector(space, best, optimizer.ask())


def to_vector(genome: Genome) -> Array:
    """The continuous decisions: logs of gaps in lambda, then coefficients, guidance and skips in units of a move."""
    numbers = [float(v) for v in np.log(np.diff(genome.lambdas))]
    numbers += [genome.genes[i].coefficient / COEFFICIENT_SCALE for i in _linear(genome)]
    numbers += [] if genome.guidance is None else [genome.guidance / GUIDANCE_SCALE]
    return np.array([*numbers, *(v / SKIP_SCALE for v in genome.skips)])


def at_vector(space: SolverSpace, genome: Genome, vector: Array) -> Genome:
    """The genome with the continuous decisions of a vector, cut to what the space allows."""
    values = [float(v) for v in vector]
    gaps = [values.pop(0) for _ in genome.lambdas[1:]]
    lambdas = (genome.lambdas[0], *(genome.lambdas[0] + float(v) for v in np.cumsum(np.exp(np.minimum(gaps, LARGEST)))))
    genes = list(genome.genes)
    for i in _linear(genome):
        genes[i] = replace(genes[i], coefficient=values.pop(0) * COEFFICIENT_SCALE)
    guidance = None if genome.guidance is None else values.pop(0) * GUIDANCE_SCALE
    skips = tuple(v * SKIP_SCALE for v in values)
    moved = replace(genome, lambdas=lambdas, genes=tuple(genes), guidance=guidance, skips=skips)
    return space.from_parameters(space.parameters(repair(space, moved)))


def _linear(genome: Genome) -> list[int]:
    return [i for i, g in enumerate(genome.genes) if g.relaxation == "linear"]


def _discrete(genome: Genome) -> tuple[object, ...]:
    genes: list[Genes] = [replace(g, coefficient=0.0) for g in genome.genes]
    return genome.end, genome.first_call, genome.threshold, genome.guidance is None, tuple(genes)
