"""A convolution or linear layer with quantised weights and inputs, in the place of the one it was made from.

Shapes: weight (O, I, ...); one grid for each output channel, and for each half of the input channels where
the input is a concatenation that is split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.search_spaces.quantization import FULL_PRECISION
from fewstep.tasks.quantization.activations import ActivationQuantizer
from fewstep.tasks.quantization.affine import Grid, channel_grid
from fewstep.tasks.quantization.packing import pack, unpack

# AdaRound's stretched sigmoid (2004.10568, equation 23).
ZETA, GAMMA = 1.1, -0.1


class WeightPart:
    """The grid and codes of some input channels of a weight, the codes a byte each or packed to their bits."""

    def __init__(self, grid: Grid, codes: Tensor) -> None:
        self.grid, self.shape = grid, tuple(codes.shape)
        self._held, self._packed = codes, False

    @property
    def codes(self) -> Tensor:
        """Codes (O, I, ...), uint8."""
        return unpack(self._held, self.grid.bits, self.shape) if self._packed else self._held

    @codes.setter
    def codes(self, codes: Tensor) -> None:
        self._held, self._packed = codes, False

    def compact(self) -> None:
        """Hold the codes packed."""
        if not self._packed:
            self._held, self._packed = pack(self._held, self.grid.bits).to(self._held.device), True

    def to(self, device: str) -> None:
        """Move codes and grid."""
        self._held = self._held.to(device)
        self.grid = Grid(self.grid.scale.to(device), self.grid.zero.to(device), self.grid.bits)

    @property
    def tensors(self) -> list[Tensor]:
        """What is held in memory."""
        return [self._held, self.grid.scale, self.grid.zero]

    @property
    def values(self) -> Tensor:
        """What the codes stand for."""
        return self.grid.values(self.codes.to(self.grid.scale.dtype))


class QuantizedLayer(nn.Module):
    """Stands in for a Conv2d or Linear. While it is calibrated it keeps the original weight beside the codes."""

    def __init__(
        self, layer: nn.Conv2d | nn.Linear, bits: int, activation: ActivationQuantizer | None, segments: Sequence[int]
    ) -> None:
        super().__init__()
        self.bits, self.segments = bits, tuple(segments) or (layer.weight.shape[1],)
        self.activation = activation
        self.bias = layer.bias
        # What goes with the original weight where a fit changes the bias; a tuple, so that it is no parameter.
        self._exact_bias = (layer.bias,)
        self.original: Tensor | None = layer.weight.detach()
        self.parts: list[WeightPart] = []
        self.on = False
        self.soft: list[Tensor] = []
        self.shape = tuple(layer.weight.shape)
        self._dense: Tensor | None = None
        self._keeps_dense = True
        self.instead: Callable[[int], tuple[Tensor, Tensor | None] | None] | None = None
        self._call: dict[str, Any] = {}
        # What `Conv2d` does for a padding that is not of zeros.
        self._padding: tuple[list[int], str] | None = None
        # What stands around the image: left, right, above, below, and of which kind.
        self._around: tuple[list[int], str] = [], "constant"
        if isinstance(layer, nn.Conv2d):
            self._call = {
                "stride": layer.stride,
                "padding": layer.padding,
                "dilation": layer.dilation,
                "groups": layer.groups,
            }
            self._around = list(layer._reversed_padding_repeated_twice), "constant"
            if layer.padding_mode != "zeros":
                self._padding = self._around = self._around[0], layer.padding_mode
                self._call["padding"] = 0

    @property
    def is_convolution(self) -> bool:
        """Whether it stands for a convolution."""
        return bool(self._call)

    @property
    def weight(self) -> Tensor:
        """The weight in use, as floats."""
        if not self.on or self.bits == FULL_PRECISION:
            assert self.original is not None
            return self.original
        if self.soft:
            return self._soft_weight()
        if not self._keeps_dense:
            return torch.cat([part.values for part in self.parts], 1)
        if self._dense is None:
            # An ordinary tensor even where the first pass is one of inference: gradients may be wanted later.
            with torch.inference_mode(False), torch.no_grad():
                self._dense = torch.cat([part.values for part in self.parts], 1)
        return self._dense

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """The layer's output for its quantised input.

        `instead(B)` may answer: an output, and the rows it is right for; None stands for all of them, and then
        nothing is computed.
        """
        answer = None if self.instead is None else self.instead(len(x))
        if answer is None:
            return self._compute(x)
        output, known = answer
        return output if known is None else torch.where(known[:, None], output, self._compute(x))

    def _compute(self, x: Tensor) -> Tensor:
        if self.activation is not None:
            x = self.activation(x)
        return self.multiply(x, self.weight, self.bias if self.on else self._exact_bias[0])

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's convolution or linear map, with another weight (O, I, ...) for as many input channels."""
        if self._padding is not None:
            x = functional.pad(x, *self._padding)
        if self._call:
            return functional.conv2d(x, weight, bias, **self._call)
        return functional.linear(x, weight, bias)

    @property
    def groups(self) -> int:
        """Groups of the convolution, 1 for a linear layer."""
        return int(self._call.get("groups", 1))

    @property
    def inputs(self) -> int:
        """Inputs of one output."""
        return math.prod(self.shape[1:])

    def pieces(self) -> list[Tensor]:
        """The original weight, cut into the parts' input channels."""
        assert self.original is not None
        return list(torch.split(self.original, list(self.segments), 1))

    def windows(self, x: Tensor, chosen: Callable[[int], Tensor]) -> Tensor:
        """What some outputs are made from: (R, I k k); `chosen` picks R of B H W, or of all but the last axis."""
        if not self._call:
            flat = x.flatten(0, -2)
            return flat[chosen(len(flat)).to(x.device)]
        x = functional.pad(x, *self._around)
        (height, width), (down, right), (tall, wide) = self.shape[2:], self._call["stride"], self._call["dilation"]
        view = x.unfold(2, tall * (height - 1) + 1, down).unfold(3, wide * (width - 1) + 1, right)
        view = view[..., ::tall, ::wide].permute(0, 2, 3, 1, 4, 5)
        places = torch.unravel_index(chosen(math.prod(view.shape[:3])).to(x.device), view.shape[:3])
        return view[places].flatten(1)

    # -- weights --------------------------------------------------------------------------------------

    def set_fit(self, codes: Sequence[Tensor], scales: Sequence[Tensor], bias: Tensor | None) -> None:
        """Codes on grids of other steps, one tensor a part, and another bias; ValueError where codes do not fit."""
        self.check_codes(codes)
        for part, scale in zip(self.parts, scales, strict=True):
            part.grid = Grid(scale.to(part.grid.scale).view_as(part.grid.scale), part.grid.zero, part.grid.bits)
        self.set_codes(codes)
        if bias is not None:
            self.bias = nn.Parameter(bias.to(self._exact_bias[0]), requires_grad=False)

    def round_to_nearest(self, search: bool) -> None:
        """Choose grids, and the nearest codes."""
        assert self.original is not None
        self.parts = []
        if self.bits != FULL_PRECISION:
            for piece in torch.split(self.original, list(self.segments), 1):
                grid = channel_grid(piece, self.bits, search)
                self.parts.append(WeightPart(grid, grid.codes(piece).to(torch.uint8)))
        self._dense = None

    def check_codes(self, codes: Sequence[Tensor]) -> None:
        """ValueError where codes, one tensor a part, do not fit the layer's grids."""
        if len(codes) != len(self.parts):
            raise ValueError(f"{len(codes)} parts in the place of {len(self.parts)}")
        for part, found in zip(self.parts, codes, strict=True):
            if found.shape != part.codes.shape or found.dtype != torch.uint8 or int(found.max()) > part.grid.largest:
                raise ValueError(f"codes {tuple(found.shape)} do not fit {tuple(part.codes.shape)} of {self.bits} bits")

    def set_codes(self, codes: Sequence[Tensor]) -> None:
        """Other codes on the same grids, one tensor a part; ValueError where they do not fit."""
        self.check_codes(codes)
        for part, found in zip(self.parts, codes, strict=True):
            part.codes = found.to(part.codes.device)
        self._dense = None

    def compact(self) -> None:
        """Hold the weight as packed codes alone, made to floats anew at every call."""
        for part in self.parts:
            part.compact()
        self._dense, self._keeps_dense = None, self.bits == FULL_PRECISION

    @property
    def tensors(self) -> list[Tensor]:
        """What the weight takes in memory."""
        held = [tensor for part in self.parts for tensor in part.tensors]
        return held + [tensor for tensor in (self._dense, self.original) if tensor is not None]

    def set_parts(self, parts: list[WeightPart]) -> None:
        """Use these codes; what was calibrated from is let go."""
        self.parts, self._dense, self.original, self.on = parts, None, None, True

    # -- AdaRound (2004.10568) ------------------------------------------------------------------------

    def start_rounding(self) -> list[Tensor]:
        """Variables, one for each weight, whose sign decides whether it is rounded up; now at the exact weight."""
        assert self.original is not None
        self.soft = []
        for part, piece in zip(self.parts, torch.split(self.original, list(self.segments), 1), strict=True):
            share = piece / part.grid.scale
            share = share - share.floor()
            exact = -torch.log((ZETA - GAMMA) / (share - GAMMA) - 1)
            self.soft.append(exact.requires_grad_(True))
        return self.soft

    @staticmethod
    def opening(variable: Tensor) -> Tensor:
        """h in [0, 1]: how far up a weight is rounded."""
        return (torch.sigmoid(variable) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def _soft_weight(self) -> Tensor:
        assert self.original is not None
        pieces = []
        split = torch.split(self.original, list(self.segments), 1)
        for part, piece, variable in zip(self.parts, split, self.soft, strict=True):
            grid = part.grid
            codes = (piece / grid.scale).floor() + self.opening(variable) + grid.zero
            pieces.append(grid.values(codes.clamp(0, grid.largest)))
        return torch.cat(pieces, 1)

    def finish_rounding(self) -> None:
        """Round each weight the way its variable points."""
        assert self.original is not None
        split = torch.split(self.original, list(self.segments), 1)
        for part, piece, variable in zip(self.parts, split, self.soft, strict=True):
            up = (variable.detach() >= 0).to(piece.dtype)
            codes = (piece / part.grid.scale).floor() + up + part.grid.zero
            part.codes = codes.clamp(0, part.grid.largest).to(torch.uint8)
        self.leave_rounding()

    def leave_rounding(self) -> None:
        """Drop the variables; the codes stay as they are."""
        self.soft, self._dense = [], None
