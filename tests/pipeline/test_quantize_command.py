"""`fewstep quantize`, what is done with its folder, and searches that start from schedules."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewstep.search_spaces.quantization import named
from fewstep.storage.store import Store
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import find_model
from fewstep.tasks.quantization.storage import find_quantized
from fewstep.tasks.sampling.grids import preset_on_grid

Run = Callable[..., Any]
CONFIG = "w4a8-naive-paper+images=8"


@pytest.fixture
def quantize(run: Run, toy: Path, tmp_path: Path) -> Callable[..., Any]:
    """`quantize(out, *options)`: the toy model's network, by the command line."""

    def call(out: str, *options: object) -> Any:
        given = ("--model", toy, "--schedule", "ddim@2", "--out", out, "--work", tmp_path / "work")
        return run("quantize", *given, *(options or ("--config", CONFIG)), "--json")

    return call


def test_a_network_is_written_and_its_figures_are_told(quantize: Run, run: Run, toy: Path, tmp_path: Path) -> None:
    facts = quantize("network").json
    stored = find_quantized(tmp_path / "network")
    assert stored.config == named("w4a8-naive-paper", images=8)
    assert facts["bytes"] == stored.bytes
    assert facts["denoiser_calls"] == 2 * 8
    parameters = sum(p.numel() for p in Denoiser(find_model(str(toy))).network.module.parameters())
    assert facts["bytes_in_full_precision"] == 4 * parameters < facts["bytes_of_the_model_file"]
    assert facts["layers"] == len(stored.description["plans"])
    told = run("quantize", "--model", toy, "--schedule", "ddim@2", "--out", "other", "--config", CONFIG)
    assert told.code == 0, told.err
    assert "KiB" in told.out
    assert find_quantized(tmp_path / "other").hash == stored.hash


def test_the_default_is_fitted_and_goes_on_from_its_work(quantize: Run, tmp_path: Path) -> None:
    options = ("--config", "w4a8-tfmq-full+images=8+sweeps=1+restarts=0")
    first = quantize("one", *options).json
    assert [path.suffix for path in (tmp_path / "work").iterdir()] == [".safetensors"]
    assert quantize("two", *options).json["bytes"] == pytest.approx(first["bytes"], abs=50)
    assert find_quantized(tmp_path / "one").hash == find_quantized(tmp_path / "two").hash


def test_a_forecast_states_the_peak_and_makes_nothing(quantize: Run, run: Run, toy: Path, tmp_path: Path) -> None:
    few, many = (quantize("new", "--config", f"w4a8-tfmq-paper+images={n}", "--dry-run").json for n in (16, 32))
    assert many["data"] == 2 * few["data"] > 0
    for said in (few, many):
        assert said["peak"] == said["network"] + said["data"] + said["a_pass"] + said["largest_fit"]
    told = run("quantize", "--model", toy, "--schedule", "ddim@2", "--out", "new", "--dry-run")
    assert "peak memory" in told.out
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "work").exists()


def test_a_folder_that_is_there_is_refused_and_left_alone(quantize: Run, tmp_path: Path) -> None:
    (tmp_path / "network").mkdir()
    (tmp_path / "network" / "mine").write_text("precious")
    quantize("network").refused("--out", "network")
    (tmp_path / "file").write_text("precious")
    quantize("file").refused("file", "no folder")
    assert [path.name for path in (tmp_path / "network").iterdir()] == ["mine"]
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("w4a8-magic-paper", ("magic", "tfmq", "released")),
        ("w4a8-tfmq-most", ("most", "full")),
        ("w4a8", ("w4a8-tfmq-full",)),
        ("w9a8-tfmq-full", ("weight_bits", "9")),
        (CONFIG + "+colour=red", ("colour", "activation_range")),
        (CONFIG + "+momentum", ("momentum", "field=value")),
        (CONFIG + "+momentum=high", ("momentum", "high")),
        (CONFIG + "+images=0", ("images", "0")),
        ("absent.json", ("absent.json",)),
        ("torn.json", ("quantisation config",)),
        ("strange.json", ("colour",)),
    ],
)
def test_a_config_that_is_none_is_refused(config: str, words: tuple[str, ...], quantize: Run, tmp_path: Path) -> None:
    (tmp_path / "torn.json").write_text('{"weight_bits": 4')
    (tmp_path / "strange.json").write_text('{"colour": "red"}')
    quantize("network", "--config", config).refused(*words)
    assert not (tmp_path / "network").exists()


def test_models_schedules_and_conditions_that_cannot_be_used_are_refused(run: Run, toy: Path, tmp_path: Path) -> None:
    def ask(model: object, schedule: str, *options: object) -> Any:
        return run("quantize", "--model", model, "--schedule", schedule, "--out", "network", *options)

    ask("absent", "ddim@2").refused("'absent'")
    ask(toy, "rk45@2").refused("'rk45'")
    ask(toy, "nowhere.json").refused("nowhere.json")
    ask(toy, "ddim@2", "--labels", "balanced").refused("label")
    ask(toy, "ddim@2", "--device", "tpu").refused("'tpu'")
    assert not (tmp_path / "network").exists()


def test_a_json_file_with_a_config_is_that_config(quantize: Run, tmp_path: Path) -> None:
    config = named("w3a32-naive-paper", images=4)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    assert quantize("network", "--config", "config.json").json["denoiser_calls"] == 2 * 4
    assert find_quantized(tmp_path / "network").config == config


# -- with a quantised network ---------------------------------------------------------------------------


def _pictures(folder: Path) -> Any:
    return np.stack([np.asarray(Image.open(path), np.int16) for path in sorted(folder.iterdir())])


def test_it_is_evaluated_and_sampled_in_the_models_place(quantize: Run, run: Run, toy: Path, tmp_path: Path) -> None:
    assert quantize("network", "--config", "w2a8-naive-paper+images=8").code == 0
    shared = ("--model", toy, "--schedule", "ddim@2")
    evaluate = ("evaluate", *shared, "--images", 250, "--out", "kept", "--json")
    exact = run(*evaluate).json
    found = run(*evaluate, "--quantized", "network").json
    assert found["value"] != exact["value"]
    assert found["denoiser_calls"] == exact["denoiser_calls"] == 2 * 250
    # Neither stands in for the other, and neither is computed twice.
    assert run(*evaluate, "--quantized", "network").json == found
    assert run(*evaluate).json == exact
    assert Store("kept").evaluations.row_count() == 2
    shutil.copytree(tmp_path / "network", tmp_path / "moved")
    assert run(*evaluate, "--quantized", "moved").json == found
    assert Store("kept").evaluations.row_count() == 2

    sample = ("sample", *shared, "--count", 3, "--out")
    for name, options in (("exact", ()), ("found", ("--quantized", "network")), ("again", ("--quantized", "moved"))):
        assert run(*sample, name, *options).code == 0
    exact_ones, ones, again = (_pictures(tmp_path / name) for name in ("exact", "found", "again"))
    assert np.array_equal(ones, again)
    assert not np.array_equal(ones, exact_ones)


def test_networks_of_another_model_and_damaged_ones_are_refused(
    quantize: Run, run: Run, toy: Path, tmp_path: Path
) -> None:
    assert quantize("network").code == 0
    other, own = ("--model", "digits-ddpm", "--schedule", "ddim@2"), ("--model", toy, "--schedule", "ddim@2")
    for command in ("evaluate", "sample"):
        run(command, *other, "--quantized", "network").refused("was made of model 'toy'", "digits-ddpm")
        run(command, *own, "--quantized", "absent").refused("absent", "fewstep quantize")
    search = ("search", "--model", "digits-ddpm", "--nfe", 2, "--executor", "in-process", "--out", "study")
    run(*search, "--quantized", "network").refused("was made of model 'toy'")
    said = json.loads((tmp_path / "network" / "quantization.json").read_text())
    (tmp_path / "network" / "quantization.json").write_text(json.dumps(said | {"schema_version": 9}))
    run("sample", *own, "--quantized", "network").refused("schema version 9")


# -- searches -------------------------------------------------------------------------------------------

SMALL = ("--screen", "distance", "--distance-images", 8, "--frechet-images", 250, "--report-images", 300)


def _search(toy: Path, *options: object) -> tuple[object, ...]:
    fixed = ("search", "--model", toy, "--nfe", "2", "--teacher", "ddim@4", "--sampler", "random")
    return (*fixed, "--budget", 8000, *SMALL, "--executor", "in-process", "--out", "study", "--json", *options)


@pytest.mark.slow
def test_a_search_for_a_quantised_network_judges_what_it_starts_from(
    quantize: Run, run: Run, toy: Path, tmp_path: Path
) -> None:
    assert quantize("network").code == 0
    noise = find_model(str(toy)).noise
    (tmp_path / "past" / "schedules").mkdir(parents=True)
    given = []
    for nfe, last in ((2, -0.5), (2, 0.5), (3, 0.0)):
        schedule = preset_on_grid("dpmpp-2m/karras-zero", noise, nfe)
        lambdas = list(schedule.lambdas)
        lambdas[1] += last
        moved = schedule.model_copy(update={"lambdas": tuple(lambdas)})
        given.append(moved)
        (tmp_path / "past" / "schedules" / f"{nfe}{last}.json").write_text(moved.to_json())
    result = run(*_search(toy, "--quantized", "network", "--warm-start", "past")).json
    records = [r for r in Store("study").evaluations.records() if r.origin == "warm-start"]
    rungs = {h: {r.rung for r in records if r.candidate == h} for h in {r.candidate for r in records}}
    # All that have a searched NFE are screened and judged, the others left out.
    assert set(rungs) == {schedule.hash for schedule in given if schedule.nfe == 2}
    assert all({"distance", "frechet"} <= found for found in rungs.values())
    model = find_model(str(toy), str(tmp_path / "network"))
    assert {r.model_hash for r in Store("study").evaluations.records()} == {model.hash}
    assert result["rows"]


def test_warm_starts_that_are_none_are_refused(run: Run, toy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn.json").write_text('{"lambdas": [')
    run(*_search(toy, "--warm-start", "absent.json")).refused("absent.json")
    run(*_search(toy, "--warm-start", "empty")).refused("--warm-start", "empty")
    run(*_search(toy, "--warm-start", "torn.json")).refused("torn.json")
    assert not (tmp_path / "study").exists()


def test_a_search_for_a_network_that_is_not_there_is_refused(run: Run, toy: Path, tmp_path: Path) -> None:
    run(*_search(toy, "--quantized", "absent")).refused("absent", "fewstep quantize")
    assert not (tmp_path / "study").exists()
