"""Run compiled tables. Shapes: x (B, C, H, W); times and coefficients are Python numbers, so nothing syncs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.tasks.sampling.compile import SolverTables

Denoiser = Callable[[Tensor, float], Tensor]
Term = tuple[int, float]


class Program:
    """Tables turned into sums of few terms: which tensors each row needs, and which nobody needs again."""

    def __init__(self, tables: SolverTables) -> None:
        K = len(tables.times)
        # One list of tensors: node j at 2j, its denoiser output at 2j + 1.
        self.rows: list[list[Term]] = []
        for k in range(K):
            terms = [(2 * j, float(tables.P[k, j])) for j in range(k, -1, -1)]
            terms += [(2 * j + 1, float(tables.Q[k, j])) for j in range(k, -1, -1)]
            self.rows.append([(index, weight) for index, weight in terms if weight != 0.0] or [(2 * k, 0.0)])
        last: dict[int, int] = {}
        for k, row in enumerate(self.rows):
            last.update((index, k) for index, _ in row)
        self.expired = [[i for i in (*range(2 * k + 2),) if last.get(i, i // 2) == k] for k in range(K)]
        self.times, self.called = tables.times, tables.called

    def __call__(self, denoiser: Denoiser, x: Tensor) -> Tensor:
        """From starting noise x (already scaled to the prior) to samples, same shape."""
        held: dict[int, Tensor] = {0: x}
        for k, row in enumerate(self.rows):
            if self.called[k]:
                held[2 * k + 1] = denoiser(held[2 * k], self.times[k])
            held[2 * k + 2] = combine(held, row)
            for index in self.expired[k]:
                held.pop(index, None)
        return held[2 * len(self.rows)]


def combine(held: dict[int, Tensor], row: list[Term]) -> Tensor:
    """The weighted sum of a row's tensors, in the row's order."""
    (first, weight), *rest = row
    out = held[first] * weight
    for index, weight in rest:
        out = out.add_(held[index], alpha=weight) if not out.requires_grad else out.add(held[index], alpha=weight)
    return out


@torch.inference_mode()
def sample(tables: SolverTables, denoiser: Denoiser, x: Tensor) -> Tensor:
    """Run tables without gradients."""
    return Program(tables)(denoiser, x)
