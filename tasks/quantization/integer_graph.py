"""A quantised network as one graph of operations that integer kernels can be made from.

Every quantised product becomes what the backend's low-precision passes look for: activations on their grid (one
for the whole tensor, unsigned 8 bits), weights on theirs (one for each output channel, signed 8 bits), the
product in 32-bit integers, and back to floats, since the reference does not quantise outputs. The temporal
information block is left out: its outputs are an input of the graph.

Shapes: x (B, C, H, W); features (B, D), the block's outputs side by side; condition (B, L, E).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.errors import ModelError
from fewstep.search_spaces.quantization import FULL_PRECISION
from fewstep.tasks.quantization.activations import ActivationQuantizer
from fewstep.tasks.quantization.layers import QuantizedLayer
from fewstep.tasks.quantization.network import QuantizedNetwork, caller
from fewstep.tasks.quantization.tracing import LayerGraph, layer_of

LARGEST = 255


def check(network: QuantizedNetwork, graph: LayerGraph) -> None:
    """Raise ModelError where a network outside its temporal information block does not run in 8-bit integers.

    Layers that a config leaves in full precision run in floats; weights of less than 8 bits are widened exactly.
    """
    time_layers = graph.time_layers
    if shared := sorted({layer_of(call) for call in graph.of_time} - set(time_layers)):
        raise ModelError(f"layer {shared[0]} sees timesteps alone in one call and the image in another")
    layers = {name: layer for name, layer in network.layers.items() if name not in time_layers}
    for name, layer in layers.items():
        bits = layer.bits, FULL_PRECISION if layer.activation is None else layer.activation.bits
        if bits != (FULL_PRECISION, FULL_PRECISION) and (bits[0] > 8 or bits[1] != 8):
            raise ModelError(
                f"layer {name} has {bits[0]}-bit weights and {bits[1]}-bit activations: integer inference needs "
                "weights of at most 8 bits and activations of 8; quantise the model as w8a8"
            )
    if all(layer.bits == FULL_PRECISION for layer in layers.values()):
        raise ModelError("no layer outside the temporal information block is quantised: nothing runs in integers")
    for name, quantizer in network.quantizers.items():
        if name in time_layers:
            continue
        if quantizer.bits != 8:
            raise ModelError(f"{name} has {quantizer.bits}-bit activations: integer inference needs 8")
        if quantizer.token:
            raise ModelError(
                f"{name} finds its range at run time: choose the granularity `tensor` for integer inference"
            )
        if not len(quantizer.times):
            raise ModelError(f"{name} has no range yet: calibrate the network before it is made to run in integers")
        if len(quantizer.times) > 1:
            raise ModelError(
                f"{name} has a grid for each timestep: choose the fsc `none` or `tib` for integer inference"
            )


class Body(nn.Module):
    """The network as a function of x, the block's outputs and what else it takes, on quantised values.

    `widths` are the channels of the block's outputs by the call that makes them, in their order in `features`.
    """

    def __init__(self, network: QuantizedNetwork, graph: LayerGraph, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.module, self.graph, self.widths = network.module, graph, dict(widths)
        self.call = caller(network.module)
        self.block = {name: network.layers[name] for name in graph.time_layers}
        # Operations that the converter knows, made here so that their constants are no part of the traced graph.
        rest = [layer for name, layer in network.layers.items() if name not in self.block]
        self.stand_ins: dict[nn.Module, Callable[..., Tensor]] = {
            layer: _product(layer) for layer in rest if layer.bits != FULL_PRECISION
        }
        self.stand_ins |= {quantizer: _on_grid(quantizer) for quantizer in network.products.values()}
        self.stand_ins |= {m: _group_norm(m) for m in network.module.modules() if isinstance(m, nn.GroupNorm)}

    def forward(self, x: Tensor, features: Tensor, condition: Tensor | None = None) -> Tensor:
        """The raw output, shaped as x."""
        pieces = dict(zip(self.widths, torch.split(features, list(self.widths.values()), 1), strict=True))
        answers: dict[str, list[Tensor]] = {name: [] for name in self.block}
        for name in self.graph.of_time:
            # What only the block's own layers read may be anything.
            unread = features.new_zeros(len(x), self.block[layer_of(name)].shape[0])
            answers[layer_of(name)].append(pieces.get(name, unread))
        stand_ins = self.stand_ins | {self.block[name]: _answering(given) for name, given in answers.items()}
        labels = torch.zeros(len(x), dtype=torch.int64) if "labels" in self.graph.inputs else None
        with replaced(stand_ins):
            output: Tensor = self.call(x=x, time=torch.ones(len(x)), labels=labels, condition=condition)
        return output


@contextmanager
def replaced(stand_ins: Mapping[nn.Module, Callable[..., Tensor]]) -> Iterator[None]:
    """Let these answer for the modules' forward passes, for as long as it lasts."""
    try:
        for module, stand_in in stand_ins.items():
            module.forward = stand_in
        yield
    finally:
        for module in stand_ins:
            module.__dict__.pop("forward", None)


def _answering(answers: Sequence[Tensor]) -> Callable[..., Tensor]:
    waiting = iter(answers)
    return lambda *_, **__: next(waiting)


def _on_grid(quantizer: ActivationQuantizer, segment: int = 0) -> Callable[[Tensor], Tensor]:
    scale, zero = float(quantizer.scale[0, segment]), int(quantizer.zero[0, segment])
    return lambda x: torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, LARGEST)


def _product(layer: QuantizedLayer) -> Callable[..., Tensor]:
    """A quantised layer; where its input channels are split, the sum over the pieces, each on its own grids."""
    activation = layer.activation
    assert activation is not None
    grids = [_on_grid(activation, i if activation.segments else 0) for i in range(len(layer.parts))]
    scales = [part.grid.scale.flatten() for part in layer.parts]
    weights = [part.values for part in layer.parts]

    def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
        outputs = []
        for i, piece in enumerate(torch.split(x, list(layer.segments), 1) if len(weights) > 1 else (x,)):
            # Codes less their zero fit signed 8 bits whatever the bits of the weight, and the steps stay the same.
            zero = torch.zeros(len(scales[i]), dtype=torch.int32)
            weight = torch.fake_quantize_per_channel_affine(weights[i], scales[i], zero, 0, -128, 127)
            outputs.append(layer.multiply(grids[i](piece), weight, None if i else layer.bias))
        return sum(outputs[1:], outputs[0])

    return forward


def _group_norm(norm: nn.GroupNorm) -> Callable[[Tensor], Tensor]:
    """GroupNorm that leaves channels innermost, as integer convolutions want them.

    In its usual form OpenVINO turns images over before and after each norm, a sixth of the whole time.
    """
    channels, size = norm.num_channels, norm.num_channels // norm.num_groups
    # (C, C): the mean over the channels of one's own group.
    mixing = torch.kron(torch.eye(norm.num_groups), torch.full((size, size), 1 / size))
    weight = (norm.weight if norm.affine else torch.ones(channels)).view(1, -1, 1, 1)
    shift = (norm.bias if norm.affine else torch.zeros(channels)).view(1, -1, 1, 1)

    def forward(x: Tensor) -> Tensor:
        if x.ndim != 4:
            return functional.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
        centred = x - (x.mean((2, 3)) @ mixing)[:, :, None, None]
        variance = ((centred * centred).mean((2, 3)) @ mixing)[:, :, None, None]
        return centred * (weight * torch.rsqrt(variance + norm.eps)) + shift

    return forward
