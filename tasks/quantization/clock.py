"""Which timestep and labels the network is at: set before each forward pass, read by what depends on them."""

from __future__ import annotations

import torch
from torch import Tensor


class Clock:
    """The timesteps (B,) or () and labels (B,) or None of the pass under way."""

    def __init__(self) -> None:
        self.time = torch.zeros(())
        self.labels: Tensor | None = None
        self._nearest: dict[int, Tensor] = {}

    def set(self, time: Tensor | float | int, labels: Tensor | None = None) -> None:
        """Start a pass at these timesteps."""
        self.time = torch.as_tensor(time).detach().to(torch.float32)
        self.labels = labels
        self._nearest.clear()

    def nearest(self, times: Tensor) -> Tensor:
        """Index of the nearest of `times` (T,) for each of the pass's timesteps: () or (B,)."""
        if id(times) not in self._nearest:
            time = self.time.to(times.device)
            # One time for the whole batch stays one index, so that grids broadcast without a copy an image.
            self._nearest[id(times)] = (time[..., None] - times).abs().argmin(-1)
        return self._nearest[id(times)]
