"""Run compiled tables. Shapes: x (B, C, H, W); times and scalar coefficients are Python numbers, so nothing syncs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import ScheduleError
from fewstep.search_spaces.schedule import Threshold
from fewstep.tasks.sampling.compile import SolverTables

Denoiser = Callable[[Tensor, float], Tensor]
Weight = float | Tensor
Term = tuple[int, Weight]


class Program:
    """Tables turned into sums of few terms: which tensors each row needs, and which nobody needs again.

    `device` is where the per-pixel coefficients of empirical statistics go; scalars need no place.
    """

    def __init__(self, tables: SolverTables, device: str | torch.device = "cpu") -> None:
        self.tables = tables
        K = len(tables.times)
        per_pixel = tables.P.ndim > 2

        def weight(value: object) -> Weight:
            return torch.as_tensor(value, device=device) if per_pixel else float(value)  # type: ignore[arg-type]

        # One list of tensors: node j at 2j, its denoiser output at 2j + 1.
        self.rows: list[list[Term]] = []
        for k in range(K):
            terms = [(2 * j, tables.P[k, j]) for j in range(k, -1, -1)]
            terms += [(2 * j + 1, tables.Q[k, j]) for j in range(k, -1, -1)]
            self.rows.append([(i, weight(value)) for i, value in terms if value.any()] or [(2 * k, 0.0)])
        self.bias = None if tables.bias is None else torch.as_tensor(tables.bias, device=device)
        # Per row: which tensors pass filters, and their kernels (n, S, S).
        self.filters = [_filters(tables, k, device) for k in range(K)]
        last: dict[int, int] = {}
        for k, row in enumerate(self.rows):
            last.update((index, k) for index in (*(i for i, _ in row), *self.filters[k][0]))
        self.expired = [[i for i in (*range(2 * k + 2),) if last.get(i, i // 2) == k] for k in range(K)]
        self.times, self.called = tables.times, tables.called
        self.scales = tables.input_scales or (1.0,) * K

    def __call__(self, denoiser: Denoiser, x: Tensor) -> Tensor:
        """From starting noise x (already scaled to the prior) to samples, same shape."""
        held: dict[int, Tensor] = {0: x}
        del x
        for k in range(len(self.rows)):
            if self.called[k]:
                x = held[2 * k]
                held[2 * k + 1] = self.limited(k, x, denoiser(self.model_input(k, x), self.times[k]))
                del x
            held[2 * k + 2] = self.next_node(k, held)
            for index in self.expired[k]:
                held.pop(index, None)
        return held[2 * len(self.rows)]

    def model_input(self, k: int, x: Tensor) -> Tensor:
        """What the network is given at node k."""
        return x if self.scales[k] == 1.0 else x * self.scales[k]

    def limited(self, k: int, x: Tensor, output: Tensor) -> Tensor:
        """The network's output at node k, changed so that the x0 it means is within the schedule's threshold."""
        if self.tables.threshold is None:
            return output
        x0_x, x0_o = self.tables.clean[k]
        x0 = threshold(x0_x * x + x0_o * output, self.tables.threshold)
        return (x0 - x0_x * x) / x0_o

    def next_node(self, k: int, held: dict[int, Tensor]) -> Tensor:
        """Node k + 1 from what is held."""
        plain = combine(held, self.rows[k], None if self.bias is None else self.bias[k])
        passed, kernels = self.filters[k]
        return plain + filtered([held[i] for i in passed], kernels) if passed else plain


def _filters(tables: SolverTables, k: int, device: str | torch.device) -> tuple[list[int], Tensor]:
    if tables.filters is None:
        return [], torch.zeros(0)
    found = {2 * j + i: tables.filters[k, i, j] for j in range(k + 1) for i in (0, 1) if tables.filters[k, i, j].any()}
    return list(found), torch.as_tensor(np.array(list(found.values())), device=device)


def filtered(tensors: Sequence[Tensor], kernels: Tensor) -> Tensor:
    """The sum of tensors (B, ..., H, W) under kernels (n, S, S), every channel alike, zeros beyond the edge.

    ScheduleError where they are no images: a transformer's rows of patches have no neighbours to filter.
    """
    if tensors[0].ndim < 4:
        raise ScheduleError(
            f"the schedule filters images, the sample is {tuple(tensors[0].shape)}: refine without the part filters"
        )
    stacked = torch.stack([t.flatten(0, -3) for t in tensors], dim=1)
    summed = torch.nn.functional.conv2d(stacked, kernels[None].to(stacked), padding=kernels.shape[-1] // 2)
    return summed.reshape(tensors[0].shape)


def combine(held: dict[int, Tensor], row: list[Term], bias: Tensor | None = None) -> Tensor:
    """The weighted sum of a row's tensors, in the row's order, and the constant term."""
    out: Tensor | None = None
    for index, weight in row:
        tensor = held[index]
        if isinstance(weight, Tensor):
            product = tensor * weight.to(tensor.dtype)
            out = product if out is None else out + product
        elif out is None:
            out = tensor * weight
        else:
            out = out.add_(tensor, alpha=weight) if not out.requires_grad else out.add(tensor, alpha=weight)
    assert out is not None
    return out if bias is None else out + bias.to(out.dtype)


def threshold(x0: Tensor, rule: Threshold) -> Tensor:
    """x0 (B, ...) kept in range: clipped, or dynamically by each image's quantile."""
    if rule.kind == "static":
        return x0.clamp(-rule.limit, rule.limit)
    flat = x0.abs().flatten(1)
    s = torch.quantile(flat, rule.quantile, dim=1).clamp(1.0, max(1.0, rule.limit))
    s = s.view(-1, *(1,) * (x0.ndim - 1))
    return x0.clamp(-s, s) / s


@torch.inference_mode()
def sample(tables: SolverTables, denoiser: Denoiser, x: Tensor) -> Tensor:
    """Run tables without gradients."""
    return Program(tables, x.device)(denoiser, x)
