"""Random members, mutation and crossover of genomes.

Probabilities follow the published search (USF, appendix): every decision of every
step mutates with probability RATE, orders and relaxations are drawn from the published frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from fewstep.search_spaces.schedule.genome import ORDERS, RELAXATIONS, STARTS, Genes, Genome
from fewstep.search_spaces.schedule.solver_space import COEFFICIENT_RANGE, ENDS, ESTIMATES, SKIP_RANGE, SolverSpace

RATE = 0.25
TIME_SPREAD = (0.03, 0.6)
ORDER_WEIGHTS = (0.2, 0.4, 0.3, 0.1)
ESTIMATE_WEIGHTS = (0.5, 0.4, 0.1)
RELAXATION_WEIGHTS = (0.35, 0.35, 0.1, 0.15, 0.05)
START_WEIGHTS = (0.8, 0.2)
MIN_SPACING = 0.02


def _order(rng: Random) -> int:
    return rng.choices(ORDERS, ORDER_WEIGHTS)[0]


def _estimate(rng: Random) -> int:
    return rng.choices(ESTIMATES, ESTIMATE_WEIGHTS)[0]


def _relaxation(rng: Random) -> str:
    return rng.choices(RELAXATIONS, RELAXATION_WEIGHTS)[0]


def _nudge(rng: Random, coefficient: float, spread: float) -> float:
    return min(max(coefficient + rng.gauss(0, spread), -COEFFICIENT_RANGE), COEFFICIENT_RANGE)


def _random_genes(space: SolverSpace, rng: Random) -> Genes:
    genes = Genes(
        rng.choice(space.predictions),
        _order(rng),
        _estimate(rng),
        _relaxation(rng),
        _nudge(rng, 0.0, 0.1),
        rng.random() < 0.5,
    )
    return replace(genes, start=_start(rng)) if space.searches("start-points") else genes


def _start(rng: Random) -> int:
    return rng.choices(STARTS, START_WEIGHTS)[0]


def _within(rng: Random, value: float, spread: float, low: float, high: float) -> float:
    return min(max(value + rng.gauss(0, spread), low), high)


def _random_whole(space: SolverSpace, genome: Genome, rng: Random) -> Genome:
    """Draw what is decided for all steps together; where nothing of it is searched, nothing is drawn."""
    if len(space.thresholds) > 1:
        genome = replace(genome, threshold=rng.choice(space.thresholds))
    if space.extras.guidance:
        genome = replace(genome, guidance=rng.uniform(*space.extras.guidance))
    if space.skips:
        genome = replace(genome, skips=tuple(1.0 - abs(rng.gauss(0, 0.05)) for _ in range(space.skips)))
    return genome


def _mutate_whole(space: SolverSpace, genome: Genome, rng: Random, rate: float) -> Genome:
    if len(space.thresholds) > 1 and rng.random() < rate:
        genome = replace(genome, threshold=rng.choice(space.thresholds))
    if space.extras.guidance and rng.random() < 2 * rate:
        low, high = space.extras.guidance
        value = 0.5 * (low + high) if genome.guidance is None else genome.guidance
        genome = replace(genome, guidance=_within(rng, value, 0.1 * (high - low), low, high))
    if space.skips and rng.random() < 2 * rate:
        old = genome.skips or (1.0,) * space.skips
        new = tuple(_within(rng, v, 0.03, *SKIP_RANGE) if rng.random() < rate else v for v in old)
        genome = replace(genome, skips=new)
    return genome


def random_genome(space: SolverSpace, nfe: int, rng: Random) -> Genome:
    """A member drawn at random: gaps from a Dirichlet around equal ones, decisions by their frequencies."""
    first = rng.choice(space.first_calls) if nfe > 1 else "model"
    end = rng.choice(ENDS)
    steps = nfe + (first != "model")
    gaps = steps - (end == "zero")
    low, high = space.last_range
    last = rng.uniform(max(low, space.lambda_end - 4), high)
    weights = [rng.gammavariate(4.0, 1.0) for _ in range(gaps)]
    lambdas = [rng.uniform(*space.first_range) if space.searches("start") else space.lambda_start]
    span = last - lambdas[0]
    for weight in weights:
        lambdas.append(lambdas[-1] + weight / sum(weights) * span)
    genes = tuple(_random_genes(space, rng) for _ in range(steps))
    return repair(space, _random_whole(space, Genome(tuple(lambdas), end, first, genes), rng))


def repair(space: SolverSpace, genome: Genome) -> Genome:
    """Sort the times, keep them MIN_SPACING apart and inside the space, starting at its start."""
    low, high = space.last_range
    inner = sorted(genome.lambdas[1:])
    count = len(inner)
    earliest, latest = space.first_range
    fixed = [min(max(genome.lambdas[0], earliest), latest)]
    for i, value in enumerate(inner):
        ceiling = high - (count - 1 - i) * MIN_SPACING
        fixed.append(min(max(value, fixed[-1] + MIN_SPACING), ceiling))
    if count:
        fixed[-1] = min(max(fixed[-1], low), high)
    return replace(genome, lambdas=tuple(fixed))


def mutate(space: SolverSpace, genome: Genome, rng: Random, rate: float = RATE) -> Genome:
    """Change each decision with probability `rate`, at least one. NFE stays the same."""
    for _ in range(50):
        spread = math.exp(rng.uniform(math.log(TIME_SPREAD[0]), math.log(TIME_SPREAD[1])))
        lambdas = [v + (rng.gauss(0, spread) if rng.random() < 2 * rate else 0.0) for v in genome.lambdas]
        genes = tuple(_mutate_genes(space, g, rng, rate) for g in genome.genes)
        child = repair(space, replace(genome, lambdas=tuple(lambdas), genes=genes))
        child = _mutate_whole(space, child, rng, rate)
        if genome.nfe > 1 and rng.random() < 0.4 * rate:
            child = _flip_first_call(space, child, rng)
        if rng.random() < 0.4 * rate:
            child = _flip_end(space, child, rng)
        if child != genome:
            return child
    return random_genome(space, genome.nfe, rng)


def _mutate_genes(space: SolverSpace, g: Genes, rng: Random, rate: float) -> Genes:
    genes = Genes(
        rng.choice(space.predictions) if rng.random() < rate else g.prediction,
        _order(rng) if rng.random() < rate else g.order,
        _estimate(rng) if rng.random() < rate else g.estimate,
        _relaxation(rng) if rng.random() < rate else g.relaxation,
        _nudge(rng, g.coefficient, rng.uniform(0.02, 0.08)) if rng.random() < 2 * rate else g.coefficient,
        rng.random() < 0.5 if rng.random() < rate else g.corrector,
        g.start,
    )
    if space.searches("start-points") and rng.random() < rate:
        return replace(genes, start=_start(rng))
    return genes


def _place(genome: Genome, rng: Random) -> int:
    return rng.randrange(1, len(genome.lambdas)) if len(genome.lambdas) > 1 else 0


def _split(space: SolverSpace, genome: Genome, at: int, genes: Genes) -> Genome:
    """One step more: a time in the middle between those numbered `at` - 1 and `at`, with `genes`."""
    before = genome.lambdas[at - 1] if at else genome.lambdas[0]
    after = genome.lambdas[at] if at else space.lambda_end
    lambdas = (*genome.lambdas[: max(at, 1)], 0.5 * (before + after), *genome.lambdas[max(at, 1) :])
    return replace(genome, lambdas=lambdas, genes=(*genome.genes[:at], genes, *genome.genes[at:]))


def _join(genome: Genome, at: int) -> Genome:
    """One step less: without the time numbered `at`, the first apart, and the step that led there."""
    lambdas = (*genome.lambdas[:at], *genome.lambdas[at + 1 :])
    return replace(genome, lambdas=lambdas, genes=(*genome.genes[: at - 1], *genome.genes[at:]))


def _flip_first_call(space: SolverSpace, genome: Genome, rng: Random) -> Genome:
    """Spend the first call elsewhere, or bring it back: one step more or less at equal NFE."""
    at = _place(genome, rng)
    if genome.first_call == "model":
        longer = _split(space, genome, at, _random_genes(space, rng))
        first = "zero_x0" if len(space.first_calls) == 2 else rng.choice(space.first_calls[1:])
        return repair(space, replace(longer, first_call=first))
    if len(genome.lambdas) < 3:
        return genome
    return repair(space, replace(_join(genome, at), first_call="model"))


def with_nfe(space: SolverSpace, genome: Genome, nfe: int, rng: Random) -> Genome:
    """The genome at another number of calls: steps cut in two, each half deciding as the whole, or left out.

    A genome too short to lose a step gives a random member instead.
    """
    while genome.nfe < nfe:
        at = _place(genome, rng)
        genome = _split(space, genome, at, genome.genes[max(at - 1, 0)])
    while genome.nfe > nfe:
        if len(genome.lambdas) < 3:
            return random_genome(space, nfe, rng)
        genome = _join(genome, _place(genome, rng))
    return repair(space, genome)


def _flip_end(space: SolverSpace, genome: Genome, rng: Random) -> Genome:
    """Trade a last step to a finite time for a jump to sigma = 0, or the other way round."""
    if genome.end == "zero":
        last = rng.uniform(max(genome.lambdas[-1], space.lambda_end - 2), space.last_range[1])
        return repair(space, replace(genome, end="epsilon", lambdas=(*genome.lambdas, last)))
    if len(genome.lambdas) < 3:
        return genome
    return repair(space, replace(genome, end="zero", lambdas=genome.lambdas[:-1]))


def cross(space: SolverSpace, a: Genome, b: Genome, rng: Random) -> Genome:
    """Mix two genomes of equal step count step by step (half the time), or head of one and tail of the other.

    Parents of different shape cannot be mixed: the first is returned.
    """
    if len(a.genes) != len(b.genes) or len(a.lambdas) != len(b.lambdas):
        return a
    n = len(a.genes)
    cut = rng.randrange(n + 1)
    pick: Sequence[bool] = [rng.random() < 0.5 for _ in range(n)] if rng.random() < 0.5 else [i < cut for i in range(n)]
    genes = tuple(x if p else y for x, y, p in zip(a.genes, b.genes, pick, strict=True))
    inner = tuple(
        x if pick[min(i, n - 1)] else y for i, (x, y) in enumerate(zip(a.lambdas[1:], b.lambdas[1:], strict=True))
    )
    return repair(space, replace(a, lambdas=(a.lambdas[0], *inner), genes=genes))
