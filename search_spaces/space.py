"""What a search asks of a space, and what follows from its decisions, written once.

A space is walked in genomes: whatever form of its members is easy to change. `point` turns one into the point that is
evaluated, `genome` turns a point back. A space that is a list of decisions derives from `DecisionSpace` and says what a
set of values means; drawing, moving, crossing, encoding and neighbours come from the decisions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from fewstep.search_spaces.decisions import Decision, Range
from fewstep.search_spaces.point import Point, parse_point
from fewstep.search_spaces.trials import Fixed, Suggests

G = TypeVar("G")
Features = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float64]
# How far `neighbours` goes: the ratio of a number, and of one on a log scale.
NEAR, NEAR_LOG = 1.1, 2.0


class Space(ABC, Generic[G]):
    """Members as genomes G. Every variation keeps the number of denoiser calls."""

    @abstractmethod
    def suggest(self, trial: Suggests) -> G:
        """Draw a member through an Optuna trial."""

    @abstractmethod
    def parameters(self, genome: G) -> dict[str, Any]:
        """What `suggest` would have drawn for a member, by parameter."""

    @abstractmethod
    def random(self, nfe: int, rng: Random) -> G:
        """Any member at an NFE; a space that does not decide about calls takes no notice of it."""

    @abstractmethod
    def mutate(self, genome: G, rng: Random, rate: float | None = None) -> G:
        """Change each decision with a probability (None: the space's own), at least one."""

    @abstractmethod
    def cross(self, a: G, b: G, rng: Random) -> G:
        """Mix two members; the NFE is the first one's."""

    @abstractmethod
    def encode(self, genome: G) -> Features:
        """Features (steps, F), each about in [-1, 1]."""

    @abstractmethod
    def point(self, genome: G) -> Point:
        """The point of a member."""

    @abstractmethod
    def genome(self, point: Point) -> G:
        """The member that a point is; ScheduleError where it is none."""

    def stored(self, text: str) -> G:
        """The same from the JSON of a point that was a member when it was stored."""
        return self.genome(parse_point(text))

    def nfe(self, genome: G) -> int:
        """Denoiser calls of a member for one image."""
        return self.point(genome).nfe

    def member(self, genome: G) -> G:
        """The member that comes closest to a genome."""
        return genome

    def with_nfe(self, genome: G, nfe: int, rng: Random) -> G:
        """A member at another NFE that is as much like a given one as can be."""
        return genome if self.nfe(genome) == nfe else self.random(nfe, rng)

    def suggest_all(self, trial: Suggests) -> None:
        """Ask a trial for every parameter that a member can have."""
        self.suggest(trial)

    def from_parameters(self, parameters: Mapping[str, Any]) -> G:
        """Inverse of `parameters`, up to the clipping of its ranges."""
        return self.suggest(Fixed(parameters))

    def to_vector(self, genome: G) -> Vector:
        """The continuous decisions, in units of a move; empty where there are none."""
        return np.zeros(0)

    def at_vector(self, genome: G, vector: Vector) -> G:
        """The member with the continuous decisions of a vector, cut to what the space allows."""
        return genome

    def discrete(self, genome: G) -> object:
        """What is left of a member without its continuous decisions; comparable."""
        return genome

    def alike(self, a: G, b: G) -> bool:
        """Whether two members differ in continuous decisions at most."""
        return self.discrete(a) == self.discrete(b)

    @property
    def flat(self) -> bool:
        """Whether every member has the same parameters."""
        return False


class DecisionSpace(Space[G]):
    """A space that is a list of independent decisions, all of which every member has."""

    # Probability that a decision mutates.
    rate = 0.15

    @property
    @abstractmethod
    def decisions(self) -> Mapping[str, Decision]:
        """What is searched, by parameter."""

    @abstractmethod
    def config(self, values: Mapping[str, Any]) -> G:
        """The member that the values of all decisions mean."""

    @abstractmethod
    def values(self, genome: G) -> dict[str, Any]:
        """Values of all decisions that come closest to a member; `config` brings what is in the space back."""

    def suggest(self, trial: Suggests) -> G:
        """A member, every parameter drawn through a trial."""
        return self.config({name: decision.suggest(trial, name) for name, decision in self.decisions.items()})

    def parameters(self, genome: G) -> dict[str, Any]:
        """What `suggest` has to draw for a member."""
        values = self.values(genome)
        return {name: d.parameter(d.nearest(values[name])) for name, d in self.decisions.items()}

    def random(self, nfe: int, rng: Random) -> G:
        """Any member, every decision drawn on its own."""
        return self.config({name: decision.draw(rng) for name, decision in self.decisions.items()})

    def mutate(self, genome: G, rng: Random, rate: float | None = None) -> G:
        """Change each decision with probability `rate`, at least one."""
        values, names = self.values(genome), list(self.decisions)
        same = self.point(genome).hash
        for _ in range(50):
            chosen = [name for name in names if rng.random() < (rate or self.rate)] or [rng.choice(names)]
            child = self.config(values | {name: self.decisions[name].nudge(values[name], rng) for name in chosen})
            if self.point(child).hash != same:
                return child
        return self.random(0, rng)

    def cross(self, a: G, b: G, rng: Random) -> G:
        """Every decision from one of the two, at random."""
        first, second = self.values(a), self.values(b)
        return self.config({name: rng.choice((first, second))[name] for name in self.decisions})

    def encode(self, genome: G) -> Features:
        """(1, F): the features of all decisions."""
        values = self.values(genome)
        row = [v for name, decision in self.decisions.items() for v in decision.encode(values[name])]
        return np.asarray([row], np.float32)

    def member(self, genome: G) -> G:
        """The member that comes closest."""
        return self.config(self.values(genome))

    @property
    def flat(self) -> bool:
        """Always."""
        return True

    def neighbours(self, genome: G, names: Sequence[str]) -> list[G]:
        """Members that differ from one in one of the named decisions, each once and not by much.

        Decisions that are not searched stay.
        """
        values, found = self.values(genome), {self.point(genome).hash: genome}
        for name in (n for n in names if n in self.decisions):
            for value in self.beside(name, values[name]):
                other = self.config(values | {name: value})
                found.setdefault(self.point(other).hash, other)
        return list(found.values())[1:]

    def beside(self, name: str, value: Any, reach: int = 1) -> list[Any]:
        """Values near one: the options next to a number, all other names, a ratio up and down."""
        decision = self.decisions[name]
        if isinstance(decision, Range):
            ratio = NEAR_LOG if decision.log else NEAR
            return [decision.nearest(value / ratio), decision.nearest(value * ratio)]
        if not all(isinstance(o, int | float) and not isinstance(o, bool) for o in decision.options):
            return [o for o in decision.options if o != value]
        row = sorted(decision.options)
        place = row.index(value)
        return [o for o in row[max(0, place - reach) : place + reach + 1] if o != value]
