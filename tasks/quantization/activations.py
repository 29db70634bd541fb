"""Quantisers of activations: a grid for the whole tensor, for each timestep, for each half of a concatenation.

Shapes: x (B, C, ...) with channels at `axis`; T timesteps, S segments of the channels; scale and zero (T, S).
A quantiser is used in three modes: `off`, `observe` (collect what its range needs), `on`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fewstep.errors import EvaluationError
from fewstep.search_spaces.quantization import QuantizationConfig
from fewstep.tasks.quantization.affine import POWER, Grid
from fewstep.tasks.quantization.clock import Clock

Mode = Literal["off", "observe", "on"]
# Values kept of one batch, where a range needs more than extremes.
KEPT = 4096
# Numbers that a search of a range holds at once.
AT_ONCE = 2**22
# Grids that are kept of more timesteps.
KNOTS = 33


class _Range:
    """What is known of one segment at one timestep."""

    def __init__(self, config: QuantizationConfig) -> None:
        self.config = config
        self.low: Tensor | None = None
        self.high: Tensor | None = None
        self.kept: list[Tensor] = []

    def see(self, x: Tensor) -> None:
        low, high = x.amin(), x.amax()
        if self.low is None or self.high is None:
            self.low, self.high = low, high
        elif self.config.activation_range == "ema":
            self.low, self.high = (
                self.low.lerp(low, 1 - self.config.momentum),
                self.high.lerp(high, 1 - self.config.momentum),
            )
        else:
            self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        if self.config.activation_range in ("percentile", "mse"):
            flat = x.flatten()
            self.kept.append(flat[:: max(1, flat.numel() // KEPT)].clone())

    @property
    def finite(self) -> bool:
        """Whether all that was seen is."""
        return all(end is not None and bool(torch.isfinite(end)) for end in (self.low, self.high))

    def ends(self, bits: int) -> tuple[Tensor, Tensor]:
        assert self.low is not None
        assert self.high is not None
        if not self.kept:
            return self.low, self.high
        values = torch.cat(self.kept)
        if self.config.activation_range == "percentile":
            share = self.config.percentile / 100
            tails = torch.tensor([1 - share, share], device=values.device)
            low, high = torch.quantile(values[:: max(1, values.numel() // 1_000_000)], tails)
            return low, high
        errors = []
        every, size = torch.linspace(0.2, 1.0, 81, device=values.device), max(1, AT_ONCE // values.numel())
        for shares in torch.split(every, size):
            grids = Grid.spanning(self.low * shares[:, None], self.high * shares[:, None], bits)
            errors.append((grids.values(grids.codes(values)) - values).abs().pow(POWER).sum(1))
        best = 0.2 + 0.01 * int(torch.cat(errors).argmin())
        return self.low * best, self.high * best


class ActivationQuantizer(nn.Module):
    """Fake-quantises activations. `keyed` gives each timestep its own grid (FSC, section 4.3)."""

    scale: Tensor
    zero: Tensor
    times: Tensor

    def __init__(
        self,
        config: QuantizationConfig,
        bits: int,
        clock: Clock,
        axis: int = 1,
        keyed: bool = False,
        segments: Sequence[int] = (),
        token: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.bits, self.clock, self.axis, self.keyed = config, bits, clock, axis, keyed
        self.segments, self.token = tuple(segments), token
        self.mode: Mode = "off"
        self._ranges: dict[float, list[_Range]] = {}
        self._single: tuple[float, float, float, float] | None = None
        self._spread: Grid | None = None
        for name in ("scale", "zero", "times"):
            self.register_buffer(name, torch.zeros(0))

    # -- calibration ----------------------------------------------------------------------------------

    def _observe(self, x: Tensor) -> None:
        parts = torch.split(x, list(self.segments), self.axis) if self.segments else (x,)
        if not self.keyed:
            self._see(0.0, parts, None)
            return
        times = rows_of_images(self.clock.time.flatten(), len(x))
        for time in torch.unique(times).tolist():
            self._see(time, parts, None if times.numel() == 1 else (times == time).nonzero()[:, 0])

    def _see(self, time: float, parts: Sequence[Tensor], rows: Tensor | None) -> None:
        ranges = self._ranges.setdefault(time, [_Range(self.config) for _ in parts])
        for entry, part in zip(ranges, parts, strict=True):
            entry.see(part if rows is None else part[rows.to(part.device)])

    def close(self) -> None:
        """Turn what was observed into grids; EvaluationError where nothing was observed or it is not finite."""
        if self.token:
            return
        if not self._ranges:
            raise EvaluationError("an activation quantiser saw no data: its layer is not part of the forward pass")
        times = sorted(self._ranges)
        if not all(r.finite for row in self._ranges.values() for r in row):
            raise EvaluationError("activations are not finite: the calibration data explode")
        grids = [[Grid.spanning(*r.ends(self.bits), self.bits) for r in self._ranges[t]] for t in times]
        scale = torch.stack([torch.stack([g.scale for g in row]) for row in grids])
        self.set_grids(scale, torch.stack([torch.stack([g.zero for g in row]) for row in grids]), torch.tensor(times))
        self._ranges.clear()

    def set_grids(self, scale: Tensor, zero: Tensor, times: Tensor) -> None:
        """Scale and zero (T, S) for rising times (T,)."""
        device = scale.device
        self.scale, self.zero, self.times = scale, zero.to(device), times.to(device, torch.float32)
        self._single = self._spread = None
        if scale.numel() == 1:
            step, middle = float(scale), float(zero)
            self._single = 1 / step, -middle, 2**self.bits - 1 - middle, step

    def thin(self) -> None:
        """Keep KNOTS grids of many timesteps, whose interpolation covers what was seen at every one of them.

        An end is the outermost of all timesteps up to the next kept ones, so that nothing is cut off; where ranges
        change little from one kept timestep to the next, it is little wider than need be.
        """
        count = len(self.times)
        if count <= KNOTS:
            return
        kept = torch.linspace(0, count - 1, KNOTS).round().long().to(self.times.device)
        low, high = -self.zero * self.scale, (2**self.bits - 1 - self.zero) * self.scale
        spans = [slice(int(kept[max(0, k - 1)]), int(kept[min(KNOTS - 1, k + 1)]) + 1) for k in range(KNOTS)]
        low, high = (torch.stack([low[s].amin(0) for s in spans]), torch.stack([high[s].amax(0) for s in spans]))
        grid = Grid.spanning(low, high, self.bits)
        self.set_grids(grid.scale, grid.zero, self.times[kept])

    # -- use ------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """x as it is after quantisation, same shape."""
        if self.mode == "observe":
            self._observe(x)
            return x
        if self.mode == "off":
            return x
        if self.token:
            return Grid.spanning(x.amin(-1, keepdim=True), x.amax(-1, keepdim=True), self.bits).nearest(x)
        if self._single is not None and not x.requires_grad:
            # What `Grid.nearest` does, with numbers in the place of tensors.
            inverse, low, high, scale = self._single
            return x.mul(inverse).round_().clamp_(low, high).mul_(scale)
        return self._grid(x).nearest(x)

    def _grid(self, x: Tensor) -> Grid:
        """The grid of this pass, broadcast against x."""
        grid = self._wide()
        shape = [1] * x.ndim
        shape[self.axis] = grid.scale.shape[-1]
        if len(self.times) == 1:
            return Grid(grid.scale.view(shape), grid.zero.view(shape), self.bits)
        index, share = self.clock.place(self.times)
        if share is None:
            index = rows_of_images(index, len(x))
            found = Grid(grid.scale[index], grid.zero[index], self.bits)
        else:
            index, share = rows_of_images(index, len(x)), rows_of_images(share, len(x))
            found = between(grid, index, share)
        if index.ndim:
            shape[0] = len(index)
        return Grid(found.scale.view(shape), found.zero.view(shape), self.bits)

    def _wide(self) -> Grid:
        """All grids, (T, 1), or (T, C) where the channels are split: one for each channel."""
        if self._spread is None or self._spread.scale.device != self.scale.device:
            scale, zero = self.scale, self.zero
            if self.segments:
                sizes = torch.tensor(self.segments, device=scale.device)
                scale, zero = scale.repeat_interleave(sizes, -1), zero.repeat_interleave(sizes, -1)
            self._spread = Grid(scale, zero, self.bits)
        return self._spread


def between(grid: Grid, index: Tensor, share: Tensor) -> Grid:
    """Grids whose ends lie on the way from those of times `index` to the next: scale and zero (..., S).

    Each end is between the two known ones, but for half a step, by which zero comes to be a whole code.
    """
    share = share[..., None]
    scale = torch.lerp(grid.scale[index], grid.scale[index + 1], share)
    low = torch.lerp(grid.scale[index] * grid.zero[index], grid.scale[index + 1] * grid.zero[index + 1], share)
    return Grid(scale, (low / scale).round().clamp(0, grid.largest), grid.bits)


def rows_of_images(values: Tensor, rows: int) -> Tensor:
    """Values (B,) of the pass's images for the rows of a tensor that was flattened from (B, N, ...) to (B N, ...).

    One value for all images, () or (1,), is left as it is.
    """
    if not values.ndim or len(values) in (1, rows):
        return values
    if rows % len(values):
        raise EvaluationError(f"a layer sees {rows} rows for {len(values)} images: its timesteps cannot be told apart")
    return values.repeat_interleave(rows // len(values))
