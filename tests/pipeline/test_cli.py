"""The command line: every mistake is one line and exit code 2, every answer can be read by a script."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewstep.pipeline.campaign import register
from fewstep.pipeline.settings import SearchSettings
from fewstep.storage.lease import Lease
from fewstep.storage.store import Store
from fewstep.tasks.models.files import find_model
from fewstep.tasks.sampling.grids import preset_on_grid

Run = Callable[..., Any]


# -- schedules ------------------------------------------------------------------------------------------


def _broken_schedule(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    content = json.loads(preset_on_grid("ddim/uniform-t-zero", find_model("digits-ddpm").noise, 3).to_json())
    change(content)
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps(content))
    return path


def _swap(content: dict[str, Any]) -> None:
    content["lambdas"][1], content["lambdas"][2] = content["lambdas"][2], content["lambdas"][1]


def _nan_time(content: dict[str, Any]) -> None:
    content["lambdas"][1] = float("nan")


def _nan_coefficient(content: dict[str, Any]) -> None:
    content["steps"][1]["predictor"]["derivatives"] = [{"points": [-2], "coefficient": float("nan")}]


def _unknown_key(content: dict[str, Any]) -> None:
    content["solver"] = "mine"


def _unknown_key_inside(content: dict[str, Any]) -> None:
    content["steps"][0]["ordr"] = 2


def _one_time_short(content: dict[str, Any]) -> None:
    del content["lambdas"][1]


def _too_noisy(content: dict[str, Any]) -> None:
    content["lambdas"][0] -= 4


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (_swap, "out of order"),
        (_nan_time, "NaN"),
        (_nan_coefficient, "coefficient"),
        (_unknown_key, "solver"),
        (_unknown_key_inside, "ordr"),
        (_one_time_short, "lambdas"),
        (_too_noisy, "starts at lambda"),
    ],
)
def test_a_schedule_that_cannot_be_used_is_refused(
    change: Callable[[dict[str, Any]], None], word: str, run: Run, toy: Path, tmp_path: Path
) -> None:
    path = _broken_schedule(tmp_path, change)
    run("evaluate", "--model", toy, "--schedule", path, "--images", 250).refused(word)
    run("sample", "--model", toy, "--schedule", path, "--count", 1).refused(word)


@pytest.mark.parametrize(
    ("schedule", "word"),
    [
        ("nowhere.json", "nowhere.json"),
        ("rk45/uniform-t@5", "'rk45'"),
        ("ddim/cubic@5", "'cubic'"),
        ("ddim/karras@0", "@0"),
        ("ddim/karras@many", "@many"),
        ("ddim/karras@201", "@201"),
    ],
)
def test_a_schedule_that_does_not_exist_is_refused(schedule: str, word: str, run: Run, toy: Path) -> None:
    run("evaluate", "--model", toy, "--schedule", schedule).refused(word)


def test_text_that_is_no_json_is_refused(run: Run, toy: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.json").write_bytes(b'{"lambdas": [1,\xff')
    run("sample", "--model", toy, "--schedule", "torn.json").refused("torn.json")


# -- models and references ------------------------------------------------------------------------------


@pytest.fixture
def broken(toy: Path, tmp_path: Path) -> Path:
    """A copy of the toy model, to be broken."""
    return Path(shutil.copytree(toy, tmp_path / "broken"))


SEARCH = ("search", "--executor", "in-process", "--nfe", "3", "--out", "study")


def test_a_model_without_a_scheduler_is_refused(run: Run, broken: Path) -> None:
    shutil.rmtree(broken / "scheduler")
    run(*SEARCH, "--model", broken).refused("scheduler_config.json", broken)
    assert not Path("study").exists()


def test_a_model_with_the_wrong_channels_is_refused(run: Run, broken: Path) -> None:
    config = json.loads((broken / "unet" / "config.json").read_text())
    (broken / "unet" / "config.json").write_text(json.dumps(config | {"out_channels": 2}))
    run(*SEARCH, "--model", broken).refused("1 channels in and 2 out")


def test_weights_that_do_not_fit_are_refused(run: Run, broken: Path) -> None:
    (broken / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x08\x00\x00\x00torn")
    run("sample", "--model", broken, "--schedule", "ddim/karras@2").refused("weights")


def test_a_model_that_is_not_there_is_refused_with_those_that_are(run: Run) -> None:
    run(*SEARCH, "--model", "digits-dpm").refused("'digits-dpm'", "digits-ddpm")
    run("evaluate", "--model", "absent", "--schedule", "ddim@3").refused("'absent'")


def test_references_that_cannot_be_used_are_refused(run: Run, toy: Path, tmp_path: Path) -> None:
    ask = (*SEARCH, "--model", toy, "--teacher", "ddim@4", "--reference")
    (tmp_path / "empty").mkdir()
    run(*ask, "empty").refused("no image in empty")
    run(*ask, "absent").refused("'absent'")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "a.png").write_bytes(b"\x89PNG no more")
    run(*ask, "torn").refused("a.png")
    (tmp_path / "torn.npz").write_bytes(b"PK no more")
    run(*ask, "torn.npz").refused("torn.npz")
    np.savez(tmp_path / "small.npz", mu=np.zeros(3), sigma=np.eye(3))
    run(*ask, "small.npz").refused("3 features")
    (tmp_path / "single").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "single" / "a.png")
    run(*ask, "single").refused("fewer than 2")
    assert not (tmp_path / "study" / "tables").exists()


# -- options --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nfe", ["0-3", "5-3", "abc", "101", "3-"])
def test_an_impossible_nfe_range_is_refused(nfe: str, run: Run, toy: Path) -> None:
    run("search", "--model", toy, "--nfe", nfe).refused(nfe)
    run("search", "--model", toy, "--nfe", nfe, "--dry-run").refused(nfe)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--sampler", "magic"), ("sampler", "'tpe'")),
        (("--recipe", "digits-dmo"), ("'digits-dmo'", "digits-demo")),
        (("--executor", "spark"), ("'spark'", "ray")),
        (("--teacher", "rk45/karras@8"), ("'rk45'", "ddim")),
        (("--teacher", "ddim/karras@0"), ("@0",)),
        (("--budget", "0"), ("budget",)),
        (("--seed", "-1"), ("seed",)),
        (("--features", "clip"), ("'clip'",)),
        (("--report-images", "0"), ("report_images",)),
    ],
)
def test_an_unknown_choice_is_answered_with_the_valid_ones(
    options: tuple[str, ...], words: tuple[str, ...], run: Run, toy: Path, tmp_path: Path
) -> None:
    chosen = () if "--executor" in options else ("--executor", "in-process")
    run("search", "--model", toy, *chosen, *options).refused(*words)
    assert not (tmp_path / "runs" / "search" / "tables").exists()


def test_a_search_without_a_model_is_refused(run: Run) -> None:
    run("search").refused("--model")


def test_an_unknown_training_recipe_is_refused(run: Run) -> None:
    run("train", "digits").refused("'digits'", "digits-ddpm")


def _begun(root: Path, toy: Path) -> None:
    """A study with settings, and nothing evaluated."""
    settings = SearchSettings(model=str(toy), sampler="random")
    register(root, settings.study, settings, settings.model, find_model(str(toy)).hash)


def test_a_study_keeps_its_id_and_no_other_of_its_name_has_it(toy: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        _begun(tmp_path / name, toy)
    first, second = (Store(tmp_path / name).studies.records()[0] for name in ("first", "second"))
    assert first.study == second.study
    assert first.id != second.id
    # Told more, or asked for more: it is the same study.
    register(tmp_path / "first", first.study, SearchSettings(model=str(toy)), first.model, first.model_hash)
    register(tmp_path / "first", first.study, SearchSettings(model=str(toy)), first.model, first.model_hash, {"a": "b"})
    (last,) = Store(tmp_path / "first").studies.records()
    assert (last.id, last.hashes) == (first.id, {"a": "b"})
    assert last.settings_json != first.settings_json


def test_a_directory_that_holds_a_study_is_not_searched_again(run: Run, toy: Path, tmp_path: Path) -> None:
    _begun(tmp_path / "study", toy)
    run(*SEARCH, "--model", toy).refused("study", "--resume")
    run("search", "--out", "study", "--resume", "--budget", "5").refused("--resume")


def test_resume_and_report_need_a_study(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "absent"):
        run("search", "--resume", "--out", folder).refused(folder, "no study")
        run("report", "--out", folder).refused(folder, "no study")
    assert list((tmp_path / "empty").iterdir()) == []
    assert not (tmp_path / "absent").exists()


def test_a_second_driver_is_refused_before_it_starts_workers_and_told_the_first(
    run: Run, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: object) -> None:
        raise AssertionError("a worker was set up")

    monkeypatch.setattr("fewstep.pipeline.campaign.make_executor", started)
    _begun(tmp_path / "study", toy)
    holder = (
        "import sys, time; from fewstep.storage.lease import Lease\n"
        "with Lease(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-P", "-c", holder, str(tmp_path / "study")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        answer = run("search", "--resume", "--out", "study", "--executor", "in-process")
        first.kill()
    answer.refused(f"process {first.pid} on", "study")


def test_help_names_every_command_and_a_wrong_option_is_exit_2(run: Run) -> None:
    shown = run("--help")
    assert shown.code == 0
    for name in ("search", "evaluate", "sample", "train", "zoo", "report", "doctor"):
        assert name in shown.out
    assert run("search", "--no-such-option").code == 2
    assert run("sample", "--model", "digits-ddpm", "--schedule", "ddim@3", "--count", "0").code == 2


# -- commands that answer -------------------------------------------------------------------------------


def test_a_forecast_runs_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    ask = ("search", "--model", "digits-ddpm", "--nfe", "3-4", "--budget", 500_000, "--out", "study", "--dry-run")
    figures = run(*ask, "--json").json
    parts = ("teacher_calls", "preset_calls_at_most", "search_calls", "tuning_calls_at_most", "finals_calls")
    assert figures["budget"] == 500_000 == pytest.approx(sum(figures[part] for part in parts), abs=10)
    assert figures["total_calls_at_most"] == 500_000 + figures["report_calls_at_most"] > 500_000
    assert figures["minutes_at_most"] > 0
    assert list(tmp_path.iterdir()) == []
    text = run(*ask)
    assert text.code == 0
    assert "500,000" in text.out


def test_zoo_lists_the_bundled_models(run: Run) -> None:
    names = {m["name"] for m in run("zoo", "--json").json["models"]}
    assert "digits-ddpm" in names
    assert "digits-ddpm" in run("zoo").out


def test_doctor_answers_in_json(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from fewstep.pipeline import doctor

    checks = [doctor.Check("thing", False, "gone", "get it"), doctor.Check("other", True, "here")]
    monkeypatch.setattr(doctor, "diagnose", lambda: checks)
    answer = run("doctor", "--json")
    assert answer.code == 1
    assert json.loads(answer.out)["ok"] is False
    assert "get it" in run("doctor").out
    monkeypatch.setattr(doctor, "diagnose", lambda: checks[1:])
    assert run("doctor", "--json").json["ok"] is True


def _pictures(folder: Path) -> list[np.ndarray[Any, np.dtype[np.int16]]]:
    return [np.asarray(Image.open(p), np.int16) for p in sorted(folder.iterdir())]


def test_image_i_depends_on_seed_and_i_alone(run: Run, tmp_path: Path) -> None:
    ask = ("sample", "--model", "digits-ddpm", "--schedule", "dpmpp-2m/karras-zero@4", "--seed", 3)
    shown = run(*ask, "--count", 12, "--out", "many", "--json").json
    assert (shown["images"], shown["denoiser_calls"]) == (12, 48)
    assert run(*ask, "--count", 5, "--out", "few").code == 0
    assert run(*ask, "--count", 12, "--out", "again").code == 0
    assert run(*ask[:-1], 4, "--count", 5, "--out", "other").code == 0
    many, few, again, other = (_pictures(tmp_path / n) for n in ("many", "few", "again", "other"))
    assert [p.shape for p in many] == [(8, 8)] * 12
    assert len(few) == 5
    for a, b, c, d in zip(many, few, again, other, strict=False):
        assert np.abs(a - b).max() <= 1
        assert np.array_equal(a, c)
        assert np.abs(a - d).max() > 30


def test_evaluate_never_computes_twice_and_more_images_cost_only_the_new_ones(run: Run, toy: Path) -> None:
    ask = ("evaluate", "--model", toy, "--schedule", "ddim/karras@2", "--out", "kept", "--json", "--images")
    first = run(*ask, 750).json
    assert first["low"] < first["value"] < first["high"]
    assert first["denoiser_calls"] == 2 * 750
    assert run(*ask, 750).json == first
    more = run(*ask, 1000).json
    assert more["denoiser_calls"] == 2 * 250
    assert Store("kept").evaluations.row_count() == 2
    text = run("evaluate", "--model", toy, "--schedule", "ddim/karras@2", "--out", "kept", "--images", 750)
    assert f"{first['value']:.4f}" in text.out
    with Lease("kept"):
        run(*ask, 750).refused("kept", "in use by process")


def test_the_help_of_a_command_loads_no_framework() -> None:
    code = (
        "import sys, typer\n"
        "from fewstep.pipeline import cli\n"
        "group = typer.main.get_command(cli.app)\n"
        "for name in ('search', 'edit', 'quantize', 'refine', 'evaluate', 'report', 'export'):\n"
        "    assert group.get_command(None, name) is not None\n"
        "print([name for name in ('torch', 'ray', 'mlflow', 'diffusers', 'optuna') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
