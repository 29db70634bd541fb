"""How a network's layers hang together, read from one traced forward pass.

The pass is traced with every convolution and linear layer cut out: its output is an input of the graph, its
input an output. What remains says for each layer which layers its input comes from, whether it depends on the
image at all, and whether it is a concatenation. No module is known by its name.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from fewstep.errors import ModelError
from fewstep.tasks.quantization.clock import Clock

Call = Any
# Slices of the traced batch that all rows at once are compared with.
CHECKED = 3


@dataclass(frozen=True)
class LayerGraph:
    """Layers by name in the order of their calls.

    A layer that is called again appears again, as NAME#2. `sources` are the layers (and the inputs `x`, `time`,
    `labels`, `condition`) that a layer's input is made from directly; `halves` the channels of the pieces where it
    is a plain concatenation; `summands` the calls whose output is first of all added to something that it has no
    part in, as at the end of a residual branch.
    """

    order: tuple[str, ...]
    sources: Mapping[str, frozenset[str]]
    halves: Mapping[str, tuple[int, ...]]
    graph: GraphModule
    inputs: tuple[str, ...]
    batch: int
    summands: frozenset[str] = frozenset()

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
    read = {name: reaches[node] for name, node in ends.items()}
    made_of: dict[str, frozenset[str]] = {}
    for name in order:
        made_of[name] = read[name].union(*(made_of.get(source, frozenset()) for source in read[name]))
    summands = set()
    for node, name in names.items():
        other = _added_to(node) if name in read else None
        if other is not None and not any(name in {call} | made_of.get(call, frozenset()) for call in reaches[other]):
            summands.add(name)
    return LayerGraph(order, read, halves, graph, inputs, batch, frozenset(summands))


# What a sum is looked for behind: the same numbers in another shape.
VIEWS = {
    torch.ops.aten.view.default,
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten.transpose.int,
    torch.ops.aten.permute.default,
    torch.ops.aten.clone.default,
}


def _added_to(node: Node) -> Node | None:
    """What a node's value is added to, where that is its first and only use."""
    while len(node.users) == 1:
        (user,) = node.users
        if user.target is torch.ops.aten.add.Tensor and not user.kwargs:
            others = [n for n in user.all_input_nodes if n is not node]
            return others[0] if len(others) == 1 else None
        if user.target not in VIEWS:
            return None
        node = user
    return None


class TimeBlock:
    """The temporal information block as a function of its own: (time, labels) -> outputs of its projections.

    Runs the traced operations between the block's layers and calls `layers`, so it follows whatever stands in
    their place; `clock`, where there is one, is set to the rows of each pass. Shapes: time (N,), labels (N,);
    outputs (N, D).

    The trace holds the batch it was made with in the sizes of a few operations. All rows are tried at once with
    those sizes replaced; where that does not give what slices of the traced size give, slices are what is run.
    """

    def __init__(self, found: LayerGraph, layers: Mapping[str, nn.Module], clock: Clock | None = None) -> None:
        self.names, self.projections = found.of_time, found.projections
        self._layers, self._batch, self._graph, self._clock = layers, found.batch, found.graph, clock
        nodes = list(found.graph.graph.nodes)
        ends = dict(zip(found.order, nodes[-1].args[0], strict=True))
        self._ends = {name: ends[name] for name in self.names}
        placeholders = [n for n in nodes if n.op == "placeholder"]
        count = len(found.inputs)
        self._inputs = dict(zip(placeholders[:count], found.inputs, strict=True))
        self._calls = dict(zip(placeholders[count:], found.order, strict=True))
        self._wide: dict[int, bool] = {}

    def __call__(self, given: Mapping[str, Tensor], names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Outputs of the named projections (default: all) for the given `time` and, where there are any, `labels`."""
        return self._computed(given, self.projections if names is None else names, inputs=False)

    def inputs_of(self, layer: str, given: Mapping[str, Tensor]) -> list[Tensor]:
        """What the layer is given (N, I) at each of its calls; no more of the block is computed than that takes."""
        calls = tuple(name for name in self.names if layer_of(name) == layer)
        return list(self._computed(given, calls, inputs=True).values())

    def _computed(self, given: Mapping[str, Tensor], names: Sequence[str], inputs: bool) -> dict[str, Tensor]:
        given = {name: given[name] for name in ("time", "labels") if name in given}
        rows = len(given["time"])
        if rows not in self._wide:
            self._wide[rows] = self._agrees(given, rows)
        if self._wide[rows]:
            return self._run(given, rows, names, inputs)
        return self._sliced(given, rows, names, inputs)

    @torch.no_grad()
    def _agrees(self, given: Mapping[str, Tensor], rows: int) -> bool:
        # A few slices show whether the sizes are right ones; thousands would show no more.
        first = min(rows, CHECKED * self._batch + 1)
        expected = self._sliced({n: v[:first] for n, v in given.items()}, first, self.projections, inputs=False)
        try:
            found = self._run(given, rows, self.projections, inputs=False)
        except (RuntimeError, IndexError, ValueError):
            return False
        return all(
            found[name].shape == (rows, *value.shape[1:])
            and torch.allclose(found[name][:first], value, rtol=1e-4, atol=1e-5 * (1 + float(value.abs().max())))
            for name, value in expected.items()
        )

    def _sliced(self, given: Mapping[str, Tensor], rows: int, names: Sequence[str], inputs: bool) -> dict[str, Tensor]:
        pieces: dict[str, list[Tensor]] = {name: [] for name in names}
        for first in range(0, rows, self._batch):
            index = torch.arange(first, first + self._batch, device=given["time"].device).clamp(max=rows - 1)
            found = self._run({name: value[index] for name, value in given.items()}, self._batch, names, inputs)
            for name in names:
                pieces[name].append(found[name][: rows - first])
        return {name: torch.cat(parts) for name, parts in pieces.items()}

    def _run(self, given: Mapping[str, Tensor], rows: int, names: Sequence[str], inputs: bool) -> dict[str, Tensor]:
        if self._clock is not None:
            self._clock.set(given["time"], given.get("labels"))
        outputs: dict[str, Tensor] = {}
        values: dict[Node, Any] = {}

        def fitted(argument: Any) -> Any:
            if not isinstance(argument, list | tuple) or not all(isinstance(size, int) for size in argument):
                return argument
            return [rows, *argument[1:]] if argument and argument[0] == self._batch else argument

        def output(name: str) -> Tensor:
            if name not in outputs:
                outputs[name] = self._layers[layer_of(name)](value(self._ends[name]))
            return outputs[name]

        def value(node: Node) -> Any:
            if node not in values:
                if node in self._inputs:
                    values[node] = given[self._inputs[node]]
                elif node in self._calls:
                    values[node] = output(self._calls[node])
                elif node.op == "get_attr":
                    values[node] = operator.attrgetter(str(node.target))(self._graph)
                else:
                    arguments, named = torch.fx.map_arg((node.args, node.kwargs), value)
                    values[node] = node.target(*map(fitted, arguments), **named)  # type: ignore[operator]
            return values[node]

        return {name: value(self._ends[name]) if inputs else output(name) for name in names}
