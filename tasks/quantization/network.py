"""A diffusers network whose layers are quantised in place, and what is known of each of them.

Layers are told apart by what they are (their type, their parent's type, their place in the traced graph),
never by their names: any network of convolutions and linear layers can be quantised.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from fewstep.errors import EvaluationError, ModelError
from fewstep.search_spaces.quantization import FULL_PRECISION, QuantizationConfig
from fewstep.tasks.quantization.activations import ActivationQuantizer, Mode
from fewstep.tasks.quantization.attention import quantize_products
from fewstep.tasks.quantization.clock import Clock
from fewstep.tasks.quantization.layers import QuantizedLayer
from fewstep.tasks.quantization.table import TimeTable
from fewstep.tasks.quantization.tracing import LayerGraph, layer_of, trace

Role = Literal["edge", "time", "shortcut", "sampler", "attention", "body"]
# What diffusers calls the inputs of its networks, in the order of `INPUTS`.
ARGUMENTS = {
    "x": ("sample", "hidden_states"),
    "time": ("timestep",),
    "labels": ("class_labels",),
    "condition": ("encoder_hidden_states",),
}


@dataclass(frozen=True)
class LayerPlan:
    """How one layer is quantised; all that a stored network needs to be built again."""

    role: Role
    bits: int
    activation_bits: int
    segments: tuple[int, ...] = ()
    axis: int = 1
    keyed: bool = False
    token: bool = False


def matrix_layers(module: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Convolutions and linear layers by name; ModelError where there are none."""
    # Exactly these: what derives from them computes something else.
    found: dict[str, Any] = {n: m for n, m in module.named_modules() if type(m) in (nn.Conv2d, nn.Linear)}
    if not found:
        raise ModelError(f"{type(module).__name__} has no convolution and no linear layer that could be quantised")
    return found


def caller(module: nn.Module) -> Any:
    """`call(x=, time=, labels=, condition=)` of a diffusers network, whatever it names its inputs."""
    names = inspect.signature(module.forward).parameters
    known = {ours: next((n for n in theirs if n in names), None) for ours, theirs in ARGUMENTS.items()}
    if known["x"] is None or known["time"] is None:
        raise ModelError(f"{type(module).__name__} takes no image and timestep: it is no denoiser")

    def call(**given: Tensor | None) -> Tensor:
        arguments = {theirs: v for ours, v in given.items() if (theirs := known[ours]) is not None and v is not None}
        output: Tensor = module(**arguments).sample
        return output

    return call


def roles(module: nn.Module, graph: LayerGraph) -> dict[str, Role]:
    """The role of every layer that takes part in the forward pass."""
    parents: dict[str, list[nn.Module]] = {}
    for name in {layer_of(call) for call in graph.order}:
        pieces = name.split(".")
        parents[name] = [module.get_submodule(".".join(pieces[:i])) for i in range(1, len(pieces))]
    of_time = set(graph.time_layers)
    first = {layer_of(call) for call in graph.order if "x" in graph.sources[call]}
    edges = first | {layer_of(graph.order[-1])}

    def role(name: str) -> Role:
        above = parents[name]
        if name in of_time:
            return "time"
        if name in edges:
            return "edge"
        if any(isinstance(parent, Attention) for parent in above):
            return "attention"
        if above and isinstance(above[-1], Downsample2D | Upsample2D):
            return "sampler"
        if above and isinstance(above[-1], ResnetBlock2D) and above[-1].conv_shortcut is module.get_submodule(name):
            return "shortcut"
        return "body"

    return {name: role(name) for name in dict.fromkeys(layer_of(call) for call in graph.order)}


def plan_layers(module: nn.Module, graph: LayerGraph, config: QuantizationConfig) -> dict[str, LayerPlan]:
    """How each layer is quantised under a config."""
    covered = {"shortcut": config.shortcuts, "sampler": config.samplers, "attention": config.attention}
    first_of_time = {layer_of(call) for call in graph.of_time if "time" in graph.sources[call]}
    plans = {}
    for name, role in roles(module, graph).items():
        layer = module.get_submodule(name)
        bits, activation_bits = int(config.weight_bits), int(config.activation_bits)
        if role == "time" and config.tib_bits is not None:
            bits = int(config.tib_bits)
        # The authors' program leaves the first layer of the time embedding alone as it does the edges.
        if role == "edge" or (name in first_of_time and config.edge_bits == FULL_PRECISION):
            edge = int(config.edge_bits)
            bits = edge if bits != FULL_PRECISION else bits
            activation_bits = edge if activation_bits != FULL_PRECISION else activation_bits
        if not covered.get(role, True):
            bits = activation_bits = FULL_PRECISION
        linear, whole = isinstance(layer, nn.Linear), isinstance(layer, nn.Conv2d) and layer.groups == 1
        plans[name] = LayerPlan(
            role=role,
            bits=bits,
            activation_bits=activation_bits,
            segments=graph.halves.get(name, ()) if config.split_skips and whole else (),
            axis=-1 if linear else 1,
            keyed=config.fsc == "all" or (config.fsc == "tib" and role == "time"),
            token=linear and config.granularity == "token",
        )
    return plans


class QuantizedNetwork:
    """A network with its quantised layers. `module` is the diffusers network itself, changed in place."""

    def __init__(self, module: nn.Module, config: QuantizationConfig, plans: Mapping[str, LayerPlan]) -> None:
        self.module, self.config, self.plans, self.clock = module, config, dict(plans), Clock()
        self.layers: dict[str, QuantizedLayer] = {}
        self.products: dict[str, ActivationQuantizer] = {}
        for name, plan in self.plans.items():
            self._replace(name, plan)
        if config.matmuls and config.activation_bits != FULL_PRECISION:
            for name, attention in list(module.named_modules()):
                if isinstance(attention, Attention):
                    found = quantize_products(attention, self._product)
                    self.products |= {f"{name}.{operand}": q for operand, q in found.items()}
        self.graph: LayerGraph | None = None
        self.table: TimeTable | None = None
        self._watch()

    @classmethod
    def wrap(
        cls,
        module: nn.Module,
        config: QuantizationConfig,
        example: Mapping[str, Tensor],
        graph: LayerGraph | None = None,
    ) -> QuantizedNetwork:
        """Quantise a network in place, weights rounded to nearest, everything still switched off.

        `example` holds a small batch of the network's inputs (x, time (B,), labels or condition). The network is
        put into evaluation mode. `graph` is what the trace of the same network on such a batch gave before.
        Raises ModelError for a network that cannot be quantised.
        """
        layers = matrix_layers(module.eval())
        graph = graph or trace(caller(module), example, layers)
        network = cls(module, config, plan_layers(module, graph, config))
        network.graph = graph
        for layer in network.layers.values():
            layer.round_to_nearest(config.weight_range == "search")
        return network

    def _replace(self, name: str, plan: LayerPlan) -> None:
        layer = self.module.get_submodule(name)
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            raise ModelError(f"layer {name} is a {type(layer).__name__}: only convolutions and linear layers can be")
        activation = None
        if plan.activation_bits != FULL_PRECISION:
            activation = ActivationQuantizer(
                self.config, plan.activation_bits, self.clock, plan.axis, plan.keyed, plan.segments, plan.token
            )
        self.layers[name] = QuantizedLayer(layer, plan.bits, activation, plan.segments)
        parent, _, leaf = name.rpartition(".")
        setattr(self.module.get_submodule(parent), leaf, self.layers[name])

    def _product(self) -> ActivationQuantizer:
        bits, keyed = int(self.config.activation_bits), self.config.fsc == "all"
        return ActivationQuantizer(self.config, bits, self.clock, -1, keyed)

    def _watch(self) -> None:
        """Set the clock at the start of every forward pass."""
        signature = inspect.signature(self.module.forward)

        def start(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            bound = signature.bind(*arguments, **named).arguments
            self.clock.set(bound["timestep"], bound.get("class_labels"))

        self.module.register_forward_pre_hook(start, with_kwargs=True)

    def attach(self, table: TimeTable) -> None:
        """Let a table answer for the temporal information block where it knows the timestep and the labels."""
        self.table = table
        for name in self.time_layers:
            layer = self.layers[name]
            if name in table.outputs:
                layer.instead = partial(table.lookup, name, self.clock)
            else:
                layer.instead = partial(self._unread, layer)

    def _unread(self, layer: QuantizedLayer, count: int) -> tuple[Tensor, None] | None:
        """Zeros in the place of an output that only tabulated layers would read."""
        assert self.table is not None
        found = self.table.find(self.clock, count)
        if found is None or found.known is not None:
            return None
        return next(iter(self.table.outputs.values())).new_zeros(count, layer.shape[0]), None

    def detach(self) -> None:
        """Compute the temporal information block again."""
        self.table = None
        for layer in self.layers.values():
            layer.instead = None

    # -- switches -------------------------------------------------------------------------------------

    @property
    def quantizers(self) -> dict[str, ActivationQuantizer]:
        """All quantisers of activations, by layer or product."""
        own = {name: layer.activation for name, layer in self.layers.items() if layer.activation is not None}
        return own | self.products

    def switch(
        self, weights: bool | None = None, activations: Mode | None = None, names: Iterable[str] | None = None
    ) -> None:
        """Turn weights and activation quantisers of the named layers (default: all) on or off."""
        chosen = None if names is None else set(names)
        for name, layer in self.layers.items():
            if weights is not None and (chosen is None or name in chosen):
                layer.on = weights
        for name, quantizer in self.quantizers.items():
            if activations is not None and (chosen is None or name in chosen):
                quantizer.mode = activations

    @property
    def bytes(self) -> int:
        """What weights, grids and the rest of the network take in memory now; what was made of them is shared."""
        held = [*self.module.parameters(), *self.module.buffers()]
        held += [tensor for layer in self.layers.values() for tensor in layer.tensors]
        if self.table is not None:
            held += [self.table.times, *self.table.outputs.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in {id(t): t for t in held}.values())

    @property
    def time_layers(self) -> list[str]:
        """Layers of the temporal information block."""
        return [name for name, plan in self.plans.items() if plan.role == "time"]

    @torch.no_grad()
    def observe(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Find the ranges of all activations on these batches of inputs, with quantised weights."""
        self.switch(weights=True, activations="observe")
        call = caller(self.module)
        for batch in batches:
            call(**batch)
            if self.table is not None:
                self._observe_block(call, batch)
        for name, quantizer in self.quantizers.items():
            try:
                quantizer.close()
            except EvaluationError as error:
                raise EvaluationError(f"{name}: {error}") from None
        self.switch(activations="on")

    def _observe_block(self, call: Any, batch: Mapping[str, Tensor]) -> None:
        """What the block's layers see where the table does not know a timestep and they are computed."""
        table, others = self.table, [name for name in self.quantizers if name not in self.time_layers]
        assert table is not None
        self.detach()
        self.switch(activations="off", names=others)
        call(**batch)
        self.switch(activations="observe", names=others)
        self.attach(table)

    def plan_json(self) -> dict[str, Any]:
        """The plans as plain data."""
        return {name: asdict(plan) for name, plan in self.plans.items()}
