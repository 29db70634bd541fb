"""How a network's layers hang together, read from one traced forward pass.

The pass is traced with every convolution and linear layer cut out: its output is an input of the graph, its
input an output. What remains says for each layer which layers its input comes from, whether it depends on the
image at all, and whether it is a concatenation. No module is known by its name.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from fewstep.errors import ModelError

Call = Any


@dataclass(frozen=True)
class LayerGraph:
    """Layers by name in the order of their calls.

    A layer that is called again appears again, as NAME#2. `sources` are the layers (and the inputs `x`, `time`,
    `labels`, `condition`) that a layer's input is made from directly; `halves` the channels of the pieces where it
    is a plain concatenation.
    """

    order: tuple[str, ...]
    sources: Mapping[str, frozenset[str]]
    halves: Mapping[str, tuple[int, ...]]
    graph: GraphModule
    inputs: tuple[str, ...]
    batch: int

    @property
    def of_time(self) -> tuple[str, ...]:
        """Calls whose input depends on timesteps and labels alone: the temporal information block."""
        rest: set[str] = set()
        for name in self.order:
            if self.sources[name] & (rest | {"x", "condition"}):
                rest.add(name)
        return tuple(name for name in self.order if name not in rest and self.sources[name])

    @property
    def projections(self) -> tuple[str, ...]:
        """Calls of the block that the rest of the network reads, or nobody of the block: its outputs."""
        block = self.of_time
        read = self._read_by(block)
        outside = self._read_by(name for name in self.order if name not in block)
        return tuple(name for name in block if name in outside or name not in read)

    @property
    def time_layers(self) -> tuple[str, ...]:
        """Layers all of whose calls belong to the block."""
        block = set(self.of_time)
        others = {layer_of(name) for name in self.order if name not in block}
        return tuple(dict.fromkeys(layer_of(name) for name in self.of_time if layer_of(name) not in others))

    def _read_by(self, names: Iterable[str]) -> frozenset[str]:
        return frozenset[str]().union(*(self.sources[name] for name in names))


def layer_of(call: str) -> str:
    """The layer's name, of the name of a call."""
    return call.partition("#")[0]


def trace(call: Call, given: Mapping[str, Tensor], layers: Mapping[str, nn.Module]) -> LayerGraph:
    """Trace `call(x, time, labels, condition)` of a network whose `layers` are cut out.

    `given` holds those of the inputs that exist; x sets the batch. Raises ModelError where the network cannot
    be traced.
    """
    outputs: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def next_call(name: str) -> str:
        counts[name] = counts.get(name, 0) + 1
        return name if counts[name] == 1 else f"{name}#{counts[name]}"

    def remember(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            outputs[next_call(name)] = output.detach()

        return hook

    handles = [layer.register_forward_hook(remember(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            call(**given)
    except Exception as error:
        raise ModelError(f"the network does not run on the example: {_first_line(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
    order, inputs = tuple(outputs), tuple(given)

    def cut(*tensors: Tensor) -> list[Tensor]:
        answers = dict(zip(order, tensors[len(inputs) :], strict=True))
        seen: dict[str, Tensor] = {}
        counts.clear()

        def stand_in(name: str) -> Any:
            def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
                this = next_call(name)
                seen[this] = x
                return answers[this]

            return forward

        used = {layer_of(name) for name in order}
        for name in used:
            layers[name].forward = stand_in(name)
        try:
            call(**dict(zip(inputs, tensors[: len(inputs)], strict=True)))
        finally:
            for name in used:
                del layers[name].forward
        return [seen[name] for name in order]

    try:
        with torch.no_grad():
            graph = make_fx(cut)(*given.values(), *outputs.values())
    except Exception as error:  # Whatever foreign code raises that looks into the tensors it is given.
        raise ModelError(f"the network cannot be traced for quantisation: {_first_line(error)}") from error
    return _read(graph, inputs, order, len(given["x"]))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _read(graph: GraphModule, inputs: tuple[str, ...], order: tuple[str, ...], batch: int) -> LayerGraph:
    nodes = list(graph.graph.nodes)
    names = dict(zip((n for n in nodes if n.op == "placeholder"), (*inputs, *order), strict=True))
    reaches: dict[Node, frozenset[str]] = {}
    for node in nodes[:-1]:
        sources = (reaches[n] for n in node.all_input_nodes)
        reaches[node] = frozenset({names[node]}) if node in names else frozenset().union(*sources)
    ends = dict(zip(order, nodes[-1].args[0], strict=True))
    halves = {}
    for name, node in ends.items():
        value = node.meta.get("val")
        if node.target is torch.ops.aten.cat.default and value is not None and value.ndim == 4:
            pieces, axis = node.args[0], node.args[1] if len(node.args) > 1 else 0
            if axis % 4 == 1 and len(pieces) > 1:
                halves[name] = tuple(int(piece.meta["val"].shape[1]) for piece in pieces)
    return LayerGraph(order, {name: reaches[node] for name, node in ends.items()}, halves, graph, inputs, batch)


class TimeBlock:
    """The temporal information block as a function of its own: (time, labels) -> outputs of its projections.

    Runs the traced operations between the block's layers and calls `layers`, so it follows whatever stands in
    their place. Shapes: time (N,), labels (N,); outputs (N, D).

    The trace holds the batch it was made with in the sizes of a few operations. All rows are tried at once with
    those sizes replaced; where that does not give what slices of the traced size give, slices are what is run.
    """

    def __init__(self, found: LayerGraph, layers: Mapping[str, nn.Module]) -> None:
        self.names, self.projections = found.of_time, found.projections
        self._layers, self._batch, self._graph = layers, found.batch, found.graph
        nodes = list(found.graph.graph.nodes)
        ends = dict(zip(found.order, nodes[-1].args[0], strict=True))
        self._ends = {name: ends[name] for name in self.names}
        placeholders = [n for n in nodes if n.op == "placeholder"]
        self._names = dict(zip(placeholders, (*found.inputs, *found.order), strict=True))
        self._wide: dict[int, bool] = {}

    def __call__(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs of the block's projections for the given `time` and, where the network has them, `labels`."""
        given = {name: given[name] for name in ("time", "labels") if name in given}
        rows = len(given["time"])
        if rows not in self._wide:
            self._wide[rows] = self._agrees(given, rows)
        if self._wide[rows]:
            found = self._run(given, rows)
            return {name: found[name] for name in self.projections}
        return self._sliced(given, rows)

    @torch.no_grad()
    def _agrees(self, given: Mapping[str, Tensor], rows: int) -> bool:
        expected = self._sliced(given, rows)
        try:
            found = self._run(given, rows)
        except (RuntimeError, IndexError, ValueError):
            return False
        return all(
            found[name].shape == value.shape
            and torch.allclose(found[name], value, rtol=1e-4, atol=1e-5 * (1 + float(value.abs().max())))
            for name, value in expected.items()
        )

    def _sliced(self, given: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
        pieces: dict[str, list[Tensor]] = {name: [] for name in self.projections}
        for first in range(0, rows, self._batch):
            index = torch.arange(first, first + self._batch, device=given["time"].device).clamp(max=rows - 1)
            found = self._run({name: value[index] for name, value in given.items()}, self._batch)
            for name in self.projections:
                pieces[name].append(found[name][: rows - first])
        return {name: torch.cat(parts) for name, parts in pieces.items()}

    def _run(self, given: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
        known: dict[str, Tensor] = dict(given)
        values: dict[Node, Any] = {}

        def fitted(argument: Any) -> Any:
            if not isinstance(argument, list | tuple) or not all(isinstance(size, int) for size in argument):
                return argument
            return [rows, *argument[1:]] if argument and argument[0] == self._batch else argument

        def value(node: Node) -> Any:
            if node not in values:
                if node.op == "placeholder":
                    values[node] = known[self._names[node]]
                elif node.op == "get_attr":
                    values[node] = operator.attrgetter(str(node.target))(self._graph)
                else:
                    arguments, named = torch.fx.map_arg((node.args, node.kwargs), value)
                    values[node] = node.target(*map(fitted, arguments), **named)  # type: ignore[operator]
            return values[node]

        for name in self.names:
            known[name] = self._layers[layer_of(name)](value(self._ends[name]))
        return known
