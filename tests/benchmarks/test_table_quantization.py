"""The table of quantisations: complete, exact where it can be, and never computed twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from benchmarks.tables import quantization
from benchmarks.tables.quantization import FULL, Quantization, draw_temporal
from fewstep.errors import EvaluationError
from fewstep.storage.store import Store
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import find_model
from fewstep.tasks.quantization import build
from fewstep.tasks.quantization.build import Recipe
from fewstep.tasks.quantization.storage import find_quantized
from fewstep.tasks.sampling.grids import preset_on_grid

Tables = dict[str, list[dict[str, str]]]
MakeTable = Callable[..., Tables]
NAIVE, COARSE = "w8a8-naive-paper+images=8", "w2a32-naive-full+images=8"
IMAGES, PAIRED, NFE = 750, 16, 2
ASKED = Quantization(
    model="digits-ddpm",
    labels="none",
    schedule="ddim/uniform-t-zero@2",
    methods=(NAIVE, COARSE),
    images=IMAGES,
    paired_images=PAIRED,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, make_table: MakeTable) -> tuple[Path, Tables]:
    """Where a table was made, and the table. Not to be changed."""
    root = tmp_path_factory.mktemp("table")
    return root, make_table(ASKED, root)


def test_every_method_has_a_complete_row(made: tuple[Path, Tables], published: Callable[[str], list[str]]) -> None:
    root, tables = made
    rows = tables["t"]
    assert list(rows[0]) == published("fashion_quantization")
    assert list(tables["t_temporal"][0]) == published("fashion_quantization_temporal")
    assert [row["method"] for row in rows] == [FULL, NAIVE, COARSE]
    for row in rows:
        assert float(row["low"]) < float(row["value"]) < float(row["high"])
        assert (row["images"], row["nfe"], row["model"]) == (str(IMAGES), str(NFE), "digits-ddpm")
    assert {record.rung for record in Store(root).evaluations.records()} == {"report", "distance"}
    assert Store(root).evaluations.row_count() == 2 * 3
    assert [row["method"] for row in tables["t_temporal"]] == [NAIVE] * NFE + [COARSE] * NFE


def test_full_precision_has_no_error_and_its_own_size(made: tuple[Path, Tables]) -> None:
    exact, *rest = ({k: _number(v) for k, v in row.items()} for row in made[1]["t"])
    assert (exact["paired_feature"], exact["paired_pixel"], exact["temporal_error"]) == (0, 0, 0)
    assert (exact["temporal_cosine"], exact["size_ratio"], exact["calibration_calls"]) == (1, 1, 0)
    parameters = sum(p.numel() for p in Denoiser(find_model("digits-ddpm")).network.module.parameters())
    assert exact["bytes"] == 4 * parameters
    for row in rest:
        assert row["paired_pixel"] > 0
        assert row["temporal_error"] > 0
        assert row["size_ratio"] == pytest.approx(row["bytes"] / exact["bytes"], rel=1e-5)
        assert row["bit_operations"] < exact["bit_operations"]
        assert row["calibration_calls"] == NFE * 8
    eight, two = rest
    assert all(eight[name] < two[name] for name in ("paired_pixel", "temporal_error"))
    assert eight["bytes"] > two["bytes"]


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def test_figures_are_those_of_the_stored_networks(made: tuple[Path, Tables]) -> None:
    root, tables = made
    files = find_model("digits-ddpm")
    schedule = preset_on_grid("ddim/uniform-t-zero", files.noise, NFE)
    for row, config in zip(tables["t"][1:], list(ASKED.configs.values())[1:], strict=True):
        assert config is not None
        stored = find_quantized(root / "quantized" / Recipe(config, schedule, Conditions()).key(files))
        assert int(row["bytes"]) == stored.bytes
        assert int(row["bit_operations"]) == stored.description["bit_operations"]
        adds = sum(layer["multiply_adds"] for layer in stored.description["coverage"])
        assert int(tables["t"][0]["bit_operations"]) == 32 * 32 * adds


def test_only_what_is_missing_is_made(made: tuple[Path, Tables], tmp_path: Path, make_table: MakeTable) -> None:
    root = Path(shutil.copytree(made[0], tmp_path / "table"))
    told = list[str]()
    assert make_table(ASKED, root, tell=told.append) == made[1]
    # Fewer methods, one under another name: no network and no evaluation more.
    same = NAIVE + "+seed=3000017"
    renamed = ASKED.model_copy(update={"methods": (same,)})
    rows = make_table(renamed, root, tell=told.append)["t"]
    assert rows == [made[1]["t"][0], made[1]["t"][1] | {"method": same}]
    assert told == []
    # A network that was deleted is made again, not evaluated again.
    shutil.rmtree(root / "quantized")
    again = make_table(ASKED, root, tell=told.append)
    assert told == [f"calibrated {NAIVE}", f"calibrated {COARSE}"]
    assert [row["value"] for row in again["t"]] == [row["value"] for row in made[1]["t"]]


def test_a_method_that_cannot_be_calibrated_is_named(
    tmp_path: Path, make_table: MakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object, **__: object) -> None:
        raise EvaluationError("everything explodes")

    monkeypatch.setattr(build, "collect", explode)
    few = ASKED.model_copy(update={"methods": (NAIVE,), "images": 4, "paired_images": 4})
    with pytest.raises(EvaluationError, match=r"w8a8-naive-paper.* cannot be calibrated.*everything explodes"):
        make_table(few, tmp_path)
    monkeypatch.undo()
    assert len(make_table(few, tmp_path)["t"]) == 2


def test_each_pair_of_bits_is_a_panel_and_lines_that_are_one_are_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(quantization, "save_figure", lambda figure, path: drawn.append(figure) or path)
    methods = {"w8a8-naive-paper": 0.1, "w8a8-naive-full": 0.101, "w8a8-tfmq-full": 0.0, "w4a8-tfmq-full": 0.05}
    rows = [
        {"method": method, "time": time, "cosine": 1 - error, "relative_error": error}
        for method, error in methods.items()
        for time in (999, 0, 500)
    ]
    draw_temporal(rows, tmp_path / "temporal.png")
    left, right = drawn[0].axes
    assert [axes.get_title() for axes in (left, right)] == ["Temporal features, w8a8", "Temporal features, w4a8"]
    for axes, names in ((left, ["tfmq-full", "naive-paper and 1 more"]), (right, ["tfmq-full"])):
        assert [text.get_text() for text in axes.texts] == names
        assert len(axes.lines) == len(names)
        assert all(list(line.get_xdata()) == [0, 500, 999] for line in axes.lines)
        assert axes.get_yscale() == "log"
        assert axes.get_legend() is None
    assert list(left.lines[1].get_ydata()) == pytest.approx([0.1] * 3)
    # No error at all is still a place on a logarithmic scale.
    assert min(left.lines[0].get_ydata()) > 0
    heights = [text.xyann[1] for text in left.texts]
    assert heights[1] - heights[0] >= quantization.NAME_HEIGHT
