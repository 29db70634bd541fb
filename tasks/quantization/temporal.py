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
from fewstep.tasks.quantization.tracing import TimeBlock, layer_of, trace
from fewstep.tasks.quantization.trajectories import Batch

# Times at which a calibration's error is noted.
SHOWN = 33


@dataclass(frozen=True)
class TemporalError:
    """At one timestep, over all projections and labels: cosine similarity and relative error to full precision."""

    time: float
    cosine: float
    relative_error: float


@dataclass(frozen=True)
class BlockError(TemporalError):
    """With the relative errors of the projections that are kept best and worst."""

    least: float
    most: float


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


@torch.no_grad()
def block_errors(network: QuantizedNetwork, given: Batch, times: int = SHOWN) -> list[BlockError]:
    """The same of a calibrated network and of what it was made of, by the block alone: no denoiser is called.

    `given` holds time (R,) and labels (R,) if any; of more distinct times `times` evenly spaced ones. Empty for a
    network without temporal features.
    """
    if network.graph is None or not network.graph.projections or not network.time_layers:
        return []
    known = torch.unique(given["time"])
    known = known[torch.linspace(0, len(known) - 1, min(times, len(known))).round().long().to(known.device)]
    chosen = torch.isin(given["time"], known)
    given = {name: value[chosen] for name, value in given.items()}
    block, table = TimeBlock(network.graph, network.layers, network.clock), network.table
    after = block(given)
    network.detach()
    network.switch(weights=False, activations="off", names=network.time_layers)
    before = block(given)
    network.switch(weights=True, activations="on", names=network.time_layers)
    if table is not None:
        network.attach(table)
    found = []
    for time in known.tolist():
        rows = given["time"] == time
        pairs = [(before[name][rows].double().flatten(), after[name][rows].double().flatten()) for name in before]
        each = [float((g_hat - g).norm() / g.norm()) for g, g_hat in pairs if g.norm() > 0]
        g, g_hat = (torch.cat(side) for side in zip(*pairs, strict=True))
        cosine = float(torch.nn.functional.cosine_similarity(g_hat, g, dim=0))
        error = float((g_hat - g).norm() / g.norm())
        found.append(BlockError(time, cosine, error, min(each, default=error), max(each, default=error)))
    return found


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
