"""Tables of flows: samplers at each number of calls, and scales of guidance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.tables.flow import Flow, peers
from benchmarks.tables.guidance import Guidance
from fewstep.pipeline.campaign import evaluate
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.search_spaces.ode import parse_ode
from fewstep.storage.store import Store
from fewstep.tasks.models.files import find_model
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.work import Subject

Rows = list[dict[str, str]]
MakeTable = Callable[..., dict[str, Rows]]
Published = Callable[[str], list[str]]


def test_peers_are_every_shape_of_each_solver(flow: Path) -> None:
    asked = Flow(model=str(flow), nfes=(3, 4), presets=("dpmpp-2m",), grids=("uniform-t-zero",))
    table = peers(asked, find_model(str(flow)))
    texts = {at: [entry.text for entry in group] for at, group in table.items()}
    stock = "FlowMatchEulerDiscreteScheduler"
    assert texts["euler", 3] == ["torchdiffeq euler", stock, "ddim/uniform-t-zero"]
    assert texts["heun", 3] == ["heun-flow/uniform-t-zero"]
    assert texts["heun", 4] == ["torchdiffeq heun"]
    assert texts["preset", 4] == ["dpmpp-2m/uniform-t-zero"]
    assert all(entry.sampler.nfe == nfe for (_, nfe), group in table.items() for entry in group)


def test_what_the_screen_chooses_is_reported_on_other_noise_and_computed_once(
    flow: Path, judge: Path, tmp_path: Path, make_table: MakeTable, published: Published
) -> None:
    found = preset_on_grid("dpmpp-2m/karras-zero", find_model(str(flow)).noise, 4)
    (tmp_path / "found.json").write_text(found.model_copy(update={"name": "mine"}).to_json())
    (tmp_path / "guided.json").write_text(found.model_copy(update={"name": "ours", "guidance": 1.2}).to_json())
    asked = Flow(
        model=str(flow),
        judge=str(judge),
        nfes=(3, 4),
        presets=("dpmpp-2m", "unipc-2-bh2"),
        grids=("uniform-t-zero", "karras-zero"),
        guidances=(1.0, 1.5),
        found=(str(tmp_path / "found.json"),),
        found_conditional=(str(tmp_path / "guided.json"),),
        screen_images=200,
        report_images=750,
        tolerance=0.03,
    )
    made = make_table(asked, tmp_path / "kept", "fashion_flow")
    rows, screen = made["fashion_flow"], made["fashion_flow_screen"]
    assert list(rows[0]) == list(screen[0]) == published("fashion_flow") == published("fashion_flow_screen")
    for setting in ("unconditional", "conditional"):
        own = [r for r in rows if r["setting"] == setting]
        assert [r["method"] for r in own if r["method"] in ("dopri5", "euler", "heun", "fewstep")] == [
            "dopri5", "euler", "heun", "euler", "heun", "fewstep"
        ]  # fmt: skip
        presets = [r for r in own if r["method"] in ("dpmpp-2m", "unipc-2-bh2")]
        assert [r["nfe"] for r in presets] == ["3", "4"]
        assert len({r["guidance"] for r in own}) == 1 or setting == "conditional"
        assert all(float(r["low"]) < float(r["value"]) < float(r["high"]) for r in own)
        assert all(float(r["nfe"]) * 750 == pytest.approx(int(r["denoiser_calls"]), abs=1) for r in own)
        assert all(bool(r["accuracy"]) == (setting == "conditional") for r in own)
    assert [r["guidance"] for r in rows if r["method"] == "fewstep"] == ["", "1.2"]
    assert sorted(path.name for path in (tmp_path / "kept").glob("*.png")) == [
        "fashion_flow_conditional.png", "fashion_flow_unconditional.png"
    ]  # fmt: skip

    # What was chosen is what the screen liked best, on noise that the report never sees.
    scales = {r["guidance"]: float(r["value"]) for r in screen if r["method"] == "dopri5"}
    chosen = next(r["guidance"] for r in rows if r["method"] == "dopri5" and r["setting"] == "conditional")
    assert chosen == min(scales, key=lambda scale: scales[scale])
    assert {r["images"] for r in screen} == {"50", "200"}
    records = Store(tmp_path / "kept").evaluations.records()
    assert {(r.rung, r.seed) for r in records} == {("look", 0), ("screen", 0), ("report", 1_000_003)}
    assert make_table(asked, tmp_path / "kept", "fashion_flow") == made
    assert len(Store(tmp_path / "kept").evaluations.records()) == len(records)


def test_guidance_counts_labels_at_each_scale(
    flow: Path, judge: Path, tmp_path: Path, make_table: MakeTable, published: Published
) -> None:
    asked = Guidance(
        model=str(flow),
        judge=str(judge),
        samplers=("heun@2", "mine=dpmpp-2m/karras-zero@3"),
        scales=(0, 1, 2),
        images=250,
    )
    rows = make_table(asked, tmp_path / "kept")["t"]
    assert list(rows[0]) == published("fashion_guidance")
    assert [(r["method"], r["guidance"]) for r in rows] == [(m, g) for m in ("heun@2", "mine") for g in "012"]
    assert len({r["value"] for r in rows if r["method"] == "mine"}) == 3
    assert all(0 <= float(r["accuracy_low"]) <= float(r["accuracy"]) <= float(r["accuracy_high"]) <= 1 for r in rows)
    # Scale 0 asks for nothing: the samples are those without labels.
    here = ExecutionSettings(executor="in-process")
    (plain,) = evaluate(Subject(str(flow)), [parse_ode("heun@2")], 250, 1_000_003, tmp_path / "plain", here)
    assert float(rows[0]["value"]) == pytest.approx(plain.value, rel=1e-5)
