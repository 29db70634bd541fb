"""What a quantised network covers: bits of each layer, its share of the parameters and of the multiply-adds."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from fewstep.search_spaces.quantization import FULL_PRECISION
from fewstep.tasks.quantization.network import QuantizedNetwork, caller

PRODUCTS = "attention products"


@dataclass(frozen=True)
class LayerCoverage:
    """One layer. `multiply_adds` are those of one image; bits are 32 where nothing is quantised."""

    name: str
    role: str
    weight_bits: int
    activation_bits: int
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Coverage:
    """All layers, the products inside attention, and what is left (norms, biases, embeddings) as `rest`."""

    layers: tuple[LayerCoverage, ...]

    def shares(self) -> dict[str, dict[str, float]]:
        """By `w4a8` and so on: the share of `parameters` and of `multiply_adds`."""
        totals = {key: sum(getattr(layer, key) for layer in self.layers) for key in ("parameters", "multiply_adds")}
        found: dict[str, dict[str, float]] = {}
        for layer in self.layers:
            row = found.setdefault(f"w{layer.weight_bits}a{layer.activation_bits}", dict.fromkeys(totals, 0.0))
            for key, total in totals.items():
                row[key] += getattr(layer, key) / max(1, total)
        return dict(sorted(found.items()))

    @property
    def bit_operations(self) -> int:
        """Multiply-adds of one call times the bits of both factors: a cost that no machine decides."""
        return sum(layer.multiply_adds * layer.weight_bits * layer.activation_bits for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one call on one image."""
        return sum(layer.multiply_adds for layer in self.layers)


@torch.no_grad()
def coverage(network: QuantizedNetwork, example: Mapping[str, Tensor]) -> Coverage:
    """Measured on one forward pass of `example` (x (B, ...), time, labels or condition)."""
    batch = len(example["x"])
    counts: dict[str, int] = {}
    products: list[int] = []
    handles = []

    def count(name: str, layer: Any) -> Any:
        per_output = int(torch.tensor(layer.shape[1:]).prod())

        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            counts[name] = counts.get(name, 0) + output.numel() // batch * per_output

        return hook

    def count_products(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], _: Any) -> None:
        asked = inspect.signature(module.forward).bind(*arguments, **named).arguments
        hidden, other = asked["hidden_states"], asked.get("encoder_hidden_states")
        rows = hidden.flatten(2).shape[-1] if hidden.ndim == 4 else hidden.shape[1]
        columns = rows if other is None else other.shape[1]
        assert isinstance(module, Attention)
        products.append(2 * rows * columns * int(module.inner_dim))

    for name, layer in network.layers.items():
        handles.append(layer.register_forward_hook(count(name, layer)))
    for module in network.module.modules():
        if isinstance(module, Attention):
            handles.append(module.register_forward_hook(count_products, with_kwargs=True))
    try:
        caller(network.module)(**example)
    finally:
        for handle in handles:
            handle.remove()
    rows = [
        LayerCoverage(
            name,
            plan.role,
            plan.bits,
            plan.activation_bits,
            int(torch.tensor(network.layers[name].shape).prod()),
            counts.get(name, 0),
        )
        for name, plan in network.plans.items()
    ]
    bits = int(network.config.activation_bits) if network.products else FULL_PRECISION
    rows.append(LayerCoverage(PRODUCTS, "product", bits, bits, 0, sum(products)))
    others = sum(p.numel() for p in network.module.parameters())
    rows.append(LayerCoverage("rest", "rest", FULL_PRECISION, FULL_PRECISION, others, 0))
    return Coverage(tuple(rows))
