"""Temporal features as a table: with finitely many timesteps the whole block need not be computed.

Shapes: times (R,), labels (R,) or None, one output (R, D) for each of the block's projections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from fewstep.tasks.quantization.clock import Clock

T = TypeVar("T")


class TimeTable:
    """Outputs of the temporal information block in full precision, for given timesteps and labels."""

    def __init__(self, times: Tensor, labels: Tensor | None, outputs: Mapping[str, Tensor]) -> None:
        self.times, self.labels, self.outputs = times, labels, dict(outputs)
        keys = zip(times.tolist(), labels.tolist() if labels is not None else [None] * len(times), strict=True)
        self._rows = {key: row for row, key in enumerate(keys)}
        self._last: tuple[Tensor, list[int] | None] | None = None

    def lookup(self, name: str, clock: Clock, count: int) -> Tensor | None:
        """Output (count, D) of a projection, None where it has to be computed. Other layers' outputs are unread."""
        if self._last is None or self._last[0] is not clock.time:
            self._last = clock.time, self.rows(clock, count)
        rows = self._last[1]
        return None if rows is None else self.outputs[name][rows]

    def rows(self, clock: Clock, count: int) -> list[int] | None:
        """The rows of a pass's `count` images; None where one of their timesteps or labels is not in the table."""
        times = clock.time.flatten().tolist()
        labels: list[int | None] = [None]
        if self.labels is not None:
            if clock.labels is None:
                return None
            labels = clock.labels.flatten().tolist()
        keys = zip(_stretched(times, count), _stretched(labels, count), strict=True)
        rows = [self._rows.get(key) for key in keys]
        return None if any(row is None for row in rows) else rows  # type: ignore[return-value]


def _stretched(values: list[T], count: int) -> list[T]:
    return values * count if len(values) == 1 else values
