"""What is quantised under which coverage, and what the network computes switched on, off and in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.errors import EvaluationError, ModelError
from fewstep.search_spaces.quantization import named
from fewstep.tasks.quantization.activations import ActivationQuantizer
from fewstep.tasks.quantization.affine import Grid
from fewstep.tasks.quantization.layers import QuantizedLayer
from fewstep.tasks.quantization.network import QuantizedNetwork, caller

Make = Callable[..., Any]
KINDS = ["unet", "text", "dit"]
# Rounding to nearest on both sides, so that errors come from the grids alone.
NEAREST = {"tib": "nearest", "reconstruction": "none"}


def error(network: QuantizedNetwork, twin: nn.Module, given: dict[str, Tensor]) -> float:
    """Relative error of the network's output."""
    with torch.no_grad():
        expected = caller(twin)(**given)
        return float((caller(network.module)(**given) - expected).norm() / expected.norm())


def roles_of(network: QuantizedNetwork) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, plan in network.plans.items():
        found.setdefault(plan.role, set()).add(name)
    return found


def inputs_of(network: QuantizedNetwork, layer: nn.Module, given: dict[str, Tensor]) -> Tensor:
    """What the layer is given with quantised weights, activations left alone."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    network.switch(activations="off")
    caller(network.module)(**given)
    handle.remove()
    return seen[0]


# -- on and off ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("coverage", ["released", "full"])
def test_switched_off_the_network_is_the_original_bit_for_bit(
    kind: str, coverage: str, calibrated: Make, inputs: Make
) -> None:
    network, twin = calibrated(f"w2a4-tfmq-{coverage}", kind, iterations=1, tiar_iterations=1)
    assert error(network, twin, inputs(kind)) > 0.01
    network.switch(weights=False, activations="off")
    assert torch.equal(caller(network.module)(**inputs(kind)), caller(twin)(**inputs(kind)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("procedure", ["naive", "qdiffusion", "tfmq"])
def test_eight_bits_are_close(kind: str, procedure: str, calibrated: Make, inputs: Make) -> None:
    network, twin = calibrated(f"w8a8-{procedure}-full", kind)
    assert 0 < error(network, twin, inputs(kind)) < 0.06


@pytest.mark.parametrize("kind", KINDS)
def test_more_bits_are_closer(kind: str, calibrated: Make, inputs: Make) -> None:
    for name in ("w{}a32-tfmq-paper", "w32a{}-tfmq-paper"):
        errors = [
            error(*calibrated(name.format(bits), kind, edge_bits=8, **NEAREST), inputs(kind)) for bits in (2, 4, 6, 8)
        ]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.05 < errors[0]


def test_thirty_two_bits_change_nothing(calibrated: Make, inputs: Make) -> None:
    network, twin = calibrated("w32a32-tfmq-full")
    assert not network.quantizers
    assert error(network, twin, inputs()) == 0


def test_switches_reach_the_named_layers_alone(calibrated: Make, inputs: Make) -> None:
    network, twin = calibrated("w4a8-tfmq-paper")
    network.switch(weights=False, activations="off")
    network.switch(weights=True, activations="on", names=[])
    assert error(network, twin, inputs()) == 0
    network.switch(weights=True, names=["conv_in"])
    assert [name for name, layer in network.layers.items() if layer.on] == ["conv_in"]
    assert error(network, twin, inputs()) > 0


def test_a_first_pass_without_gradients_leaves_later_ones_theirs(calibrated: Make, inputs: Make) -> None:
    network, _ = calibrated("w4a8-tfmq-full")
    with torch.inference_mode():
        caller(network.module)(**inputs())
    given = inputs()
    given["x"].requires_grad_(True)
    caller(network.module)(**given).sum().backward()
    assert given["x"].grad.abs().sum() > 0


# -- coverage -----------------------------------------------------------------------------------------------


def test_roles_in_a_unet(wrapped: Make) -> None:
    network, _ = wrapped("w4a8-tfmq-paper")
    found = roles_of(network)
    assert found["edge"] == {"conv_in", "conv_out"}
    assert found["sampler"] == {n for n in network.plans if "downsamplers" in n or "upsamplers" in n}
    assert found["shortcut"] == {n for n in network.plans if n.endswith("conv_shortcut")}
    assert found["attention"] == {n for n in network.plans if "attentions" in n}
    assert found["time"] == {n for n in network.plans if "time_emb" in n}
    assert found["body"] == {n for n in network.plans if n.endswith(("conv1", "conv2"))}
    assert all(found[role] for role in found)


@pytest.mark.parametrize("kind", KINDS)
def test_every_matrix_layer_of_the_network_has_a_plan(kind: str, wrapped: Make) -> None:
    network, twin = wrapped("w4a8-tfmq-paper", kind)
    layers = {name for name, module in twin.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert set(network.plans) == layers
    assert {n for n, m in network.module.named_modules() if isinstance(m, QuantizedLayer)} == layers


def test_released_leaves_out_what_the_authors_program_leaves_out(wrapped: Make) -> None:
    network, _ = wrapped("w4a8-tfmq-released")
    left_out = {n for n, plan in network.plans.items() if plan.bits == plan.activation_bits == 32}
    found = roles_of(network)
    expected = found["edge"] | found["shortcut"] | found["sampler"] | found["attention"]
    assert left_out == expected | {"time_embedding.linear_1"}
    assert {(network.plans[n].bits, network.plans[n].activation_bits) for n in set(network.plans) - left_out} == {
        (4, 8)
    }
    assert not network.products


def test_paper_quantises_every_layer_and_the_edges_to_eight_bits(wrapped: Make) -> None:
    network, _ = wrapped("w4a6-tfmq-paper")
    for plan in network.plans.values():
        expected = (8, 8) if plan.role == "edge" else (4, 6)
        assert (plan.bits, plan.activation_bits) == expected
        assert not plan.segments
    assert not network.products


def test_full_adds_the_products_and_splits_the_skips(wrapped: Make) -> None:
    network, twin = wrapped("w4a8-tfmq-full")
    assert all(plan.bits < 32 and plan.activation_bits < 32 for plan in network.plans.values())
    split = {name for name, plan in network.plans.items() if plan.segments}
    assert split == {n for n, p in network.plans.items() if p.role == "shortcut" and n.startswith("up_blocks")}
    for name in split:
        layer, halves = network.layers[name], network.plans[name].segments
        assert sum(halves) == twin.get_submodule(name).in_channels
        assert [part.codes.shape[1] for part in layer.parts] == list(halves)
        assert layer.activation is not None
    attentions = {name for name in twin.state_dict() if name.endswith("to_q.weight")}
    assert len(network.products) == 4 * len(attentions)


def test_halves_have_grids_of_their_own(calibrated: Make, inputs: Make) -> None:
    network, _ = calibrated("w8a8-naive-full")
    for name in (n for n, plan in network.plans.items() if plan.segments):
        layer = network.layers[name]
        assert layer.activation.scale.shape == (1, 2)
        x = inputs_of(network, layer, inputs())
        for piece, scale in zip(x.split(layer.segments, 1), layer.activation.scale[0].tolist(), strict=True):
            assert (piece.max().clamp(min=0) - piece.min().clamp(max=0)).item() / 255 == pytest.approx(scale, rel=1e-3)


def test_finite_set_calibration_of_the_block_and_of_everything(calibrated: Make) -> None:
    network, _ = calibrated("w4a8-tfmq-paper", fsc="tib")
    for name, plan in network.plans.items():
        assert len(network.layers[name].activation.times) == (4 if plan.role == "time" else 1)
    network, _ = calibrated("w4a8-tfmq-paper", fsc="all")
    assert all(len(quantizer.times) == 4 for quantizer in network.quantizers.values())
    network, _ = calibrated("w4a8-tfmq-paper", fsc="none")
    assert all(len(quantizer.times) == 1 for quantizer in network.quantizers.values())


def test_bits_of_the_block_go_before_the_bits_of_the_weights(wrapped: Make) -> None:
    network, _ = wrapped("w4a8-tfmq-paper", tib_bits=8)
    assert {(plan.role == "time", plan.bits) for plan in network.plans.values() if plan.role != "edge"} == {
        (True, 8),
        (False, 4),
    }


# -- attention products -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_each_operand_of_the_products_is_quantised(kind: str, calibrated: Make, inputs: Make) -> None:
    network, twin = calibrated("w32a8-naive-full", kind)
    network.switch(activations="off", names=[name for name in network.quantizers if name not in network.products])
    together = error(network, twin, inputs(kind))
    assert 0 < together < 0.05
    hits: dict[str, int] = {}
    for name, quantizer in network.products.items():

        def count(_: nn.Module, __: Any, ___: Any, name: str = name) -> None:
            hits[name] = hits.get(name, 0) + 1

        quantizer.register_forward_hook(count)
    caller(network.module)(**inputs(kind))
    assert hits == dict.fromkeys(network.products, 1)
    for name in network.products:
        network.switch(activations="off", names=network.products)
        network.switch(activations="on", names=[name])
        assert error(network, twin, inputs(kind)) > 0


def test_probabilities_are_on_the_grid_of_their_quantiser(calibrated: Make, inputs: Make) -> None:
    network, _ = calibrated("w4a4-naive-full")
    name = next(name for name in network.products if name.endswith("probabilities"))
    seen: list[Tensor] = []
    quantizer = network.products[name]
    quantizer.register_forward_hook(lambda _, __, output: seen.append(output))
    caller(network.module)(**inputs())
    grid = Grid(quantizer.scale[0, 0], quantizer.zero[0, 0], 4)
    assert torch.equal(grid.nearest(seen[0]), seen[0])
    assert len(seen[0].unique()) <= 16


def test_attention_of_an_unknown_kind_is_refused(make: Make, inputs: Make) -> None:
    network = make()

    class Other:
        def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
            return hidden_states

    for module in network.modules():
        if hasattr(module, "set_processor"):
            module.set_processor(Other())
    with pytest.raises(ModelError, match="Other cannot have its products quantised"):
        QuantizedNetwork.wrap(network, named("w4a8-tfmq-full"), inputs())


def close(found: Tensor, expected: Tensor) -> bool:
    """Up to the codes that turn over where rounding errors of another batch size meet the edge of a step."""
    return bool((found - expected).norm() < 0.02 * expected.norm())


# -- guidance -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fsc", ["tib", "all"])
@pytest.mark.parametrize("tib", ["tiar", "table"])
def test_a_doubled_batch_is_two_batches(fsc: str, tib: str, calibrated: Make, inputs: Make) -> None:
    network, _ = calibrated("w4a8-tfmq-full", fsc=fsc, tib=tib)
    x, time = inputs()["x"][:4], torch.tensor(500.0)
    labels = torch.tensor([0, 1, 2, 3]), torch.tensor([3, 4, 0, 1])
    with torch.inference_mode():
        doubled = network.module(torch.cat([x, x]), time, torch.cat(labels)).sample
        alone = [network.module(x, time, half).sample for half in labels]
    assert close(doubled, torch.cat(alone))


@pytest.mark.parametrize("fsc", ["tib", "all"])
def test_timesteps_may_differ_within_a_batch(fsc: str, calibrated: Make, inputs: Make) -> None:
    network, _ = calibrated("w4a8-tfmq-full", fsc=fsc)
    x, labels = inputs()["x"][:4], torch.tensor([0, 1, 2, 3])
    times = torch.tensor([0.0, 999.0, 300.0, 250.0])
    with torch.inference_mode():
        together = network.module(x, times, labels).sample
        for row, time in enumerate(times):
            alone = network.module(x[row : row + 1], time, labels[row : row + 1]).sample
            assert close(together[row : row + 1], alone)


# -- errors -------------------------------------------------------------------------------------------------


def test_a_network_without_matrix_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="no convolution and no linear layer"):
        QuantizedNetwork.wrap(nn.Sequential(nn.ReLU()), named("w4a8-tfmq-paper"), {"x": torch.zeros(1)})


def test_a_network_that_is_no_denoiser_is_refused() -> None:
    with pytest.raises(ModelError, match="no denoiser"):
        QuantizedNetwork.wrap(nn.Sequential(nn.Linear(2, 2)), named("w4a8-tfmq-paper"), {"x": torch.zeros(1, 2)})


def test_data_that_explode_are_named_by_layer(wrapped: Make, inputs: Make) -> None:
    network, _ = wrapped("w4a8-tfmq-paper")
    given = inputs()
    given["x"][0, 0, 0, 0] = float("inf")
    with pytest.raises(EvaluationError, match="conv_in: activations are not finite"):
        network.observe([given])


def test_wrapping_ends_training(make: Make, inputs: Make) -> None:
    network = make("unet", dropout=0.5).train()
    QuantizedNetwork.wrap(network, named("w4a8-tfmq-paper"), inputs())
    given = inputs()
    assert torch.equal(caller(network)(**given), caller(network)(**given))


# -- layers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("settings", [{"padding": 1}, {"padding": "same"}, {"padding": 2, "stride": 2}, {"groups": 2}])
def test_a_layer_stands_for_any_convolution(mode: str, settings: dict[str, Any]) -> None:
    original = nn.Conv2d(4, 6, 3, padding_mode=mode, **settings)
    layer, x = QuantizedLayer(original, 8, None, ()), torch.randn(2, 4, 9, 9)
    assert torch.equal(layer(x), original(x))
    layer.round_to_nearest(True)
    layer.on = True
    assert torch.allclose(layer(x), original(x), atol=0.05)


def test_quantisers_move_with_the_module(calibrated: Make) -> None:
    network, _ = calibrated("w4a8-tfmq-full", fsc="all")
    modules = [m for m in network.module.modules() if isinstance(m, ActivationQuantizer)]
    assert len(modules) == len(network.quantizers)
    assert all({"scale", "zero", "times"} <= set(dict(m.named_buffers())) for m in modules)
