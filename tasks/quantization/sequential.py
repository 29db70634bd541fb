"""Round layer after layer by integer least squares, each on what the quantised layers before it give it.

For each layer in the order of the forward pass: the inputs that it will see, weights before it quantised; the
outputs that it should have, in full precision; then its codes, scales and bias. What one layer gets wrong, the next
ones are fitted to: a layer whose output is added to a stream is fitted to the sum in full precision, less what the
stream is by then, as a block's reconstruction would have it. Activations are not quantised meanwhile: their noise
would draw the weights towards zero, and layer after layer of that costs more than it gains.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor, nn

from fewstep.errors import DataError
from fewstep.search_spaces.quantization import FULL_PRECISION
from fewstep.tasks.quantization.descent import Moments, MomentSums, chosen_rows
from fewstep.tasks.quantization.fitting import check_state, fit_moments, restore, state_of
from fewstep.tasks.quantization.kept import Kept
from fewstep.tasks.quantization.layers import QuantizedLayer
from fewstep.tasks.quantization.memory import BATCH, LEAST_ROWS
from fewstep.tasks.quantization.network import QuantizedNetwork, caller
from fewstep.tasks.quantization.shelf import Shelf
from fewstep.tasks.quantization.sums import Sums
from fewstep.tasks.quantization.time_block import BlockFit
from fewstep.tasks.quantization.tracing import layer_of
from fewstep.tasks.quantization.trajectories import Batch, batches
from fewstep.tasks.quantization.units import Reached

Done = Callable[[], None]
# How firmly weights are held to what they were, as a share of the mean squared input. Inputs carry what the layers
# before got wrong; codes that are fitted to that freely fit the images that they were seen on, and no others.
NEAR = 0.3


class Sequential:
    """The fit of all layers of a network on given data, `batch` rows at a time; `kept` holds what is finished."""

    def __init__(self, network: QuantizedNetwork, data: Batch, kept: Kept, batch: int = BATCH) -> None:
        assert network.graph is not None
        self.network, self.data, self.kept, self.config = network, data, kept, network.config
        self.batch = batch
        self.calls = Counter(layer_of(call) for call in network.graph.order)
        self.order = list(self.calls)
        self.summands = {name for name in network.graph.summands if self.calls[layer_of(name)] == 1}
        for name in (name for name in self.order if name in kept):
            try:
                check_state(network.layers[name], kept[name])
            except ValueError as error:
                raise DataError(f"{kept.path} is damaged ({name}: {error}): delete it to calibrate anew") from error

    def fit_time_block(self, given: Batch) -> None:
        """Every layer of the temporal information block, on all its inputs `given`."""
        BlockFit(self.network, given).fit(self.kept)

    @torch.no_grad()
    def fit_layers(self, names: Sequence[str], done: Done) -> None:
        """These layers, in this order; afterwards their weights are on. Activations stay as they are, off."""
        missing = [name for name in names if name not in self.kept and self.fits(self.network.layers[name])]
        with Shelf(None if self.kept.path is None else self.kept.path.parent) as shelf:
            if missing:
                self._store_targets(missing, shelf)
            for name in names:
                layer = self.network.layers[name]
                if name in self.kept:
                    restore(layer, self.kept[name])
                else:
                    if name in missing:
                        fit_moments(layer, self._moments(name, shelf), self.config.sweeps, ridge=NEAR)
                        shelf.drop(name)
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
        passes = -(-len(self.data["x"]) // self.batch)
        seed = int(hashlib.sha256(name.encode()).hexdigest()[:6], 16)
        return torch.tensor(list(chosen_rows(count, -(-inputs // passes), seed, -(-LEAST_ROWS // passes))))

    def _picked(self, name: str, output: Tensor) -> Tensor:
        """The chosen rows (R, O) of an output."""
        flat = output.movedim(1, -1).flatten(0, -2) if output.ndim == 4 else output.flatten(0, -2)
        return flat[self._chosen(name, len(flat)).to(flat.device)]

    def _store_targets(self, names: Sequence[str], shelf: Shelf) -> None:
        """Rows of every layer's output in full precision, or of the sum that it goes into, from one pass."""
        network = self.network
        states = {name: layer.on for name, layer in network.layers.items()}
        network.switch(weights=False, activations="off")
        outputs: dict[str, Tensor] = {}

        def put_sum(name: str, other: Tensor) -> None:
            shelf.put(name, outputs.pop(name) + self._picked(name, other))

        def keep(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, __: object, output: Tensor) -> None:
                rows = self._picked(name, output)
                if name in self.summands:
                    outputs[name] = rows
                    sums.track(name, output)
                else:
                    shelf.put(name, rows)

            return hook

        handles = [network.layers[name].register_forward_hook(keep(name)) for name in names]
        try:
            for batch in batches(self.data, self.batch):
                with Sums(put_sum) as sums:
                    caller(network.module)(**batch)
                # What the trace saw added and the pass did not is fitted to its own output.
                for name in list(outputs):
                    self.summands.discard(name)
                    shelf.put(name, outputs.pop(name))
        finally:
            for handle in handles:
                handle.remove()
        for name, on in states.items():
            network.layers[name].on = on

    def _moments(self, name: str, shelf: Shelf) -> Moments:
        """Of a layer's inputs and of what its output is to be, gathered batch by batch."""
        sums, target = MomentSums(self.network.layers[name].bias is not None), shelf.read(name)
        for rows, other in self._passes(name):
            y = target(len(rows)).to(rows)
            sums.add(rows, y if other is None else y - other)
        return sums.moments()

    def _passes(self, name: str) -> Iterator[tuple[Tensor, Tensor | None]]:
        """For each call of the layer on each batch: inputs (R, I k k) of the chosen outputs, what is added to those."""
        layer, found = self.network.layers[name], list[tuple[Tensor, Tensor | None]]()
        added = name in self.summands

        def before(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            found.append((layer.windows(arguments[0], partial(self._chosen, name)), None))
            if not added and len(found) == self.calls[name]:
                raise Reached

        def after(_: nn.Module, __: object, output: Tensor) -> None:
            if added:
                sums.track(name, output)

        def seen(_: str, other: Tensor) -> None:
            found[0] = found[0][0], self._picked(name, other)
            raise Reached

        handles = [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
        try:
            for batch in batches(self.data, self.batch):
                with suppress(Reached), Sums(seen) as sums:
                    caller(self.network.module)(**batch)
                yield from found
                found.clear()
        finally:
            for handle in handles:
                handle.remove()
