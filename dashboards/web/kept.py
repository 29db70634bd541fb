"""What was worked out of a study's files, until the files change."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from fewstep.dashboards.web.places import Entry

V = TypeVar("V")


class Kept(Generic[V]):
    """Values of `work` by study, worked out again when something of it was written; safe for many threads."""

    def __init__(self, work: Callable[[Entry], V]) -> None:
        self._work = work
        self._known: dict[str, tuple[str, V]] = {}
        self._lock = threading.Lock()

    def of(self, entry: Entry) -> V:
        """The study's; what `work` raises."""
        stamp = entry.stamp()
        with self._lock:
            known = self._known.get(entry.slug)
        if known is None or known[0] != stamp:
            known = stamp, self._work(entry)
            with self._lock:
                self._known[entry.slug] = known
        return known[1]
