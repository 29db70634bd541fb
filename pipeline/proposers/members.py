"""What S^3 knows of the members of one NFE, kept in order as values come in: nothing is sorted or counted anew."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from fewstep.pipeline.proposers.base import KNOWN
from fewstep.pipeline.proposers.moves import LocalMoves
from fewstep.search_spaces.space import Space

G = TypeVar("G")
# Members with a value at a rung before its values decide.
ENOUGH = 12

# The highest rung reached first, then its value, then who came first; members without any value last.
Standing = tuple[int, float, int]


@dataclass(slots=True)
class Member(Generic[G]):
    """A proposed member, and its values by number of the rung."""

    number: int
    genome: G
    values: dict[int, float] = field(default_factory=dict)
    failed: bool = False
    # Proposed by the search, not handed to it.
    own: bool = True

    @property
    def standing(self) -> Standing:
        """Its sort key."""
        if not self.values or self.failed:
            return 1, 0.0, self.number
        rung = max(self.values)
        return -rung, self.values[rung], self.number


class Members(Generic[G]):
    """Members of one NFE: `seen` are their genomes, `drawn` how many of them the search proposed itself."""

    def __init__(self, space: Space[G], rungs: int) -> None:
        self.seen: set[G] = set()
        self.drawn = 0
        self._members: dict[int, Member[G]] = {}
        self._ranked: list[Standing] = []
        self._counts = [0] * rungs
        self.moves = [LocalMoves(space, partial(self._valued, rung)) for rung in range(rungs)]

    def restore(self, members: Iterable[tuple[Member[G], str]]) -> None:
        """Enter members that were there before, with their values and origins; for new ones only."""
        for member, origin in members:
            self._members[member.number] = member
            self.seen.add(member.genome)
            self.drawn += _is_drawn(origin)
            for rung, value in member.values.items():
                self._counts[rung] += 1
                self.moves[rung].add(member.number, member.genome, value)
        self._ranked = sorted(member.standing for member in self._members.values())

    def _valued(self, rung: int) -> Iterable[tuple[int, G, float]]:
        return ((m.number, m.genome, m.values[rung]) for m in self._members.values() if rung in m.values)

    def add(self, member: Member[G], origin: str) -> None:
        """Enter a new member."""
        self._members[member.number] = member
        self.seen.add(member.genome)
        self.drawn += _is_drawn(origin)
        insort(self._ranked, member.standing)

    def report(self, member: Member[G], rung: int, value: float) -> None:
        """A member has a value at a rung, its first there."""
        if rung in member.values:
            return
        with _Moved(self._ranked, member):
            member.values[rung] = value
        self._counts[rung] += 1
        self.moves[rung].add(member.number, member.genome, value)

    def fail(self, member: Member[G]) -> None:
        """A member's values count no more for its standing."""
        with _Moved(self._ranked, member):
            member.failed = True

    def best(self, count: int) -> list[G]:
        """Genomes of the first so many by standing."""
        return [self._members[number].genome for _, _, number in self._ranked[:count]]

    @property
    def fidelity(self) -> int:
        """The highest rung whose values are known for enough members decides."""
        return max((rung for rung, count in enumerate(self._counts) if count >= ENOUGH), default=0)


def _is_drawn(origin: str) -> bool:
    return f"{origin.partition(':')[0]}:" not in KNOWN


class _Moved:
    """A member's place among the ranked, before and after what changes its standing."""

    def __init__(self, ranked: list[Standing], member: Member[G]) -> None:
        self._ranked, self._member = ranked, member

    def __enter__(self) -> None:
        del self._ranked[bisect_left(self._ranked, self._member.standing)]

    def __exit__(self, *exception: object) -> None:
        insort(self._ranked, self._member.standing)
