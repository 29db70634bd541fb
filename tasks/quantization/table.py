"""Temporal features as a table: with finitely many timesteps the whole block need not be computed.

Shapes: times (R,), labels (R,) or None, one output (R, D) for each of the block's projections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.tasks.quantization.clock import Clock


@dataclass(frozen=True)
class Found:
    """Rows (count,) of the table; `known` (count,) says which of them are right, None that all are."""

    rows: Tensor
    known: Tensor | None


class TimeTable:
    """Outputs of the temporal information block in full precision, for given timesteps and labels."""

    def __init__(self, times: Tensor, labels: Tensor | None, outputs: Mapping[str, Tensor]) -> None:
        self.times, self.labels, self.outputs = times, labels, dict(outputs)
        keys = zip(
            times.to(torch.float32).tolist(),
            labels.tolist() if labels is not None else [None] * len(times),
            strict=True,
        )
        self._rows = {key: row for row, key in enumerate(keys)}
        self._last: tuple[Tensor, int, Found | None] | None = None

    def lookup(self, name: str, clock: Clock, count: int) -> tuple[Tensor, Tensor | None] | None:
        """Output (count, D) of a projection and the rows (count,) that it is right for, None for all of them.

        None where not a single row is known. What an image is given does not depend on the others of its batch.
        """
        found = self.find(clock, count)
        return None if found is None else (self.outputs[name][found.rows], found.known)

    def find(self, clock: Clock, count: int) -> Found | None:
        """Where the images of a pass stand in the table; None where not a single one is in it."""
        # The clock's time is a new tensor for every pass: one look-up serves all layers.
        if self._last is None or self._last[0] is not clock.time or self._last[1] != count:
            self._last = clock.time, count, self._find(clock, count)
        return self._last[2]

    def _find(self, clock: Clock, count: int) -> Found | None:
        # A table without labels knows no image that has one, and the other way round.
        times = _stretched(clock.time.flatten().tolist(), count)
        labels = _stretched([None] if clock.labels is None else clock.labels.flatten().tolist(), count)
        if times is None or labels is None:
            return None
        rows = torch.tensor([self._rows.get(key, -1) for key in zip(times, labels, strict=True)])
        known, device = rows >= 0, self.times.device
        if not bool(known.any()):
            return None
        return Found(rows.clamp(min=0).to(device), None if bool(known.all()) else known.to(device))


def _stretched(values: list[Any], count: int) -> list[Any] | None:
    """Values of the images for `count` rows, every image's rows next to each other; None where they do not fit."""
    if not values or count % len(values):
        return None
    return [value for value in values for _ in range(count // len(values))]
