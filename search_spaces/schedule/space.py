"""Solver schedules as a space: the decisions of `SolverSpace`, varied as the published search does, and local moves."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np

from fewstep.errors import ScheduleError
from fewstep.search_spaces.point import Point, SchedulePoint, schedule_of
from fewstep.search_spaces.schedule import evolution, genome
from fewstep.search_spaces.schedule.genome import Genes, Genome
from fewstep.search_spaces.schedule.solver_space import SolverSpace
from fewstep.search_spaces.space import Features, Space, Vector
from fewstep.search_spaces.trials import Suggests

# Of a gap, as its log: more than any space is wide.
LARGEST = 4.0
# Other decisions are scaled to move as far as the log of a gap does.
COEFFICIENT_SCALE, GUIDANCE_SCALE, SKIP_SCALE = 0.25, 1.0, 0.1


class _Widest:
    """A trial that passes every question on and answers so that all parameters are asked for."""

    def __init__(self, trial: Suggests, answers: dict[str, object]) -> None:
        self._trial, self._answers = trial, answers

    def suggest_float(self, name: str, low: float, high: float) -> float:
        return self._trial.suggest_float(name, low, high)

    def suggest_categorical(self, name: str, choices: object) -> object:
        found = self._trial.suggest_categorical(name, choices)
        return self._answers.get(name, found)


class ScheduleSpace(SolverSpace, Space[Genome]):
    """See the module's docstring."""

    def suggest_all(self, trial: Suggests) -> None:
        """Ask for every parameter: those of the longest members."""
        self.suggest(_Widest(trial, {"nfe": max(self.nfes), "first_call": "zero_x0", "end": "epsilon"}))

    def random(self, nfe: int, rng: Random) -> Genome:
        """See `evolution.random_genome`."""
        return evolution.random_genome(self, nfe, rng)

    def mutate(self, genome: Genome, rng: Random, rate: float | None = None) -> Genome:
        """See `evolution.mutate`."""
        return evolution.mutate(self, genome, rng, rate or evolution.RATE)

    def cross(self, a: Genome, b: Genome, rng: Random) -> Genome:
        """See `evolution.cross`."""
        return evolution.cross(self, a, b, rng)

    def with_nfe(self, genome: Genome, nfe: int, rng: Random) -> Genome:
        """See `evolution.with_nfe`."""
        return evolution.with_nfe(self, genome, nfe, rng)

    def encode(self, member: Genome) -> Features:
        """See `genome.encode`."""
        return genome.encode(member)

    def point(self, member: Genome) -> SchedulePoint:
        """The schedule as a point."""
        return SchedulePoint(schedule=genome.to_schedule(member))

    def genome(self, point: Point) -> Genome:
        """The genome of a point's schedule; ScheduleError where it is outside the space."""
        schedule = schedule_of(point)
        if schedule is None:
            raise ScheduleError(f"{point.name} has no schedule")
        return genome.to_genome(schedule)

    def stored(self, text: str) -> Genome:
        """See `genome.stored_genome`."""
        return genome.stored_genome(text) if text.startswith(genome.ALONE) else super().stored(text)

    def nfe(self, genome: Genome) -> int:
        """The genome's."""
        return genome.nfe

    # -- continuous decisions -------------------------------------------------------------------------

    def to_vector(self, genome: Genome) -> Vector:
        """Logs of gaps in lambda, then coefficients of linear relaxations, guidance and the skips' factors."""
        numbers = [float(v) for v in np.log(np.diff(genome.lambdas))]
        numbers += [genome.genes[i].coefficient / COEFFICIENT_SCALE for i in _linear(genome)]
        numbers += [] if genome.guidance is None else [genome.guidance / GUIDANCE_SCALE]
        return np.array([*numbers, *(v / SKIP_SCALE for v in genome.skips)])

    def at_vector(self, genome: Genome, vector: Vector) -> Genome:
        """The genome with the continuous decisions of a vector, cut to what the space allows."""
        values = [float(v) for v in vector]
        gaps = [values.pop(0) for _ in genome.lambdas[1:]]
        ends = np.cumsum(np.exp(np.minimum(gaps, LARGEST)))
        lambdas = (genome.lambdas[0], *(genome.lambdas[0] + float(v) for v in ends))
        genes = list(genome.genes)
        for i in _linear(genome):
            genes[i] = replace(genes[i], coefficient=values.pop(0) * COEFFICIENT_SCALE)
        guidance = None if genome.guidance is None else values.pop(0) * GUIDANCE_SCALE
        skips = tuple(v * SKIP_SCALE for v in values)
        moved = replace(genome, lambdas=lambdas, genes=tuple(genes), guidance=guidance, skips=skips)
        return self.from_parameters(self.parameters(evolution.repair(self, moved)))

    def discrete(self, genome: Genome) -> object:
        """All other decisions."""
        genes: list[Genes] = [replace(g, coefficient=0.0) for g in genome.genes]
        return genome.end, genome.first_call, genome.threshold, genome.guidance is None, tuple(genes)

    def alike(self, a: Genome, b: Genome) -> bool:
        """As `discrete` says, without making it of each."""
        if len(a.genes) != len(b.genes) or (a.end, a.first_call, a.threshold) != (b.end, b.first_call, b.threshold):
            return False
        if (a.guidance is None) != (b.guidance is None):
            return False
        return all(
            one is other or _decided(one) == _decided(other) for one, other in zip(a.genes, b.genes, strict=True)
        )


def _decided(g: Genes) -> tuple[object, ...]:
    return g.prediction, g.order, g.estimate, g.relaxation, g.corrector, g.start


def _linear(genome: Genome) -> list[int]:
    return [i for i, g in enumerate(genome.genes) if g.relaxation == "linear"]
