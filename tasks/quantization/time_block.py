"""Fit the temporal information block: TIAR as integer least squares on all that the block can be asked.

Its inputs are finitely many and all known, each timestep with activation grids of its own, so activations are part of
the fit (TFMQ-DM section 4.2; FSC, section 4.3). A layer's inputs are computed anew when it is its turn, so that no
more than one layer's are held at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.search_spaces.quantization import FULL_PRECISION
from fewstep.tasks.quantization.activations import ActivationQuantizer
from fewstep.tasks.quantization.descent import Moments
from fewstep.tasks.quantization.fitting import fit_moments, restore, state_of
from fewstep.tasks.quantization.kept import Kept
from fewstep.tasks.quantization.network import QuantizedNetwork
from fewstep.tasks.quantization.tracing import TimeBlock
from fewstep.tasks.quantization.trajectories import Batch

# The block's layers are few and small: its sweeps are this many times those of other layers.
SWEEPS = 5


def _ranged(quantizer: ActivationQuantizer | None, calls: Sequence[Tensor]) -> list[Tensor]:
    """What a layer is given at its calls as its quantiser gives it, once that has found its grids on them."""
    if quantizer is None:
        return list(calls)
    quantizer.mode = "observe"
    for x in calls:
        quantizer(x)
    quantizer.close()
    quantizer.thin()
    quantizer.mode = "on"
    return [quantizer(x) for x in calls]


class BlockFit:
    """The block of a network on rows `given`: time (R,), labels (R,) if any."""

    def __init__(self, network: QuantizedNetwork, given: Batch) -> None:
        assert network.graph is not None
        self.network, self.given, self.names = network, given, network.time_layers
        self.block = TimeBlock(network.graph, network.layers, network.clock)
        self._fitted: list[str] = []

    @torch.no_grad()
    def fit(self, kept: Kept) -> None:
        """Every layer; a row counts by the inverse of its features' size, weights are on afterwards.

        Features are small at low noise, where a plain sum of squares would not see them.
        """
        network, config = self.network, self.network.config
        rows: Tensor | None = None
        for name in self.names:
            layer = network.layers[name]
            if name in kept:
                restore(layer, kept[name])
            else:
                rows = self._weights() if rows is None else rows
                exact = self._inputs(name, quantized=False)
                y = torch.cat([layer(x) for x in exact])
                x = torch.cat(_ranged(layer.activation, self._inputs(name, quantized=True)))
                of_rows = len(x) == len(rows) * len(exact)
                if layer.bits != FULL_PRECISION and of_rows and not layer.is_convolution:
                    moments = Moments.of(x, y, rows.repeat(len(exact)), layer.bias is not None)
                    fit_moments(layer, moments, config.sweeps * SWEEPS, config.restarts)
                kept.keep(name, state_of(layer))
            self._fitted.append(name)
        network.switch(weights=True, names=self.names)
        network.switch(activations="off")

    @torch.no_grad()
    def ranges(self) -> None:
        """Grids of all the block's activations, weights as they are."""
        for name in self.names:
            _ranged(self.network.layers[name].activation, self._inputs(name, quantized=True))
            self._fitted.append(name)
        self.network.switch(weights=True, activations="on", names=self.names)

    def _inputs(self, name: str, quantized: bool) -> list[Tensor]:
        """What a layer is given at its calls, in full precision or after the layers that are fitted."""
        self.network.switch(weights=False, activations="off", names=self.names)
        if quantized:
            self.network.switch(weights=True, activations="on", names=self._fitted)
        found = self.block.inputs_of(name, self.given)
        self.network.switch(weights=False, activations="off", names=self.names)
        self.network.clock.set(self.given["time"], self.given.get("labels"))
        return found

    def _weights(self) -> Tensor:
        """Weights of the rows (R,), from the features in full precision, one projection after the other."""
        self.network.switch(weights=False, activations="off", names=self.names)
        squares = [self.block(self.given, [name])[name].square().sum(1) for name in self.block.projections]
        return torch.stack(squares).sum(0).clamp(min=1e-12).rsqrt()
