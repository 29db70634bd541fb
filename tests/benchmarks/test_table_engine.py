"""The engine of tables: settings, CSV files, the command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from benchmarks.tables.__main__ import TABLES, main
from benchmarks.tables.engine import Engine, Picture, Sheet, Table
from fewstep.errors import ConfigurationError

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


class Numbers(Table):
    """A table that needs no model."""

    study: ClassVar[str] = "numbers"

    values: tuple[float, ...] = (1.0, 1 / 3)

    def make(self, engine: Engine) -> Iterator[Sheet | Picture]:
        for i in range(1, len(self.values) + 1):
            rows = [{"name": f"n{j}", "value": v, "none": None} for j, v in enumerate(self.values[:i])]
            yield Sheet(engine.name, rows, {"only": self.seed}, {"interval": "none"})


@pytest.mark.parametrize("name", TABLES.names)
def test_every_table_is_there_with_its_published_file(name: str) -> None:
    assert isinstance(TABLES.load(name), Table)
    assert (RESULTS / f"{name}.csv").is_file()


def test_rows_stand_under_lines_that_say_how_they_were_made(make_table: Callable[..., object], tmp_path: Path) -> None:
    kept = {"copies": tmp_path / "docs", "command": "python -m benchmarks.tables numbers"}
    rows = make_table(Numbers(seed=4), tmp_path / "out", "numbers", **kept)
    # A sheet that comes again replaces what there was.
    assert rows == {
        "numbers": [{"name": "n0", "value": "1", "none": ""}, {"name": "n1", "value": "0.333333", "none": ""}]
    }
    text = (tmp_path / "docs" / "numbers.csv").read_text()
    assert text == (tmp_path / "out" / "numbers.csv").read_text()
    head = dict(line[2:].split(": ", 1) for line in text.splitlines() if line.startswith("# "))
    assert head["command"] == "python -m benchmarks.tables numbers"
    assert (head["seeds"], head["interval"]) == ("only 4", "none")
    with pytest.raises(ValueError, match="more"):
        Sheet("s", [{"one": 1}, {"one": 2, "more": 3}], {}).csv("")


def test_fields_are_set_by_name() -> None:
    assert Numbers().changed(["values=2, 0.5", "seed=7"]) == Numbers(values=(2.0, 0.5), seed=7)
    front = TABLES.load("digits_methods")
    found = front.changed(["peers.nfes=3,4", "searches=1,2", "peers.budget=70000"])
    assert found == front.model_copy(
        update={"peers": front.peers.model_copy(update={"nfes": (3, 4), "budget": 70_000}), "searches": (1, 2)}
    )


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("fashion_flow", "presets=nobody", "unknown preset 'nobody'"),
        ("fashion_flow", "guidances=1,x", "guidances"),
        ("fashion_flow", "labels=none", "needs labels"),
        ("fashion_flow", "settings=both", "unconditional"),
        ("fashion_guidance", "scales=-1", "scales"),
        ("fashion_guidance", "samplers=", "samplers"),
        ("digits_rungs", "frechet_images=many", "frechet_images"),
        ("digits_peers", "methods=magic", "unknown method 'magic'"),
        ("fashion_quantization", "methods=w4a8-magic-paper", "magic"),
        ("fashion_quantization", "methods=w4a8-naive-paper+colour=red", "colour"),
        ("fashion_quantization", "methods=fp32", "besides fp32"),
        ("fashion_conditions", "images=300", "multiple of 250"),
        ("fashion_conditions", "grids=nowhere", "unknown grid 'nowhere'"),
        ("digits_edits", "report_images=1", "report_images"),
        ("flow_bound", "speed=3", "FIELD one of seed, cases"),
        ("flow_bound", "cases", "FIELD=VALUE"),
        ("digits_methods", "peers.nfes", "'nfes' sets nothing: give FIELD=VALUE"),
        ("digits_methods", "peers.colour=red", "FIELD one of"),
        ("digits_methods", "nobody.nfes=3", "FIELD one of seed, peers, searches"),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, change: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        TABLES.load(name).changed([change])


def test_the_command_writes_files_and_tells_mistakes_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["flow_bound", "--set", "cases=2", "--csv", "docs"]) == 0
    text = (tmp_path / "docs" / "flow_bound.csv").read_text()
    assert text.startswith("# command: python -m benchmarks.tables flow_bound --set cases=2 --csv docs\n")
    assert (tmp_path / "runs" / "tables" / "flow_bound" / "flow_bound.png").is_file()
    assert "held in 2 of 2" in capsys.readouterr().out
    for wrong, word in (
        (["nothing"], "fashion_guidance"), (["flow_bound", "--set", "cases=0"], "cases"),
        (["flow_bound", "--executor", "fog"], "ray"), (["digits_rungs"], "holds no study"),
    ):  # fmt: skip
        assert main(wrong) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert word in captured.err
        assert captured.err.count("\n") == 1
