"""What every proposer comes to in the end: a random member of the space that is new."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from random import Random
from typing import Any

from fewstep.errors import ConfigurationError, ScheduleError
from fewstep.pipeline.proposers.base import Check
from fewstep.pipeline.proposers.options import ATTEMPTS
from fewstep.search_spaces.point import Point
from fewstep.search_spaces.space import Space

# What says that a point cannot be, of itself or of this model.
IMPOSSIBLE = (ScheduleError, ConfigurationError)


def new_random_member(space: Space[Any], nfe: int, seed: str, check: Check, seen: AbstractSet[str]) -> Point | None:
    """A random point at `nfe` that passes `check` and is not in `seen`; None after ATTEMPTS tries."""
    rng = Random(seed)
    for _ in range(ATTEMPTS):
        try:
            point = space.point(space.random(nfe, rng))
            check(point)
        except IMPOSSIBLE:
            continue
        if point.hash not in seen:
            return point
    return None
