"""The bits of layers that make a sum of changes least, and how much is measured for it."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from fewstep.search_spaces.quantization import MOST_BITS

# What rounding a layer changes is measured on so many rows of so many trajectories.
ROWS, IMAGES = 16, 8
# No layer gets fewer bits than so many below the mean; a bit more makes a change smaller by FALL.
BELOW, FALL = 1, 0.25


def least_change(changes: Mapping[str, float], sizes: Mapping[str, int], mean: int) -> dict[str, int]:
    """Bits by layer whose changes have the least sum, with at most `mean` bits a weight on average.

    `changes` are those at `mean` bits or in proportion to them, `sizes` numbers of weights.
    """
    bits = dict.fromkeys(changes, max(2, mean - BELOW))
    left = sum(sizes[name] * (mean - count) for name, count in bits.items())

    def gain(name: str) -> float:
        """What one more bit makes smaller, for each of the bits that it takes."""
        return changes[name] * FALL ** (bits[name] - mean) * (1 - FALL) / sizes[name]

    # By name where gains are equal.
    waiting = [(-gain(name), name) for name in bits]
    heapq.heapify(waiting)
    while waiting:
        _, name = heapq.heappop(waiting)
        if bits[name] < MOST_BITS and sizes[name] <= left:
            left -= sizes[name]
            bits[name] += 1
            heapq.heappush(waiting, (-gain(name), name))
    # A layer that is large beside what is left may have been passed over.
    even = dict.fromkeys(changes, mean)
    return min(bits, even, key=lambda found: sum(changes[n] * FALL ** (b - mean) for n, b in found.items()))
