"""The command line: every mistake is one line and exit code 2, every answer can be read by a script."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewstep.pipeline import cli
from fewstep.pipeline.commands import search as search_command
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.study import Study
from fewstep.search_spaces.schedule import load_schedule
from fewstep.storage.lease import Lease
from fewstep.storage.store import Store
from fewstep.tasks.models.files import ZOO, find_model
from fewstep.tasks.sampling.grids import preset_on_grid

UNREACHABLE = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Answer:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object it printed."""
        assert self.code == 0, self.err
        (line,) = self.out.splitlines()
        return json.loads(line)


Run = Callable[..., Answer]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["fewstep", *map(str, arguments)])
        monkeypatch.setattr(cli.app, "registered_commands", [])  # main() registers them each time
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call


def _refused(answer: Answer, *words: object) -> None:
    """One line that starts with `error:` and holds the words; exit code 2."""
    assert answer.code == 2, answer
    assert answer.out == "", answer.out
    (line,) = answer.err.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert str(word) in line


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
    _refused(run("evaluate", "--model", toy, "--schedule", path, "--images", 250), word)
    _refused(run("sample", "--model", toy, "--schedule", path, "--count", 1), word)


@pytest.mark.parametrize(
    ("schedule", "word"),
    [
        ("nowhere.json", "nowhere.json"),
        ("euler/uniform-t@5", "'euler'"),
        ("ddim/cubic@5", "'cubic'"),
        ("ddim/karras@0", "@0"),
        ("ddim/karras@many", "@many"),
        ("ddim/karras@201", "@201"),
    ],
)
def test_a_schedule_that_does_not_exist_is_refused(schedule: str, word: str, run: Run, toy: Path) -> None:
    _refused(run("evaluate", "--model", toy, "--schedule", schedule), word)


def test_text_that_is_no_json_is_refused(run: Run, toy: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.json").write_bytes(b'{"lambdas": [1,\xff')
    _refused(run("sample", "--model", toy, "--schedule", "torn.json"), "torn.json")


# -- models and references ------------------------------------------------------------------------------


@pytest.fixture
def broken(toy: Path, tmp_path: Path) -> Path:
    """A copy of the toy model, to be broken."""
    return Path(shutil.copytree(toy, tmp_path / "broken"))


SEARCH = ("search", "--executor", "in-process", "--nfe", "3", "--out", "study")


def test_a_model_without_a_scheduler_is_refused(run: Run, broken: Path) -> None:
    shutil.rmtree(broken / "scheduler")
    _refused(run(*SEARCH, "--model", broken), "scheduler_config.json", broken)
    assert not Path("study").exists()


def test_a_model_with_the_wrong_channels_is_refused(run: Run, broken: Path) -> None:
    config = json.loads((broken / "unet" / "config.json").read_text())
    (broken / "unet" / "config.json").write_text(json.dumps(config | {"out_channels": 2}))
    _refused(run(*SEARCH, "--model", broken), "1 channels in and 2 out")


def test_weights_that_do_not_fit_are_refused(run: Run, broken: Path) -> None:
    (broken / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x08\x00\x00\x00torn")
    _refused(run("sample", "--model", broken, "--schedule", "ddim/karras@2"), "weights")


def test_a_model_that_is_not_there_is_refused_with_those_that_are(run: Run) -> None:
    _refused(run(*SEARCH, "--model", "digits-dpm"), "'digits-dpm'", "digits-ddpm")
    _refused(run("evaluate", "--model", "absent", "--schedule", "ddim@3"), "'absent'")


def test_references_that_cannot_be_used_are_refused(run: Run, toy: Path, tmp_path: Path) -> None:
    ask = (*SEARCH, "--model", toy, "--teacher", "ddim@4", "--reference")
    (tmp_path / "empty").mkdir()
    _refused(run(*ask, "empty"), "no image in empty")
    (tmp_path / "large").mkdir()
    Image.new("L", (9, 7)).save(tmp_path / "large" / "a.png")
    _refused(run(*ask, "large"), "9x7", "8x8")
    _refused(run(*ask, "absent"), "'absent'")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "a.png").write_bytes(b"\x89PNG no more")
    _refused(run(*ask, "torn"), "a.png")
    (tmp_path / "torn.npz").write_bytes(b"PK no more")
    _refused(run(*ask, "torn.npz"), "torn.npz")
    np.savez(tmp_path / "small.npz", mu=np.zeros(3), sigma=np.eye(3))
    _refused(run(*ask, "small.npz"), "3 features")
    (tmp_path / "single").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "single" / "a.png")
    _refused(run(*ask, "single"), "fewer than 2")
    assert not (tmp_path / "study" / "tables").exists()


# -- options --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nfe", ["0-3", "5-3", "abc", "101", "3-"])
def test_an_impossible_nfe_range_is_refused(nfe: str, run: Run, toy: Path) -> None:
    _refused(run("search", "--model", toy, "--nfe", nfe), nfe)
    _refused(run("search", "--model", toy, "--nfe", nfe, "--dry-run"), nfe)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--sampler", "magic"), ("sampler", "'tpe'")),
        (("--recipe", "digits-dmo"), ("'digits-dmo'", "digits-demo")),
        (("--executor", "dask"), ("'dask'", "ray")),
        (("--teacher", "euler/karras@8"), ("'euler'", "ddim")),
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
    _refused(run("search", "--model", toy, *chosen, *options), *words)
    assert not (tmp_path / "runs" / "search" / "tables").exists()


def test_a_search_without_a_model_is_refused(run: Run) -> None:
    _refused(run("search"), "--model")


def test_an_unknown_training_recipe_is_refused(run: Run) -> None:
    _refused(run("train", "digits"), "'digits'", "digits-ddpm")


def test_a_directory_that_holds_a_study_is_not_searched_again(run: Run, toy: Path, tmp_path: Path) -> None:
    Study(tmp_path / "study", SearchSettings(model=str(toy))).create()
    _refused(run(*SEARCH, "--model", toy), "study", "--resume")
    _refused(run("search", "--out", "study", "--resume", "--budget", "5"), "--resume")


def test_resume_and_report_need_a_study(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "absent"):
        _refused(run("search", "--resume", "--out", folder), folder, "no study")
        _refused(run("report", "--out", folder), folder, "no study")
    assert list((tmp_path / "empty").iterdir()) == []
    assert not (tmp_path / "absent").exists()


def test_a_second_driver_is_refused_at_once_with_the_name_of_the_first(run: Run, toy: Path, tmp_path: Path) -> None:
    Study(tmp_path / "study", SearchSettings(model=str(toy), sampler="random")).create()
    holder = (
        "import sys, time; from fewstep.storage.lease import Lease\n"
        "with Lease(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-P", "-c", holder, str(tmp_path / "study")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        resume = ("search", "--resume", "--out", "study", "--executor", "in-process")
        run(*resume)  # imports what it needs
        begun = time.monotonic()
        answer = run(*resume)
        seconds = time.monotonic() - begun
        first.kill()
    _refused(answer, f"process {first.pid} on", "study")
    assert seconds < 1.5


def test_help_names_every_command_and_a_wrong_option_is_exit_2(run: Run) -> None:
    shown = run("--help")
    assert shown.code == 0
    for name in ("search", "evaluate", "sample", "train", "zoo", "report", "doctor"):
        assert name in shown.out
    assert run("search", "--no-such-option").code == 2
    assert run("sample", "--model", "digits-ddpm", "--schedule", "ddim@3", "--count", "0").code == 2


# -- commands that answer -------------------------------------------------------------------------------


def test_a_forecast_runs_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    ask = ("search", "--model", "digits-ddpm", "--nfe", "3-4", "--budget", 50_000, "--out", "study", "--dry-run")
    figures = run(*ask, "--json").json
    assert figures["search_calls"] == 50_000
    assert figures["total_calls_at_most"] > 50_000
    assert figures["minutes_at_most"] > 0
    assert list(tmp_path.iterdir()) == []
    text = run(*ask)
    assert text.code == 0
    assert "50,000" in text.out


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
        _refused(run(*ask, 750), "kept", "in use by process")


# -- a whole search -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """A search of the bundled model whose tracking server cannot be reached, and what it answered."""
    root = tmp_path_factory.mktemp("searches") / "study"
    monkeypatch = pytest.MonkeyPatch()
    small = {
        "distance_images": 16,
        "frechet_images": 250,
        "finalist_images": 500,
        "finalists": 2,
        "teacher": "dpmpp-2m/uniform-t-zero@8",
    }

    def settings(recipe: object, chosen: dict[str, Any]) -> SearchSettings:
        return SearchSettings.build(**(small | chosen))

    import contextlib
    import io

    with monkeypatch.context() as patch, io.StringIO() as out, io.StringIO() as err:
        patch.setattr(search_command, "_settings", settings)
        arguments = ["--model", "digits-ddpm", "--nfe", "2,3", "--budget", "14000", "--report-images", "500"]
        arguments += ["--executor", "in-process", "--tracking-uri", UNREACHABLE, "--sampler", "evolution"]
        patch.setattr(sys, "argv", ["fewstep", "search", "--out", str(root), "--json", *arguments])
        code = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main()
            except SystemExit as end:
                code = int(end.code or 0)
        return root, Answer(code, out.getvalue(), err.getvalue())


@pytest.mark.slow
def test_a_search_survives_an_unreachable_tracking_server(study: tuple[Path, Answer]) -> None:
    root, answer = study
    shown = answer.json
    (warning,) = [line for line in answer.err.splitlines() if line.strip()]
    assert warning.startswith("warning: ")
    assert UNREACHABLE in warning
    assert f"fewstep report --out {root} --sync" in warning
    assert {r["nfe"] for r in shown["rows"]} == {2, 3}
    assert {"fewstep", "ddim", "dpmpp-2m", "unipc-3-bh2"} <= {r["method"] for r in shown["rows"]}
    for nfe in (2, 3):
        assert load_schedule(shown["schedules"][str(nfe)]).nfe == nfe
    assert (root / "images.png").is_file()
    table = [line for line in (root / "results.csv").read_text().splitlines() if not line.startswith("#")]
    assert table[0].startswith("model,method,nfe,metric,value,low,high,images")
    assert len(table) == 1 + len(shown["rows"])


@pytest.mark.slow
def test_what_was_not_logged_is_logged_later_once(study: tuple[Path, Answer], run: Run, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    root, _ = study
    uri = f"sqlite:///{tmp_path / 'late.db'}"
    for _ in range(2):
        shown = run("report", "--out", root, "--sync", "--tracking-uri", uri, "--json").json
        assert shown["evaluations"] == Store(root).evaluations.row_count()
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name("fewstep")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        nested = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
        (parent,) = [r for r in runs if r not in nested]
        assert {r.data.params["nfe"] for r in nested} == {"2", "3"}
        assert len(nested) == 2
        for member in nested:
            assert member.data.tags["mlflow.parentRunId"] == parent.info.run_id
            assert "schedule.json" in {f.path for f in client.list_artifacts(member.info.run_id)}
        files = {f.path for f in client.list_artifacts(parent.info.run_id)}
        assert {"settings.json", "results.csv", "images.png"} <= files
        assert all(r.info.status == "FINISHED" for r in runs)


@pytest.mark.slow
def test_an_unreachable_server_is_an_error_where_it_was_asked_for(study: tuple[Path, Answer], run: Run) -> None:
    _refused(run("report", "--out", study[0], "--sync", "--tracking-uri", UNREACHABLE), UNREACHABLE)


@pytest.mark.slow
def test_a_finished_search_is_not_searched_again(study: tuple[Path, Answer], run: Run, tmp_path: Path) -> None:
    root = Path(shutil.copytree(study[0], tmp_path / "copy"))
    before = Store(root).evaluations.records()
    uri = f"sqlite:///{tmp_path / 'tracking.db'}"
    resumed = run("search", "--resume", "--out", root, "--executor", "in-process", "--tracking-uri", uri)
    assert resumed.code == 0, resumed.err
    assert Store(root).evaluations.records() == before
    # The last words say what to type next, and it works.
    (line,) = [ln for ln in resumed.out.splitlines() if "fewstep sample" in ln]
    words = line.partition("fewstep ")[2].split()
    words[words.index("--out") + 1] = str(tmp_path / "pictures")
    assert run(*words, "--count", 2).code == 0
    assert len(list((tmp_path / "pictures").iterdir())) == 2


@pytest.mark.slow
def test_a_torn_file_is_named_and_the_rest_is_reported(study: tuple[Path, Answer], run: Run, tmp_path: Path) -> None:
    root = Path(shutil.copytree(study[0], tmp_path / "copy"))
    whole = run("report", "--out", root, "--json").json
    assert whole["rows"]
    parts = sorted((root / "tables" / "evaluations").glob("*.parquet"))
    torn = parts[len(parts) // 2]
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    answer = run("report", "--out", root, "--json")
    assert answer.code == 2
    (line,) = answer.err.splitlines()
    assert line.startswith("error: ")
    assert torn.name in line
    (printed,) = answer.out.splitlines()
    rest = json.loads(printed)
    assert 0 < rest["evaluations"] < whole["evaluations"]
    assert "damaged" in run("report", "--out", root).err
    # As the message says: without the file, a resumed search computes what it held.
    torn.unlink()
    uri = f"sqlite:///{tmp_path / 'tracking.db'}"
    again = run("search", "--resume", "--out", root, "--executor", "in-process", "--json", "--tracking-uri", uri)
    assert again.json["rows"]
    assert run("report", "--out", root).code == 0


@pytest.mark.slow
def test_the_page_is_written_and_stands_alone(study: tuple[Path, Answer], run: Run, tmp_path: Path) -> None:
    shown = run("report", "--out", study[0], "--html", tmp_path / "page.html", "--json").json
    page = Path(shown["html"]).read_text()
    assert page.lstrip().lower().startswith("<!doctype html")
    assert 'src="http' not in page


def test_the_zoo_lies_where_the_package_data_says() -> None:
    assert (ZOO / "digits-ddpm" / "model_index.json").is_file()
