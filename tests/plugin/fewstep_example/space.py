"""A space: at which calls a UNet's bottleneck is not computed but taken from the call before (as DeepCache does)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from fewstep_example.caching import CachingRenderer

from fewstep.errors import ScheduleError
from fewstep.search_spaces.decisions import Choice, Decision
from fewstep.search_spaces.point import Point
from fewstep.search_spaces.registry import SpaceKind
from fewstep.search_spaces.space import DecisionSpace


class CachingPoint(Point):
    """The calls, counted from 0, that reuse the bottleneck."""

    kind: Literal["caching"] = "caching"
    changes_network: ClassVar[bool] = True
    reused: tuple[int, ...] = ()


class CachingSpace(DecisionSpace[CachingPoint]):
    """Whether each call but the first reuses it; a point is its own genome."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    @property
    def decisions(self) -> Mapping[str, Decision]:
        """One a call."""
        return {f"reuse.{i}": Choice((False, True)) for i in range(1, self.calls)}

    def config(self, values: Mapping[str, Any]) -> CachingPoint:
        """The point of all decisions."""
        return CachingPoint(reused=tuple(i for i in range(1, self.calls) if values[f"reuse.{i}"]))

    def values(self, genome: CachingPoint) -> dict[str, Any]:
        """The decisions of a point."""
        return {f"reuse.{i}": i in genome.reused for i in range(1, self.calls)}

    def point(self, genome: CachingPoint) -> Point:
        """Itself."""
        return genome

    def genome(self, point: Point) -> CachingPoint:
        """The part of a point that is one."""
        found = point.part(CachingPoint)
        if found is None:
            raise ScheduleError(f"{point.name} says nothing of caching")
        return found


def seeds(space: CachingSpace) -> dict[str, Point]:
    """What the rest is compared with: nothing reused, and every second call."""
    return {"all": CachingPoint(), "half": CachingPoint(reused=tuple(range(1, space.calls, 2)))}


CACHING = SpaceKind(CachingPoint, CachingSpace, CachingRenderer, objectives=("bottlenecks",), seeds=seeds)
