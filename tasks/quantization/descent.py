"""Round a layer's weights by integer least squares: coordinate descent on what its inputs make of its codes.

AdaRound (2004.10568), and TIAR with it, lets each weight go up or down and takes thousands of steps of Adam. A
layer's squared output error is a quadratic in its codes, known from the inputs' second moments alone. Descent over
all values of each code, with scale and bias in closed form, takes seconds and ends lower.

Shapes: x (R, I) inputs as rows, y (R, O) outputs in full precision, codes (O, I), weights of the rows (R,).
The input channels may be split into parts with grids of their own: scale and zero (O, P).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# A code that the inputs do not decide stays at the weight: share of the mean squared input.
RIDGE = 1e-3
# The scale may move this far from where it began.
STRETCH = 1.5
# Codes that a perturbation moves, of one output.
MOVED = 4


@dataclass(frozen=True)
class Moments:
    """What a layer's error depends on, all float64: x and y less their means where there is a bias to absorb them."""

    gram: Tensor
    cross: Tensor
    power: Tensor
    mean_x: Tensor
    mean_y: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor, rows: Tensor | None, bias: bool) -> Moments:
        """From rows with these weights (default: equal ones)."""
        share = torch.full((len(x), 1), 1 / len(x), dtype=x.dtype, device=x.device)
        if rows is not None:
            share = (rows / rows.sum()).to(x.dtype)[:, None]
        mean_x, mean_y = (share * x).sum(0), (share * y).sum(0)
        if not bias:
            mean_x, mean_y = torch.zeros_like(mean_x), torch.zeros_like(mean_y)
        x, y = x - mean_x, y - mean_y
        weighted = x * share
        parts = weighted.T @ x, weighted.T @ y, (share * y.square()).sum(0), mean_x, mean_y
        return cls(*(part.double() for part in parts))


@dataclass
class Fit:
    """Codes (O, I), scale and zero (O, P), all float64; `sizes` are the parts' shares of I."""

    codes: Tensor
    scale: Tensor
    zero: Tensor
    sizes: tuple[int, ...]

    def copy(self) -> Fit:
        """Tensors of its own."""
        return Fit(self.codes.clone(), self.scale.clone(), self.zero, self.sizes)

    def wide(self, values: Tensor) -> Tensor:
        """(O, P) to (O, I)."""
        sizes = torch.tensor(self.sizes, device=values.device)
        return values.repeat_interleave(sizes, 1)

    @property
    def weight(self) -> Tensor:
        """What the codes stand for (O, I)."""
        return self.wide(self.scale) * (self.codes - self.wide(self.zero))


class LayerProblem:
    """min over codes and scales of E|x W^T - y|^2 + ridge |W - W0|^2, each output apart, the bias at its best."""

    def __init__(self, moments: Moments, exact: Tensor, largest: int) -> None:
        self.moments, self.exact, self.largest = moments, exact.double(), largest
        squares = moments.gram.diagonal()
        self.ridge = RIDGE * float(squares.mean()) + 1e-12
        self.order = torch.argsort(squares, descending=True).tolist()

    def error(self, weight: Tensor) -> Tensor:
        """The objective of each output (O,)."""
        m = self.moments
        missed = m.power + ((weight @ m.gram) * weight).sum(1) - 2 * (weight * m.cross.T).sum(1)
        return missed + self.ridge * (weight - self.exact).square().sum(1)

    def bias(self, weight: Tensor) -> Tensor:
        """The best bias (O,)."""
        return self.moments.mean_y - weight @ self.moments.mean_x

    def solve(self, fit: Fit, sweeps: int, restarts: int = 0, seed: int = 0) -> Fit:
        """Descend from `fit`, then from perturbations of the best that is known; each output keeps its own best."""
        rng = torch.Generator().manual_seed(seed)
        best = self._descend(fit.copy(), sweeps)
        error = self.error(best.weight)
        for _ in range(restarts):
            tried = best.copy()
            moves = torch.randint(-1, 2, tried.codes.shape, generator=rng).to(tried.codes)
            moved = (torch.rand(tried.codes.shape, generator=rng) < MOVED / tried.codes.shape[1]).to(tried.codes)
            tried.codes = (tried.codes + moves * moved).clamp(0, self.largest)
            tried = self._descend(tried, sweeps)
            found = self.error(tried.weight)
            better = found < error
            error = torch.where(better, found, error)
            best.codes[better], best.scale[better] = tried.codes[better], tried.scale[better]
        return best

    def _descend(self, fit: Fit, sweeps: int) -> Fit:
        first = fit.scale.clone()
        for _ in range(sweeps):
            self._refit(fit, first)
            if not self._sweep(fit):
                break
        self._refit(fit, first)
        return fit

    def _sweep(self, fit: Fit) -> bool:
        """Each code at its best with the others held; whether any changed."""
        m, weight, changed = self.moments, fit.weight, False
        scale, zero = fit.wide(fit.scale), fit.wide(fit.zero)
        # Held by input, so that one coordinate of all outputs is one row.
        slope = (m.cross.T - weight @ m.gram + self.ridge * (self.exact - weight)).T.contiguous()
        weight_of, codes_of = weight.T.contiguous(), fit.codes.T.contiguous()
        curvature = (m.gram.diagonal() + self.ridge).tolist()
        for i in self.order:
            wanted = weight_of[i] + slope[i] / curvature[i]
            codes = (wanted / scale[:, i] + zero[:, i]).round_().clamp_(0, self.largest)
            step = (codes - codes_of[i]) * scale[:, i]
            if bool(step.any()):
                changed = True
                codes_of[i] = codes
                weight_of[i] += step
                slope.addr_(m.gram[i], step, alpha=-1)
                slope[i] -= self.ridge * step
        fit.codes = codes_of.T.contiguous()
        return changed

    def _refit(self, fit: Fit, first: Tensor) -> None:
        """The scale of each part by least squares, codes and the other parts held."""
        m, start = self.moments, 0
        weight, steps = fit.weight, fit.codes - fit.wide(fit.zero)
        for p, size in enumerate(fit.sizes):
            own = slice(start, start + size)
            start += size
            q = steps[:, own]
            rest = m.cross.T[:, own] - weight @ m.gram[:, own] + weight[:, own] @ m.gram[own, own]
            spread = ((q @ m.gram[own, own]) * q).sum(1) + self.ridge * q.square().sum(1)
            shared = (q * rest).sum(1) + self.ridge * (q * self.exact[:, own]).sum(1)
            best = torch.where(spread > 0, shared / spread.clamp(min=1e-300), fit.scale[:, p])
            fit.scale[:, p] = torch.minimum(torch.maximum(best, first[:, p] / STRETCH), first[:, p] * STRETCH)
            weight[:, own] = fit.scale[:, p : p + 1] * q


def chosen_rows(count: int, inputs: int, seed: int, least: int = 16_384, ratio: int = 32) -> Sequence[int]:
    """Which of `count` rows a problem with that many inputs is fitted to: all, or enough random ones."""
    wanted = max(least, ratio * inputs)
    if count <= wanted:
        return range(count)
    rng = torch.Generator().manual_seed(seed)
    chosen: list[int] = torch.randperm(count, generator=rng)[:wanted].sort().values.tolist()
    return chosen
