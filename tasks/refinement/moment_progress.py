"""Where a descent on moments stands between two measurements of derivatives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Progress:
    """A sweep that reaches `reach` calls from the end, of which `near` come next.

    `before` and `before_calls` are the distance and the denoiser calls that the sweep began with, `dampings` the last
    ones by reach, `tried` how many steps were tried since the start.
    """

    reach: int
    before: float
    before_calls: int
    near: int = 1
    tried: int = 0
    dampings: dict[int, float] = field(default_factory=dict)

    def next_sweep(self, reach: int, value: float, calls: int) -> Progress:
        """The beginning of the sweep after this one."""
        return Progress(reach, value, calls, tried=self.tried, dampings=self.dampings)

    def tensors(self) -> dict[str, Tensor]:
        """All of it, to be kept; `of` reads it back."""
        return {
            "counts": torch.tensor([self.reach, self.before_calls, self.near, self.tried]),
            "before": torch.tensor(self.before, dtype=torch.float64),
            "damped": torch.tensor(list(self.dampings), dtype=torch.int64),
            "dampings": torch.tensor(list(self.dampings.values()), dtype=torch.float64),
        }

    @classmethod
    def of(cls, kept: Mapping[str, Tensor]) -> Progress:
        """What `tensors` gave."""
        reach, calls, near, tried = (int(n) for n in kept["counts"])
        dampings = dict(zip(kept["damped"].tolist(), kept["dampings"].tolist(), strict=True))
        return cls(reach, float(kept["before"]), calls, near, tried, dampings)
