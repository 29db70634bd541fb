"""`conditions-table`: its rows are what is measured by hand, known pixels are exact, and it goes on from disk."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fewstep.pipeline.conditions_table import ConditionRow, markdown
from fewstep.search_spaces.ode import OdeSettings
from fewstep.tasks.data import load_dataset
from fewstep.tasks.metrics.agreement import (
    hidden_rms,
    hole_sums,
    known_rms,
    layout_sums,
    mean_iou,
    pixel_accuracy,
)
from fewstep.tasks.metrics.interval import sums_interval
from fewstep.tasks.models.condition_config import ConditionConfig
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.image_condition import layout_of
from fewstep.tasks.worker import Worker, WorkerSettings

Run = Callable[..., Any]
EDGES = (-0.5, 0.5)
CONDITIONS = {
    "inpaint": ConditionConfig(kind="inpaint", dataset="digits", channels=3),
    "layout": ConditionConfig(kind="layout", dataset="digits", channels=4, thresholds=EDGES),
    "plain": None,
}
REPORT = 1_000_003


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, make_tiny_flow: Callable[..., Path]) -> dict[str, Path]:
    """Untrained flows on latents 2x4x4 of 8x8 images, shown a hole, a layout and nothing; the digits' features."""
    root = tmp_path_factory.mktemp("conditions")
    return {name: make_tiny_flow(root / name, condition, labels=False) for name, condition in CONDITIONS.items()}


def _options(models: dict[str, Path]) -> tuple[object, ...]:
    given = [part for name, path in models.items() for part in (f"--{name}", path)]
    few = ("--presets", "ddim", "--grids", "uniform-t-zero,karras-zero", "--nfe", "2", "--screen-images", "20")
    return ("conditions-table", *given, *few, "--tolerance", "0.05", "--executor", "in-process", "--out", "kept")


def test_the_rows_are_what_is_measured_by_hand(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "c.md").write_text("<!-- conditions:begin -->\n<!-- conditions:end -->\n")
    here = (*_options(models), "--images", "750")
    answer = run(*here, "--csv", "c.csv", "--markdown", "c.md", "--plot", "c.png")
    assert answer.code == 0, answer.err
    text = (tmp_path / "c.csv").read_text()
    assert text.startswith("# command: fewstep conditions-table")
    rows = {
        (r["task"], r["method"]): r
        for r in csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    }
    assert [m for t, m in rows if t == "inpaint"] == [
        "dopri5", "ddim", "mean fill", "nearest neighbour", "reconstruction"
    ]  # fmt: skip
    assert [m for t, m in rows if t == "layout"] == ["dopri5", "ddim", "reconstruction", "no layout"]
    assert all(r["known_rms"] == "0" for (task, _), r in rows.items() if task == "inpaint")
    assert all(float(r["low"]) <= float(r["value"]) <= float(r["high"]) for r in rows.values())
    # Digits hold nothing out: the nearest training image is the image.
    assert float(rows["inpaint", "nearest neighbour"]["hidden_rms"]) == pytest.approx(0, abs=1e-3)
    assert rows["inpaint", "ddim"]["nfe"] == "2"
    assert float(rows["inpaint", "dopri5"]["nfe"]) > 6
    assert (tmp_path / "c.png").stat().st_size > 1000
    assert "| mean fill |" in (tmp_path / "c.md").read_text()

    asked = Conditions(source="test", source_seed=REPORT)
    worker = Worker(WorkerSettings(str(models["layout"]), conditions=asked), features=False)
    sampler = OdeSettings(atol=0.05, rtol=0.05).to_json()
    made = torch.cat([worker.sample(sampler, REPORT, start, 250) for start in (0, 250, 500)])
    same = layout_of(made, EDGES) == layout_of(torch.from_numpy(load_dataset("digits").images[:750]), EDGES)
    assert float(rows["layout", "dopri5"]["pixel_accuracy"]) == pytest.approx(float(same.double().mean()), rel=1e-4)

    kept = sorted((tmp_path / "kept" / "groups").rglob("*.npz"))
    assert len(kept) == 27
    times = {path: path.stat().st_mtime_ns for path in kept}
    kept[5].unlink()
    again = run(*here, "--json")
    assert again.code == 0, again.err
    assert {p for p in kept if p.stat().st_mtime_ns != times[p]} == {kept[5]}
    assert [f"{row['value']:.6g}" for row in again.json["rows"]] == [r["value"] for r in rows.values()]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--images", "300"), "no whole groups of 250"),
        (("--presets", "nobody"), "unknown preset 'nobody'"),
        (("--grids", "nowhere"), "unknown grid 'nowhere'"),
        (("--plain", "LAYOUT"), "is of kind 'layout', not 'plain'"),
        (("--inpaint", "digits-ddpm"), "is of kind 'plain', not 'inpaint'"),
    ],
)
def test_tables_that_cannot_be(options: tuple[str, str], words: str, run: Run, models: dict[str, Path]) -> None:
    name, value = options
    answer = run(*_options(models), name, models["layout"] if value == "LAYOUT" else value)
    assert answer.code == 2
    assert words in answer.err


def test_evaluate_asks_for_a_source_and_refuses_an_unknown_one(run: Run, models: dict[str, Path]) -> None:
    here = ("evaluate", "--model", models["inpaint"], "--ode", "euler@2", "--images", "20")
    assert "--source test" in run(*here).err
    assert "unknown source 'all'" in run(*here, "--source", "all").err
    assert run(*here, "--source", "test").code == 0


def test_sums_give_errors_accuracy_and_overlap() -> None:
    truth, holes = torch.zeros(2, 1, 2, 2), torch.tensor([[True, False], [False, False]]).expand(2, 1, 2, 2)
    made = truth + torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    sums = hole_sums(made, truth, holes)
    assert sums.tolist() == [2, 6, 18, 2]
    assert known_rms(sums) == pytest.approx((1 / 3) ** 0.5)
    assert hidden_rms(sums) == 3
    given, answer = torch.tensor([[[0, 0], [1, 2]]]), torch.tensor([[[0, 1], [1, 2]]])
    matrix = layout_sums(answer, given, 4)
    assert pixel_accuracy(matrix) == 0.75
    # Class 3 does not occur.
    assert mean_iou(matrix) == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)


def test_the_interval_of_a_mean_is_students() -> None:
    x = np.random.default_rng(0).standard_normal(12) + 5
    found = sums_interval(lambda s: float(s[0] / s[1]), [np.array([v, 1.0]) for v in x], [1] * 12)
    assert found is not None
    half = 2.2009851 * x.std(ddof=1) / 12**0.5
    assert found == pytest.approx((x.mean(), x.mean() - half, x.mean() + half), rel=1e-6)
    assert sums_interval(lambda s: 0.0, [np.zeros(2)] * 2, [1, 1]) is None


def test_markdown_shows_what_applies() -> None:
    row = ConditionRow("layout", "reconstruction", "autoencoder", None, "fid-x", 1.0, 0.5, 1.5, pixel_accuracy=0.9)
    assert "| reconstruction |  | 1.00 (0.50 to 1.50) | 0.900 |  |" in markdown([row], "note")
