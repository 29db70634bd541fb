"""The table of conditions: its rows are what is measured by hand, known pixels are exact, and it goes on from disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.tables.conditions import ConditionsTable
from benchmarks.tables.engine import Engine
from fewstep.errors import ConfigurationError
from fewstep.search_spaces.ode import OdeSettings
from fewstep.search_spaces.point import OdePoint
from fewstep.storage.store import Store
from fewstep.tasks.data import load_dataset
from fewstep.tasks.models.condition_config import ConditionConfig
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.image_condition import layout_of
from fewstep.tasks.work import Subject, WorkerSettings
from fewstep.tasks.worker import Worker

MakeTable = Callable[..., dict[str, list[dict[str, str]]]]
EDGES = (-0.5, 0.5)
CONDITIONS = {
    "inpaint": ConditionConfig(kind="inpaint", dataset="digits", channels=3),
    "layout": ConditionConfig(kind="layout", dataset="digits", channels=4, thresholds=EDGES),
    "plain": None,
}
REPORT = 1_000_003


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, make_tiny_flow: Callable[..., Path]) -> ConditionsTable:
    """Of untrained flows on latents 2x4x4 of 8x8 images, shown a hole, a layout and nothing; the digits' features."""
    root = tmp_path_factory.mktemp("conditions")
    models = {name: str(make_tiny_flow(root / name, shown, labels=False)) for name, shown in CONDITIONS.items()}
    few = {"presets": ("ddim",), "grids": ("uniform-t-zero", "karras-zero"), "nfe": 2, "screen_images": 20}
    return ConditionsTable(**models, **few, tolerance=0.05, images=750)


def test_the_rows_are_what_is_measured_by_hand_and_go_on_after_a_kill(
    asked: ConditionsTable,
    tmp_path: Path,
    make_table: MakeTable,
    published: Callable[[str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        sampled, whole = Engine.sampled, list[int]()

        def killed(*given: Any) -> Any:
            for group in sampled(*given):
                whole.append(group[0])
                if len(whole) == 5:
                    raise KeyboardInterrupt
                yield group

        patch.setattr(Engine, "sampled", killed)
        with pytest.raises(KeyboardInterrupt):
            make_table(asked, tmp_path)
    before = Store(tmp_path).moments.row_count()
    table = make_table(asked, tmp_path)["t"]
    assert list(table[0]) == published("fashion_conditions")
    rows = {(r["task"], r["method"]): r for r in table}
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
    assert (tmp_path / "t.png").is_file()

    shown = Conditions(source="test", source_seed=REPORT)
    worker = Worker(WorkerSettings(Subject(asked.layout, conditions=shown)))
    sampler = OdePoint(solver=OdeSettings(atol=0.05, rtol=0.05))
    made = torch.cat([worker.render(sampler, REPORT, start, 250) for start in (0, 250, 500)])
    same = layout_of(made, EDGES) == layout_of(torch.from_numpy(load_dataset("digits").images[:750]), EDGES)
    assert float(rows["layout", "dopri5"]["pixel_accuracy"]) == pytest.approx(float(same.double().mean()), rel=1e-4)

    # Nine ways of three groups: those that were there before the kill among them, none of them twice.
    kept = Store(tmp_path).moments.row_count()
    assert before > 0
    assert kept == 9 * 3
    assert make_table(asked, tmp_path)["t"] == table
    assert Store(tmp_path).moments.row_count() == kept


def test_models_of_another_kind_are_refused(asked: ConditionsTable, tmp_path: Path, make_table: MakeTable) -> None:
    for change, words in (
        ({"plain": asked.layout}, "is of kind 'layout', not 'plain'"),
        ({"inpaint": "digits-ddpm"}, "is of kind 'plain', not 'inpaint'"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            make_table(asked.model_copy(update=change), tmp_path)
