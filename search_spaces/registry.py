"""What another package offers as a space, see `kinds.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fewstep.search_spaces.point import Point
from fewstep.search_spaces.space import Space


@dataclass(frozen=True)
class SpaceKind:
    """All that belongs to a kind of points that change the network: searched for a schedule, or jointly with one.

    `point` is the class of its points, whose `kind` is the name of the entry point. `space` makes the space, given the
    calls of the schedule that it is searched with. `renderer` is made with a worker and changes its network, see
    `tasks/rendering.py`. `objectives` are figures that the renderer tells and that are minimised besides the quality.
    `seeds` are points to begin with, by name: what the rest is compared with.
    """

    point: type[Point]
    space: Callable[[int], Space[Any]]
    renderer: Callable[[Any], Any]
    objectives: tuple[str, ...] = ()
    seeds: Callable[[Space[Any]], dict[str, Point]] = lambda space: {}
