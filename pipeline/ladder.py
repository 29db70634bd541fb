"""The ladder of ever dearer evaluations that a candidate climbs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True)
class Rung:
    """One kind of evaluation: a metric on how many images of which noise; `arguments` are the metric's own."""

    name: str
    metric: str
    images: int
    seed: int
    arguments: Mapping[str, str] = field(default_factory=dict)


class Ladder(NamedTuple):
    """The rungs of a search. All but the report share their noise, or their originals; the report's are its own.

    `main` is where candidates are compared for good; it may be the `screen` itself.
    """

    screen: Rung
    main: Rung
    finals: Rung
    report: Rung


def promoted(value: float, others: Sequence[float], keep: float) -> bool:
    """Whether a value is in the best share `keep` of all values seen at its rung, itself among them.

    The rule of asynchronous successive halving (1810.05934): nobody waits for a rung to fill.
    """
    rank = sum(1 for other in others if other < value)
    return rank < max(1, math.ceil(keep * len(others)))
