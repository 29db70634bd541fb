"""How long a task may take before its worker counts as slow, and as hung: by what the slowest of its kind took."""

from __future__ import annotations

from functools import lru_cache
from math import inf

from fewstep.errors import FewstepError
from fewstep.search_spaces.point import parse_point
from fewstep.tasks.work import Task

# The least, in seconds; as much for what nothing is known of, such as the first task or the calibration of a network.
LEAST, UNKNOWN = 90.0, 3600.0
MANY = 20.0
# A task that takes so many times as long as the slowest of its kind, and at least so long, is given to a second worker
# that has nothing to do.
SLOW, SLOW_LEAST = 3.0, 10.0


class Pace:
    """Seconds that finished tasks took, by metric and by their images x NFE; `limit` (seconds) overrules them."""

    def __init__(self, limit: float = 0.0) -> None:
        self._limit = limit
        self._slowest = 0.0
        self._rates: dict[str, float] = {}

    def note(self, task: Task, seconds: float) -> None:
        """A task took so long, its own failure included."""
        self._slowest = max(self._slowest, seconds)
        self._rates[task.metric] = max(self._rates.get(task.metric, 0.0), seconds / _work(task)[0])

    def limit(self, task: Task) -> float:
        """Seconds after which a task that runs alone counts as hung."""
        if self._limit:
            return self._limit
        work, told = _work(task)
        rate = self._rates.get(task.metric, max(self._rates.values(), default=0.0))
        known = told and task.metric in self._rates
        return max(LEAST if known else UNKNOWN, MANY * self._slowest, MANY * rate * work)

    def slow(self, task: Task) -> float:
        """Seconds after which a second worker may try it too; never where nothing is known of its kind."""
        work, told = _work(task)
        if not told or task.metric not in self._rates:
            return inf
        return max(SLOW_LEAST, SLOW * self._rates[task.metric] * work)


def _work(task: Task) -> tuple[int, bool]:
    """Images x NFE of a task, and whether they tell its cost: not where calls are counted or a network is made."""
    calls, told = _calls(task.point)
    return max(1, task.count) * calls, told


@lru_cache(maxsize=4096)
def _calls(point: str) -> tuple[int, bool]:
    try:
        parsed = parse_point(point)
    except (FewstepError, ValueError):
        return 1, True
    return max(1, parsed.nfe), parsed.nfe > 0 and not any(part.changes_network for part in parsed.parts)
