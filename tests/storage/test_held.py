"""Small files that are known are not opened again; what changed on disk is."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from fewstep.storage import parts, tables
from fewstep.storage.held import COLUMN_BYTES, Held
from fewstep.storage.records import EventRecord
from fewstep.storage.tables import Table


def _table(numbers: range) -> pa.Table:
    return pa.table({"n": pa.array(numbers, type=pa.int64())})


def test_what_was_asked_for_longest_ago_goes_first() -> None:
    held = Held(3 * (8 + COLUMN_BYTES))
    for name in "abc":
        held.put(name, _table(range(1)))
    assert held.get("a") is not None
    held.put("d", _table(range(1)))
    assert [held.get(name) is not None for name in "abcd"] == [True, False, True, True]
    held.put("large", _table(range(COLUMN_BYTES)))
    assert held.get("large") is None
    assert held.get("d") is not None


def test_what_is_dropped_makes_room() -> None:
    held = Held(2 * (8 + COLUMN_BYTES))
    for name in "ab":
        held.put(name, _table(range(1)))
    held.drop("b")
    held.drop("never there")
    held.put("c", _table(range(1)))
    assert [held.get(name) is not None for name in "abc"] == [True, False, True]


def test_files_that_were_merged_are_not_held(tmp_path, event, monkeypatch):
    monkeypatch.setattr(tables, "_HELD", held := Held(2**20))
    table = Table(EventRecord, tmp_path, small_parts=4)
    for order in range(100):
        table.append([event(order)])
        assert len(held._tables) <= 5
    assert [r.order for r in Table(EventRecord, tmp_path).records()] == list(range(100))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are opened."""
    names: list[str] = []
    opens = parts.PartDirectory._open

    def noted(self: parts.PartDirectory, part: parts.Part, *given: Any) -> object:
        names.append(part.name)
        return opens(self, part, *given)

    monkeypatch.setattr(parts.PartDirectory, "_open", noted)
    return names


def test_what_this_process_wrote_or_read_is_not_opened_again(tmp_path, event, opened):
    for order in range(3):
        Table(EventRecord, tmp_path).append([event(order)])
    opened.clear()
    assert [r.order for r in Table(EventRecord, tmp_path).records()] == [0, 1, 2]
    assert Table(EventRecord, tmp_path).records({"order": 1}) == [event(1)]
    assert opened == []


def test_a_file_that_was_replaced_is_opened(tmp_path, event, opened):
    table = Table(EventRecord, tmp_path)
    table.append([event(0)])
    (file,) = tmp_path.rglob("*.parquet")
    file.write_bytes(b"x" * file.stat().st_size)
    opened.clear()
    assert table.records() == []
    assert opened == [file.name]
    assert len(table.damaged()) == 1
