"""Compiled tables as a differentiable function of a schedule's continuous decisions.

A schedule is compiled in float64 into a few dozen numbers, in about a millisecond. So the derivatives are taken of
the compiler itself: exactly where it is linear (corrections), by central differences in float64 elsewhere. Nothing is
written twice, and whatever the compiler learns is tuned at once.

Shapes: theta (n,); values (m,), all arrays of the tables one after the other; jacobian (m, n).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.refinement.parameters import LINEAR, Parameters
from fewstep.tasks.sampling.compile import SolverTables

Array = npt.NDArray[np.float64]
Compile = Callable[[SolverSchedule], SolverTables]
# The cube root of float64's precision, where truncation and rounding of a central difference are equal.
DIFFERENCE = 6e-6
FIELDS = ("P", "Q", "times", "input_scales", "prior_scale", "clean", "bias", "filters")


@dataclass(frozen=True)
class Numbers:
    """What `SolverTables` holds, as tensors: P and Q (K, K, ...), times and scales K scalars, clean (K, 2).

    `bias` and `filters` are empty where there are none.
    """

    P: Tensor
    Q: Tensor
    times: tuple[Tensor, ...]
    input_scales: tuple[Tensor, ...]
    prior_scale: Tensor
    clean: Tensor
    bias: Tensor
    filters: Tensor


def packed(tables: SolverTables) -> list[Array]:
    """The numbers of a table that depend on continuous decisions, in the order of FIELDS."""
    bias, filters = (np.zeros(0) if value is None else value for value in (tables.bias, tables.filters))
    numbers = (tables.P, tables.Q, tables.times, tables.input_scales, tables.prior_scale, tables.clean, bias, filters)
    return [np.asarray(value, np.float64) for value in numbers]


class TablesOf:
    """theta -> tables with gradients. `compile_` compiles a schedule for the model at hand."""

    def __init__(self, parameters: Parameters, compile_: Compile) -> None:
        self.parameters, self.compile = parameters, compile_

    def tables(self, theta: Array) -> SolverTables:
        """The tables at a vector; ScheduleError where they do not compile."""
        return self.compile(self.parameters.schedule_at(theta))

    def _values(self, theta: Array) -> Array:
        return np.concatenate([part.ravel() for part in packed(self.tables(theta))])

    def jacobian(self, theta: Array) -> Array:
        """Derivatives of all numbers of the tables by all entries of theta."""
        now = packed(self.tables(theta))
        columns = np.zeros((sum(part.size for part in now), len(theta)))
        for block in self.parameters.blocks:
            if block.part in LINEAR:
                continue
            for i in range(block.slice.start, block.slice.stop):
                step = DIFFERENCE * max(1.0, abs(theta[i]))
                ahead, behind = theta.copy(), theta.copy()
                ahead[i], behind[i] = theta[i] + step, theta[i] - step
                columns[:, i] = (self._values(ahead) - self._values(behind)) / (ahead[i] - behind[i])
        self._linear_columns(theta, now, columns)
        return columns

    def _linear_columns(self, theta: Array, now: list[Array], columns: Array) -> None:
        """Fill in the derivatives by corrections of the tables, see `Parameters.linear_directions`."""
        directions = self.parameters.linear_directions()
        if not directions:
            return
        at = self.parameters.schedule_at(theta)
        without = packed(self.compile(at.model_copy(update={"corrections": None})))
        for direction in directions:
            with_ = packed(self.compile(at.model_copy(update={"corrections": direction.unit})))
            for k, first in direction.places.items():
                offset = 0
                for name, ours, base, held in zip(FIELDS, with_, without, now, strict=True):
                    if name in ("P", "Q", "bias", "filters") and ours.size:
                        change = (ours[k] - (base[k] if base.size else 0.0)).ravel()
                        here = slice(offset + k * change.size, offset + (k + 1) * change.size)
                        for cell in range(direction.cells):
                            # Each number of a kernel acts on the tables' kernels where it stands itself.
                            columns[here, first + cell] = np.roll(change, cell)
                    offset += held.size

    def __call__(self, theta: Tensor) -> Numbers:
        """The tables' numbers as float64 tensors on theta's device that carry its gradient."""
        flat = _Values.apply(theta, self)
        shapes = [part.shape for part in packed(self.tables(_numbers(theta)))]
        fields, offset = {}, 0
        for name, shape in zip(FIELDS, shapes, strict=True):
            size = int(np.prod(shape))
            fields[name] = flat[offset : offset + size].reshape(shape)
            offset += size
        times, scales = list(fields["times"].unbind()), list(fields["input_scales"].unbind())
        # The first point stays where it is. Saying so spares the way back through its call.
        scales[0] = scales[0].detach()
        if not any(block.part == "shifts" for block in self.parameters.blocks):
            times[0] = times[0].detach()
        prior = fields["prior_scale"].detach()
        rest = {name: fields[name] for name in ("P", "Q", "clean", "bias", "filters")}
        return Numbers(times=tuple(times), input_scales=tuple(scales), prior_scale=prior, **rest)


def _numbers(theta: Tensor) -> Array:
    return np.asarray(theta.detach().cpu().numpy(), np.float64)


class _Values(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, theta: Tensor, source: TablesOf) -> Tensor:
        at = _numbers(theta)
        if theta.requires_grad:
            ctx.save_for_backward(torch.from_numpy(source.jacobian(at)))
        return torch.from_numpy(source._values(at)).to(theta.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (jacobian,) = ctx.saved_tensors
        (gradient,) = gradients
        return jacobian.T.to(gradient) @ gradient, None
