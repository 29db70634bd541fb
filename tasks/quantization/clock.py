"""Which timestep and labels the network is at: set before each forward pass, read by what depends on them."""

from __future__ import annotations

import torch
from torch import Tensor

# The index of the time before, and the share of the way to the next; None: all are at the time of their index.
Place = tuple[Tensor, Tensor | None]


class Clock:
    """The timesteps (B,) or () and labels (B,) or None of the pass under way."""

    def __init__(self) -> None:
        self.time = torch.zeros(())
        self.labels: Tensor | None = None
        self._places: dict[int, Place] = {}

    def set(self, time: Tensor | float | int, labels: Tensor | None = None) -> None:
        """Start a pass at these timesteps."""
        self.time = torch.as_tensor(time).detach().to(torch.float32)
        self.labels = labels
        self._places.clear()

    def place(self, times: Tensor) -> Place:
        """Where each of the pass's timesteps, () or (B,), lies among rising `times` (T,), T at least 2."""
        if id(times) not in self._places:
            # One time for the whole batch stays one index, so that grids broadcast without a copy an image.
            time = self.time.to(times.device)
            after = torch.searchsorted(times, time.contiguous()).clamp(1, len(times) - 1)
            first, second = times[after - 1], times[after]
            share = ((time - first) / (second - first)).clamp(0, 1)
            known = bool(((share == 0) | (share == 1)).all())
            self._places[id(times)] = (after - 1 + share.long(), None) if known else (after - 1, share)
        return self._places[id(times)]
