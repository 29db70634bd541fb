"""Round layer after layer by integer least squares, each on what the quantised layers before it give it.

For each layer in the order of the forward pass: the inputs that it will see, weights before it quantised; the
outputs that it should have, in full precision; then its codes, scales and bias. What one layer gets wrong, the next
ones are fitted to. Activations are not quantised meanwhile: their noise would draw the weights towards zero, and
layer after layer of that costs more than it gains. The temporal information block comes first and apart. All its
inputs are known, each with its grid, so there the activations are part of the fit (TIAR in one full batch, TFMQ-DM
section 4.2; FSC, section 4.3).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor, nn

from fewstep.errors import DataError
from fewstep.search_spaces.quantization import FULL_PRECISION
from fewstep.tasks.quantization.activations import ActivationQuantizer
from fewstep.tasks.quantization.descent import Fit, LayerProblem, Moments, chosen_rows
from fewstep.tasks.quantization.kept import Kept
from fewstep.tasks.quantization.layers import QuantizedLayer
from fewstep.tasks.quantization.network import QuantizedNetwork, caller
from fewstep.tasks.quantization.tracing import TimeBlock, layer_of
from fewstep.tasks.quantization.trajectories import Batch, batches
from fewstep.tasks.quantization.units import Reached

BATCH = 64
LEAST_ROWS = 16_384
# What an activation's grids are kept as.
GRIDS = ("scale", "zero", "times")
Done = Callable[[], None]


def fit_layer(
    layer: QuantizedLayer, x: Tensor, y: Tensor, sweeps: int, restarts: int = 0, rows: Tensor | None = None
) -> None:
    """Fit codes, scales and bias to rows x (R, I k k) -> y (R, O), with weights of the rows (R,)."""
    assert layer.original is not None
    sizes = tuple(part.codes[0].numel() for part in layer.parts)
    fit = Fit(
        torch.cat([part.codes.flatten(1) for part in layer.parts], 1).double(),
        torch.stack([part.grid.scale.flatten() for part in layer.parts], 1).double(),
        torch.stack([part.grid.zero.flatten() for part in layer.parts], 1).double(),
        sizes,
    )
    moments = Moments.of(x, y, rows, layer.bias is not None)
    problem = LayerProblem(moments, torch.cat([p.flatten(1) for p in layer.pieces()], 1), layer.parts[0].grid.largest)
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


def _ranged(quantizer: ActivationQuantizer, x: Tensor) -> Tensor:
    """x as the quantiser gives it, once it has found its range on it."""
    quantizer.mode = "observe"
    quantizer(x)
    quantizer.close()
    quantizer.mode = "on"
    quantized: Tensor = quantizer(x)
    return quantized


class Sequential:
    """The fit of all layers of a network on given data; `kept` holds what is finished."""

    def __init__(self, network: QuantizedNetwork, data: Batch, kept: Kept) -> None:
        assert network.graph is not None
        self.network, self.data, self.kept, self.config = network, data, kept, network.config
        self.calls = Counter(layer_of(call) for call in network.graph.order)
        self.order = list(self.calls)
        for name in (name for name in self.order if name in kept):
            try:
                check_state(network.layers[name], kept[name])
            except ValueError as error:
                raise DataError(f"{kept.path} is damaged ({name}: {error}): delete it to calibrate anew") from error

    @torch.no_grad()
    def fit_time_block(self, given: Batch) -> None:
        """Every layer of the block on all its inputs `given`; a timestep counts by the inverse of its features' size.

        Features are small at low noise, where a plain sum of squares would not see them.
        """
        network, names, seen = self.network, self.network.time_layers, dict[str, tuple[Tensor, Tensor]]()
        assert network.graph is not None
        block, count = TimeBlock(network.graph, network.layers), len(given["time"])

        def keep(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
                seen[name] = arguments[0].clone(), output.clone()

            return hook

        handles = [network.layers[name].register_forward_hook(keep(name)) for name in names]
        try:
            network.switch(weights=False, activations="off", names=names)
            features = block(given)
            exact = {name: pair[1] for name, pair in seen.items()}
            rows = torch.stack([f.square().sum(1) for f in features.values()]).sum(0).clamp(min=1e-12).rsqrt()
            for name in names:
                layer = network.layers[name]
                if name in self.kept:
                    restore(layer, self.kept[name])
                    if layer.activation is not None:
                        layer.activation.mode = "on"
                else:
                    network.clock.set(given["time"], given.get("labels"))
                    block(given)
                    x = seen[name][0]
                    x = x if layer.activation is None else _ranged(layer.activation, x)
                    if layer.bits != FULL_PRECISION and len(x) == count and not layer.is_convolution:
                        fit_layer(layer, x, exact[name], self.config.sweeps * 5, self.config.restarts, rows)
                    self.kept.keep(name, state_of(layer))
                layer.on = True
        finally:
            for handle in handles:
                handle.remove()
            network.switch(activations="off")

    @torch.no_grad()
    def fit_layers(self, names: Sequence[str], done: Done) -> None:
        """These layers, in this order; afterwards their weights are on. Activations stay as they are, off."""
        network, targets = self.network, dict[str, Tensor]()
        missing = [name for name in names if name not in self.kept and self.fits(network.layers[name])]
        if missing:
            targets = self._targets(missing)
        for name in names:
            layer = network.layers[name]
            if name in self.kept:
                restore(layer, self.kept[name])
            else:
                if name in targets:
                    fit_layer(layer, self._rows(name), targets.pop(name), self.config.sweeps)
                self.kept.keep(name, state_of(layer))
            layer.on = True
            done()

    @staticmethod
    def fits(layer: QuantizedLayer) -> bool:
        """Whether a layer has codes and its error is the quadratic that is solved: no groups of a convolution."""
        return layer.bits != FULL_PRECISION and layer.groups == 1

    def _chosen(self, name: str, count: int) -> Tensor:
        """Which outputs (image, position) of a batch are fitted to: the same ones in every pass."""
        inputs = self.network.layers[name].inputs
        passes = -(-len(self.data["x"]) // BATCH)
        seed = int(hashlib.sha256(name.encode()).hexdigest()[:6], 16)
        return torch.tensor(list(chosen_rows(count, -(-inputs // passes), seed, -(-LEAST_ROWS // passes))))

    def _targets(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Rows of every layer's output in full precision, from one pass over the data."""
        network = self.network
        kept: dict[str, list[Tensor]] = {name: [] for name in names}
        states = {name: layer.on for name, layer in network.layers.items()}
        network.switch(weights=False, activations="off")

        def keep(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, __: object, output: Tensor) -> None:
                flat = output.movedim(1, -1).flatten(0, -2) if output.ndim == 4 else output.flatten(0, -2)
                kept[name].append(flat[self._chosen(name, len(flat)).to(flat.device)].clone())

            return hook

        handles = [network.layers[name].register_forward_hook(keep(name)) for name in names]
        try:
            for batch in batches(self.data, BATCH):
                caller(network.module)(**batch)
        finally:
            for handle in handles:
                handle.remove()
        for name, on in states.items():
            network.layers[name].on = on
        return {name: torch.cat(pieces) for name, pieces in kept.items()}

    def _rows(self, name: str) -> Tensor:
        """The inputs (R, I k k) of the chosen outputs, of every call where there are several."""
        layer, rows = self.network.layers[name], list[Tensor]()

        def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            rows.append(layer.windows(arguments[0], partial(self._chosen, name)))
            if len(rows) % self.calls[name] == 0:
                raise Reached

        handle = layer.register_forward_pre_hook(keep)
        try:
            for batch in batches(self.data, BATCH):
                with suppress(Reached):
                    caller(self.network.module)(**batch)
        finally:
            handle.remove()
        return torch.cat(rows)
