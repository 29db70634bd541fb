"""Calibrations by descent: better than nearest, the same every time, and untouched by being killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.errors import DataError
from fewstep.search_spaces.quantization import named
from fewstep.tasks.quantization.calibration import Calibration
from fewstep.tasks.quantization.kept import Kept
from fewstep.tasks.quantization.network import QuantizedNetwork, caller
from fewstep.tasks.quantization.sequential import Sequential
from fewstep.tasks.quantization.shelf import Shelf
from fewstep.tasks.quantization.temporal import temporal_errors

Make = Callable[..., Any]
QUICK = {"solver": "descent", "sweeps": 2, "restarts": 1}


class Killed(BaseException):
    pass


def everything(network: QuantizedNetwork) -> dict[str, Tensor]:
    """Codes, scales, biases and the grids of activations."""
    found = dict(network.module.state_dict())
    for name, layer in network.layers.items():
        for i, part in enumerate(layer.parts):
            found |= {f"{name}.{i}.codes": part.codes, f"{name}.{i}.scale": part.grid.scale}
    return found


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def changed(network: QuantizedNetwork, before: dict[str, Tensor]) -> set[str]:
    """Layers whose codes are others than before."""
    after = everything(network)
    return {name.rpartition(".")[0][:-2] for name in before if ".codes" in name and not after[name].equal(before[name])}


@torch.no_grad()
def output(module: nn.Module, given: dict[str, Tensor]) -> Tensor:
    return caller(module)(**given)


def error(network: QuantizedNetwork, twin: nn.Module, given: dict[str, Tensor]) -> float:
    return float((output(network.module, given) - output(twin, given)).norm())


@pytest.fixture
def descended(wrapped: Make, inputs: Make) -> Make:
    """`descended(name, kind, **changes)`: calibrated by descent, and the untouched twin."""

    def build(name: str, kind: str = "unet", settings: Any = None, **changes: Any) -> Any:
        network, twin = wrapped(name, kind, settings, **(QUICK | changes))
        Calibration(network, inputs(kind)).run()
        return network, twin

    return build


# -- what it gives ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unet", "text", "dit"])
def test_descent_beats_the_nearest_codes_and_off_the_network_is_exact(kind: str, descended: Make, inputs: Make) -> None:
    given, errors = inputs(kind), {}
    for reconstruction, tib in (("none", "nearest"), ("block", "tiar")):
        network, twin = descended("w3a32-tfmq-full", kind, reconstruction=reconstruction, tib=tib)
        errors[reconstruction] = error(network, twin, given)
    assert errors["block"] < 0.8 * errors["none"]
    # The fit changed biases, and the full-precision network still has its own.
    biases = [name for name, value in twin.state_dict().items() if name.endswith("bias")]
    assert any(not torch.equal(network.module.state_dict()[name], twin.state_dict()[name]) for name in biases)
    network.switch(weights=False, activations="off")
    assert torch.equal(output(network.module, given), output(twin, given))


def test_descent_beats_few_steps_of_adam(descended: Make, wrapped: Make, inputs: Make) -> None:
    network, twin = descended("w3a32-tfmq-paper")
    slow, _ = wrapped("w3a32-published-paper", iterations=30, tiar_iterations=100, batch=16)
    Calibration(slow, inputs()).run()
    assert error(network, twin, inputs()) < error(slow, twin, inputs())


def test_it_holds_on_images_that_it_was_not_fitted_to(descended: Make, inputs: Make) -> None:
    others = inputs()
    others["x"] = torch.randn(others["x"].shape, generator=torch.Generator().manual_seed(77))
    nearest, twin = descended("w4a32-naive-paper")
    found, _ = descended("w4a32-tfmq-paper")
    assert error(found, twin, others) < error(nearest, twin, others)


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_tiar_by_descent_keeps_temporal_features_several_times_better_than_nearest(
    kind: str, descended: Make, inputs: Make
) -> None:
    given, errors = inputs(kind, 5), {}
    for tib in ("nearest", "tiar"):
        network, twin = descended("w4a32-tfmq-paper", kind, tib=tib, reconstruction="none", sweeps=6, restarts=10)
        rows = temporal_errors(twin, network, given["time"].unique().tolist(), {k: v[:5] for k, v in given.items()})
        errors[tib] = sum(row.relative_error for row in rows)
    assert errors["tiar"] < errors["nearest"] / 3


def test_quantised_activations_of_the_block_are_part_of_its_fit(descended: Make, inputs: Make) -> None:
    given, errors = inputs(count=5), {}
    for tib in ("nearest", "tiar"):
        network, twin = descended("w8a6-tfmq-paper", tib=tib, reconstruction="none", sweeps=6, restarts=10)
        rows = temporal_errors(twin, network, given["time"].unique().tolist(), {k: v[:5] for k, v in given.items()})
        errors[tib] = sum(row.relative_error for row in rows)
    assert errors["tiar"] < 0.9 * errors["nearest"]


@pytest.mark.parametrize(
    ("tib", "fsc"),
    [("nearest", "none"), ("layers", "tib"), ("tiar", "none"), ("table", "all")],
)
def test_every_treatment_of_the_block_works(tib: str, fsc: str, wrapped: Make, inputs: Make) -> None:
    network, twin = wrapped("w4a8-tfmq-paper", **QUICK, tib=tib, fsc=fsc)
    before = everything(network)
    Calibration(network, inputs()).run()
    touched = changed(network, before)
    assert (touched & set(network.time_layers) == set()) == (tib == "nearest")
    assert touched - set(network.time_layers)
    assert all(layer.on for layer in network.layers.values())
    assert all(quantizer.mode == "on" for quantizer in network.quantizers.values())
    for name, layer in network.layers.items():
        keyed = fsc == "all" or (fsc == "tib" and name in network.time_layers)
        assert (len(layer.activation.times) > 1) == keyed
    assert (network.table is not None) == (tib == "table")
    assert error(network, twin, inputs()) < 0.5 * float(output(twin, inputs()).norm())


def test_the_hybrid_fits_the_block_by_descent_and_rounds_the_rest_by_adam(
    wrapped: Make, inputs: Make, tmp_path: Path
) -> None:
    adam = {"iterations": 3, "rate": 0.1, "batch": 8}
    hybrid, _ = wrapped("w3a8-tfmq-paper", **(QUICK | adam | {"solver": "hybrid"}))
    run = Calibration(hybrid, inputs(), tmp_path)
    run.run()
    fitted, _ = wrapped("w3a8-tfmq-paper", **QUICK)
    Calibration(fitted, inputs()).run()
    others = changed(hybrid, everything(fitted))
    assert others
    assert not others & set(hybrid.time_layers)
    assert run.losses
    assert "time" not in run.losses
    # Both parts are read back.
    again, _ = wrapped("w3a8-tfmq-paper", **(QUICK | adam | {"solver": "hybrid"}))
    second = Calibration(again, inputs(), tmp_path)
    second.run()
    assert not second.losses
    assert same(everything(again), everything(hybrid))


def test_without_reconstruction_the_rest_stays_at_nearest(wrapped: Make, inputs: Make) -> None:
    network, _ = wrapped("w3a8-tfmq-paper", **QUICK, reconstruction="none")
    before = everything(network)
    Calibration(network, inputs()).run()
    assert changed(network, before) <= set(network.time_layers)
    after = everything(network)
    for name, layer in network.layers.items():
        if name not in network.time_layers:
            assert torch.equal(after[f"{name}.0.scale"], before[f"{name}.0.scale"])
            assert torch.equal(layer.bias, before[f"{name}.bias"])


class _Odd(nn.Module):
    """A denoiser with a convolution of groups, and one that is called twice."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.grouped = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.twice = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor) -> Any:
        x = self.grouped(torch.relu(self.first(sample))) + timestep.view(-1, 1, 1, 1) / 1000
        x = self.last(self.twice(torch.relu(self.twice(x))))
        return type("Output", (), {"sample": x})


def test_groups_are_left_alone_and_a_layer_that_is_called_twice_is_fitted_to_both(inputs: Make) -> None:
    given = {name: inputs()[name] for name in ("x", "time")}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        twin, module = _Odd().requires_grad_(False), _Odd().requires_grad_(False)
    module.load_state_dict(twin.state_dict())
    config = named("w3a32-tfmq-paper", **QUICK)
    network = QuantizedNetwork.wrap(module, config, {name: value[:3] for name, value in given.items()})
    before, seen = everything(network), list[int]()
    nearest_codes = network.layers["grouped"].parts[0].codes
    network.switch(weights=True)
    nearest = error(network, twin, given)
    fit = Sequential(network, given, Kept(None))
    network.switch(weights=False)
    for name in ("twice", "first"):
        with Shelf(None) as shelf:
            fit._store_targets([name], shelf)
            rows = [x for x, _ in fit._passes(name)]
            seen.append(sum(map(len, rows)))
            assert len(shelf.read(name)(seen[-1])) == seen[-1]
            with pytest.raises(AssertionError):
                shelf.read(name)(seen[-1] + 1)
    assert seen[0] == 2 * seen[1]
    Calibration(network, given).run()
    assert changed(network, before) == {"first", "twice", "last"}
    assert torch.equal(network.layers["grouped"].parts[0].codes, nearest_codes)
    assert network.layers["grouped"].on
    assert error(network, twin, given) < nearest


# -- again and again ----------------------------------------------------------------------------------------


def test_equal_data_give_an_equal_network_and_others_another(wrapped: Make, inputs: Make) -> None:
    found, kind = [], "dit"
    for shift in (0.0, 0.0, 0.5):
        network, _ = wrapped("w3a8-tfmq-full", kind, **QUICK)
        data = inputs(kind)
        Calibration(network, data | {"x": data["x"] + shift}).run()
        found.append(everything(network))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("w3a8-tfmq-full", "unet", {}),
    ("w3a8-tfmq-paper", "unet", {"granularity": "token", "tib": "layers"}),
    ("w4a8-tfmq-paper", "text", {"tib": "table", "fsc": "tib"}),
    ("w3a8-tfmq-paper", "dit", {}),
]


@pytest.mark.parametrize(("name", "kind", "changes"), CASES)
def test_a_killed_calibration_goes_on_to_the_same_network(
    name: str, kind: str, changes: dict[str, Any], wrapped: Make, inputs: Make, tmp_path: Path
) -> None:
    whole, _ = wrapped(name, kind, **QUICK, **changes)
    counts: list[int] = []
    Calibration(whole, inputs(kind), progress=lambda _, done, count: counts.append(count)).run()
    for after in (1, counts[0] // 2):
        network, _ = wrapped(name, kind, **QUICK, **changes)

        def progress(stage: str, done: int, count: int, after: int = after) -> None:
            if stage == "rounding" and done == after:
                raise Killed

        with pytest.raises(Killed):
            Calibration(network, inputs(kind), tmp_path, "data", progress).run()
    network, _ = wrapped(name, kind, **QUICK, **changes)
    Calibration(network, inputs(kind), tmp_path, "data").run()
    assert same(everything(network), everything(whole))
    assert torch.equal(output(network.module, inputs(kind)), output(whole.module, inputs(kind)))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("granularity", ["tensor", "token"])
@pytest.mark.parametrize("fsc", ["none", "tib"])
def test_a_calibration_killed_inside_the_block_goes_on_to_the_same_network(
    granularity: str, fsc: str, wrapped: Make, inputs: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"granularity": granularity, "fsc": fsc, "reconstruction": "none"}
    whole, _ = wrapped("w3a6-tfmq-paper", **QUICK, **changes)
    Calibration(whole, inputs()).run()
    for parts in (1, 3):
        network, _ = wrapped("w3a6-tfmq-paper", **QUICK, **changes)
        plain = Kept.keep

        def keep(self: Kept, part: str, tensors: Any, parts: int = parts, plain: Any = plain) -> None:
            plain(self, part, tensors)
            if len(self._parts) == parts:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(Kept, "keep", keep)
            with pytest.raises(Killed):
                Calibration(network, inputs(), tmp_path).run()
        assert len(Kept(next(tmp_path.iterdir()))._parts) == parts
    network, _ = wrapped("w3a6-tfmq-paper", **QUICK, **changes)
    Calibration(network, inputs(), tmp_path).run()
    assert same(everything(network), everything(whole))


def test_what_is_finished_is_not_fitted_again_and_other_data_or_configs_are(
    wrapped: Make, inputs: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewstep.tasks.quantization import fitting, sequential, time_block

    fitted: list[Any] = []
    plain = fitting.fit_moments
    for module in (sequential, time_block):
        monkeypatch.setattr(module, "fit_moments", lambda *a, **k: (fitted.append(a[0]), plain(*a, **k)))

    def run(identity: str = "data", **changes: Any) -> int:
        fitted.clear()
        network, _ = wrapped("w4a8-tfmq-paper", **(QUICK | {"reconstruction": "none"} | changes))
        Calibration(network, inputs(), tmp_path, identity).run()
        return len(fitted)

    whole = run()
    assert whole >= 5
    assert run() == 0
    assert run(reconstruction="block") > 2 * whole
    assert run(reconstruction="block") == 0
    assert run("other") == whole
    assert run(sweeps=1) == whole
    # Ranges of activations are found with the block's weights: they count.
    assert run(activation_bits=6) == whole
    assert run(restarts=2) == whole
    assert len(list(tmp_path.iterdir())) == 6


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _noise(path: Path) -> None:
    path.write_bytes(b"no safetensors")


def _edited(suffix: str, change: Callable[[Tensor], Tensor | None]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        found = {k: change(v) if k.endswith(suffix) else v for k, v in load_file(path).items()}
        save_file({k: v for k, v in found.items() if v is not None}, path)

    return damage


DAMAGES = {
    "cut": _cut,
    "noise": _noise,
    "reshaped": _edited(":codes0", lambda v: v.flatten()),
    "beyond": _edited(":codes0", lambda v: v + 100),
    "no-codes": _edited(":codes0", lambda v: None),
    "no-scale": _edited(":scale0", lambda v: None),
    "short-scale": _edited(":scale0", lambda v: v[:1].clone()),
    "no-bias": _edited(":bias", lambda v: None),
    "short-bias": _edited(":bias", lambda v: v[:1].clone()),
    "no-times": _edited(":times", lambda v: None),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_named_and_changes_nothing(
    damage: Callable[[Path], None], wrapped: Make, inputs: Make, tmp_path: Path
) -> None:
    changes = QUICK | {"reconstruction": "none"}
    Calibration(wrapped("w3a8-tfmq-paper", **changes)[0], inputs(), tmp_path).rounding()
    (path,) = tmp_path.iterdir()
    damage(path)
    network, _ = wrapped("w3a8-tfmq-paper", **changes)
    before = {name: value.clone() for name, value in everything(network).items()}
    with pytest.raises(DataError, match=path.name):
        Calibration(network, inputs(), tmp_path).rounding()
    assert same(everything(network), before)


def test_what_is_kept_is_read_back_and_whole_at_every_moment(tmp_path: Path) -> None:
    path, kept = tmp_path / "deep" / "kept.safetensors", Kept(tmp_path / "deep" / "kept.safetensors")
    assert "a" not in kept
    values = {"x": torch.arange(6.0).view(2, 3).T, "y": torch.tensor([1], dtype=torch.uint8)}
    for part in ("a", "b.c:d", "e"):
        kept.keep(part, values)
        again = Kept(path)
        assert part in again
        assert same(again[part], values)
    values["x"].zero_()
    assert float(kept["a"]["x"].sum()) == 15
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    memory = Kept(None)
    memory.keep("a", values)
    assert same(memory["a"], values)
