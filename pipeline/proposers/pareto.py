"""Several objectives at once: who dominates whom, fronts, and how alone a member of a front stands.

Source: NSGA-II (Deb et al., 2002). Shapes: values (N, M), smaller is better in every one of M columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Values = Sequence[Sequence[float]]


def dominance(values: Values) -> npt.NDArray[np.bool_]:
    """(N, N): whether i dominates j, that is, is nowhere worse and somewhere better."""
    v = np.asarray(values, np.float64)
    no_worse = (v[:, None] <= v[None]).all(-1)
    return np.asarray(no_worse & (v[:, None] < v[None]).any(-1))


def ranks(values: Values) -> npt.NDArray[np.int64]:
    """(N,): 0 for what nothing dominates, 1 for what only those dominate, and so on."""
    if not len(values):
        return np.zeros(0, np.int64)
    over = dominance(values)
    found, left = np.full(len(over), -1, np.int64), over.sum(0)
    rank = 0
    while (found < 0).any():
        front = (found < 0) & (left == 0)
        found[front] = rank
        left = left - over[front].sum(0)
        rank += 1
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
    rank = ranks([values[i] for i in distinct])
    members = [i for i, r in zip(distinct, rank, strict=True) if r == 0]
    while most and len(members) > most:
        alone = crowding([values[i] for i in members])
        del members[int(np.argmin(alone))]
    return members
