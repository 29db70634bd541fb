"""A table of quantisations: complete, exact where it can be, and never computed twice."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.pipeline import quantization_table
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.quantization_table import (
    FULL,
    QuantizationRow,
    Table,
    TableSettings,
    markdown,
    run,
    table_csv,
    temporal_csv,
)
from fewstep.storage.store import Store
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import find_model
from fewstep.tasks.quantization.build import Recipe
from fewstep.tasks.quantization.storage import find_quantized
from fewstep.tasks.sampling.grids import preset_on_grid

Run = Callable[..., Any]
IN_PROCESS = ExecutionSettings(executor="in-process")
NAIVE, COARSE = "w8a8-naive-paper+images=8", "w2a32-naive-full+images=8"
IMAGES, PAIRED, NFE = 750, 16, 2


def settings(model: object = "digits-ddpm", methods: tuple[str, ...] = (NAIVE, COARSE), **changes: Any) -> Any:
    schedule = preset_on_grid("ddim/uniform-t-zero", find_model(str(model)).noise, NFE)
    asked = {"model": str(model), "schedule": schedule, "methods": methods, "images": IMAGES, "paired_images": PAIRED}
    return TableSettings(**(asked | changes))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Table]:
    """Where a table was made, and the table. Not to be changed."""
    root = tmp_path_factory.mktemp("table")
    return root, run(settings(), root, IN_PROCESS)


def test_every_method_has_a_complete_row(made: tuple[Path, Table]) -> None:
    root, table = made
    assert [row.method for row in table.rows] == [FULL, NAIVE, COARSE]
    for row in table.rows:
        assert row.low is not None
        assert row.high is not None
        assert row.low < row.value < row.high
        assert (row.images, row.nfe, row.model) == (IMAGES, NFE, "digits-ddpm")
    assert {record.rung for record in Store(root).evaluations.records()} == {"report", "distance"}
    assert Store(root).evaluations.row_count() == 2 * 3


def test_full_precision_has_no_error_and_its_own_size(made: tuple[Path, Table]) -> None:
    _, table = made
    exact, *rest = table.rows
    assert (exact.paired_feature, exact.paired_pixel, exact.temporal_error) == (0, 0, 0)
    assert (exact.temporal_cosine, exact.size_ratio, exact.calibration_calls) == (1, 1, 0)
    parameters = sum(p.numel() for p in Denoiser(find_model("digits-ddpm")).network.module.parameters())
    assert exact.bytes == 4 * parameters
    for row in rest:
        assert row.paired_pixel > 0
        assert row.temporal_error > 0
        assert row.size_ratio == row.bytes / exact.bytes < 0.5
        assert row.bit_operations < exact.bit_operations
        assert row.calibration_calls == NFE * 8
    eight, two = rest
    assert eight.paired_pixel < two.paired_pixel
    assert eight.temporal_error < two.temporal_error
    assert eight.bytes > two.bytes


def test_figures_are_those_of_the_stored_networks(made: tuple[Path, Table]) -> None:
    root, table = made
    asked, files = settings(), find_model("digits-ddpm")
    for row, config in zip(table.rows[1:], list(asked.configs.values())[1:], strict=True):
        assert config is not None
        stored = find_quantized(root / "quantized" / Recipe(config, asked.schedule, asked.conditions).key(files))
        assert row.bytes == stored.bytes
        assert row.bit_operations == stored.description["bit_operations"]
        adds = sum(layer["multiply_adds"] for layer in stored.description["coverage"])
        assert table.rows[0].bit_operations == 32 * 32 * adds
    times = {name: [error.time for error in errors] for name, errors in table.temporal.items()}
    assert times[FULL] == []
    assert times[NAIVE] == times[COARSE]
    assert len(times[NAIVE]) == NFE


def test_the_same_table_again_computes_nothing(made: tuple[Path, Table], monkeypatch: pytest.MonkeyPatch) -> None:
    root, table = made

    def refuse(*_: object) -> None:
        raise AssertionError("nothing was to be computed")

    monkeypatch.setattr(quantization_table, "make_executor", refuse)
    before = Store(root).evaluations.records()
    again = run(settings(), root, IN_PROCESS)
    assert again == table
    # Fewer methods, in another order.
    assert run(settings(methods=(COARSE,)), root, IN_PROCESS).rows == [table.rows[0], table.rows[2]]
    assert Store(root).evaluations.records() == before


def test_only_what_is_missing_is_made_and_a_config_of_two_names_once(
    made: tuple[Path, Table], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(made[0], tmp_path / "table"))
    told, records = list[str](), list[Any]()
    same = NAIVE + "+seed=3000017"
    assert run(settings(methods=(NAIVE, same)), root, IN_PROCESS, records.append, told.append).rows[2].method == same
    assert (told, records) == ([], [])
    # A config under two names.
    other = "w3a8-naive-paper+images=8"
    names = (NAIVE, other, other + "+seed=3000017")
    table = run(settings(methods=names), root, IN_PROCESS, records.append, told.append)
    assert len(told) == 1
    assert [record.rung for record in records] == ["report", "distance"]
    assert {record.origin for record in records} == {other}
    assert table.rows[1] == made[1].rows[1]
    # A network that was deleted is made again, not evaluated again.
    shutil.rmtree(root / "quantized")
    again = run(settings(methods=names), root, IN_PROCESS, records.append, told.append)
    assert len(records) == 2
    assert [row.value for row in again.rows] == [row.value for row in table.rows]
    assert len(told) == 3


def test_the_csv_has_the_columns_of_the_rows_and_says_how_it_was_made(made: tuple[Path, Table]) -> None:
    _, table = made
    text = table_csv(table, "fewstep quantization-table", settings())
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert any("fewstep quantization-table" in line for line in head)
    rows = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    assert list(rows[0]) == [field.name for field in fields(QuantizationRow)]
    for row, expected in zip(rows, table.rows, strict=True):
        assert row["method"] == expected.method
        assert float(row["value"]) == pytest.approx(expected.value, rel=1e-5)
        assert int(row["bytes"]) == expected.bytes
    temporal = temporal_csv(table, "fewstep quantization-table", settings())
    errors = list(csv.DictReader(line for line in temporal.splitlines() if not line.startswith("#")))
    assert list(errors[0]) == ["method", "time", "cosine", "relative_error"]
    assert [row["method"] for row in errors] == [NAIVE] * NFE + [COARSE] * NFE
    shown = markdown(table, "fewstep quantization-table", settings())
    assert all(f"| {row.method} |" in shown for row in table.rows)


@pytest.mark.parametrize(
    ("methods", "word"),
    [
        (("w4a8-magic-paper",), "magic"),
        (("w4a8",), "w4a8"),
        ((NAIVE + "+colour=red",), "colour"),
        ((NAIVE + "+momentum=2",), "momentum"),
        ((), "fp32"),
        ((FULL,), "fp32"),
    ],
)
def test_methods_that_make_no_table_are_refused_before_anything_is_done(
    methods: tuple[str, ...], word: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=word):
        run(settings(methods=methods), tmp_path / "table", IN_PROCESS)
    assert not (tmp_path / "table").exists()


def test_a_method_that_cannot_be_calibrated_is_named(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewstep.tasks.quantization import build

    def explode(*_: object, **__: object) -> None:
        raise EvaluationError("everything explodes")

    monkeypatch.setattr(build, "collect", explode)
    with pytest.raises(EvaluationError, match=r"w8a8-naive-paper.* cannot be calibrated.*everything explodes"):
        run(settings(toy, (NAIVE,)), tmp_path / "table", IN_PROCESS)
    monkeypatch.undo()
    assert len(run(settings(toy, (NAIVE,)), tmp_path / "table", IN_PROCESS).rows) == 2


def test_the_command_writes_tables_and_pictures(run: Run, toy: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("before\n<!-- quantization:begin -->\n<!-- quantization:end -->\nafter\n")
    command = ("quantization-table", "--model", toy, "--schedule", "ddim@2", "--methods", f"{NAIVE},{COARSE}")
    counts = ("--images", IMAGES, "--paired-images", PAIRED, "--out", "kept", "--executor", "in-process")
    files = ("--csv", "docs/table.csv", "--plot", "docs/temporal.svg", "--markdown", "README.md")
    answer = run(*command, *counts, *files, "--json").json
    assert [row["method"] for row in answer["rows"]] == [FULL, NAIVE, COARSE]
    assert (tmp_path / "docs" / "table.csv").read_bytes() == (tmp_path / "kept" / "results.csv").read_bytes()
    assert (tmp_path / "docs" / "table_temporal.csv").read_bytes() == (tmp_path / "kept" / "temporal.csv").read_bytes()
    assert (tmp_path / "docs" / "temporal.svg").is_file()
    shown = (tmp_path / "README.md").read_text()
    assert shown.startswith("before\n")
    assert shown.endswith("after\n")
    assert f"| {COARSE} |" in shown
    assert all(Path(path).is_file() for path in answer["files"].values())
    again = run(*command, *counts)
    assert again.code == 0
    assert "calibrated" not in again.out
    assert NAIVE in again.out
    run(*command[:-1], "w4a8-magic-paper", *counts, "--json").refused("magic", "tfmq")
    run(*command[:-1], FULL, *counts, "--json").refused("fp32")
