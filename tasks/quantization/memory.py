"""How much memory a calibration takes at most, said before it begins, and how it is kept from taking more.

What grows with the number of images lies on disk (`shelf.py`). In memory are the network with its codes, the inputs
along the trajectories, one pass over one batch, and what one layer is fitted with: the moments of its inputs, or
a batch of AdaRound with its gradients.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fewstep.search_spaces.quantization import FULL_PRECISION
from fewstep.tasks.quantization.descent import BLOCK, COLUMNS, chosen_rows
from fewstep.tasks.quantization.layers import QuantizedLayer
from fewstep.tasks.quantization.network import QuantizedNetwork, caller
from fewstep.tasks.quantization.units import find_units

DOUBLE, FLOAT = 8, 4
# Rows that go through the network at a time, fewer where they would take more than PASS bytes.
BATCH, PASS = 64, 4 * 2**30
# Rows of outputs that a layer is fitted to at least, where there are as many.
LEAST_ROWS = 16_384
# Matrices (O, I) that a descent holds at once, the best of its restarts among them; and copies of a chunk's rows.
WORKING, COPIES = 14, 3
# Rounding variables with gradient and both averages of Adam, soft weight and codes; activations kept for the gradient.
VARIABLES, KEPT_FOR_GRADIENT = 8, 3


class LivePeak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it lasts, `peak` is the most bytes of tensors made since that lived at one time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function and count what it made."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage(), tree_leaves((args, kwargs)))
        return result

    def _count(self, storage: Any, given: list[Any]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or any(isinstance(g, Tensor) and g.untyped_storage()._cdata == key for g in given):
            return
        self._known.add(key)
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


def batch_for(a_row: int) -> int:
    """How many rows go through the network at a time where one takes so many bytes."""
    return max(1, min(BATCH, PASS // max(1, a_row)))


@dataclass(frozen=True)
class Forecast:
    """Bytes. `disk` is what lies in temporary files meanwhile; the rest is memory, `peak` the sum of what coincides."""

    network: int
    data: int
    a_pass: int
    largest_fit: int
    largest_layer: str
    disk: int

    @property
    def peak(self) -> int:
        """The most memory at one time."""
        return self.network + self.data + self.a_pass + self.largest_fit


@torch.no_grad()
def forecast(
    network: QuantizedNetwork, example: Mapping[str, Tensor], rows: int, batch: int, asked: int = 0
) -> Forecast:
    """Of a calibration on `rows` inputs, `batch` at a time, and on `asked` rows of the temporal information block.

    Runs the network once on `example`.
    """
    count, outputs = len(example["x"]), dict[str, int]()
    handles = []

    def watch(name: str) -> Any:
        def hook(_: Any, __: Any, output: Tensor) -> None:
            # Positions of one image, of all calls.
            outputs[name] = outputs.get(name, 0) + output.numel() // network.layers[name].shape[0] // count

        return hook

    for name, layer in network.layers.items():
        handles.append(layer.register_forward_hook(watch(name)))
    try:
        with LivePeak() as live:
            caller(network.module)(**example)
    finally:
        for handle in handles:
            handle.remove()
    a_row, fits, disk = live.peak // count, dict[str, int](), 0
    if network.config.solver != "descent" and network.config.reconstruction != "none":
        # Units of AdaRound: their inputs and outputs lie on disk, a batch of them is in memory.
        for unit in find_units(network, network.config.reconstruction == "block", network.config.tib == "layers"):
            weights = sum(math.prod(layer.shape) for layer in unit.layers)
            fits[unit.name] = VARIABLES * FLOAT * weights + KEPT_FOR_GRADIENT * a_row * network.config.batch
        disk = 2 * a_row * rows
        outputs = {name: n for name, n in outputs.items() if network.plans[name].role == "time"}
    for name, places in outputs.items():
        layer = network.layers[name]
        if network.plans[name].role == "time" and network.config.tib != "layers":
            fits[name] = _fit_bytes(layer, asked)
            continue
        if layer.bits == FULL_PRECISION:
            continue
        passes = -(-rows // batch)
        chosen = len(chosen_rows(places * batch, -(-layer.inputs // passes), 0, -(-LEAST_ROWS // passes)))
        fits[name] = _fit_bytes(layer, chosen)
        disk += chosen * passes * layer.shape[0] * FLOAT
    largest = max(fits, key=lambda name: fits[name], default="")
    weights = sum(math.prod(layer.shape) for layer in network.layers.values())
    # Weights as floats once more beside the originals, and the codes and scales that are kept, twice while written.
    held = network.bytes + weights * FLOAT + 3 * weights
    return Forecast(
        network=held,
        data=sum(value.element_size() * value[0].numel() for value in example.values()) * rows,
        a_pass=a_row * batch,
        largest_fit=fits.get(largest, 0),
        largest_layer=largest,
        disk=disk,
    )


def _fit_bytes(layer: QuantizedLayer, chosen: int) -> int:
    """Moments, and what is done with them: rows are gathered first, then codes are descended to."""
    outputs, inputs = layer.shape[0], layer.inputs
    moments = DOUBLE * (inputs * inputs + inputs * outputs)
    gather = FLOAT * (COPIES * chosen * (inputs + outputs) + inputs * min(inputs, COLUMNS))
    descend = DOUBLE * (WORKING * inputs * outputs + inputs * BLOCK)
    return moments + max(gather, descend)
