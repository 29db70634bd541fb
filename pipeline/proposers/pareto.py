"""Several objectives at once: who dominates whom, fronts, and how alone a member of a front stands.

Source: NSGA-II (Deb et al., 2002). Shapes: values (N, M), smaller is better in every one of M columns.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

# So many, best first, may have children.
PARENTS = 20

Values = Sequence[Sequence[float]] | npt.NDArray[np.float64]


def dominance(values: Values) -> npt.NDArray[np.bool_]:
    """(N, N): whether i dominates j, that is, is nowhere worse and somewhere better."""
    v = np.asarray(values, np.float64)
    no_worse = (v[:, None] <= v[None]).all(-1)
    return np.asarray(no_worse & (v[:, None] < v[None]).any(-1))


def ranks(values: Values) -> npt.NDArray[np.int64]:
    """(N,): 0 for what nothing dominates, 1 for what only those dominate, and so on."""
    if not len(values):
        return np.zeros(0, np.int64)
    v = np.asarray(values, np.float64)
    found, left, rank = np.zeros(len(v), np.int64), np.arange(len(v)), 0
    while len(left):
        best = undominated(v[left])
        found[left[best]] = rank
        left = left[~best]
        rank += 1
    return found


def undominated(values: Values) -> npt.NDArray[np.bool_]:
    """(N,): whether nothing dominates a row; equal rows do not dominate each other. Takes N times their number."""
    v = np.asarray(values, np.float64)
    left, place = np.arange(len(v)), 0
    # Sums rise along dominance: what is looked at early drops most of the others.
    left = left[np.argsort(v.sum(-1), kind="stable")]
    while place < len(left):
        rows, one = v[left], v[left[place]]
        kept = (rows < one).any(-1) | (rows == one).all(-1)
        left, place = left[kept], int(kept[: place + 1].sum())
    found = np.zeros(len(v), np.bool_)
    found[left] = True
    return found


def crowding(values: Values) -> npt.NDArray[np.float64]:
    """(N,): how far apart the two neighbours are, summed over the objectives; infinite at the ends.

    Measured on logarithms where an objective is positive throughout, as distances, sizes and costs are.
    """
    v = np.asarray(values, np.float64)
    alone = np.zeros(len(v))
    for column in v.T:
        scaled = np.log(column) if (column > 0).all() else column
        order = np.argsort(scaled, kind="stable")
        span = scaled[order[-1]] - scaled[order[0]]
        alone[order[[0, -1]]] = np.inf
        if span > 0:
            alone[order[1:-1]] += (scaled[order[2:]] - scaled[order[:-2]]) / span
    return alone


def ordered(values: Values) -> list[int]:
    """Indices from best to worst: by front, within a front the loneliest first.

    Of equally lonely ones, such as the front's ends, the latest comes first: it has just moved the front.
    """
    rank = ranks(values)
    alone = np.zeros(len(rank))
    for front in range(int(rank.max(initial=-1)) + 1):
        members = np.flatnonzero(rank == front)
        alone[members] = crowding([values[int(i)] for i in members])
    return sorted(range(len(rank)), key=lambda i: (int(rank[i]), -alone[i], -i))


def front(values: Values, most: int = 0) -> list[int]:
    """Indices, rising, of what nothing dominates; of equals the first. At most `most` of them, the loneliest (0: all).

    Members are dropped one at a time, so that what is left stays spread out.
    """
    first = {tuple(row): i for i, row in reversed(list(enumerate(values)))}
    distinct = sorted(first.values())
    best = undominated([values[i] for i in distinct]) if distinct else ()
    members = [i for i, kept in zip(distinct, best, strict=True) if kept]
    while most and len(members) > most:
        alone = crowding([values[i] for i in members])
        del members[int(np.argmin(alone))]
    return members


class Fronts:
    """What `ordered` says of numbered vectors, kept as they come in, in any order.

    A vector finds its front by bisection, and pushes what it dominates there one front on, and so forth (Li et al.,
    "Efficient non-domination level update", 2017): what that takes hardly grows with all that is known.
    """

    def __init__(self) -> None:
        self._fronts: list[_Front] = []
        self._ranks: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._ranks)

    def add(self, number: int, vector: Sequence[float]) -> None:
        """A vector that was not there."""
        values = np.asarray([vector], np.float64)
        rank = bisect_left(self._fronts, True, key=lambda front: not front.dominates(values[0]))
        numbers = [number]
        while numbers:
            if rank == len(self._fronts):
                self._fronts.append(_Front(values.shape[1]))
            self._ranks.update(dict.fromkeys(numbers, rank))
            numbers, values = self._fronts[rank].take(numbers, values)
            rank += 1

    def place(self, number: int) -> int:
        """How many come before it."""
        rank = self._ranks[number]
        return sum(len(front.numbers) for front in self._fronts[:rank]) + self._fronts[rank].ordered().index(number)

    def __iter__(self) -> Iterator[int]:
        """Numbers from best to worst."""
        for front in self._fronts:
            yield from front.ordered()


class _Front:
    """Vectors none of which dominates another, by rising number."""

    def __init__(self, width: int) -> None:
        self.numbers: list[int] = []
        self._values = np.zeros((0, width))

    def dominates(self, vector: npt.NDArray[np.float64]) -> bool:
        """Whether one of them dominates it."""
        v = self._values
        return bool(((v <= vector).all(-1) & (v < vector).any(-1)).any())

    def take(
        self, numbers: Sequence[int], values: npt.NDArray[np.float64]
    ) -> tuple[list[int], npt.NDArray[np.float64]]:
        """Take others in; what these dominate goes, and is given back."""
        beaten = np.zeros(len(self.numbers), np.bool_)
        for vector in values:
            beaten |= (vector <= self._values).all(-1) & (vector < self._values).any(-1)
        gone = [self.numbers[i] for i in np.flatnonzero(beaten)], self._values[beaten]
        self.numbers = [self.numbers[i] for i in np.flatnonzero(~beaten)]
        self._values = self._values[~beaten]
        for number, vector in zip(numbers, values, strict=True):
            insort(self.numbers, number)
            self._values = np.insert(self._values, bisect_left(self.numbers, number), vector, axis=0)
        return gone

    def ordered(self) -> list[int]:
        """Numbers, the loneliest first, of equals the latest."""
        if not self.numbers:
            return []
        return [-n for _, n in sorted((-a, -n) for a, n in zip(crowding(self._values), self.numbers, strict=True))]
