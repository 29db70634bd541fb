"""Uniform affine grids: code = clip(round(x / scale) + zero, 0, 2^bits - 1), value = (code - zero) scale.

Shapes: scale and zero have the shape of what they are broadcast against, () for a whole tensor or
(O, 1, ...) for one grid an output channel. `zero` holds whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# The least width of a grid's range: a constant channel must not divide by zero.
TINY = 1e-8
# Ranges tried between the full one and a fifth of it, and the power of the error (BRECQ; TFMQ-DM's program).
SHRINKS = 80
POWER = 2.4
# Weights whose shrinks are tried together: so many stay in a cache.
AT_ONCE = 2**17


@dataclass(frozen=True)
class Grid:
    """A grid of 2^bits values."""

    scale: Tensor
    zero: Tensor
    bits: int

    @property
    def largest(self) -> int:
        """The largest code."""
        return int(2**self.bits - 1)

    @classmethod
    def spanning(cls, low: Tensor, high: Tensor, bits: int) -> Grid:
        """The grid from `low` to `high`, widened to hold zero, which it represents exactly."""
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = ((high - low) / (2**bits - 1)).clamp(min=TINY)
        return cls(scale, (-low / scale).round().clamp(0, 2**bits - 1), bits)

    @classmethod
    def around_zero(cls, limit: Tensor, bits: int) -> Grid:
        """The grid from -limit to limit with zero at the middle code, which integer kernels need."""
        scale = (limit / (2 ** (bits - 1) - 1)).clamp(min=TINY)
        return cls(scale, torch.full_like(scale, 2 ** (bits - 1)), bits)

    def codes(self, x: Tensor) -> Tensor:
        """Codes of the nearest values, as floats."""
        return (x * self.scale.reciprocal()).round().add(self.zero).clamp(0, self.largest)

    def values(self, codes: Tensor) -> Tensor:
        """What codes stand for."""
        return (codes - self.zero) * self.scale

    def nearest(self, x: Tensor) -> Tensor:
        """The nearest values; the gradient passes where x is within the range."""
        low, high = -self.zero, self.largest - self.zero
        # With zero folded into the bounds, one copy and vectorised steps in place: many times faster than
        # torch.fake_quantize_per_tensor_affine on a CPU, and equal to it bit for bit.
        found = x.detach().mul(self.scale.reciprocal()).round_().clamp_(low, high).mul_(self.scale)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return found
        kept = x.clamp(low * self.scale, high * self.scale)
        return found + (kept - kept.detach())


def channel_grid(weight: Tensor, bits: int, search: bool) -> Grid:
    """One grid for each output channel of a weight (O, ...): the full range, or the best of its shrinks.

    The best has the least sum of |error|^2.4 (TFMQ-DM's program, 80 shrinks). With 8 bits the grid is symmetric,
    so that integer kernels can run it; with fewer, where each code counts, it spans what is there.
    """
    flat = weight.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    factor = torch.ones_like(low)
    if search:
        rows = max(1, AT_ONCE // max(1, flat.shape[1]))
        parts = zip(*(torch.split(x, rows) for x in (flat, low, high)), strict=True)
        factor = torch.cat([_best_shrink(part, least, most, bits) for part, least, most in parts])
    found, shape = _shrunk(low, high, factor, bits), (-1, *(1,) * (weight.ndim - 1))
    return Grid(found.scale.view(shape), found.zero.view(shape), bits)


def _shrunk(low: Tensor, high: Tensor, share: Tensor | float, bits: int) -> Grid:
    if bits == 8:
        return Grid.around_zero(torch.maximum(-low, high) * share, bits)
    return Grid.spanning(low * share, high * share, bits)


def _best_shrink(flat: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """The best share of the range of each channel (O, 1)."""
    factor, best = torch.ones_like(low), torch.full_like(low, torch.inf)
    for k in range(SHRINKS):
        share = 1.0 - 0.01 * k
        tried = _shrunk(low, high, share, bits)
        error = tried.nearest(flat).sub_(flat).abs_().pow_(POWER).sum(1, keepdim=True)
        better = error < best
        best, factor = torch.where(better, error, best), torch.where(better, share, factor)
    return factor
