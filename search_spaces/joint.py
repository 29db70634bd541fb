"""The product of several spaces: a schedule and what changes its network chosen together, or with one of them kept.

What is best for one depends on the others, so all are varied at once. The first space samples, the others change the
network; a part that is not searched is kept as a point.
"""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np

from fewstep.errors import ScheduleError
from fewstep.search_spaces.point import Point, joint
from fewstep.search_spaces.space import Features, Space
from fewstep.search_spaces.trials import Suggests

# Of each part, where several are searched: together they change about as much as one alone does by itself.
RATE = 0.12

Genomes = tuple[Any, ...]


class ProductSpace(Space[Genomes]):
    """Genomes are tuples, one entry a searched part, in the order of `parts`, whose parameters have different names.

    `kept` are points that every member has besides.
    """

    def __init__(self, parts: tuple[Space[Any], ...], kept: tuple[Point, ...] = ()) -> None:
        self.parts, self.kept = parts, kept

    def suggest(self, trial: Suggests) -> Genomes:
        """Draw a member through an Optuna trial."""
        return tuple(space.suggest(trial) for space in self.parts)

    def suggest_all(self, trial: Suggests) -> None:
        """Ask for every parameter of every part."""
        for space in self.parts:
            space.suggest_all(trial)

    def parameters(self, genome: Genomes) -> dict[str, Any]:
        """Those of all parts."""
        return {name: v for space, g in self._with(genome) for name, v in space.parameters(g).items()}

    def random(self, nfe: int, rng: Random) -> Genomes:
        """Any member at an NFE."""
        return tuple(space.random(nfe, rng) for space in self.parts)

    def mutate(self, genome: Genomes, rng: Random, rate: float | None = None) -> Genomes:
        """Change some of the parts, every selection of them alike; a part alone by its own rate."""
        if len(self.parts) == 1:
            return (self.parts[0].mutate(genome[0], rng, rate),)
        count = len(self.parts)
        # Its bits say which parts change, the last part by the lowest bit.
        chosen = 1 + rng.randrange(2**count - 1)
        return tuple(
            space.mutate(g, rng, rate or RATE) if chosen >> (count - 1 - i) & 1 else g
            for i, (space, g) in enumerate(self._with(genome))
        )

    def cross(self, a: Genomes, b: Genomes, rng: Random) -> Genomes:
        """Half the time one's first part with the other's rest, else all parts mixed decision by decision."""
        if len(self.parts) > 1 and rng.random() < 0.5:
            return a[0], *(space.member(g) for space, g in list(self._with(b))[1:])
        return tuple(space.cross(x, y, rng) for space, x, y in zip(self.parts, a, b, strict=True))

    def encode(self, genome: Genomes) -> Features:
        """(steps, F): the rows of the part with the most, each beside the single rows of the others."""
        rows = [space.encode(g) for space, g in self._with(genome)]
        most = max(len(r) for r in rows)
        return np.concatenate([np.broadcast_to(r, (most, r.shape[1])) for r in rows], axis=1)

    def point(self, genome: Genomes) -> Point:
        """The parts' points and the kept ones as one."""
        return joint(*self.kept, *(space.point(g) for space, g in self._with(genome)))

    def genome(self, point: Point) -> Genomes:
        """The parts that are searched; ScheduleError where a kept part is another or one is missing."""
        held = {part.kind: part for part in point.parts}
        for kept in self.kept:
            if kept.kind not in held or held[kept.kind].hash != kept.hash:
                raise ScheduleError(f"{point.name} does not have the {kept.kind} that is kept, {kept.name}")
        return tuple(space.genome(point) for space in self.parts)

    def nfe(self, genome: Genomes) -> int:
        """The sampler's."""
        return self.kept[0].nfe if self.kept else self.parts[0].nfe(genome[0])

    def member(self, genome: Genomes) -> Genomes:
        """The member that comes closest."""
        return tuple(space.member(g) for space, g in self._with(genome))

    def with_nfe(self, genome: Genomes, nfe: int, rng: Random) -> Genomes:
        """Every part as it is, the sampler at another NFE."""
        return tuple(space.with_nfe(g, nfe, rng) for space, g in self._with(genome))

    @property
    def flat(self) -> bool:
        """Whether all parts are."""
        return all(space.flat for space in self.parts)

    def _with(self, genome: Genomes) -> zip[tuple[Space[Any], Any]]:
        return zip(self.parts, genome, strict=True)
