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
# Inputs of a sweep whose steps are taken together to all later ones.
BLOCK = 64
# Columns of a Gram matrix that are added to at a time.
COLUMNS = 1024


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
        sums = MomentSums(bias)
        sums.add(x, y, rows)
        return sums.moments()


class MomentSums:
    """Moments of rows that come a few at a time: the rows themselves are not kept."""

    def __init__(self, bias: bool) -> None:
        self._bias, self._weight = bias, 0.0
        # Products are taken about the first rows' means, so that what is nearly constant loses no digits.
        self._about: tuple[Tensor, Tensor] | None = None
        self._sums: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor, rows: Tensor | None = None) -> None:
        """More rows x (R, I), y (R, O), with weights (R,)."""
        if not len(x):
            return
        share = torch.ones(len(x), 1, device=x.device) if rows is None else rows[:, None]
        share = share.to(x.dtype)
        if self._about is None:
            about = (share * x).sum(0) / share.sum(), (share * y).sum(0) / share.sum()
            self._about = about if self._bias else (torch.zeros_like(about[0]), torch.zeros_like(about[1]))
        x, y = x - self._about[0], y - self._about[1]
        weighted = x if rows is None else x * share
        self._weight += float(share.double().sum())
        if not self._sums:
            shapes = (x.shape[1], x.shape[1]), (x.shape[1], y.shape[1]), (y.shape[1],), (x.shape[1],), (y.shape[1],)
            self._sums = [torch.zeros(shape, dtype=torch.float64, device=x.device) for shape in shapes]
        gram, cross, power, sum_x, sum_y = self._sums
        for first in range(0, x.shape[1], COLUMNS):
            own = slice(first, first + COLUMNS)
            gram[:, own] += weighted.T @ x[:, own]
        cross += weighted.T @ y
        power += (share * y.square()).sum(0)
        sum_x += weighted.sum(0)
        sum_y += (share * y).sum(0)

    def moments(self) -> Moments:
        """Of all rows so far; the sums are turned into them in place, and no more rows may come."""
        assert self._about is not None
        gram, cross, power, x, y = (total.div_(self._weight) for total in self._sums)
        if not self._bias:
            return Moments(gram, cross, power, torch.zeros_like(x), torch.zeros_like(y))
        gram = gram.addr_(x, x, alpha=-1)
        cross = cross.addr_(x, y, alpha=-1)
        return Moments(gram, cross, power - y.square(), self._about[0].double() + x, self._about[1].double() + y)


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

    def __init__(self, moments: Moments, exact: Tensor, largest: int, ridge: float = RIDGE) -> None:
        self.moments, self.exact, self.largest = moments, exact.double(), largest
        squares = moments.gram.diagonal()
        self.ridge = ridge * float(squares.mean()) + 1e-12
        self.order = torch.argsort(squares, descending=True)

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
        m, weight = self.moments, fit.weight
        scale, zero = self._by_input(fit.wide(fit.scale)), self._by_input(fit.wide(fit.zero))
        # Held by input, in the order of the sweep, so that one coordinate of all outputs is one row.
        slope = self._by_input(m.cross.T - weight @ m.gram + self.ridge * (self.exact - weight))
        weight_of, codes_of = self._by_input(weight), self._by_input(fit.codes)
        before, inverse = codes_of.clone(), scale.reciprocal()
        curvature = (m.gram.diagonal() + self.ridge)[self.order].tolist()
        # What a step changes is made good at once within its block, and for all other inputs when the block is done
        # (the lazy batches of GPTQ, 2210.17323): the same steps, most of whose work is products of matrices.
        for first in range(0, len(codes_of), BLOCK):
            own = slice(first, min(first + BLOCK, len(codes_of)))
            # Gathered block by block: a second matrix in the sweep's order may not fit beside the first.
            far = m.gram[self.order[first:]][:, self.order[own]]
            near = far[: own.stop - first]
            near.diagonal().add_(self.ridge)
            here, taken = slope[own], torch.zeros_like(codes_of[own])
            for j in range(len(here)):
                i = first + j
                codes = (weight_of[i] + here[j] / curvature[i]).mul_(inverse[i]).add_(zero[i])
                codes = codes.round_().clamp_(0, self.largest)
                step = taken[j] = (codes - codes_of[i]) * scale[i]
                codes_of[i] = codes
                weight_of[i] += step
                here[j:].addr_(near[j:, j], step, alpha=-1)
            slope[own.stop :].addmm_(far[own.stop - first :], taken, alpha=-1)
        changed = not torch.equal(codes_of, before)
        fit.codes = torch.empty_like(fit.codes)
        fit.codes[:, self.order] = codes_of.T
        return changed

    def _by_input(self, values: Tensor) -> Tensor:
        """(O, I) to (I, O), inputs in the order of a sweep."""
        return values.T.contiguous()[self.order]

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


def chosen_rows(count: int, inputs: int, seed: int, least: int = 16_384, ratio: int = 16) -> Sequence[int]:
    """Which of `count` rows a problem with that many inputs is fitted to: all, or enough random ones."""
    wanted = max(least, ratio * inputs)
    if count <= wanted:
        return range(count)
    rng = torch.Generator().manual_seed(seed)
    chosen: list[int] = torch.randperm(count, generator=rng)[:wanted].sort().values.tolist()
    return chosen
