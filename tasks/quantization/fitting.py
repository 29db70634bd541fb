"""What an integer fit does to a layer, and what is kept of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fewstep.tasks.quantization.descent import RIDGE, Fit, LayerProblem, Moments
from fewstep.tasks.quantization.layers import QuantizedLayer

# What an activation's grids are kept as.
GRIDS = ("scale", "zero", "times")


def fit_moments(layer: QuantizedLayer, moments: Moments, sweeps: int, restarts: int = 0, ridge: float = RIDGE) -> None:
    """Fit codes, scales and bias to rows x (R, I k k) -> y (R, O) with these moments.

    `ridge` holds weights to what they were: share of the mean squared input.
    """
    assert layer.original is not None
    sizes = tuple(part.codes[0].numel() for part in layer.parts)
    fit = Fit(
        torch.cat([part.codes.flatten(1) for part in layer.parts], 1).double(),
        torch.stack([part.grid.scale.flatten() for part in layer.parts], 1).double(),
        torch.stack([part.grid.zero.flatten() for part in layer.parts], 1).double(),
        sizes,
    )
    exact = torch.cat([piece.flatten(1) for piece in layer.pieces()], 1)
    problem = LayerProblem(moments, exact, layer.parts[0].grid.largest, ridge)
    found = problem.solve(fit, sweeps, restarts)
    codes = [
        piece.reshape(part.codes.shape).to(torch.uint8)
        for piece, part in zip(torch.split(found.codes, list(sizes), 1), layer.parts, strict=True)
    ]
    bias = None if layer.bias is None else problem.bias(found.weight)
    layer.set_fit(codes, list(found.scale.T), bias)


def state_of(layer: QuantizedLayer) -> dict[str, Tensor]:
    """What a fit leaves in a layer."""
    state = {f"codes{i}": part.codes for i, part in enumerate(layer.parts)}
    state |= {f"scale{i}": part.grid.scale.flatten() for i, part in enumerate(layer.parts)}
    if layer.bias is not None:
        state["bias"] = layer.bias
    if layer.activation is not None and layer.activation.scale.numel():
        state |= {name: getattr(layer.activation, name) for name in GRIDS}
    return state


def check_state(layer: QuantizedLayer, state: Mapping[str, Tensor]) -> None:
    """ValueError where this is not what `state_of` gives for such a layer."""
    for name, value in state_of(layer).items():
        found = state.get(name)
        if name not in GRIDS and (found is None or (found.shape, found.dtype) != (value.shape, value.dtype)):
            raise ValueError(f"no {name} {tuple(value.shape)}")
    layer.check_codes([state[f"codes{i}"] for i in range(len(layer.parts))])
    grids = [state[name] for name in GRIDS if name in state]
    if grids and (len(grids) < len(GRIDS) or grids[0].shape != grids[1].shape or len(grids[0]) != len(grids[2])):
        raise ValueError("grids of activations that are not whole")


def restore(layer: QuantizedLayer, state: Mapping[str, Tensor]) -> None:
    """Put back what `state_of` gave; an activation with a range is on."""
    device = layer.original.device if layer.original is not None else "cpu"
    count = range(len(layer.parts))
    codes, scales = [state[f"codes{i}"].to(device) for i in count], [state[f"scale{i}"].to(device) for i in count]
    layer.set_fit(codes, scales, state["bias"].to(device) if "bias" in state else None)
    if layer.activation is not None and "times" in state:
        layer.activation.set_grids(*(state[name].to(device) for name in GRIDS))
        layer.activation.mode = "on"
