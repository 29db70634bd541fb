"""A quantised network that runs in 8-bit integers on the CPU, in the place of its floating-point imitation.

The temporal information block depends on timesteps and labels alone: the reference computes it once for each
pair of them and its outputs are remembered. Everything else is one graph (`integer_graph.py`), compiled
(`integer_openvino.py`).

Shapes: x (B, C, H, W); time () or (B,); labels (B,); condition (B, L, E).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import EvaluationError, ModelError
from fewstep.tasks.quantization.integer_graph import Body, check
from fewstep.tasks.quantization.integer_openvino import Compiled, backend
from fewstep.tasks.quantization.network import QuantizedNetwork, caller
from fewstep.tasks.quantization.tracing import LayerGraph, TimeBlock, trace

# The largest relative error against the reference at which a compiled graph is believed. Other orders of the
# same sums move values over the edges of their grids, which alone makes up to 0.01; a wrong graph is far off.
BELIEVABLE = 0.1
# Pairs of timestep and label that are remembered.
REMEMBERED = 50_000


class Features:
    """Outputs of the temporal information block, side by side, remembered by timestep and label."""

    def __init__(self, network: QuantizedNetwork, graph: LayerGraph) -> None:
        self.clock, self.batch, self.labelled = network.clock, graph.batch, "labels" in graph.inputs
        self._block = TimeBlock(graph, network.layers)
        self._rows: dict[tuple[float, int | None], int] = {}
        self._values: list[Tensor] = []
        self._table: Tensor | None = None
        first = self._compute(0.0, 0 if self.labelled else None)
        self.widths = {name: value.shape[-1] for name, value in first.items()}

    def __call__(self, time: Tensor, labels: Tensor | None, count: int) -> Tensor:
        """Features (B, D) of `count` images."""
        if self.labelled and labels is None:
            raise EvaluationError("the network takes labels, and none were given")
        times: list[float] = time.to(torch.float32).flatten().tolist()
        named: list[int | None] = [None]
        if self.labelled and labels is not None:
            named = labels.flatten().tolist()
        if not {len(times), len(named)} <= {1, count}:
            raise EvaluationError(f"{len(times)} timesteps and {len(named)} labels for {count} images")
        times = times * count if len(times) == 1 else times
        named = named * count if len(named) == 1 else named
        return self._look_up(list(zip(times, named, strict=True)))

    def _look_up(self, keys: list[tuple[float, int | None]]) -> Tensor:
        new = [key for key in dict.fromkeys(keys) if key not in self._rows]
        if new and len(self._rows) + len(new) > REMEMBERED:
            self._rows.clear()
            self._values.clear()
            new = list(dict.fromkeys(keys))
        for key in new:
            self._rows[key] = len(self._values)
            self._values.append(torch.cat([value.flatten() for value in self._compute(*key).values()]))
        if new or self._table is None:
            self._table = torch.stack(self._values)
        return self._table[[self._rows[key] for key in keys]]

    @torch.no_grad()
    def _compute(self, time: float, label: int | None) -> dict[str, Tensor]:
        """Rows (1, D) of one pair, by the block's outputs."""
        # One time for all rows is what quantisers with a grid for each timestep and tables understand everywhere.
        given = {"time": torch.full((self.batch,), time)}
        if label is not None:
            given["labels"] = torch.full((self.batch,), label)
        self.clock.set(torch.tensor(time), None if label is None else torch.tensor([label]))
        return {name: value[:1] for name, value in self._block(given).items()}


class IntegerNetwork(nn.Module):
    """Takes the place of a quantised diffusers network: `module(x, timestep, labels).sample`.

    A batch is cut into pieces of the compiled sizes, the last one filled up. Images do not see each other: their
    outputs do not depend on what they are batched with. `error` is the relative error against the reference.
    """

    def __init__(self, features: Features, graphs: Mapping[int, Compiled], config: Any = None) -> None:
        super().__init__()
        self.features, self.graphs, self.config = features, dict(sorted(graphs.items())), config
        self.error = 0.0

    @classmethod
    def build(
        cls,
        network: QuantizedNetwork,
        example: Mapping[str, Tensor],
        batches: Sequence[int] = (1, 16),
        threads: int | None = None,
    ) -> IntegerNetwork:
        """Compile a calibrated network for these batch sizes; takes some seconds for each.

        `example` holds a small batch of the network's inputs (x, time (B,), labels or condition): its shapes are
        compiled, and the reference's output for it is what the compiled graphs are checked with. `threads` are
        the backend's, by default as many as torch has.
        Raises ConfigurationError where OpenVINO is not installed, ModelError for a network that is not calibrated,
        has something that 8-bit integers do not hold, or cannot be converted.
        """
        backend()
        if not batches or min(batches) < 1:
            raise ModelError(f"batch sizes {list(batches)}: give at least one, and none below 1")
        if example["x"].device.type != "cpu":
            raise ModelError(f"integers run on the CPU, and the network is on {example['x'].device}: move it")
        call = caller(network.module)
        with torch.no_grad():
            graph = network.graph or trace(call, example, network.layers)
            check(network, graph)
            features = Features(network, graph)
            body, threads = Body(network, graph, features.widths), threads or torch.get_num_threads()
            graphs = {size: Compiled(body, _inputs(example, features, size), threads) for size in batches}
            found = cls(features, graphs, getattr(network.module, "config", None))
            expected = call(**example)
            found.error = float((found.run(**example) - expected).norm() / expected.norm())
        if not found.error <= BELIEVABLE:
            raise ModelError(
                f"the integer network is {found.error:.2g} off its reference: it depends on the timestep in a way "
                "that is not understood; run it without integers"
            )
        return found

    @torch.no_grad()
    def run(self, x: Tensor, time: Tensor, labels: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """The raw output, shaped as x; EvaluationError where the sizes of the inputs do not fit together."""
        inputs = [x, self.features(time, labels, len(x))]
        if condition is not None:
            inputs.append(condition.expand(len(x), -1, -1))
        output = torch.empty_like(x, memory_format=torch.contiguous_format)
        first = 0
        while rest := len(x) - first:
            size = self._size(rest)
            count = min(size, rest)
            given = (_filled(value[first : first + count], size) for value in inputs)
            output[first : first + count] = self.graphs[size](*given)[:count]
            first += count
        return output

    def _size(self, rest: int) -> int:
        """The compiled batch for the next of `rest` images: one of which at least half is used."""
        return max((size for size in self.graphs if size <= 2 * rest), default=min(self.graphs))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
    ) -> SimpleNamespace:
        """`run` under diffusers' names; the answer is in `sample`."""
        time = torch.as_tensor(timestep, dtype=torch.float32)
        return SimpleNamespace(sample=self.run(sample, time, class_labels, encoder_hidden_states))


def _filled(value: Tensor, size: int) -> Tensor:
    """Repeat the last row until there are `size`."""
    missing = size - len(value)
    return value if not missing else torch.cat([value, value[-1:].expand(missing, *value.shape[1:])])


def _inputs(example: Mapping[str, Tensor], features: Features, size: int) -> list[Tensor]:
    """What a graph is traced with: the example's rows over and over."""
    rows = torch.arange(size) % len(example["x"])
    given = {name: value[rows] for name, value in example.items()}
    inputs = [given["x"], features(given["time"], given.get("labels"), size)]
    return [*inputs, given["condition"]] if "condition" in given else inputs
