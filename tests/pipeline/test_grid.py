"""`fewstep grid`: every cell is made once, whoever asks and however often it is killed, and nothing is left unsaid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import fewstep
from fewstep.errors import ConfigurationError, LeaseError
from fewstep.pipeline.campaign import compare, evaluate
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.grid.cells import cells_of
from fewstep.pipeline.grid.choose import Shard
from fewstep.pipeline.grid.forecast import forecast
from fewstep.pipeline.grid.grid import LOCK, Grid
from fewstep.pipeline.grid.settings import GridSettings, grid_settings
from fewstep.pipeline.grid.tables import pivot
from fewstep.pipeline.recipes import FOLDER as RECIPES
from fewstep.pipeline.recipes import grid_recipe
from fewstep.search_spaces.point import parse_point, schedule_of
from fewstep.storage.lease import Lease
from fewstep.storage.store import Store
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.work import Subject, Task, TaskResult
from fewstep.tasks.worker import Worker

Run = Callable[..., Any]
HERE = ExecutionSettings(executor="in-process")
ASKED: dict[str, Any] = {"schedules": ("ddim/karras-zero", "dpmpp-2m/*t-zero"), "nfes": (2, 3), "images": 250}


def _settings(model: Path, **changes: Any) -> GridSettings:
    return grid_settings({**ASKED, "models": (str(model),), "seeds": (0, 1), **changes})


def _values(root: Path) -> dict[str, Any]:
    return {r.key: (r.value, r.low, r.high, r.candidate) for r in Store(root).evaluations.records()}


def test_cells_and_what_is_left_out_are_all_combinations(toy: Path, flow: Path) -> None:
    settings = _settings(
        toy,
        models=(str(toy), str(flow)),
        schedules=("ddim/karras-zero", "heun/karras-zero"),
        guidance=(1, 2),
        quantization=("none", "w8a8-naive-paper"),
        metrics=("frechet", "holes"),
        per_model={str(flow): {"conditions": {"labels": "balanced"}}},
    )
    with pytest.raises(ConfigurationError, match="metric holes makes no cell"):
        cells_of(settings)
    made = cells_of(settings.model_copy(update={"metrics": ("frechet",)}))
    cells = list(made)
    assert len({cell.values for cell in cells}) == len(cells)
    # models x schedules x calls x bits x guidance x seeds
    assert len(cells) + sum(one.cells for one in made.left_out) == 2 * 2 * 2 * 2 * 2 * 2
    left = {(one.axes["guidance"], one.axes.get("nfe")) for one in made.left_out if one.axes["model"] == str(toy)}
    # It is without labels; and Heun makes no two calls to zero.
    assert left == {(2.0, None), (1.0, 2)}
    assert all(one.reason for one in made.left_out)
    for cell in cells:
        assert len(list(cell.point.parts)) == 1 + (cell.axes["quantization"] != "none")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("speeds = [1]", ("unknown setting 'speeds'", "schedules")),
        ("seeds = []", ("seeds", "empty")),
        ("nfes = []", ("nfes", "empty")),
        ("seeds = [1, 1]", ("seeds", "1", "twice")),
        ("nfes = [0]", ("nfes", "0")),
        ("guidance = [-1]", ("guidance", "-1")),
        ('schedules = ["rk45/karras"]', ("rk45/karras", "ddim", "karras-zero")),
        ('schedules = ["ddim/log"]', ("ddim/log", "karras-zero")),
        ('schedules = ["rk*/karras"]', ("rk*/karras", "matches nothing")),
        ('schedules = ["gone.json"]', ("gone.json",)),
        ('schedules = ["ddim/karras@0"]', ("ddim/karras@0",)),
        ('schedules = ["ddim/karras@3"]', ("nfes", "calls of its own")),
        ('quantization = ["w9"]', ("w9", "w4a8-tfmq-full")),
        ('metrics = ["beauty"]', ("beauty", "frechet")),
        ("guidance = [1, 2]", ("guidance 2", "labels")),
        ('calibration = "ddim/karras@3"', ("calibration", "config")),
        ('teacher = "ddim/karras@9"', ("teacher", "perceptual")),
        ("[conditions]\nguidance = 2", ("guidance", "axis")),
        ("[conditions]\nlabels = 'balanced'", ("labels", "balanced")),
        ("[per_model.other]\nreference = 'auto'", ("per_model.other",)),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    run: Run, toy: Path, tmp_path: Path, line: str, words: tuple[str, ...]
) -> None:
    name = line.partition(" ")[0]
    head = {"models": f'["{toy}"]', "schedules": '["ddim/karras-zero"]', "nfes": "[2]"}
    lines = [f"{key} = {value}" for key, value in head.items() if key != name]
    (tmp_path / "grid.toml").write_text("\n".join([*lines, line]))
    run("grid", "grid.toml").refused(*words)
    assert not (tmp_path / "runs").exists()


def test_a_report_that_cannot_be_is_refused_before_anything_runs(run: Run, toy: Path, tmp_path: Path) -> None:
    asked = ("grid", "--model", toy, "--schedule", "ddim/karras-zero", "--nfe", "2", "--images", "8")
    run("grid").refused("models", "--model")
    run("grid", "--recipe", "none").refused("none", "stock-samplers")
    run(*asked, "--rows", "colour").refused("colour", "schedule")
    run(*asked, "--columns", "schedule").refused("schedule", "twice")
    run(*asked, "--against", "nfe=2").refused("8 images", "groups")
    run(*asked, "--against", "colour=red").refused("colour=red", "quantization")
    run(*asked, "--shard", "3/2").refused("3/2", "8/8")
    run(*asked, "--guidance", "1:8").refused("1:8")
    assert not (tmp_path / "runs").exists()


def test_grids_that_come_with_it_can_be(tmp_path: Path) -> None:
    for path in (RECIPES / "grids").glob("*.toml"):
        made = cells_of(grid_settings(grid_recipe(path.stem)))
        assert len(list(made)) > 100
        assert sum(one.cells for one in made.left_out) < 10


def test_what_is_asked_of_a_grid_is_checked_too(toy: Path, tmp_path: Path) -> None:
    settings = _settings(toy)
    for text in ("0/3", "4/3", "3", "a/b"):
        with pytest.raises(ConfigurationError, match=text):
            Shard.parse(text)
    for only in ("nfe=7", "colour=red", "*/euler/*", "seed=a"):
        with pytest.raises(ConfigurationError, match="--only"):
            Grid(settings, tmp_path, HERE, (only,))
    with pytest.raises(ConfigurationError, match="together match no cell"):
        Grid(settings, tmp_path, HERE, ("nfe=2", "*/3/none/*"))
    with pytest.raises(ConfigurationError, match="nowhere"):
        Grid(settings, tmp_path, HERE.model_copy(update={"known": ("nowhere",)}))


def test_only_selects_by_pattern_and_by_value(toy: Path, tmp_path: Path) -> None:
    def selected(*only: str) -> set[tuple[Any, ...]]:
        return {planned.cell.values for planned in Grid(_settings(toy), tmp_path, HERE, only).plan}

    every = selected()
    assert selected("nfe=2,3") == every
    assert selected("nfe=2", "seed=1") == {v for v in every if v[2] == 2 and v[5] == 1}
    assert selected("schedule=dpm*") == selected("*/dpmpp-2m/*") == {v for v in every if str(v[1]).startswith("dpm")}
    assert selected("*/ddim/*", "*/dpmpp-2m/*", "seed=0") == {v for v in every if v[5] == 0}


def test_killed_sharded_and_merged_it_is_the_same_grid_and_nothing_is_made_twice(toy: Path, tmp_path: Path) -> None:
    settings = _settings(toy)
    made: list[str] = []
    whole = Grid(settings, tmp_path / "whole", HERE)
    told = forecast(whole)
    assert told["calls"] == sum(p.cell.point.nfe * 250 for p in {p.key: p for p in whole.plan}.values())
    assert told["minutes"] is None
    whole.run(on_record=lambda r: made.append(r.key))
    assert sum(r.denoiser_calls for r in whole.records().values()) == told["calls"]
    assert len(made) == len(set(made)) == told["evaluations"]
    values = _values(tmp_path / "whole")

    def cut(record: Any) -> None:
        seen.append(record.key)
        if len(seen) in (3, 5):
            raise KeyboardInterrupt

    seen: list[str] = []
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            Grid(settings, tmp_path / "cut", HERE).run(on_record=cut)
    assert forecast(Grid(settings, tmp_path / "cut", HERE))["minutes"] is not None
    Grid(settings, tmp_path / "cut", HERE).run(on_record=cut)
    assert sorted(seen) == sorted(made)
    assert _values(tmp_path / "cut") == values

    parts = [Grid(settings, tmp_path / "parts", HERE, shard=Shard(i, 3)) for i in (1, 2, 3)]
    keys = [{p.key for p in part.plan} for part in parts]
    assert set.union(*keys) == set(made)
    assert sum(map(len, keys)) == len(made)
    costs = [sum({p.key: p.cell.point.nfe for p in part.plan}.values()) for part in parts]
    assert max(costs) - min(costs) <= max(settings.nfes)
    again: list[str] = []
    for part in parts[:2]:
        part.run(on_record=lambda r: again.append(r.key))
    with Lease(parts[0].root, LOCK):
        for other in (None, Shard(1, 2), Shard(1, 3)):
            with pytest.raises(LeaseError, match="1-of-3 is in use"):
                Grid(settings, tmp_path / "parts", HERE, shard=other).run()
    with Lease(tmp_path / "parts", LOCK), pytest.raises(LeaseError, match="parts is in use"):
        parts[2].run()
    # Elsewhere, of another cut, and the rest of it all at once.
    away = HERE.model_copy(update={"known": (str(tmp_path / "parts" / "shards" / "*"),)})
    Grid(settings, tmp_path / "away", away).run(on_record=lambda r: again.append(r.key))
    assert sorted(again) == sorted(made)
    assert _values(tmp_path / "away") == values
    # Merged, the cells grow by new images alone.
    more = Grid(settings.model_copy(update={"images": 500}), tmp_path / "away", HERE)
    assert forecast(more)["calls"] == told["calls"]
    more.run()
    assert sum(r.denoiser_calls for r in more.records().values()) == told["calls"]


def test_grids_searches_and_evaluations_share_what_they_have_made(toy: Path, tmp_path: Path) -> None:
    small: dict[str, Any] = {
        "nfe": 3, "budget": 8_000, "refine": 0.0, "report_images": 250, "sampler": "random", "screen": "none",
        "grids": ("karras-zero",), "frechet_images": 250, "teacher": "ddim/uniform-t@6", "progress": False,
    }  # fmt: skip
    first = fewstep.search(str(toy), out=tmp_path / "first", executor="in-process", **small)
    searched = first.trials()
    judged = searched[searched["rung"] == "frechet"].iloc[0]
    schedule = schedule_of(parse_point(judged["candidate_json"]))
    (tmp_path / "judged.json").write_text(schedule.to_json())
    evaluate(Subject(str(toy)), [preset_on_grid("heun/karras-zero", Subject(str(toy)).files.noise, 3)], 250, 0,
             tmp_path / "grid", HERE)  # fmt: skip
    grid = fewstep.grid(
        models=str(toy), schedules=[tmp_path / "judged.json", "heun/karras-zero"], nfes=[3], seeds=0, images=250,
        out=tmp_path / "grid", known=[tmp_path / "first"], on_record=lambda r: pytest.fail("made again"),
    )  # fmt: skip
    cells = grid.cells()
    assert cells.loc[0, "value"] == judged["value"]
    assert list(cells["calls"]) == [0, 0]
    # The other way round, and by a search: it finds the same, and makes nothing.
    second = fewstep.search(
        str(toy), out=tmp_path / "second", executor="in-process", known=[str(tmp_path / "first")], **small
    )
    assert second.trials()["denoiser_calls"].sum() == 0
    same = ["trial", "rung", "candidate", "value", "low", "high", "origin"]
    pd.testing.assert_frame_equal(second.trials()[same], searched[same])
    pd.testing.assert_frame_equal(second.front(), first.front())


@pytest.fixture
def break_worker(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`break_worker(seed)`: from now on a worker fails at every task of that seed; at none with -1."""
    whole, broken = Worker.run, [-1]

    def run(self: Worker, task: Task) -> TaskResult:
        result = whole(self, task)
        return replace(result, parts=(), error="the images are noise") if task.seed == broken[0] else result

    monkeypatch.setattr(Worker, "run", run)
    return lambda seed: broken.__setitem__(0, seed)


def test_failed_cells_are_listed_and_tried_again_when_asked(
    toy: Path, tmp_path: Path, break_worker: Callable[[int], None]
) -> None:
    asked: dict[str, Any] = {**ASKED, "models": [str(toy)], "seeds": [0, 1], "out": tmp_path}
    break_worker(1)
    first = fewstep.grid(**asked)
    assert set(first.failed()["seed"]) == {1}
    assert set(first.failed()["error"]) == {"the images are noise"}
    assert (first.cells()["status"] == "complete").sum() == (first.cells()["seed"] == 0).sum()
    break_worker(-1)
    again: list[str] = []
    assert len(fewstep.grid(**asked, on_record=lambda r: again.append(r.key)).failed()) == len(first.failed())
    assert not again
    assert fewstep.grid(**asked, retry=True).failed().empty


def test_differences_are_those_of_compare(toy: Path, tmp_path: Path) -> None:
    grid = fewstep.grid(
        models=str(toy), schedules=["ddim/karras-zero", "ddim/uniform-t-zero"], nfes=[2], images=750, out=tmp_path
    )
    table = grid.compare("schedule=ddim/karras-zero")
    assert list(table["schedule"]) == ["ddim/uniform-t-zero"]
    noise, subject = Subject(str(toy)).files.noise, Subject(str(toy))
    pair = tuple(preset_on_grid(f"ddim/{where}", noise, 2) for where in ("uniform-t-zero", "karras-zero"))
    row = compare(subject, pair, 750, 1_000_003, tmp_path / "else", HERE)[-1]  # type: ignore[arg-type]
    assert (table.loc[0, "difference"], table.loc[0, "low"], table.loc[0, "high"]) == (row.value, row.low, row.high)
    for wrong in ("seed=1000003", "metric=frechet", "schedule=heun/karras", "colour=red", "nfe"):
        with pytest.raises(ConfigurationError, match=wrong.partition("=")[0]):
            grid.compare(wrong)


def test_a_pivot_is_the_mean_over_seeds_and_the_lowest_over_the_rest() -> None:
    random = np.random.default_rng(0)
    axes = {"model": ["a", "b"], "schedule": ["x", "y", "z"], "nfe": [3, 4], "quantization": ["none"],
            "guidance": [1.0, 2.0], "seed": [0, 1, 2], "metric": ["m"]}  # fmt: skip
    rows = pd.DataFrame(list(itertools.product(*axes.values())), columns=list(axes))
    rows = rows.assign(value=random.random(len(rows)), low=None, high=None, measured="m", reference="", images=1,
                       candidate="")  # fmt: skip
    table = pivot(rows, ("schedule",), ("model", "nfe"))
    for schedule, model, nfe in itertools.product(*(axes[name] for name in ("schedule", "model", "nfe"))):
        chosen = rows[(rows["schedule"] == schedule) & (rows["model"] == model) & (rows["nfe"] == nfe)]
        means = [float(chosen[chosen["guidance"] == g]["value"].mean()) for g in (1.0, 2.0)]
        assert math.isclose(float(table.loc[schedule, (model, nfe)]), min(means))  # type: ignore[index, arg-type]
    for down, across in ((("colour",), ("nfe",)), (("nfe",), ("nfe",)), ((), ("nfe",))):
        with pytest.raises(ConfigurationError):
            pivot(rows, down, across)


def test_the_command_leaves_tables_pictures_and_one_run(run: Run, toy: Path, tmp_path: Path) -> None:
    import mlflow

    (tmp_path / "mine.toml").write_text(f'models = "{toy}"\nschedules = "*/karras-zero"\nnfes = "2-3"\nimages = 8\n')
    first = run("grid", "mine.toml", "--only", "schedule=ddim*,heun/*", "--json").json
    assert first["cells"] == first["complete"] == 3
    assert first["left_out"] == sum(one["cells"] for one in first["left_out_because"])
    root = tmp_path / "runs" / "mine"
    assert {"cells.csv", "leaderboard.csv", "left_out.csv", "pivot-fid-toy.csv", "front-fid-toy.png",
            "heat-fid-toy.png", "grid.html"} == set(first["files"])  # fmt: skip
    cells = pd.read_csv(root / "cells.csv", comment="#")
    assert len(cells) == 3
    assert cells["value"].notna().all()
    assert "heun/karras-zero" in (root / "grid.html").read_text()
    client = mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len(runs) == 1
    assert {a.path for a in client.list_artifacts(runs[0].info.run_id)} >= {"cells.csv", "grid.html"}
    assert runs[0].data.metrics["complete"] == 3
