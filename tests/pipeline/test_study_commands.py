"""The commands of a study: a whole search, its report, its page, its tracking."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fewstep.pipeline import cli
from fewstep.search_spaces.schedule import load_schedule
from fewstep.storage.store import Store
from fewstep.tasks.models.files import ZOO

UNREACHABLE = "http://127.0.0.1:9"
Run = Callable[..., Any]
Answer = Any


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, answer_type: Callable[..., Any]) -> tuple[Path, Answer]:
    """A search of the bundled model whose tracking server cannot be reached, and what it answered."""
    root = tmp_path_factory.mktemp("searches") / "study"
    monkeypatch = pytest.MonkeyPatch()
    small = (
        "preset_images=16",
        "screen=distance",
        "refine=0",
        "distance_images=16",
        "frechet_images=250",
        "finalist-images=500",
        "finalists=2",
    )

    import contextlib
    import io

    with monkeypatch.context() as patch, io.StringIO() as out, io.StringIO() as err:
        arguments = ["--model", "digits-ddpm", "--nfe", "2,3", "--budget", "14000", "--report-images", "500"]
        arguments += ["--executor", "in-process", "--tracking-uri", UNREACHABLE, "--sampler", "evolution"]
        arguments += ["--teacher", "dpmpp-2m/uniform-t-zero@8", *(word for pair in small for word in ("--set", pair))]
        patch.setattr(sys, "argv", ["fewstep", "search", "--out", str(root), "--json", *arguments])
        code = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main()
            except SystemExit as end:
                code = int(end.code or 0)
        return root, answer_type(code, out.getvalue(), err.getvalue())


@pytest.mark.slow
def test_a_search_survives_an_unreachable_tracking_server(study: tuple[Path, Answer]) -> None:
    root, answer = study
    shown = answer.json
    (warning,) = [line for line in answer.err.splitlines() if line.strip()]
    assert warning.startswith("warning: ")
    assert UNREACHABLE in warning
    assert f"fewstep report --out {root} --sync" in warning
    assert {r["nfe"] for r in shown["rows"]} == {2, 3}
    assert [r["nfe"] for r in shown["rows"] if r["found"]] == [2, 3]
    origins = {r["origin"].partition(":")[0] for r in shown["rows"]}
    assert "own" in origins
    assert origins & {"preset", "analytic"}
    assert [line.partition(":")[0] for line in shown["verdicts"]] == ["NFE 2", "NFE 3"]
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
        found = [r for r in nested if r.data.tags["fewstep.kind"] != "stock"]
        assert {r.data.params["nfe"] for r in found} == {"2", "3"}
        assert len(found) == 2
        # The best stock sampler of each NFE, where it is not what was found.
        assert len(nested) - len(found) <= 2
        assert parent.data.metrics["cost/report_calls"] > 0
        told = parent.data.tags["mlflow.note.content"]
        assert f"get-artifact?path=front-small.png&run_uuid={parent.info.run_id}" in told
        assert "    fewstep search" in told
        for member in nested:
            assert member.data.tags["mlflow.parentRunId"] == parent.info.run_id
            assert "schedule.json" in {f.path for f in client.list_artifacts(member.info.run_id)}
        files = {f.path for f in client.list_artifacts(parent.info.run_id)}
        assert {"settings.json", "results.csv", "images.png", "front-small.png"} <= files
        assert all(r.info.status == "FINISHED" for r in runs)


@pytest.mark.slow
def test_an_unreachable_server_is_an_error_where_it_was_asked_for(study: tuple[Path, Answer], run: Run) -> None:
    run("report", "--out", study[0], "--sync", "--tracking-uri", UNREACHABLE).refused(UNREACHABLE)


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
