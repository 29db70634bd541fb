"""From a model to a quantised network in a folder: made once, found by its content, refused elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fewstep.errors import DataError, ModelError
from fewstep.search_spaces.quantization import QuantizationConfig, named
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import find_model
from fewstep.tasks.quantization import build
from fewstep.tasks.quantization.build import Recipe, cached, quantize
from fewstep.tasks.quantization.storage import WEIGHTS, find_quantized, from_pretrained
from fewstep.tasks.sampling.grids import preset_on_grid

SMALL = {"images": 8, "sweeps": 1, "restarts": 0}
NAIVE = named("w4a8-naive-paper", images=8)


@pytest.fixture(scope="module")
def model(tiny_ddpm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, which is not touched."""
    return Path(shutil.copytree(tiny_ddpm, tmp_path_factory.mktemp("models") / "tiny"))


def recipe(model: Path, config: QuantizationConfig = NAIVE, nfe: int = 2) -> Recipe:
    schedule = preset_on_grid("ddim/uniform-t-zero", find_model(str(model)).noise, nfe)
    return Recipe(config, schedule, Conditions())


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's network by rounding to nearest."""
    folder = tmp_path_factory.mktemp("made") / "network"
    quantize(find_model(str(model)), recipe(model), folder)
    return folder


def test_the_key_knows_model_schedule_config_and_conditions(model: Path, tmp_path: Path) -> None:
    files, first = find_model(str(model)), recipe(model)
    assert first.key(files) == recipe(model).key(files)
    other = Path(shutil.copytree(model, tmp_path / "other"))
    config = json.loads((other / "scheduler" / "scheduler_config.json").read_text())
    (other / "scheduler" / "scheduler_config.json").write_text(json.dumps(config | {"beta_end": 0.03}))
    keys = [
        first.key(files),
        first.key(find_model(str(other))),
        recipe(model, nfe=3).key(files),
        recipe(model, named("w3a8-naive-paper", images=8)).key(files),
        recipe(model, named("w4a8-naive-paper", images=9)).key(files),
        Recipe(first.config, first.schedule, Conditions(labels="uniform")).key(files),
    ]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 16 for key in keys)


def test_the_data_are_named_by_all_that_made_them_but_not_by_bits(model: Path) -> None:
    files = find_model(str(model))
    first = recipe(model).data_identity(files)
    assert recipe(model, named("w3a8-naive-paper", images=8)).data_identity(files) == first
    assert recipe(model, nfe=3).data_identity(files) != first


def test_what_is_cached_is_calibrated_once(model: Path, tmp_path: Path) -> None:
    files, asked = find_model(str(model)), recipe(model)
    folder, calls = cached(files, asked, tmp_path)
    assert calls == 2 * 8
    stamp = (folder / "quantized.safetensors").stat().st_mtime_ns
    assert cached(files, asked, tmp_path) == (folder, 0)
    assert (folder / "quantized.safetensors").stat().st_mtime_ns == stamp
    other, calls = cached(files, recipe(model, nfe=3), tmp_path)
    assert other != folder
    assert calls == 3 * 8


def test_configs_of_a_model_share_its_trace_and_lose_nothing_by_it(
    model: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, other = find_model(str(model)), named("w4a8-tfmq-paper", **SMALL)
    quantize(files, recipe(model), tmp_path / "first")
    with monkeypatch.context() as patch:
        patch.setattr("fewstep.tasks.quantization.network.trace", None)
        quantize(files, recipe(model, other), tmp_path / "shared")
    build._traces.clear()
    quantize(files, recipe(model, other), tmp_path / "alone")
    found = [load_file(tmp_path / name / WEIGHTS) for name in ("shared", "alone")]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_what_bits_are_allotted_by_is_measured_once_and_counted(model: Path, tmp_path: Path) -> None:
    files, work = find_model(str(model)), tmp_path / "work"
    calls = {}
    for name in ("w4a8-mixed-paper", "w3a8-mixed-full", "w4a8-tfmq-paper"):
        network, cost = quantize(files, recipe(model, named(name, **SMALL)), tmp_path / name, work)
        calls[name] = cost.denoiser_calls
        bits = {plan.bits for plan in network.plans.values() if plan.role not in ("edge", "time")}
        assert (len(bits) > 1) == ("mixed" in name)
        again = from_pretrained(tmp_path / name)
        assert [layer.bits for layer in again.layers.values()] == [layer.bits for layer in network.layers.values()]
    (path,) = work.glob("changes-*.json")
    measured = len(json.loads(path.read_text()))
    assert calls["w3a8-mixed-full"] == calls["w4a8-tfmq-paper"] == 8 * 2
    assert calls["w4a8-mixed-paper"] == 8 * 2 + 8 * 2 + 16 * (measured + 1)
    path.write_text("{}")
    with pytest.raises(DataError, match="damaged"):
        quantize(files, recipe(model, named("w4a8-mixed-paper", **SMALL)), tmp_path / "damaged", work)


def test_a_killed_calibration_is_taken_up_again(model: Path, tmp_path: Path) -> None:
    files, asked = find_model(str(model)), recipe(model, named("w3a8-tfmq-paper", **SMALL))
    quantize(files, asked, tmp_path / "whole")

    class Killed(BaseException):
        pass

    def progress(stage: str, done: int, count: int) -> None:
        if done == 4:
            raise Killed

    folder, work = tmp_path / "killed", tmp_path / "work"
    with pytest.raises(Killed):
        quantize(files, asked, folder, work, progress=progress)
    assert not folder.exists()
    begun = [path.stat().st_size for path in work.iterdir()]
    quantize(files, asked, folder, work)
    assert len(begun) == 1
    assert find_quantized(folder).hash == find_quantized(tmp_path / "whole").hash
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole", "work"]


def test_the_description_says_how_it_was_made(model: Path, made: Path) -> None:
    files, stored = find_model(str(model)), find_quantized(made)
    said = stored.description
    assert stored.config == NAIVE
    assert stored.model_hash == files.hash
    assert said["model"] == files.name
    assert said["cost"]["denoiser_calls"] == 2 * 8
    assert said["cost"]["seconds"] > 0
    parameters = sum(layer["parameters"] for layer in said["coverage"])
    assert parameters == sum(p.numel() for p in Denoiser(files).network.module.parameters())
    assert said["bit_operations"] == sum(
        layer["multiply_adds"] * layer["weight_bits"] * layer["activation_bits"] for layer in said["coverage"]
    )
    assert said["schedule"]["name"] == recipe(model).schedule.name


def test_what_was_calibrated_is_what_samples(model: Path, made: Path, tmp_path: Path) -> None:
    files = find_model(str(model))
    network, _ = quantize(files, recipe(model), tmp_path / "again")
    assert find_quantized(tmp_path / "again").hash == find_quantized(made).hash
    x, time = torch.randn(2, *files.shape), torch.tensor([500.0])
    with torch.inference_mode():
        expected = network.module(x, time).sample
        assert torch.equal(from_pretrained(made).module(x, time).sample, expected)
        denoiser = Denoiser(files.with_quantized(made))
        assert torch.equal(denoiser.network.module(x, time).sample, expected)
        assert not torch.equal(Denoiser(files).network.module(x, time).sample, expected)


# -- models -------------------------------------------------------------------------------------------------


def test_a_model_with_a_quantised_network_has_another_hash(model: Path, made: Path, tmp_path: Path) -> None:
    plain = find_model(str(model))
    quantised = find_model(str(model), str(made))
    moved = find_model(str(model), str(shutil.copytree(made, tmp_path / "moved")))
    assert quantised.quantized == made
    assert quantised.hash != plain.hash
    assert moved.hash == quantised.hash
    quantize(plain, recipe(model, named("w3a8-naive-paper", images=8)), tmp_path / "other")
    assert plain.with_quantized(tmp_path / "other").hash not in (plain.hash, quantised.hash)
    # From a quantised one to another is from the model itself.
    assert quantised.with_quantized(made).hash == quantised.hash


def test_a_network_of_another_model_is_refused(model: Path, made: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="was made of model 'tiny'"):
        find_model("digits-ddpm", str(made))
    with pytest.raises(ModelError, match="fewstep quantize"):
        find_model(str(model), str(tmp_path))
    with pytest.raises(ModelError, match="fewstep quantize"):
        find_model(str(model), str(tmp_path / "absent"))


def test_a_network_that_cannot_be_quantised_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ModelError("no")

    monkeypatch.setattr(build, "save_pretrained", lambda *_, **__: refuse())
    with pytest.raises(ModelError, match="no"):
        cached(find_model(str(model)), recipe(model), tmp_path)
    assert not [path for path in tmp_path.rglob("*.json")]
