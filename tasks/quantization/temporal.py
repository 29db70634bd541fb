"""How well a quantised network keeps its temporal features: the outputs of the block that depends on t alone.

TFMQ-DM (2311.16503), section 3: their disturbance is what sets quantised diffusion models apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.errors import ModelError
from fewstep.tasks.quantization.network import QuantizedNetwork, caller, matrix_layers
from fewstep.tasks.quantization.tracing import layer_of, trace


@dataclass(frozen=True)
class TemporalError:
    """At one timestep, over all projections and labels: cosine similarity and relative error to full precision."""

    time: float
    cosine: float
    relative_error: float


@torch.no_grad()
def temporal_errors(
    exact: nn.Module, quantized: QuantizedNetwork, times: Sequence[float], example: Mapping[str, Tensor]
) -> list[TemporalError]:
    """At each of `times`, for the labels in `example` (x (B, C, H, W), time (B,), labels (B,) or condition).

    The relative error is ||g_hat - g|| / ||g|| with all projections of a timestep in one vector. Raises ModelError
    for a network without temporal features.
    """
    names = projections(exact, example)
    before = {name: exact.get_submodule(name) for name in names}
    after = {name: quantized.layers[name] for name in names}
    rows = []
    for time in times:
        given = {**example, "time": torch.full_like(example["time"], time)}
        g, g_hat = _outputs(exact, before, given), _outputs(quantized.module, after, given)
        cosine = torch.nn.functional.cosine_similarity(g_hat, g, dim=0)
        rows.append(TemporalError(time, float(cosine), float((g_hat - g).norm() / g.norm())))
    return rows


def projections(exact: nn.Module, example: Mapping[str, Tensor]) -> list[str]:
    """Names of the layers whose outputs are the temporal features; ModelError where there are none."""
    graph = trace(caller(exact), example, matrix_layers(exact))
    names = list(dict.fromkeys(layer_of(call) for call in graph.projections))
    if not names:
        raise ModelError(f"{type(exact).__name__} has no layer that depends on time alone")
    return names


def _outputs(module: nn.Module, layers: Mapping[str, nn.Module], given: Mapping[str, Tensor]) -> Tensor:
    """The layers' outputs in one forward pass, as one vector in float64."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            found[name] = output.double().flatten()

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]  # type: ignore[arg-type]
    try:
        caller(module)(**given)
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat([found[name] for name in layers])
