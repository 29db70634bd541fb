"""docs/results.md and the README's table are what the files of docs/results say."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results_page", ROOT / "benchmarks" / "tables" / "page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def entries(page: ModuleType) -> list[dict[str, Any]]:
    chapters = tomllib.loads(page.ENTRIES.read_text())["chapter"]
    return [entry for chapter in chapters for entry in chapter["section"]]


def test_what_is_committed_is_what_the_files_say(page: ModuleType) -> None:
    assert page.PAGE.read_text() == page.page(), "run python -m benchmarks.tables.page"
    assert page.README.read_text() == page.readme(), "run python -m benchmarks.tables.page"


def test_no_command_is_on_the_page(page: ModuleType) -> None:
    text = page.page()
    assert "--csv" not in text
    assert "command: " not in text


def test_every_file_of_results_is_on_the_page(entries: list[dict[str, Any]]) -> None:
    shown = {e["file"] for e in entries} | {n for e in entries for n in (*e.get("more", ()), *e.get("pictures", ()))}
    there = {path.name for path in (ROOT / "docs" / "results").iterdir() if path.is_file()}
    assert there - shown == set()
    assert shown - there == set()


def test_titles_differ_and_say_what_is_asked(entries: list[dict[str, Any]]) -> None:
    titles = [entry["title"] for entry in entries]
    assert len(set(titles)) == len(titles)
    assert all(entry["text"].strip() for entry in entries)


def _row(method: str, nfe: str, value: str, images: str = "10") -> dict[str, str]:
    return {"method": method, "nfe": nfe, "value": value, "low": "0.5", "high": "9", "images": images}


def test_a_table_has_intervals_the_best_in_bold_and_a_star_for_fewer_images(page: ModuleType) -> None:
    rows = [_row("a", "10", "2"), _row("a", "3", "1"), _row("b", "3", "0.9", "5"), _row("c", "3", "4")]
    value = {"of": "value", "low": "low", "high": "high", "format": ".1f", "best": "low"}
    entry = {"rows": ["method"], "columns": "nfe", "values": [value], "names": {"a": "ours"}}
    assert page.table(entry, rows) == [
        "| method | NFE 3 | NFE 10 |",
        "|---|---|---|",
        "| ours | **1.0 (0.5 to 9.0)** | 2.0 (0.5 to 9.0) |",
        "| b | 0.9 (0.5 to 9.0)* |  |",
        "| c | 4.0 (0.5 to 9.0) |  |",
    ]


def test_only_the_chosen_rows_are_shown(page: ModuleType) -> None:
    rows = [_row("a", "3", "1"), _row("b", "3", "2"), _row("c", "3", "3")]
    entry = {"rows": ["method"], "values": [{"of": "value"}], "where": {"method": ["a", "b"]}, "omit": {"value": ["2"]}}
    assert page.table(entry, rows) == ["| method | value |", "|---|---|", "| a | 1 |"]
