"""Layers at the end of a residual branch are found, and with them what their output is added to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.tasks.quantization.network import caller, matrix_layers
from fewstep.tasks.quantization.sums import Sums
from fewstep.tasks.quantization.tracing import trace

Make = Callable[..., Any]


class Branches(nn.Module):
    """Sums before and behind a change of shape, one of something the layer itself made, and one that comes too late."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.plain, self.turned, self.gated, self.last = (nn.Linear(4, 4) for _ in range(5))

    def forward(self, sample: Tensor, timestep: Tensor) -> Any:
        x = self.first(sample)
        x = x + self.plain(x.relu())
        y = self.turned(x.transpose(1, 2)).transpose(1, 2).reshape(-1, 2, 2, 4) + x.reshape(-1, 2, 2, 4)
        y = y.reshape(-1, 4, 4)
        return type("Output", (), {"sample": self.last(y + self.gated(y) * timestep[:, None, None])})


def test_summands_are_seen_in_the_layers_own_shape() -> None:
    network, given = Branches(), {"x": torch.randn(3, 4, 4), "time": torch.rand(3)}
    layers, found, outputs = matrix_layers(network), dict[str, Tensor](), dict[str, Tensor]()
    graph = trace(caller(network), given, layers)
    assert graph.summands == {"plain", "turned"}
    with torch.no_grad(), Sums(lambda name, other: found.update({name: other})) as sums:

        def track(name: str) -> Any:
            def hook(_: nn.Module, __: Any, output: Tensor) -> None:
                outputs[name] = output
                sums.track(name, output)

            return hook

        for name in graph.summands:
            layers[name].register_forward_hook(track(name))
        caller(network)(**given)
        first = network.first(given["x"])
        x = first + network.plain(first.relu())
    assert torch.equal(found["plain"], first)
    assert torch.equal(found["turned"], x.transpose(1, 2))


@pytest.mark.parametrize(("kind", "expected"), [("unet", "conv2"), ("text", "ff.net.2"), ("dit", "pos_embed.proj")])
def test_residual_branches_of_real_networks_are_found(kind: str, expected: str, make: Make, inputs: Make) -> None:
    network, given = make(kind), {name: value[:3] for name, value in inputs(kind).items()}
    summands = trace(caller(network), given, matrix_layers(network)).summands
    assert any(name.endswith(expected) for name in summands)
    # The output of the network goes nowhere.
    assert not any(name.startswith(("conv_out", "proj_out")) for name in summands)
