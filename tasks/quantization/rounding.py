"""Learn how weights are rounded (AdaRound, 2004.10568) so that a unit's outputs stay what they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import EvaluationError
from fewstep.tasks.quantization.layers import QuantizedLayer

# The regulariser's exponent goes from the first to the second after the warm-up.
EXPONENTS = (20.0, 2.0)
Loss = Callable[[int], Tensor]


@dataclass(frozen=True)
class RoundingPlan:
    """Iterations of Adam at `rate`; `weight` of the rounding term, which is off for the first `warmup` share."""

    iterations: int
    rate: float
    weight: float
    warmup: float


def learn_rounding(layers: Sequence[QuantizedLayer], loss: Loss, plan: RoundingPlan) -> list[float]:
    """Fit the layers' rounding to `loss(iteration)` plus the term that drives every weight to one side.

    The rounding that wins is kept in the layers. Returns the loss at each iteration; EvaluationError where it
    is not finite, and then the layers keep the codes they had.
    """
    variables = [variable for layer in layers for variable in layer.start_rounding()]
    try:
        losses = _descend(variables, loss, plan)
    except BaseException:
        for layer in layers:
            layer.leave_rounding()
        raise
    for layer in layers:
        layer.finish_rounding()
    return losses


def _descend(variables: list[Tensor], loss: Loss, plan: RoundingPlan) -> list[float]:
    optimizer, losses = torch.optim.Adam(variables, lr=plan.rate), list[float]()
    for iteration in range(plan.iterations):
        share = (iteration / plan.iterations - plan.warmup) / (1 - plan.warmup)
        value = loss(iteration)
        total = value
        if share >= 0:
            exponent = EXPONENTS[0] + (EXPONENTS[1] - EXPONENTS[0]) * share
            total = value + plan.weight * sum(
                (1 - (2 * QuantizedLayer.opening(v) - 1).abs().pow(exponent)).sum() for v in variables
            )
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(value.item())
        if not losses[-1] < float("inf"):
            raise EvaluationError(f"reconstruction diverged at iteration {iteration}: lower the rate ({plan.rate:g})")
    return losses
