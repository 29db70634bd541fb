"""`fewstep baseline`: what is screened, what is judged, and that nothing is computed twice."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fewstep.pipeline.baseline import entries, run
from fewstep.pipeline.baseline_settings import BaselineSettings
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.study import Study
from fewstep.storage.store import Store

Run = Callable[..., Any]
SMALL = ("--presets", "ddim,heun", "--grids", "uniform-t-zero,quadratic-zero", "--nfe", "3,4")
SMALL += ("--screen-images", "250", "--report-images", "750", "--teacher", "dpmpp-2m/karras-zero@8")
SMALL += ("--executor", "in-process")


def _table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(line for line in path.read_text().splitlines() if not line.startswith("#")))


def test_one_command_screens_judges_resumes_and_publishes(run: Run, toy: Path, tmp_path: Path) -> None:
    here = ("baseline", "--model", toy, *SMALL, "--out", "base")
    first = run(*here, "--csv", "table.csv", "--plot", "plot.png")
    assert first.code == 0, first.err
    assert "heun/uniform-t-zero at NFE 4" in first.out

    reported, screened = _table(tmp_path / "table.csv"), _table(tmp_path / "table_screen.csv")
    assert len(screened) == 2 * 3
    assert [(r["method"], r["nfe"]) for r in reported] == [
        ("ddim", "3"), ("heun", "3"), ("ddim", "4"), ("teacher", "8")
    ]  # fmt: skip
    for row in reported[:-1]:
        group = [r for r in screened if (r["method"], r["nfe"]) == (row["method"], row["nfe"])]
        assert row["schedule"] == min(group, key=lambda r: float(r["value"]))["schedule"]
    assert all(float(r["low"]) < float(r["value"]) < float(r["high"]) for r in reported)
    assert (tmp_path / "plot.png").stat().st_size > 1000

    records = Store(tmp_path / "base").evaluations.records()
    again = run(*here, "--json").json
    assert [row["method"] for row in again["rows"]] == [r["method"] for r in reported]
    assert Store(tmp_path / "base").evaluations.records() == records
    partial = run(*here, "--partial", "--json").json
    assert partial["rows"] == again["rows"]
    run("search", "--resume", "--out", "base").refused("base", "no search")


def test_a_killed_baseline_goes_on_where_it_was(toy: Path, tmp_path: Path) -> None:
    settings = BaselineSettings(
        model=str(toy),
        presets=("ddim",),
        grids=("uniform-t-zero", "karras-zero"),
        nfes=(2, 3),
        screen_images=250,
        report_images=500,
        teacher="ddim/uniform-t-zero@6",
    )
    execution = ExecutionSettings(executor="in-process")
    whole = run(settings, tmp_path / "whole", execution)
    seen: list[str] = []

    def cut(record: Any) -> None:
        seen.append(record.key)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "cut", execution, cut)
    rest: list[str] = []
    resumed = run(settings, tmp_path / "cut", execution, lambda record: rest.append(record.key))
    assert resumed == whole
    assert not set(seen) & set(rest)


def test_a_forecast_counts_every_call_and_writes_nothing(run: Run, toy: Path, tmp_path: Path) -> None:
    answer = run("baseline", "--model", toy, *SMALL, "--out", "base", "--dry-run")
    calls = 250 * 2 * (3 + 3 + 4) + 750 * (3 + 3 + 4 + 8)
    assert f"at most {calls:,} denoiser calls" in answer.out
    assert not (tmp_path / "base").exists()


def test_what_cannot_be_is_refused(run: Run, toy: Path, tmp_path: Path) -> None:
    run("baseline", "--model", toy, "--out", "base", "--presets", "rk45").refused("'rk45'", "ddim")
    run("baseline", "--model", toy, "--out", "base", "--grids", "log").refused("'log'", "karras-zero")
    run("baseline", "--model", toy, "--out", "base", "--partial").refused("base", "no evaluations")
    with pytest.raises(Exception, match="holds no study"):
        Study.load(tmp_path / "base")


def test_a_preset_skipped_on_every_grid_leaves_the_rest(toy: Path) -> None:
    skipped: list[str] = []
    settings = BaselineSettings(model=str(toy), presets=("ddim", "heun"), grids=("karras-zero",), nfes=(4, 5))
    assert set(entries(settings, skipped.append)) == {("ddim", 4), ("ddim", 5), ("heun", 5)}
    assert len(skipped) == 1
