"""What is covered: every parameter and multiply-add counted once, as counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.search_spaces.quantization import COVERAGES, named
from fewstep.tasks.quantization.coverage import PRODUCTS, Coverage, LayerCoverage, coverage
from fewstep.tasks.quantization.network import QuantizedNetwork

Make = Callable[..., Any]
KINDS = ["unet", "text", "dit"]


def quantised(found: Coverage, key: str) -> float:
    """Share of what has fewer than 32 bits on both sides."""
    return sum(row[key] for bits, row in found.shares().items() if "32" not in bits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [f"w4a8-naive-{coverage}" for coverage in COVERAGES])
def test_shares_sum_to_one_and_every_parameter_is_counted(name: str, kind: str, wrapped: Make, inputs: Make) -> None:
    network, twin = wrapped(name, kind)
    found = coverage(network, inputs(kind))
    for key in ("parameters", "multiply_adds"):
        assert sum(row[key] for row in found.shares().values()) == pytest.approx(1)
        assert all(0 <= row[key] <= 1 for row in found.shares().values())
    assert sum(layer.parameters for layer in found.layers) == sum(p.numel() for p in twin.parameters())
    assert len({layer.name for layer in found.layers}) == len(network.layers) + 2


class _Tiny(nn.Module):
    """A convolution to half the size, a linear layer on the channels, attention, one layer of the time."""

    def __init__(self, cross: bool = False) -> None:
        super().__init__()
        from diffusers.models.attention_processor import Attention

        self.down, self.up = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 3, 1, bias=False)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.embed, self.mix = nn.Linear(2, 8), nn.Linear(8, 8)
        self.attention = Attention(8, cross_attention_dim=5 if cross else None, heads=2, dim_head=6)
        self.cross = cross

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor | None = None) -> Any:
        time = self.embed(torch.stack([timestep.float().cos(), timestep.float().sin()], -1))
        x = self.grouped(self.down(sample)) + time[:, :, None, None]
        tokens = self.mix(x.flatten(2).transpose(1, 2))
        # By position or by name: both are asked for in diffusers.
        tokens = self.attention(tokens, encoder_hidden_states) if self.cross else self.attention(hidden_states=tokens)
        x = tokens.transpose(1, 2).view_as(x)
        return type("Output", (), {"sample": self.up(nn.functional.interpolate(x, scale_factor=2.0))})


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_multiply_adds_are_those_counted_by_hand(cross: bool, batch: int) -> None:
    given = {"x": torch.randn(batch, 3, 8, 8), "time": torch.arange(float(batch))}
    if cross:
        given["condition"] = torch.randn(batch, 7, 5)
    network = QuantizedNetwork.wrap(_Tiny(cross), named("w4a8-naive-full"), given)
    network.switch(weights=True)
    found = {layer.name: layer for layer in coverage(network, given).layers}
    keys, width = (7, 5) if cross else (16, 8)
    expected = {
        "down": 4 * 4 * 8 * (3 * 9),
        "grouped": 4 * 4 * 8 * (2 * 9),
        "up": 8 * 8 * 3 * 8,
        "embed": 8 * 2,
        "mix": 16 * 8 * 8,
        "attention.to_q": 16 * 12 * 8,
        "attention.to_k": keys * 12 * width,
        "attention.to_v": keys * 12 * width,
        "attention.to_out.0": 16 * 8 * 12,
        PRODUCTS: 2 * 16 * keys * 12,
        "rest": 0,
    }
    assert {name: layer.multiply_adds for name, layer in found.items()} == expected
    assert found["grouped"].parameters == 8 * 2 * 9
    assert (found[PRODUCTS].weight_bits, found[PRODUCTS].activation_bits) == (8, 8)
    assert found["embed"].role == "time"
    # Biases are all that is left.
    assert found["rest"].parameters == 8 + 8 + 8 + 8 + 8


@pytest.mark.parametrize("kind", ["unet", "text"])
def test_released_covers_less_than_paper_and_paper_less_than_full(kind: str, wrapped: Make, inputs: Make) -> None:
    found = {name: coverage(wrapped(f"w4a8-naive-{name}", kind)[0], inputs(kind)) for name in COVERAGES}
    adds = {name: quantised(value, "multiply_adds") for name, value in found.items()}
    parameters = {name: quantised(value, "parameters") for name, value in found.items()}
    assert adds["released"] < adds["paper"] < adds["full"] == pytest.approx(1)
    assert parameters["released"] < parameters["paper"] == parameters["full"] < 1
    assert found["released"].bit_operations > found["paper"].bit_operations > found["full"].bit_operations
    assert len({value.multiply_adds for value in found.values()}) == 1


def test_bit_operations_are_multiply_adds_times_the_bits_of_both_factors(wrapped: Make, inputs: Make) -> None:
    exact = coverage(wrapped("w32a32-naive-full")[0], inputs())
    assert exact.bit_operations == 32 * 32 * exact.multiply_adds
    for weights, activations in ((8, 8), (4, 32)):
        network, _ = wrapped(f"w{weights}a{activations}-naive-full", edge_bits=weights, fsc="none")
        found, products = coverage(network, inputs()), 8 if activations == 8 else 32
        inside = next(layer.multiply_adds for layer in found.layers if layer.name == PRODUCTS)
        edges = sum(layer.multiply_adds for layer in found.layers if layer.role == "edge")
        rest = found.multiply_adds - inside - edges
        # The edge's bits are those of weights and activations alike, where both are quantised.
        edge = weights * (activations if activations == 32 else weights)
        assert found.bit_operations == products**2 * inside + edge * edges + weights * activations * rest
    one = LayerCoverage("a", "body", 4, 8, 10, 100)
    other = LayerCoverage("b", "body", 32, 32, 30, 300)
    pair = Coverage((one, other))
    assert pair.bit_operations == 100 * 32 + 300 * 1024
    assert pair.shares() == {
        "w32a32": {"parameters": 0.75, "multiply_adds": 0.75},
        "w4a8": {"parameters": 0.25, "multiply_adds": 0.25},
    }
    assert Coverage(()).shares() == {}


def test_counting_leaves_no_trace(wrapped: Make, inputs: Make) -> None:
    network, _ = wrapped("w4a8-naive-full")
    first, second = coverage(network, inputs()), coverage(network, inputs(count=2))
    assert first == second
    assert not any(layer._forward_hooks for name, layer in network.layers.items() if not name.endswith("to_v"))
