"""What a running grid has done and what is left, told from its records."""

from __future__ import annotations

import time

from fewstep.pipeline.progress import duration
from fewstep.storage.records import EvaluationRecord

EVERY = 10.0


class GridProgress:
    """Counts of records, a line every EVERY seconds; `todo` evaluations and `calls` are what was left at the start."""

    def __init__(self, todo: int, calls: int) -> None:
        self.todo, self.calls = todo, calls
        self.done = self.failed = self.spent = 0
        self._begun = self._told = time.monotonic()

    def on_record(self, record: EvaluationRecord) -> str:
        """Take in a record; the line to print, empty before its time."""
        self.done += 1
        self.failed += record.status != "complete"
        self.spent += record.denoiser_calls
        now = time.monotonic()
        if now - self._told < EVERY:
            return ""
        self._told = now
        return self.line(now - self._begun)

    def line(self, seconds: float) -> str:
        """All of it after so many seconds."""
        failed = f", {self.failed} failed" if self.failed else ""
        left = max(0, self.calls - self.spent) or max(0, self.todo - self.done)
        pace = (self.spent if self.calls > self.spent else self.done) / max(seconds, 1e-9)
        ends = f"about {duration(left / pace)} left" if pace and left else f"{duration(seconds)} so far"
        calls = f"{self.spent:,} of {self.calls:,} calls"
        return f"{self.done:,} of {self.todo:,} evaluations{failed}; {calls}; {ends}"
