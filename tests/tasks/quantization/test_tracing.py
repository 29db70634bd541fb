"""The temporal information block is found without names, and computes what the network computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.errors import ModelError
from fewstep.tasks.quantization.network import caller, matrix_layers
from fewstep.tasks.quantization.tracing import LayerGraph, TimeBlock, layer_of, trace

Make = Callable[..., Any]


def traced(network: nn.Module, given: dict[str, Tensor], batch: int = 3) -> LayerGraph:
    return trace(caller(network), {name: value[:batch] for name, value in given.items()}, matrix_layers(network))


@pytest.mark.parametrize("kind", ["unet", "text"])
def test_the_block_of_a_unet_is_embedding_and_projections(kind: str, make: Make, inputs: Make) -> None:
    network = make(kind)
    found = traced(network, inputs(kind))
    layers = {name for name in matrix_layers(network) if "time_emb" in name}
    assert set(found.time_layers) == layers
    assert set(found.projections) == {name for name in layers if name.endswith("time_emb_proj")}


def test_an_embedding_of_labels_by_layers_belongs_to_the_block(make: Make, inputs: Make) -> None:
    network = make("unet", class_embed_type="timestep", num_class_embeds=None)
    found = traced(network, inputs())
    assert {"class_embedding.linear_1", "class_embedding.linear_2"} <= set(found.time_layers)


def test_layers_of_the_condition_do_not_belong_to_it(make: Make, inputs: Make) -> None:
    network = make("text")
    attention = {name for name in matrix_layers(network) if ".attn2." in name}
    assert attention
    assert not attention & set(traced(network, inputs("text")).of_time)


def test_the_block_of_a_transformer(make: Make, inputs: Make) -> None:
    network = make("dit")
    found = traced(network, inputs("dit"))
    assert set(found.time_layers) == {n for n in matrix_layers(network) if ".norm1." in n} | {"proj_out_1"}
    # The first block's embedding is computed again for the output, which makes it no layer of its own.
    assert {name for name in found.projections if "norm1.linear" not in name} == {"proj_out_1"}


def test_a_layer_that_an_image_passes_too_is_none_of_time() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.time, self.out = nn.Linear(3, 3), nn.Linear(1, 3), nn.Linear(3, 3)

        def forward(self, sample: Tensor, timestep: Tensor) -> Any:
            feature = self.both(self.time(timestep[:, None]))
            out = self.out(self.both(sample) + feature)
            return type("Output", (), {"sample": out})

    found = traced(Shared(), {"x": torch.randn(3, 3), "time": torch.rand(3)})
    assert found.time_layers == ("time",)
    assert found.order == ("time", "both", "both#2", "out")


def test_an_inner_output_that_the_network_reads_is_an_output_of_the_block() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.out = nn.Linear(1, 3), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, sample: Tensor, timestep: Tensor) -> Any:
            inner = self.first(timestep[:, None])
            return type("Output", (), {"sample": self.out(sample + inner * self.second(inner))})

    found = traced(Forked(), {"x": torch.randn(3, 3), "time": torch.rand(3)})
    assert set(found.projections) == {"first", "second"}


@pytest.mark.parametrize("kind", ["unet", "text", "dit"])
@pytest.mark.parametrize("rows", [1, 3, 16])
def test_the_block_computes_what_the_network_computes(kind: str, rows: int, make: Make, inputs: Make) -> None:
    network = make(kind)
    layers = matrix_layers(network)
    found = traced(network, inputs(kind))
    given = {name: value[:rows] for name, value in inputs(kind).items()}
    seen: dict[str, Tensor] = {}
    for name in {layer_of(call) for call in found.projections}:

        def remember(_: nn.Module, __: Any, output: Tensor, name: str = name) -> None:
            seen[name] = output

        layers[name].register_forward_hook(remember)
    with torch.no_grad():
        caller(network)(**given)
        expected = dict(seen)
        block = TimeBlock(found, layers)
        outputs = block(given)
    assert {layer_of(call) for call in outputs} == set(expected)
    for call, value in outputs.items():
        assert torch.allclose(value, expected[layer_of(call)], atol=1e-5)


@pytest.mark.parametrize("kind", ["unet", "text", "dit"])
def test_all_rows_at_once_and_in_slices_agree(kind: str, make: Make, inputs: Make) -> None:
    network = make(kind)
    block, given = TimeBlock(traced(network, inputs(kind)), matrix_layers(network)), inputs(kind)
    with torch.no_grad():
        together = block(given)
        # Otherwise each of thousands of iterations runs dozens of slices.
        assert block._wide == {len(given["x"]): True}
        block._wide[len(given["x"])] = False
        slices = block(given)
    assert together.keys() == slices.keys()
    assert all(torch.allclose(together[name], slices[name], atol=1e-6) for name in slices)


def test_where_sizes_cannot_be_replaced_slices_are_run() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.time, self.out = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, sample: Tensor, timestep: Tensor) -> Any:
            # The batch as a bare number, which cannot be told from any other.
            steps = timestep + 0 * torch.arange(len(timestep))
            return type("Output", (), {"sample": self.out(sample + self.time(steps[:, None].expand(-1, 3)))})

    network = Odd()
    block = TimeBlock(traced(network, {"x": torch.randn(2, 3), "time": torch.rand(2)}, 2), matrix_layers(network))
    time = torch.rand(5)
    expected = network.time(time[:, None].expand(-1, 3))
    assert torch.allclose(block({"time": time})["time"], expected, atol=1e-6)
    assert block._wide == {5: False}


def test_halves_of_a_skip_are_seen_where_a_layer_reads_the_concatenation_itself(make: Make, inputs: Make) -> None:
    network = make()
    found = traced(network, inputs())
    layers = matrix_layers(network)
    assert set(found.halves) == {n for n in layers if n.startswith("up_blocks") and n.endswith("conv_shortcut")}
    for name, halves in found.halves.items():
        assert len(halves) == 2
        assert sum(halves) == layers[name].in_channels


def test_tracing_leaves_the_network_as_it_was(make: Make, inputs: Make) -> None:
    network, given = make(), inputs()
    before = caller(network)(**given)
    traced(network, given)
    assert torch.equal(caller(network)(**given), before)


class Peeking(nn.Module):
    """Decides by the values it sees, which a trace cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, sample: Tensor, timestep: Tensor) -> Any:
        out = self.layer(sample if bool((timestep > 0.5).any()) else -sample)
        return type("Output", (), {"sample": out})


def test_a_network_that_looks_at_its_values_is_refused() -> None:
    network = Peeking()
    with pytest.raises(ModelError, match="cannot be traced"):
        traced(network, {"x": torch.randn(3, 3), "time": torch.rand(3)})
    assert "forward" not in vars(network.layer)


def test_an_example_that_does_not_fit_is_refused(make: Make, inputs: Make) -> None:
    given = inputs() | {"x": torch.randn(16, 5, 8, 8)}
    with pytest.raises(ModelError, match="does not run on the example"):
        traced(make(), given)
