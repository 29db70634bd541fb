"""A whole calibration: what is learned, from which loss, and that being killed changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.errors import DataError, EvaluationError
from fewstep.search_spaces.quantization import QuantizationConfig, named
from fewstep.tasks.quantization import calibration as module
from fewstep.tasks.quantization.calibration import Calibration, rounding_key
from fewstep.tasks.quantization.network import QuantizedNetwork, caller
from fewstep.tasks.quantization.rounding import RoundingPlan
from fewstep.tasks.quantization.tracing import TimeBlock, layer_of
from fewstep.tasks.quantization.trajectories import moments_of_block
from fewstep.tasks.quantization.units import find_units

Make = Callable[..., Any]
# Short, and with a rate at which even a few iterations turn some weights over.
SHORT = {"iterations": 3, "tiar_iterations": 5, "rate": 0.1, "tiar_rate": 0.1, "batch": 8, "weight_range": "minmax"}


class Killed(BaseException):
    pass


def codes(network: QuantizedNetwork) -> dict[str, Tensor]:
    return {f"{name}:{i}": part.codes for name, layer in network.layers.items() for i, part in enumerate(layer.parts)}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def output(network: QuantizedNetwork, given: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return caller(network.module)(**given)


def block_error(network: QuantizedNetwork, twin: nn.Module, given: dict[str, Tensor]) -> float:
    """Squared error of the block's outputs with quantised weights, as TIAR's loss counts it."""
    moments = moments_of_block(given)
    block = TimeBlock(network.graph, network.layers)
    network.switch(activations="off")
    found = block(moments)
    network.switch(weights=False)
    exact = block(moments)
    network.switch(weights=True)
    return float(sum((found[name] - exact[name]).square().sum(1).mean() for name in found))


@contextmanager
def stopping(after: int) -> Iterator[Callable[[str, int, int], None]]:
    """A progress callback that kills the calibration after so many units."""

    def progress(stage: str, done: int, count: int) -> None:
        if stage == "rounding" and done == after:
            raise Killed

    with pytest.raises(Killed):
        yield progress


# -- being killed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "changes"),
    [
        ("w3a8-tfmq-full", "unet", {}),
        ("w3a8-qdiffusion-paper", "unet", {"reconstruction": "layer"}),
        ("w3a8-qdiffusion-full", "dit", {}),
        ("w3a8-tfmq-full", "text", {"tib": "table"}),
    ],
)
def test_a_killed_calibration_goes_on_to_the_same_codes(
    name: str, kind: str, changes: dict[str, Any], wrapped: Make, inputs: Make, tmp_path: Path
) -> None:
    whole, _ = wrapped(name, kind, **SHORT, **changes)
    nearest = {key: value.clone() for key, value in codes(whole).items()}
    run = Calibration(whole, inputs(kind))
    run.run()
    assert not same(codes(whole), nearest)
    for after in (1, 2, 5):
        network, _ = wrapped(name, kind, **SHORT, **changes)
        with stopping(after) as progress:
            Calibration(network, inputs(kind), tmp_path, "data", progress).run()
    network, _ = wrapped(name, kind, **SHORT, **changes)
    last = Calibration(network, inputs(kind), tmp_path, "data")
    last.run()
    assert same(codes(network), codes(whole))
    assert torch.equal(output(network, inputs(kind)), output(whole, inputs(kind)))
    # What had been finished was not done again, the rest was, and nothing is lying about.
    assert 0 < len(last.losses) < len(run.losses)
    assert [path.name for path in tmp_path.iterdir()] == [
        f"rounding-{rounding_key(network.config, 'data')}.safetensors"
    ]


def test_a_finished_calibration_is_not_done_again(wrapped: Make, inputs: Make, tmp_path: Path) -> None:
    first, _ = wrapped("w3a8-tfmq-full", **SHORT)
    Calibration(first, inputs(), tmp_path).run()
    # Ranges of activations have no part in the rounding, which serves other settings of theirs.
    other, _ = wrapped("w3a6-tfmq-full", **SHORT, fsc="all", activation_range="minmax", matmuls=False)
    again = Calibration(other, inputs(), tmp_path)
    again.run()
    assert not again.losses
    fresh, _ = wrapped("w3a6-tfmq-full", **SHORT, fsc="all", activation_range="minmax", matmuls=False)
    Calibration(fresh, inputs()).run()
    assert same(codes(other), codes(first))
    assert same(codes(fresh), codes(first))
    assert torch.equal(output(other, inputs()), output(fresh, inputs()))


def test_the_same_seed_gives_the_same_codes_and_another_one_others(wrapped: Make, inputs: Make) -> None:
    found = []
    for seed in (1, 1, 2):
        network, _ = wrapped("w3a8-tfmq-paper", **SHORT, seed=seed)
        Calibration(network, inputs()).run()
        found.append(codes(network))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_files_of_other_data_or_another_config_are_not_picked_up(wrapped: Make, inputs: Make, tmp_path: Path) -> None:
    first, _ = wrapped("w3a8-tfmq-paper", **SHORT)
    Calibration(first, inputs(), tmp_path, "data").rounding()
    for identity, changes in (("other", {}), ("data", {"seed": 5}), ("data", {"weight_range": "search"})):
        network, _ = wrapped("w3a8-tfmq-paper", **(SHORT | changes))
        run = Calibration(network, inputs(), tmp_path, identity)
        run.rounding()
        assert run.losses
    assert len(list(tmp_path.iterdir())) == 4


ACTIVATIONS: dict[str, Any] = {
    "activation_bits": 6,
    "activation_range": "mse",
    "granularity": "token",
    "momentum": 0.9,
    "percentile": 99.0,
    "matmuls": True,
    "fsc": "tib",
}
WEIGHTS: dict[str, Any] = {
    "allocation": "sensitivity",
    "weight_bits": 3,
    "edge_bits": 32,
    "shortcuts": False,
    "samplers": False,
    "attention": False,
    "split_skips": True,
    "weight_range": "minmax",
    "solver": "adaround",
    "sweeps": 2,
    "restarts": 3,
    "tib": "table",
    "tib_bits": 8,
    "tiar_iterations": 1,
    "tiar_rate": 1e-4,
    "reconstruction": "layer",
    "iterations": 1,
    "rate": 1e-3,
    "batch": 1,
    "rounding_weight": 0.1,
    "warmup": 0.0,
    "images": 1,
    "steps": 5,
    "seed": 0,
}


def test_the_key_of_the_rounding_knows_weights_and_data_but_no_activations() -> None:
    assert set(ACTIVATIONS) | set(WEIGHTS) == set(QuantizationConfig.model_fields)
    key = rounding_key(QuantizationConfig(), "data")
    for field, value in ACTIVATIONS.items():
        assert rounding_key(QuantizationConfig.build(**{field: value}), "data") == key
    others = [rounding_key(QuantizationConfig.build(**{field: value}), "data") for field, value in WEIGHTS.items()]
    assert len({key, rounding_key(QuantizationConfig(), "other"), *others}) == len(WEIGHTS) + 2


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _noise(path: Path) -> None:
    path.write_bytes(b"no safetensors")


def _renamed(path: Path) -> None:
    save_file({f"other.{key}": value for key, value in load_file(path).items()}, path)


def _reshaped(path: Path) -> None:
    save_file({key: value.flatten() for key, value in load_file(path).items()}, path)


def _beyond_the_grid(path: Path) -> None:
    save_file({key: value + 100 for key, value in load_file(path).items()}, path)


def _without_a_part(path: Path) -> None:
    save_file({key: value for key, value in load_file(path).items() if not key.endswith(":0")}, path)


@pytest.mark.parametrize("damage", [_cut, _noise, _renamed, _reshaped, _beyond_the_grid, _without_a_part])
def test_a_damaged_file_is_named(damage: Callable[[Path], None], wrapped: Make, inputs: Make, tmp_path: Path) -> None:
    changes = {"split_skips": True, "tib": "nearest", "reconstruction": "layer", "iterations": 0}
    Calibration(wrapped("w3a8-tfmq-paper", **changes)[0], inputs(), tmp_path).rounding()
    (path,) = tmp_path.iterdir()
    damage(path)
    network, _ = wrapped("w3a8-tfmq-paper", **changes)
    before = {key: value.clone() for key, value in codes(network).items()}
    with pytest.raises(DataError, match=path.name):
        Calibration(network, inputs(), tmp_path)
    assert same(codes(network), before)


# -- TIAR ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unet", "text", "dit"])
def test_tiar_lowers_the_error_of_the_block(kind: str, wrapped: Make, inputs: Make) -> None:
    errors = {}
    for tib in ("nearest", "tiar"):
        network, twin = wrapped(
            "w3a8-tfmq-paper", kind, tib=tib, reconstruction="none", tiar_iterations=300, tiar_rate=1e-2
        )
        Calibration(network, inputs(kind)).rounding()
        errors[tib] = block_error(network, twin, inputs(kind))
    assert errors["tiar"] < 0.8 * errors["nearest"]


def test_tiar_leaves_all_other_weights_alone(wrapped: Make, inputs: Make) -> None:
    network, _ = wrapped("w3a8-tfmq-paper", reconstruction="none", tiar_iterations=50, tiar_rate=0.1)
    before = {key: value.clone() for key, value in codes(network).items()}
    Calibration(network, inputs()).rounding()
    changed = {key.partition(":")[0] for key, value in codes(network).items() if not torch.equal(value, before[key])}
    assert changed
    assert changed <= set(network.time_layers)


def test_the_loss_of_tiar_is_the_papers(wrapped: Make, inputs: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sum over projections of the mean over the batch of the squared error's sum over channels."""
    network, twin = wrapped("w3a8-tfmq-paper", reconstruction="none", tiar_iterations=7)
    given, seen = inputs(), list[tuple[float, RoundingPlan, int]]()

    def spy(layers: Any, loss: Callable[[int], Tensor], plan: RoundingPlan) -> list[float]:
        seen.append((float(loss(0)), plan, len(layers)))
        return []

    monkeypatch.setattr(module, "learn_rounding", spy)
    Calibration(network, given).rounding()
    ((found, plan, count),) = seen
    assert (plan.iterations, plan.weight, plan.warmup, count) == (7, 0.01, 0.2, len(network.time_layers))

    pairs = sorted(set(zip(given["time"].tolist(), given["labels"].tolist(), strict=True)))
    batch = {
        "x": torch.randn(len(pairs), 3, 8, 8),
        "time": torch.tensor([time for time, _ in pairs]),
        "labels": torch.tensor([label for _, label in pairs]),
    }
    projections = {layer_of(call) for call in network.graph.projections}
    outputs: dict[str, list[Tensor]] = {name: [] for name in projections}
    for owner in (twin, network.module):
        for name in projections:
            owner.get_submodule(name).register_forward_hook(lambda _, __, o, name=name: outputs[name].append(o))
        caller(owner)(**batch)
    expected = sum((exact - rounded).square().sum(1).mean() for exact, rounded in outputs.values())
    assert found == pytest.approx(float(expected), rel=1e-3)


def test_the_block_is_fitted_on_every_time_and_label_once(inputs: Make) -> None:
    given = inputs()
    pairs = set(zip(given["time"].tolist(), given["labels"].tolist(), strict=True))
    doubled = {name: torch.cat([value, value]) for name, value in given.items()}
    moments = moments_of_block(doubled)
    assert sorted(zip(moments["time"].tolist(), moments["labels"].tolist(), strict=True)) == sorted(pairs)
    assert moments["labels"].dtype == given["labels"].dtype
    assert moments_of_block({"time": given["time"]})["time"].tolist() == [0.0, 250.0, 500.0, 999.0]


# -- reconstruction -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unet", "text", "dit"])
@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize("time_too", [True, False])
def test_units_hold_every_layer_once_in_forward_order(kind: str, blocks: bool, time_too: bool, wrapped: Make) -> None:
    network, _ = wrapped("w4a8-tfmq-paper", kind)
    names = {id(layer): name for name, layer in network.layers.items()}
    units = find_units(network, blocks, time_too)
    found = [names[id(layer)] for unit in units for layer in unit.layers]
    expected = [n for n in network.layers if time_too or n not in network.time_layers]
    assert sorted(found) == sorted(expected)
    order = [layer_of(call) for call in network.graph.order]
    firsts = [min(order.index(names[id(layer)]) for layer in unit.layers) for unit in units]
    assert firsts == sorted(firsts)
    assert all((len(unit.layers) > 1) <= blocks for unit in units)
    assert blocks == any(len(unit.layers) > 1 for unit in units)


@pytest.mark.parametrize("kind", ["unet", "dit"])
@pytest.mark.parametrize("reconstruction", ["layer", "block"])
def test_reconstruction_beats_the_nearest_codes(kind: str, reconstruction: str, wrapped: Make, inputs: Make) -> None:
    errors = {}
    for how in ("none", reconstruction):
        network, twin = wrapped(
            "w3a32-tfmq-full", kind, reconstruction=how, tib="nearest", iterations=60, rate=3e-2, batch=16
        )
        Calibration(network, inputs(kind, 8)).run()
        errors[how] = float((output(network, inputs(kind, 8)) - caller(twin)(**inputs(kind, 8))).norm())
    assert errors[reconstruction] < errors["none"]


@pytest.mark.parametrize("kind", ["unet", "text", "dit"])
@pytest.mark.parametrize("reconstruction", ["layer", "block"])
def test_units_are_fitted_to_full_precision_on_inputs_of_the_quantised_part(
    kind: str, reconstruction: str, wrapped: Make, inputs: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, twin = wrapped("w3a8-tfmq-paper", kind, reconstruction=reconstruction, tib="nearest", iterations=0)
    given = inputs(kind)
    exact, seen = outputs_of(twin, given), list[str]()
    plain = module.unit_loss

    def spy(network: Any, unit: Any, unit_inputs: Any, target: Tensor, *rest: Any) -> Any:
        name = unit.name
        assert torch.allclose(target, exact[name][1], atol=1e-5)
        arguments, named_ones = unit_inputs
        x = arguments[0] if arguments else named_ones["hidden_states"]
        # The first unit is given the data; all later ones what was quantised before them made of it, but for
        # the condition, which nothing stands before.
        given_as_it_is = not seen or name.endswith((".attn2.to_k", ".attn2.to_v"))
        assert torch.allclose(x, exact[name][0], atol=1e-5) == given_as_it_is
        seen.append(name)
        return plain(network, unit, unit_inputs, target, *rest)

    monkeypatch.setattr(module, "unit_loss", spy)
    Calibration(network, given).rounding()
    assert seen == [unit.name for unit in find_units(network, reconstruction == "block", False)]


def outputs_of(network: nn.Module, given: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """First input and output of every module that has them."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    names = {part: name for name, part in network.named_modules()}

    def remember(part: nn.Module, arguments: Any, named_ones: Any, output: Any) -> None:
        x = arguments[0] if arguments else named_ones.get("hidden_states")
        found[names[part]] = x, output[0] if isinstance(output, tuple) else output

    for part in names:
        part.register_forward_hook(remember, with_kwargs=True)
    with torch.no_grad():
        caller(network)(**given)
    return found


def test_progress_counts_to_its_end(wrapped: Make, inputs: Make) -> None:
    seen: list[tuple[str, int, int]] = []
    network, _ = wrapped("w3a8-tfmq-paper", **SHORT)
    Calibration(network, inputs(), progress=lambda *step: seen.append(step)).run()
    rounding = [(done, count) for stage, done, count in seen if stage == "rounding"]
    assert [done for done, _ in rounding] == list(range(1, rounding[0][1] + 1))
    assert seen[-1] == ("ranges", 1, 1)


def states_while_calibrated(network: QuantizedNetwork, data: dict[str, Tensor]) -> list[list[bool]]:
    """Which layers are on whenever progress is told."""
    states: list[list[bool]] = []
    layers = network.layers.values()
    Calibration(network, data, progress=lambda *_: states.append([layer.on for layer in layers])).run()
    return states


def test_a_network_without_time_layers_is_calibrated(wrapped: Make) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle, self.last = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

        def forward(self, sample: Tensor, timestep: Tensor) -> Any:
            out = self.last(self.middle(self.first(sample)).relu() * timestep[:, None, None, None])
            return type("Output", (), {"sample": out})

    data = {"x": torch.randn(8, 3, 6, 6), "time": torch.arange(1.0, 9.0)}
    for tib in ("tiar", "table", "layers", "nearest"):
        config = named("w3a8-tfmq-full", tib=tib, **SHORT)
        network = QuantizedNetwork.wrap(Plain().requires_grad_(False), config, {k: v[:3] for k, v in data.items()})
        # Units are learned one after the other, what comes later in full precision meanwhile.
        states = states_while_calibrated(network, data)
        assert states[:4] == [[k < done for k in range(3)] for done in range(3)] + [[True] * 3]
        assert output(network, data).isfinite().all()


# -- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_data_that_are_not_finite_are_refused(bad: float, wrapped: Make, inputs: Make) -> None:
    given = inputs()
    given["x"][3, 0, 0, 0] = bad
    with pytest.raises(EvaluationError, match="not finite"):
        Calibration(wrapped("w4a8-tfmq-paper")[0], given)
