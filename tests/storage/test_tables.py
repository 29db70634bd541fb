"""The contract of a table, the same on every filesystem."""

from __future__ import annotations

import errno
import os
import threading
import time
from dataclasses import replace
from datetime import timedelta

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep import files
from fewstep.errors import StorageError
from fewstep.storage.parts import VERSION_KEY
from fewstep.storage.records import EvaluationRecord, EventRecord, MomentsRecord, StudyRecord
from fewstep.storage.store import Store
from fewstep.storage.tables import Table


def orders(table):
    return table.read(["order"]).column("order").to_pylist()


def test_an_empty_table_has_no_rows_and_creates_nothing(new_table, tmp_path):
    table = new_table(EvaluationRecord)
    assert table.read().num_rows == 0
    assert table.read().schema.names == EvaluationRecord.schema.names
    assert table.damaged() == []
    assert table.compact() == 0
    table.append([])
    assert list(tmp_path.iterdir()) == []


def test_records_come_back_in_the_order_of_writing(new_table, evaluation):
    records = [evaluation(order) for order in (5, 3, 4, 1)]
    new_table(EvaluationRecord).append(records[:2])
    new_table(EvaluationRecord).append(records[2:])
    assert new_table(EvaluationRecord).records() == records


def test_what_is_delivered_twice_leaves_the_table_unchanged(new_table, evaluation):
    table = new_table(EvaluationRecord)
    table.append([evaluation(1), evaluation(2), evaluation(1)])
    before = table.read()
    table.append([evaluation(2), evaluation(1)])
    new_table(EvaluationRecord).append([evaluation(1, value=-1.0)])
    assert table.read().equals(before)
    assert new_table(EvaluationRecord).read().equals(before)


def test_the_same_evaluation_may_belong_to_two_studies(new_table, evaluation):
    table = new_table(EvaluationRecord)
    table.append([evaluation(1, study="one"), evaluation(1, study="two")])
    assert [record.study for record in table.records(where={"study": "two"})] == ["two"]
    assert table.read().num_rows == 2


@pytest.mark.parametrize("compact", [False, True])
def test_what_went_well_stands_for_what_failed_before_or_after(new_table, evaluation, compact):
    table = new_table(EvaluationRecord)
    failed = {"status": "failed", "value": None, "error": "it explodes"}
    table.append([evaluation(1, **failed), evaluation(2), evaluation(3, **failed)])
    table.append([evaluation(1, **failed, seconds=9.0)])
    table.append([evaluation(1, value=5.0), evaluation(2, **failed)])
    table.append([evaluation(1, value=6.0)])
    if compact:
        assert table.compact() == 1
    found = new_table(EvaluationRecord).records()
    assert sorted((r.order, r.status, r.value) for r in found) == [
        (1, "complete", 5.0),
        (2, "complete", evaluation(2).value),
        (3, "failed", None),
    ]
    assert found == new_table(EvaluationRecord).records({"study": "digits"})
    assert sorted(orders(new_table(EvaluationRecord))) == [1, 2, 3]
    kept = [row for part in new_table(EvaluationRecord).scan() for row in part.keep]
    assert sum(kept) == 3


def test_of_a_study_the_latest_row_holds(new_table, evaluation):
    table = new_table(StudyRecord)
    at = evaluation(0).finished_at
    for settings_json in ("{}", '{"a": 1}', '{"a": 2}'):
        table.append([StudyRecord("digits", at, settings_json, "m", "h")])
    assert [record.settings_json for record in table.records()] == ['{"a": 2}']
    table.compact()
    assert [record.settings_json for record in table.records()] == ['{"a": 2}']


def test_rows_are_selected_by_any_column(new_table, evaluation):
    table = new_table(MomentsRecord)
    table.append([MomentsRecord(base, start, 8, 1, b"m", b"s") for base in "ab" for start in (0, 8)])
    assert [record.start for record in table.records(where={"base": "b"})] == [0, 8]
    assert [record.base for record in table.records(where={"base": "b", "start": 8})] == ["b"]
    assert table.read(["count"], where={"base": "none"}).num_rows == 0
    assert table.read(["start"], where={"count": 8, "base": "a"}).to_pydict() == {"start": [0, 8]}
    with pytest.raises(StorageError, match="no column colour"):
        table.read(where={"colour": 8})


def test_what_is_selected_by_counts_only_where_the_row_does(tmp_path, evaluation):
    """A failure that another try made good is not found as one."""
    table = Table(EvaluationRecord, tmp_path)
    table.append([replace(evaluation(0), status="failed", value=None, error="lost")])
    table.append([evaluation(0), evaluation(1)])
    assert table.records(where={"status": "failed"}) == []
    assert [r.order for r in table.records(where={"study": "digits", "status": "complete"})] == [0, 1]


def test_a_clock_that_jumps_changes_no_order_and_no_row_that_counts(tmp_path, evaluation):
    """Rows are in the order of writing, whatever their times; a success stands whenever it was."""
    table = Table(EvaluationRecord, tmp_path, small_parts=3)
    back = timedelta(days=400)
    rows = [replace(evaluation(i), finished_at=evaluation(i).finished_at - (i % 2) * back) for i in range(9)]
    for row in rows:
        table.append([row])
    table.append([replace(rows[0], status="failed", value=None, finished_at=rows[0].finished_at + back)])
    table.compact()
    assert table.records() == rows


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 12), max_size=6), st.booleans()), max_size=12))
def test_any_mix_of_appends_and_compactions_keeps_the_first_of_each(event, steps):
    table = Table(EventRecord, "table", pafs._MockFileSystem(), small_parts=3)
    expected = {}
    for number, (batch, compact) in enumerate(steps):
        for order in batch:
            expected.setdefault(order, str(number))
        table.append([event(order, str(number)) for order in batch])
        if compact:
            table.compact()
    assert {record.order: record.message for record in table.records()} == expected
    assert orders(table) == list(expected)


def test_leftovers_and_foreign_files_are_ignored(tmp_path, event):
    table = Table(EventRecord, tmp_path)
    table.append([event(1)])
    for name in ("part-000000000009-0123abcd.parquet.tmp", "notes.txt", "other.parquet"):
        (tmp_path / name).write_bytes(b"junk")
    (tmp_path / "part-000000000009-0123abce.parquet").mkdir()
    assert orders(table) == [1]
    assert table.damaged() == []


def test_files_of_other_versions(tmp_path, event):
    table = Table(EventRecord, tmp_path, small_parts=2)
    table.append([event(1)])
    older = table.read().drop_columns(["message", "data_json"]).set_column(1, "order", pa.array([2], pa.int32()))
    newer = table.read().append_column("later", pa.array(["kept"]))
    newer = newer.set_column(1, "order", pa.array([3], pa.int64()))
    for number, (content, version) in enumerate([(older, "0"), (newer, "99")], start=5):
        path = tmp_path / f"part-{number:012d}-0123abcd.parquet"
        pq.write_table(content.replace_schema_metadata({VERSION_KEY: version}), path)
    assert [(record.order, record.data_json) for record in table.records()] == [
        (1, "{}"),
        (2, "{}"),
        (3, "{}"),
    ]
    table = Table(EventRecord, tmp_path)
    table.append([event(4), event(5)])
    table.compact()
    assert orders(table) == [1, 2, 3, 4, 5]
    assert pq.read_table(path, partitioning=None)["later"].to_pylist() == ["kept"]


def test_a_reader_misses_nothing_while_a_writer_appends_and_compacts(tmp_path, event):
    written = 0
    stop = threading.Event()

    def write():
        nonlocal written
        table = Table(EventRecord, tmp_path, small_parts=3)
        while not stop.is_set():
            table.append([event(written)])
            written += 1
            if written % 17 == 0:
                table.compact()

    writer = threading.Thread(target=write)
    writer.start()
    deadline = time.monotonic() + 60
    try:
        while written < 80 and time.monotonic() < deadline:
            acknowledged = written
            found = orders(Table(EventRecord, tmp_path))
            assert found == list(range(len(found)))
            assert len(found) >= acknowledged
    finally:
        stop.set()
        writer.join()
    assert written >= 80


@pytest.mark.parametrize("failing", ["fsync", "rename"])
@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EROFS])
def test_a_store_that_refuses_loses_nothing(tmp_path, event, monkeypatch, failing, reason):
    table = Table(EventRecord, tmp_path / "table")
    table.append([event(1)])
    monkeypatch.setattr(files, "PATIENCE", 0.0)

    def refuse(*_):
        raise OSError(reason, os.strerror(reason))

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, refuse)
        with pytest.raises(StorageError, match=r"cannot write .*then retry"):
            table.append([event(2)])
        assert orders(table) == [1]
    assert len(list((tmp_path / "table").iterdir())) == 1
    table.append([event(2)])
    assert orders(table) == [1, 2]


@pytest.mark.parametrize("failing", ["fsync", "rename", "open"])
@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EACCES])
def test_a_store_that_refuses_for_a_while_is_waited_for(tmp_path, event, monkeypatch, caplog, failing, reason):
    table = Table(EventRecord, tmp_path / "table")
    table.append([event(1)])
    monkeypatch.setattr(files, "PAUSE", 0.01)
    times = 3
    called = getattr(os, failing)

    def refuse(*arguments, **named):
        nonlocal times
        if times:
            times -= 1
            raise OSError(reason, os.strerror(reason))
        return called(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, refuse)
        table.append([event(2)])
    assert times == 0
    assert orders(Table(EventRecord, tmp_path / "table")) == [1, 2]
    assert len(list((tmp_path / "table").iterdir())) == 2
    first, last = (record.getMessage() for record in caplog.records)
    assert str(tmp_path / "table") in first
    assert os.strerror(reason) in first
    assert "trying again for 60 s" in first
    assert "going on" in last


def test_a_place_that_is_not_a_directory_is_an_error(tmp_path, event):
    (tmp_path / "table").write_text("a file")
    with pytest.raises(StorageError):
        Table(EventRecord, tmp_path / "table").append([event(1)])
    with pytest.raises(StorageError):
        Table(EventRecord, tmp_path / "table").read()
    with pytest.raises(StorageError, match="cannot open the store nowhere://x"):
        Store("nowhere://x")


def test_a_store_holds_the_four_tables_and_names_all_damage(tmp_path, event, evaluation):
    store = Store(tmp_path)
    assert list(tmp_path.iterdir()) == []
    store.events.append([event(1)])
    store.evaluations.append([evaluation(1)])
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == ["evaluations", "events"]
    for path in (tmp_path / "tables").glob("*/*"):
        path.write_bytes(path.read_bytes()[:-20])
    assert sorted(path.split("/")[-2] for path, _ in Store(tmp_path).damaged()) == ["evaluations", "events"]
    assert Store(tmp_path.as_uri()).evaluations.damaged() != []
