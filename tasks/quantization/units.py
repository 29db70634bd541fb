"""Units of reconstruction: residual blocks, attention and transformer blocks, and single layers, in forward order.

A unit is reconstructed on its own: its inputs are recorded from the partly quantised network, its outputs from
the full-precision one ("asymmetric", TFMQ-DM section 4 after BRECQ).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fewstep.search_spaces.quantization import FULL_PRECISION
from fewstep.tasks.quantization.layers import QuantizedLayer
from fewstep.tasks.quantization.network import QuantizedNetwork, caller
from fewstep.tasks.quantization.tracing import layer_of
from fewstep.tasks.quantization.trajectories import Batch, batches

BLOCKS = (ResnetBlock2D, Attention, BasicTransformerBlock)


@dataclass(frozen=True)
class Unit:
    """A module and those of its layers whose weights are learned with it."""

    name: str
    module: nn.Module
    layers: tuple[QuantizedLayer, ...]


class Reached(Exception):  # noqa: N818 - control flow, not an error
    """Ends a forward pass at the place that was wanted."""


def find_units(network: QuantizedNetwork, blocks: bool, time_too: bool) -> list[Unit]:
    """Units in the order of the forward pass; `time_too` treats the temporal information block's layers alike."""
    assert network.graph is not None
    units: dict[str, list[QuantizedLayer]] = {}
    for name in dict.fromkeys(layer_of(call) for call in network.graph.order):
        plan = network.plans[name]
        if plan.bits == FULL_PRECISION or (plan.role == "time" and not time_too):
            continue
        units.setdefault(_unit_of(network.module, name) if blocks else name, []).append(network.layers[name])
    # A block counts from its first layer on; layers of the embedding come before whatever reads them.
    return [Unit(name, network.module.get_submodule(name), tuple(layers)) for name, layers in units.items()]


def _unit_of(module: nn.Module, name: str) -> str:
    pieces = name.split(".")
    for i in range(1, len(pieces)):
        if isinstance(module.get_submodule(".".join(pieces[:i])), BLOCKS):
            return ".".join(pieces[:i])
    return name


@torch.no_grad()
def passes(network: QuantizedNetwork, unit: Unit, data: Batch, size: int, outputs: bool) -> Iterator[Any]:
    """(args, kwargs) of the unit, or its output, for every slice of the data; the rest of the pass is cut off."""
    found: list[Any] = []

    def before(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not outputs:
            found.append((arguments, named))
            raise Reached

    def after(_: nn.Module, __: Any, output: Any) -> None:
        found.append(output)
        raise Reached

    first = unit.module.register_forward_pre_hook(before, with_kwargs=True)
    second = unit.module.register_forward_hook(after)
    try:
        for batch in batches(data, size):
            try:
                caller(network.module)(**batch)
            except Reached:
                yield found.pop()
    finally:
        first.remove()
        second.remove()


def rows_of(tree: Any, index: Tensor, rows: int, device: torch.device) -> Any:
    """The rows `index` of every tensor that has `rows` of them, on a device."""
    return tree_map(
        lambda v: v[index.to(v.device)].to(device) if isinstance(v, Tensor) and v.ndim and len(v) == rows else v, tree
    )


def unit_loss(
    network: QuantizedNetwork, unit: Unit, inputs: Any, target: Tensor, data: Batch, size: int, seed: int
) -> Callable[[int], Tensor]:
    """Sum over channels, mean over the rest of the squared error of a unit's output on random rows.

    `inputs` and `target` may lie elsewhere than the network: no more than the rows of a batch are brought to it.
    """
    rows, device = len(target), data["x"].device

    def loss(iteration: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed * 1_000_003 + iteration)
        index = torch.randint(0, rows, (min(size, rows),), generator=rng)
        arguments, named = rows_of(inputs, index, rows, device)
        asked = index.to(device)
        network.clock.set(data["time"][asked], data["labels"][asked] if "labels" in data else None)
        output = unit.module(*arguments, **named)
        output = output[0] if isinstance(output, tuple) else output
        channel = 1 if output.ndim == 4 else -1
        error: Tensor = (output - target[index.to(target.device)].to(device)).square().sum(channel).mean()
        return error

    return loss
