"""Run a schedule so that gradients reach its decisions: the executor of `tasks.sampling.execute`, with tensors.

Shapes: x (B, C, H, W); a table's numbers are float64 tensors, as `TablesOf` makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.search_spaces.schedule import Threshold
from fewstep.tasks.refinement.tables import Numbers
from fewstep.tasks.sampling.compile import SolverTables
from fewstep.tasks.sampling.execute import Term, combine, filtered, threshold

Call = Callable[[Tensor, float | Tensor], Tensor]


@dataclass
class Cost:
    """Denoiser calls of a refinement, one an image; a backward pass through one counts as two."""

    forward: int = 0
    backward: int = 0

    @property
    def calls(self) -> int:
        """All of it in forward calls."""
        return self.forward + 2 * self.backward


def counted(denoiser: Call, cost: Cost) -> Call:
    """The denoiser, with its calls added to `cost`: backward ones where a gradient will pass."""

    def call(x: Tensor, time: float | Tensor) -> Tensor:
        output = denoiser(x, time)
        cost.forward += len(x)
        cost.backward += len(x) * output.requires_grad
        return output

    return call


def run(numbers: Numbers, tables: SolverTables, denoiser: Call, noise: Tensor) -> Tensor:
    """From standard normal noise to samples, same shape. `tables` says what is not differentiated."""
    held: list[Tensor] = [noise * numbers.prior_scale.to(noise)]
    P, Q, bias = numbers.P, numbers.Q, numbers.bias
    for k, called in enumerate(tables.called):
        node = held[2 * k]
        if called:
            scale = numbers.input_scales[k].to(node)
            output = denoiser(node * scale, numbers.times[k])
            held.append(_limited(tables.threshold, numbers.clean[k].to(node), node, output))
        else:
            held.append(torch.zeros_like(node))
        terms = [(2 * j + i, table[k, j]) for j in range(k, -1, -1) for i, table in enumerate((P, Q))]
        used: list[Term] = [
            (index, weight.to(node)) for index, weight in terms if index % 2 == 0 or tables.called[index // 2]
        ]
        following = combine(dict(enumerate(held)), used, bias[k] if bias.numel() else None)
        if numbers.filters.numel():
            # Nodes and outputs in turn, as they are held.
            kernels = numbers.filters[k, :, : k + 1].transpose(0, 1).flatten(0, 1)
            following = following + filtered(held, kernels)
        held.append(following)
    return held[-1]


def _limited(rule: Threshold | None, clean: Tensor, node: Tensor, output: Tensor) -> Tensor:
    if rule is None:
        return output
    x0 = threshold(clean[0] * node + clean[1] * output, rule)
    return (x0 - clean[0] * node) / clean[1]
